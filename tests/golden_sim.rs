//! The kernels as a whole model, on the simulated driver with every check on: each stage of the golden cases no further from the published f32
//! run than the published bf16 run is (tests/data/golden/README.md), masks on average no further from the f32 ones either, equal decisions.

mod common;

use common::demo;
use common::golden::{Golden, name_in_one_case, tiny};
use common::gpu::{device, driver, expect_clean, report};
use mllmseg::checkpoint::Checkpoint;
use mllmseg::device::{Choice, cuda};
use mllmseg::dump::{Data, Input, Tokens, dump};
use mllmseg::image::{Rgb, normalize, resize_bicubic};
use mllmseg::text::{Prompts, Tokenizer, UserText};
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Relative L2 distance of the published bf16 implementation from its own f32 run, the worst of the tiny cases, by stage; rounded up.
const PUBLISHED: [(&str, f64); 21] = [
    ("vit.embeddings", 2.9e-3),
    ("vit.layer", 6.7e-3),
    ("pixel_shuffle", 6.7e-3),
    ("mlp1", 7.7e-3),
    ("llm.in", 7.7e-3),
    ("llm.layer0", 1.2e-2),
    ("llm.layer1", 1.65e-2),
    ("llm.norm", 1.7e-2),
    ("pass1.llm.norm", 1.7e-2),
    ("logits", 1.7e-2),
    ("dec.in", 1.7e-2),
    ("dec.img_llm_down", 1.8e-2),
    ("dec.text_down", 1.8e-2),
    ("dec.ca_layer_v2l", 1.0e-2),
    ("dec.dysample_offset", 1.9e-2),
    ("dec.dysample", 2.8e-2),
    ("dec.text_out_adapter", 1.2e-2),
    ("dec.ca_layer_vl", 2.0e-2),
    ("dec.map448", 2.0e-2),
    ("dec.pre_sigmoid", 2.6e-2),
    ("dec.mask", 1.35e-2),
];

fn bound(name: &str) -> f64 {
    let fits = |(stage, _): &&(&str, f64)| name.starts_with(stage);
    PUBLISHED.iter().find(fits).unwrap_or_else(|| panic!("{name}: no bound")).1
}

fn check(case: &str, pixels_of: &str, suffix: &str) {
    let _driver = driver();
    let golden = Golden::open(case);
    let image = Rgb::new(448, 448, Golden::open(pixels_of).u8("image")).unwrap();
    let ids = golden.i32(&format!("input_ids{suffix}"));
    let input = Input {
        pixel_values: normalize(&image),
        input_ids: ids.iter().map(|&id| id as u32).collect(),
        reevaluate: golden.metadata("reeval") == "true",
        resized: Some((427, 640)),
    };
    cuda::reset_simulator();
    let tokens = Tokens::read(&tiny().dir).unwrap();
    let values = dump(&tiny(), &tokens, &input, None, device()).unwrap();
    expect_clean(&report());
    let (mut compared, mut ious) = (0, Vec::new());
    for name in golden.names() {
        let Some(ours) = name_in_one_case(name, suffix) else { continue };
        if name.contains("bf16") || ours == "image" {
            continue;
        }
        let found = &values[&ours];
        compared += 1;
        match &found.data {
            Data::F32(_) if ours.starts_with("pixel_values") => golden.expect_close(name, found, 1e-7),
            Data::F32(_) => golden.expect_close(name, found, bound(&ours)),
            Data::I32(data) => assert_eq!(*data, golden.i32(name), "{case} {name}"),
            Data::U8(bits) => {
                // Random weights give masks that are mostly edge: the published bf16 run is below 0.99, too.
                let published = golden.u8(&name.replace("dec.", "dec.bf16."));
                let (iou, published) = (iou(bits, &golden.u8(name)), iou(&published, &golden.u8(name)));
                eprintln!("{case} {name}: IoU {iou:.5}, published {published:.5}");
                assert!(iou >= 0.98, "{case} {name}: IoU {iou}");
                ious.push((iou, published));
            }
        }
    }
    assert!(compared > 30, "{case}: only {compared} tensors compared");
    let (ours, published): (f64, f64) = ious.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    assert!(ours >= published, "{case}: IoUs with the f32 masks, and the published bf16 run's: {ious:?}");
}

/// Of two packed masks.
fn iou(a: &[u8], b: &[u8]) -> f64 {
    let count = |f: fn(u8, u8) -> u8| a.iter().zip(b).map(|(a, b)| f(*a, *b).count_ones()).sum::<u32>();
    f64::from(count(|a, b| a & b)) / f64::from(count(|a, b| a | b).max(1))
}

#[test]
fn one_expression() {
    check("tiny-1seg", "tiny-1seg", "");
}

#[test]
fn three_expressions() {
    check("tiny-3seg", "tiny-3seg", "");
}

#[test]
fn rejected_expressions_are_run_again_with_seg() {
    check("tiny-rej", "tiny-rej", "");
}

/// The demo's four vision layers, four language model layers and its decoder, trained: the output of every node is near to the f32 reference's. An output
/// is rounded by up to 2^-9 of itself, and roundings of one layer after another add up as independent ones do, with the root of their number.
#[test]
fn every_node_of_a_deeper_model_is_near_the_reference() {
    let _driver = driver();
    let checkpoint = Arc::new(Checkpoint::open(&demo::model()).unwrap());
    let (config, tokenizer) = (&checkpoint.config, Tokenizer::open(&checkpoint.dir).unwrap());
    let system = config.system_message.as_deref();
    let prompts = Prompts::new(&tokenizer, system, config.image_tokens(), UserText::Plain).unwrap();
    let prompt = prompts.joint(&["the white circle", "a red cat", "the largest square"]).unwrap().ids;
    let size = config.force_image_size;
    let image = resize_bicubic(&demo::picture("images/010.png"), size, size).unwrap();
    let input = Input {
        pixel_values: normalize(&image),
        input_ids: [prompts.prefix(), prompts.image(), prompt].concat(),
        reevaluate: true,
        resized: None,
    };
    let (tokens, all) = (Tokens::read(&checkpoint.dir).unwrap(), Regex::new("").unwrap());
    cuda::reset_simulator();
    let [ours, exact] =
        [device(), Choice::Cpu].map(|d| dump(&checkpoint, &tokens, &input, Some(&all), d).unwrap());
    expect_clean(&report());
    let mut nodes = BTreeMap::new();
    for (name, exact) in &exact {
        let (Data::F32(exact), Data::F32(ours)) = (&exact.data, &ours[name].data) else { continue };
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let apart = norm(&mut ours.iter().zip(exact).map(|(a, b)| f64::from(a - b)));
        let off = apart / norm(&mut exact.iter().map(|&v| f64::from(v)));
        // Layers that it has behind it; the decoder has the vision tower's, and layers of its own.
        let layer = name.strip_prefix("vit.").or(name.strip_prefix("llm.")).and_then(|n| n.split('.').next());
        let layer = layer.and_then(|n| n.trim_start_matches("layer").parse().ok());
        let behind = if name.starts_with("dec.") { 8 } else { layer.unwrap_or(4u32) };
        let bound = 5e-3 * f64::from(1 + behind).sqrt();
        assert!(off <= bound, "{name}: {off:.2e} from the reference, bound {bound:.2e}");
        nodes.insert(name, off);
    }
    let layers = |tower: &str| {
        (0..4).all(|l| nodes.keys().filter(|n| n.starts_with(&format!("{tower}.{l}."))).count() > 5)
    };
    assert!(layers("vit") && layers("llm") && nodes.len() > 120, "{} nodes were compared", nodes.len());
    assert_eq!(ours["logits_prev_argmax"].data.bytes(), exact["logits_prev_argmax"].data.bytes());
}
