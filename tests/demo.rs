//! The demo: a trained model on drawn scenes, against the published implementation's masks (tests/data/demo) and the ground truth.

mod common;

use common::demo::{assets, engine, engine_with, expect_near_published_masks, picture, run, scenes};
use mllmseg::image::Mask;
use mllmseg::reference::Precision;
use mllmseg::{Answer, Options, Prompting};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

/// Mean IoU with the ground truth over every scene, and the answers by scene, each compared with `compare`.
fn every_scene(prompting: Prompting, mut compare: impl FnMut(&str, usize, &Value, &Answer)) -> f64 {
    let mut engine = engine();
    let mut ious = Vec::new();
    for scene in scenes() {
        let texts = scene.texts();
        let result = engine.segment(&picture(&scene.image), &texts, prompting, false).unwrap();
        for (k, (e, answer)) in scene.expressions.iter().zip(result.answers).enumerate() {
            let answer = answer.unwrap();
            compare(&scene.id, k, e, &answer);
            if e["present"].as_bool().unwrap() {
                ious.push(answer.mask.iou(&scene.truth(k)).unwrap());
            }
        }
    }
    assert_eq!(ious.len(), 53);
    ious.iter().sum::<f64>() / ious.len() as f64
}

/// Masks within IoU 0.99 of the reference's, equal decisions, mean IoU with the ground truth within 0.005 of its.
fn matches_the_reference(prompting: Prompting, mode: &str, mean_of: &str) {
    let mut least = (1.0, String::new());
    let mean = every_scene(prompting, |id, k, e, answer| {
        let name = format!("{id}_{k}_{mode}.png");
        let file = common::golden::data(&format!("demo/masks/{name}"));
        let expected = Mask::from_png(&std::fs::read(file).unwrap(), &name).unwrap();
        let iou = answer.mask.iou(&expected).unwrap();
        if iou < least.0 {
            least = (iou, name.clone());
        }
        assert!(iou >= 0.99, "{name}: IoU {iou} with the reference's mask");
        assert_eq!(answer.no_target, e[mode]["reject"].as_bool().unwrap(), "{name}: decision");
        let area = answer.mask.area() as f64;
        assert!(answer.score == 0.0 && area == 0.0 || (0.5..=1.0).contains(&answer.score), "{name}: score");
    });
    let expected = summary()[mean_of]["mean_iou"].as_f64().unwrap();
    println!(
        "{mode}: least IoU with the reference {:.5} ({}), mean IoU {mean:.4}, reference {expected}",
        least.0, least.1
    );
    assert!((mean - expected).abs() < 0.005, "{mode}: mean IoU {mean}, the reference has {expected}");
}

fn summary() -> Value {
    serde_json::from_slice(&std::fs::read(assets().join("summary.json")).unwrap()).unwrap()
}

#[test]
fn joint_prompts_match_the_reference() {
    matches_the_reference(Prompting::Joint, "joint", "joint");
}

#[test]
fn single_prompts_match_the_reference() {
    matches_the_reference(Prompting::Single, "alone", "one_expression");
}

/// The reference has no masks for the phrase template, only their mean IoU.
#[test]
fn phrases_reach_the_reference_mean() {
    let mean = every_scene(Prompting::Phrase, |_, _, _, _| {});
    let expected = summary()["phrase_template"]["mean_iou"].as_f64().unwrap();
    println!("phrase: mean IoU {mean:.4}, reference {expected}");
    assert!((mean - expected).abs() < 0.005, "mean IoU {mean}, the reference has {expected}");
}

/// Where the CPU has AVX-512 BF16; elsewhere this runs in f32.
#[test]
fn masks_in_bf16_are_near_the_reference() {
    expect_near_published_masks(&mut engine_with(Options {
        precision: Precision::Bf16,
        ..Options::default()
    }));
}

/// Every probability of four scenes within 1e-4 of the reference's.
#[test]
fn probabilities_match_the_reference() {
    let bytes = std::fs::read(common::golden::data("demo/probabilities.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut engine = engine();
    let mut worst = 0.0f32;
    for scene in scenes().iter().take(file.names().len()) {
        let expected = file.tensor(&scene.id).unwrap();
        let expected: &[[u8; 4]] = expected.data().as_chunks().0;
        let result = engine.segment(&picture(&scene.image), &scene.texts(), Prompting::Joint, true).unwrap();
        let found: Vec<f32> =
            result.answers.into_iter().flat_map(|a| a.unwrap().probability.unwrap()).collect();
        assert_eq!(found.len(), expected.len(), "{}", scene.id);
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let e = f32::from_le_bytes(*e);
            worst = worst.max((f - e).abs());
            assert!((f - e).abs() < 1e-4, "{}: element {i} is {f}, the reference has {e}", scene.id);
        }
    }
    println!("probabilities: worst difference {worst:.1e}");
}

/// The command: a line an expression, the mean, and a page whose every file is there.
#[test]
fn the_command_writes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a b/demo");
    let (assets, dir) = (assets().display().to_string(), out.display().to_string());
    let o = run(&["demo", "--assets", &assets, "--out", &dir]);
    assert!(o.status.success(), "{o:?}");
    let stdout = String::from_utf8(o.stdout).unwrap();
    let mean: f64 = stdout.split("mean IoU ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let expected = summary()["one_expression"]["mean_iou"].as_f64().unwrap();
    assert!((mean - expected).abs() < 0.005, "{stdout}");
    for e in scenes().iter().flat_map(|s| s.texts().into_iter().map(str::to_string).collect::<Vec<_>>()) {
        assert!(stdout.contains(&e), "no line for {e:?}");
    }
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    let mut files: Vec<&str> = page.split("src=\"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    assert_eq!(files.len(), 48, "a picture and an overlay a scene");
    for file in &files {
        let bytes = std::fs::read(out.join(file)).unwrap();
        assert!(
            mllmseg::image::read(&out.join(file), &Default::default(), false).is_ok(),
            "{file}: {} bytes",
            bytes.len()
        );
    }
    files.push("index.html");
    for entry in std::fs::read_dir(&out).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(files.iter().any(|f| Path::new(f).as_os_str() == name), "{name:?} is on no page");
    }
}

#[test]
fn the_command_without_its_files_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display().to_string();
    let o = run(&["demo", "--assets", &dir, "--out", &dir]);
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    let stderr = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(stderr.contains("scenes.jsonl") && stderr.lines().count() == 1, "{stderr}");
    let o = run(&["demo", "--assets", &assets().display().to_string(), "--scenes", "0", "--out", &dir]);
    assert_eq!(o.status.code(), Some(2), "{o:?}");
}
