//! The engine on the CUDA device, on the simulated driver: the demo's pictures against the published masks, the same bits alone, among others,
//! again, with and without CUDA graphs; faults and shortness of memory. Checks of every access are on in all of them.

mod common;

use common::demo::{engine_with, expect_near_published_masks, model, picture};
use common::gpu::{device, driver, expect_clean, report};
use mllmseg::device::{Choice, cuda};
use mllmseg::image::Rgb;
use mllmseg::{Answer, Engine, Options, Prompting};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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

/// See [`expect_near_published_masks`].
#[test]
fn scenes_match_the_published_masks() {
    let _driver = driver();
    cuda::reset_simulator();
    expect_near_published_masks(&mut sim());
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

/// A picture of few pixels and many lines, which would take three times the model's width each when they have gone across.
#[test]
fn a_picture_of_many_lines_takes_little_memory() {
    let _driver = driver();
    let (mut engine, most) = (sim(), Arc::new(AtomicUsize::new(0)));
    let lines = Arc::clone(&most);
    engine.observe(move |run| {
        if run.node.name.ends_with("preprocess") {
            run.node.op.writes().iter().for_each(|t| _ = lines.fetch_max(t.len(), Relaxed));
        }
    });
    let tall = Rgb::new(1, 200_000, vec![90; 600_000]).unwrap();
    engine.segment(&tall, &["ring"], Prompting::Single, false).unwrap().answers.remove(0).unwrap();
    let bytes = most.load(Relaxed);
    assert!((1..96 << 20).contains(&bytes), "{bytes}");
}
