//! The demo's model and scenes (assets/demo), and the program itself.

use mllmseg::image::{Mask, Rgb, Rle, read};
use mllmseg::{Engine, Options};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo")
}

pub fn model() -> String {
    assets().join("model").display().to_string()
}

pub fn engine() -> Engine {
    engine_with(Options::default())
}

pub fn engine_with(options: Options) -> Engine {
    Engine::open(&model(), options).unwrap()
}

/// A picture of assets/demo: `images/000.png`.
pub fn picture(file: &str) -> Rgb {
    read(&assets().join(file), &Default::default(), false).unwrap()
}

/// One line of scenes.jsonl.
pub struct Scene {
    pub id: String,
    pub image: String,
    pub expressions: Vec<Value>,
    /// Questions, and what the reference answers.
    pub chat: Vec<Value>,
}

impl Scene {
    pub fn texts(&self) -> Vec<&str> {
        self.expressions.iter().map(|e| e["text"].as_str().unwrap()).collect()
    }

    /// Ground truth of expression `k`.
    pub fn truth(&self, k: usize) -> Mask {
        let number = |v: &Value| v.as_u64().unwrap();
        let list = |v: &Value| v.as_array().unwrap().iter().map(number).collect::<Vec<_>>();
        let gt = &self.expressions[k]["gt"];
        let (size, counts) = (list(&gt["size"]), list(&gt["counts"]));
        let counts = counts.into_iter().map(|c| c as u32).collect();
        Rle { size: [size[0] as usize, size[1] as usize], counts }.decode().unwrap()
    }
}

pub fn scenes() -> Vec<Scene> {
    let text = std::fs::read_to_string(assets().join("scenes.jsonl")).unwrap();
    let scene = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        let string = |key: &str| v[key].as_str().unwrap().to_string();
        Scene {
            id: string("id"),
            image: string("image"),
            expressions: v["expressions"].as_array().unwrap().clone(),
            chat: v["chat"].as_array().unwrap().clone(),
        }
    };
    text.lines().map(scene).collect()
}

/// Runs the program.
pub fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mllmseg")).args(args).output().unwrap()
}
