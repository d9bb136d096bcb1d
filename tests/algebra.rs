//! Tensor cores of a whole request do at most a tenth more than the model's algebra needs: nothing is computed for rows and columns that only
//! fill tiles but for that. At the 8B model's widths, on the simulated driver, counted by `mllmseg profile`.

mod common;

use common::demo::assets;
use common::hollow::hollow;
use serde_json::Value;
use std::process::Command;

/// Layers of the 8B model's towers. The checkpoint here has two of each, which stand for all but the last, and the last.
const LAYERS: [(&str, u64); 2] = [("vit.0.", 24 - 1), ("llm.0.", 32 - 1)];

/// FLOPs that are needed and that tensor cores execute, over all graphs, of the model with all its layers.
fn work(profile: &Value) -> (u64, u64) {
    let (mut needed, mut executed) = (0, 0);
    for node in profile["nodes"].as_array().unwrap() {
        let done = node["counted"]["tensor_flops"].as_u64().unwrap();
        if done > 0 {
            let name = node["node"].as_str().unwrap();
            let times = LAYERS.iter().find(|l| name.starts_with(l.0)).map_or(1, |l| l.1);
            needed += times * node["flops"].as_u64().unwrap();
            executed += times * done;
        }
    }
    (needed, executed)
}

#[test]
fn tensor_cores_do_what_the_algebra_needs() {
    check("single", &["the white circle on the left", "a red cat"]);
}

#[test]
#[ignore = "as long as the one above"]
fn tensor_cores_do_what_the_algebra_needs_of_a_joint_prompt() {
    check("joint", &["the white circle", "a red cat", "a ring"]);
}

fn check(prompting: &str, expressions: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("8b");
    hollow(&model, include_str!("../src/checkpoint/presets/8b.json"));
    for file in std::fs::read_dir("tests/data/tokenizer/8b").unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let image = assets().join("images/010.png");
    let mut profile = Command::new(env!("CARGO_BIN_EXE_mllmseg"));
    profile.args(["profile", "--device", "sim", "--json", "--prompting", prompting]);
    profile.arg("--model").arg(&model).arg("--image").arg(&image);
    profile.args(expressions.iter().flat_map(|e| ["--expr", *e]));
    let o = profile.env("PTXSIM_CHECKS", "none").env("MLLMSEG_SIM_IN_PLACE", "0").output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let profile: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(profile["request"]["image"], 256);
    let (needed, executed) = work(&profile);
    let more = executed as f64 / needed as f64 - 1.0;
    println!(
        "{prompting}: {} GFLOP executed, {} needed, {:+.1} %",
        executed / 1_000_000_000,
        needed / 1_000_000_000,
        100.0 * more
    );
    println!("of two layers: {}", profile["tensor_work"]);
    assert!(needed > 4_000_000_000_000, "a request of the 8B model needs more than {needed} FLOPs");
    assert!((0.0..0.1).contains(&more), "{prompting}: {executed} FLOPs executed, {needed} needed");
}
