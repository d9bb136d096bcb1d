//! Several pictures in one run: each answer has the bits that it has alone, on the CPU and through the kernels; a stream gives the same.

mod common;

use common::demo::{engine_with, picture, scenes};
use common::gpu::{device, driver, expect_clean, report};
use mllmseg::device::cuda;
use mllmseg::engine::{MAX_IMAGES, Prepared, Request};
use mllmseg::models::mllmseg::Savings;
use mllmseg::{Answer, Engine, Options, Prompting};

/// The demo's first scenes, with 1 to 4 expressions each; the second has one that cannot be used, the fourth has none.
fn requests(n: usize, prompting: Prompting) -> Vec<Request> {
    let request = |(i, scene): (usize, common::demo::Scene)| {
        let mut texts = scene.texts();
        match i {
            1 => texts.insert(1, " . "),
            3 => texts.clear(),
            _ => {}
        }
        Request { prompting, ..Request::new(picture(&scene.image), texts) }
    };
    scenes().into_iter().take(n).enumerate().map(request).collect()
}

fn prepared(engine: &Engine, requests: &[Request]) -> Vec<Prepared> {
    requests.iter().map(|r| engine.preprocessor().prepare(r).unwrap()).collect()
}

fn alone(engine: &mut Engine, r: &Request) -> Vec<mllmseg::Result<Answer>> {
    let texts: Vec<&str> = r.expressions.iter().map(String::as_str).collect();
    engine.segment(&r.picture, &texts, r.prompting, true).unwrap().answers
}

/// How many answers have masks; panics where two differ by a bit.
#[track_caller]
fn identical(what: &str, found: &[mllmseg::Result<Answer>], expected: &[mllmseg::Result<Answer>]) -> usize {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut masks = 0;
    for (k, pair) in found.iter().zip(expected).enumerate() {
        match pair {
            (Ok(a), Ok(b)) => {
                let bits =
                    |a: &Answer| a.probability.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(a) == bits(b), "{what}: expression {k}: probabilities");
                assert!(a.mask == b.mask && a.score.to_bits() == b.score.to_bits(), "{what}: expression {k}");
                assert_eq!(a.no_target, b.no_target, "{what}: expression {k}");
                masks += 1;
            }
            (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string(), "{what}: expression {k}"),
            _ => panic!("{what}: expression {k}: an answer in one, an error in the other"),
        }
    }
    masks
}

/// All requests in one call, and alone, in an engine each.
fn together(options: Options, requests: &[Request]) {
    let (mut batch, mut single) = (engine_with(options), engine_with(options));
    let mut prepared = prepared(&batch, requests);
    let found = batch.segment_batch(&mut prepared, true).unwrap();
    assert_eq!(found.len(), requests.len());
    let mut masks = 0;
    for (i, (found, request)) in found.iter().zip(requests).enumerate() {
        masks += identical(&format!("picture {i}"), &found.answers, &alone(&mut single, request));
    }
    assert!(masks >= requests.len(), "{masks} masks");
}

#[test]
fn pictures_have_the_same_bits_together() {
    for prompting in [Prompting::Single, Prompting::Joint] {
        // Two runs of the image graph: a full one and a rest.
        together(Options::default(), &requests(MAX_IMAGES + 3, prompting));
    }
    for saving in ["system-once", "image-once", "packed"] {
        let savings = Savings::ALL.without(saving).unwrap();
        together(Options { savings, ..Options::default() }, &requests(3, Prompting::Single));
    }
}

#[test]
fn pictures_have_the_same_bits_together_through_the_kernels() {
    let _driver = driver();
    cuda::reset_simulator();
    together(Options { device: device(), ..Options::default() }, &requests(3, Prompting::Single));
    expect_clean(&report());
}

#[test]
fn a_stream_answers_in_order() {
    let requests = requests(2 * MAX_IMAGES + 1, Prompting::Single);
    let (mut engine, mut single) = (engine_with(Options::default()), engine_with(Options::default()));
    let found: Vec<_> = engine.stream(requests.clone()).collect();
    assert_eq!(found.len(), requests.len());
    for (i, (found, request)) in found.into_iter().zip(&requests).enumerate() {
        let mut expected = alone(&mut single, request);
        expected.iter_mut().flatten().for_each(|a| a.probability = None);
        identical(&format!("picture {i}"), &found.unwrap().answers, &expected);
    }
    // Dropped before its end, it leaves the engine usable.
    drop(engine.stream(requests.clone()).next());
    assert_eq!(engine.stream(requests).count(), 2 * MAX_IMAGES + 1);
}
