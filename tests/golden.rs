//! The published implementation's numbers: every stage of every tiny case within 1e-5 relative L2 of its f32 run, decisions and
//! token ids equal, thresholded masks equal but for pixels within 1e-4 of one half.

mod common;

use common::golden::{Golden, tiny};
use mllmseg::device::Choice;
use mllmseg::dump::{Data, Input, Tokens, Value, dump};
use mllmseg::image::{Rgb, normalize};

/// f32 against f64 is at most 2.2e-6 at every stage (tests/data/golden/README.md).
const BOUND: f64 = 1e-5;

/// Runs the dump on a case's pixels and ids and compares every tensor that the case holds for prompt `suffix`.
fn check(case: &str, pixels_of: &str, suffix: &str) {
    let golden = Golden::open(case);
    let source = Golden::open(pixels_of);
    let image = Rgb::new(448, 448, source.u8("image")).unwrap();
    let ids = golden.i32(&format!("input_ids{suffix}"));
    let input = Input {
        pixel_values: normalize(&image),
        input_ids: ids.iter().map(|&id| id as u32).collect(),
        reevaluate: golden.metadata("reeval") == "true",
        resized: Some((427, 640)),
    };
    let values = dump(&tiny(), &Tokens::read(&tiny().dir).unwrap(), &input, None, Choice::Cpu).unwrap();
    let mut compared = 0;
    for name in golden.names() {
        // `.k` and `deck.` are prompt k's in a file of several prompts
        let Some(ours) = common::golden::name_in_one_case(name, suffix) else { continue };
        if name.contains("bf16") || ours == "image" {
            continue;
        }
        let found = values.get(&ours).unwrap_or_else(|| panic!("{case}: nothing was dumped for {name}"));
        compared += 1;
        match &found.data {
            Data::F32(_) if ours.starts_with("pixel_values") => golden.expect_close(name, found, 1e-7),
            Data::F32(_) => golden.expect_close(name, found, BOUND),
            Data::I32(data) => assert_eq!(*data, golden.i32(name), "{case} {name}"),
            Data::U8(bits) => {
                let mask = if ours.contains("resized") { "dec.mask_resized" } else { "dec.mask" };
                same_bits(&format!("{case} {name}"), bits, &golden.u8(name), &values[mask], &ours);
            }
        }
    }
    assert!(compared > 30, "{case}: only {compared} tensors compared");
}

/// Packed masks are equal but where the probability is within 1e-4 of one half.
fn same_bits(what: &str, found: &[u8], expected: &[u8], mask: &Value, name: &str) {
    let Data::F32(p) = &mask.data else { panic!("{what}: a mask is f32") };
    let q: usize = name.rsplit('.').next().unwrap().parse().unwrap();
    let pixels = mask.shape[1] * mask.shape[2];
    assert_eq!(found.len(), expected.len(), "{what}");
    for i in 0..pixels {
        let bit = |bits: &[u8]| bits[i / 8] >> (7 - i % 8) & 1;
        let v = p[q * pixels + i];
        assert!(
            bit(found) == bit(expected) || (v - 0.5).abs() < 1e-4,
            "{what}: pixel {i} of probability {v}"
        );
    }
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

#[test]
fn two_prompts_each_alone() {
    check("tiny-2prompts", "tiny-1seg", ".0");
    check("tiny-2prompts", "tiny-3seg", ".1");
}
