//! The demo's model and scenes (assets/demo), and the program itself.

use super::golden::data;
use mllmseg::image::{Mask, Rgb, Rle, read};
use mllmseg::{Engine, Options, Prompting};
use serde_json::Value;
use std::collections::HashMap;
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

/// Every scene's masks beside the published f32 ones: IoU of at least 0.99, or where plain PyTorch in bf16 falls below that itself
/// (bf16.json, made by tools/train_demo/bf16.py), no more than twice as far away; on the whole no further than it. Of a mask of few pixels, a
/// dozen may differ whatever its IoU.
pub fn expect_near_published_masks(engine: &mut Engine) {
    let plain: HashMap<String, f64> =
        serde_json::from_slice(&std::fs::read(data("demo/bf16.json")).unwrap()).unwrap();
    let (mut ious, mut plain_sum, mut present, mut truth) = (Vec::new(), 0.0, 0, 0.0);
    for scene in scenes() {
        let texts = scene.texts();
        let found = engine.segment(&picture(&scene.image), &texts, Prompting::Single, false).unwrap();
        for (k, (e, answer)) in scene.expressions.iter().zip(found.answers).enumerate() {
            let (answer, name) = (answer.unwrap(), format!("{}_{k}_alone", scene.id));
            let file = data(&format!("demo/masks/{name}.png"));
            let expected = Mask::from_png(&std::fs::read(file).unwrap(), &name).unwrap();
            let iou = answer.mask.iou(&expected).unwrap();
            let least = (1.0 - 2.0 * (1.0 - plain[&name])).min(0.99);
            // |a| + |b| = (1 + IoU) |a or b|
            let differ = (answer.mask.area() + expected.area()) as f64 * (1.0 - iou) / (1.0 + iou);
            assert!(
                iou >= least || differ <= 12.5,
                "{name}: IoU {iou} with the published f32 mask, {differ:.0} pixels differ; expected at least {least}"
            );
            assert_eq!((answer.area, answer.bbox), (answer.mask.area(), answer.mask.bbox()), "{name}");
            assert_eq!(answer.no_target, e["alone"]["reject"].as_bool().unwrap(), "{name}: decision");
            ious.push(iou);
            plain_sum += plain[&name];
            if e["present"].as_bool().unwrap() {
                present += 1;
                truth += answer.mask.iou(&scene.truth(k)).unwrap();
            }
        }
    }
    let mean = |sum: f64| sum / ious.len() as f64;
    let (ours, plain) = (mean(ious.iter().sum()), mean(plain_sum));
    let truth = truth / f64::from(present);
    println!(
        "mean IoU with the published f32 masks {ours:.4} (plain bf16: {plain:.4}), with the truth {truth:.4}"
    );
    assert!(ours >= plain, "mean IoU with the published f32 masks {ours}, that of plain bf16 is {plain}");
}
