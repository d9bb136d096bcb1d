//! The engine on the CUDA device, on the simulated driver: the demo's pictures against the published masks, the same bits alone, among others,
//! again, with and without CUDA graphs; faults and shortness of memory. Checks of every access are on in all of them.

mod common;

use common::demo::{engine_with, model, picture, scenes};
use common::gpu::{device, driver, expect_clean, report};
use mllmseg::device::{Choice, cuda};
use mllmseg::image::Mask;
use mllmseg::{Answer, Engine, Options, Prompting};
use std::collections::HashMap;

const EXPRESSIONS: [&str; 5] =
    ["the white circle", "a red cat", "the largest square", "ring", "the leftmost blue shape"];

fn sim() -> Engine {
    engine_with(Options { device: device(), ..Options::default() })
}

fn ask(engine: &mut Engine, expressions: &[&str], prompting: Prompting) -> Vec<Answer> {
    let found = engine.segment(&picture("images/010.png"), expressions, prompting, true).unwrap();
    found.answers.into_iter().map(Result::unwrap).collect()
}

#[track_caller]
fn identical(what: &str, a: &[Answer], b: &[Answer]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let bits = |x: &Answer| x.probability.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{what}: probabilities of {i} differ");
        assert!(
            a.mask.iou(&b.mask).unwrap() == 1.0 && a.score == b.score && a.no_target == b.no_target,
            "{what}: {i}"
        );
    }
}

/// Every scene's masks beside the published f32 ones: IoU of at least 0.99, or where plain PyTorch in bf16 falls below that itself
/// (bf16.json, made by tools/train_demo/bf16.py), no more than twice as far away; on the whole no further than it. Of a mask of few pixels, a
/// dozen may differ whatever its IoU.
#[test]
fn scenes_match_the_published_masks() {
    let _driver = driver();
    cuda::reset_simulator();
    let plain: HashMap<String, f64> =
        serde_json::from_slice(&std::fs::read(common::golden::data("demo/bf16.json")).unwrap()).unwrap();
    let mut engine = sim();
    let (mut ious, mut plain_sum, mut present, mut truth) = (Vec::new(), 0.0, 0, 0.0);
    for scene in scenes() {
        let texts = scene.texts();
        let found = engine.segment(&picture(&scene.image), &texts, Prompting::Single, false).unwrap();
        for (k, (e, answer)) in scene.expressions.iter().zip(found.answers).enumerate() {
            let (answer, name) = (answer.unwrap(), format!("{}_{k}_alone", scene.id));
            let file = common::golden::data(&format!("demo/masks/{name}.png"));
            let expected = Mask::from_png(&std::fs::read(file).unwrap(), &name).unwrap();
            let iou = answer.mask.iou(&expected).unwrap();
            let least = (1.0 - 2.0 * (1.0 - plain[&name])).min(0.99);
            // |a| + |b| = (1 + IoU) |a or b|
            let differ = (answer.mask.area() + expected.area()) as f64 * (1.0 - iou) / (1.0 + iou);
            assert!(
                iou >= least || differ <= 12.5,
                "{name}: IoU {iou} with the published f32 mask, {differ:.0} pixels differ; expected at least {least}"
            );
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
    expect_clean(&report());
}

#[test]
fn an_expression_has_the_same_bits_in_any_company() {
    let _driver = driver();
    let mut engine = sim();
    let together = ask(&mut engine, &EXPRESSIONS, Prompting::Single);
    identical("again, as graphs", &ask(&mut engine, &EXPRESSIONS, Prompting::Single), &together);
    for (k, e) in EXPRESSIONS.iter().enumerate().step_by(2) {
        identical(e, &ask(&mut engine, &[e], Prompting::Single), std::slice::from_ref(&together[k]));
    }
    let joint = ask(&mut engine, &EXPRESSIONS[..2], Prompting::Joint);
    let mut plain =
        engine_with(Options { device: device(), graphs: false, sync: true, ..Options::default() });
    identical("without graphs", &ask(&mut plain, &EXPRESSIONS, Prompting::Single), &together);
    identical("joint, without graphs", &ask(&mut plain, &EXPRESSIONS[..2], Prompting::Joint), &joint);
}

#[test]
fn a_device_that_cannot_be_had_is_named() {
    let _driver = driver();
    drop(sim()); // the simulated driver is loaded
    let open =
        |device| Engine::open(&model(), Options { device, ..Options::default() }).err().unwrap().to_string();
    let e = open(Choice::Cuda(0));
    assert!(e.contains("cuda:0") && e.contains("simulated"), "{e}");
}
