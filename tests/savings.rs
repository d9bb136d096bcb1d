//! The exact savings: what is shared runs once, and switching any of them off changes nothing.
//!
//! What holds for every saving alone and for all of them off: probabilities differ by less than 1e-5, and mask pixels only where the
//! probability is that near to one half. Not always the same bits: attention over one long range of keys sums in another order than over
//! a shared range and the sequence's own. The same bits hold for an expression alone or among others, for the same request run
//! again, and for any number of threads: an element's sum does not depend on what else is in the matrix.

mod common;

use common::demo::{engine, engine_with, model, picture, run};
use mllmseg::device::Choice;
use mllmseg::dump::{Data, Input, Tokens, dump};
use mllmseg::image::{Rgb, normalize, resize_bicubic};
use mllmseg::models::mllmseg::Savings;
use mllmseg::reference::resize;
use mllmseg::text::UserText;
use mllmseg::{Answer, Engine, Options, Prompting};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

const EXPRESSIONS: [&str; 8] = [
    "white square",
    "the small orange ring",
    "orange ring",
    "the large white square",
    "the blue triangle",
    "the shape on the left",
    "the shape on the right",
    "all shapes",
];

const BOUND: f32 = 1e-5;

fn scene() -> Rgb {
    picture("images/000.png")
}

fn ask(engine: &mut Engine, expressions: &[&str], prompting: Prompting) -> Vec<Answer> {
    let result = engine.segment(&scene(), expressions, prompting, true).unwrap();
    result.answers.into_iter().map(|a| a.unwrap()).collect()
}

fn probability(a: &Answer) -> &[f32] {
    a.probability.as_deref().unwrap()
}

/// Worst difference of probabilities; panics where two answers differ by more than rounding.
fn same(what: &str, found: &Answer, expected: &Answer) -> f32 {
    let (p, q) = (probability(found), probability(expected));
    assert_eq!(p.len(), q.len(), "{what}");
    let worst = p.iter().zip(q).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < BOUND, "{what}: probabilities differ by {worst:e}");
    assert_eq!(found.no_target, expected.no_target, "{what}");
    let (w, h, size) = (found.mask.width, found.mask.height, p.len().isqrt());
    let mut resized = vec![0.0; w * h];
    resize(&mut resized, q, size, h, w);
    for (i, (a, b)) in found.mask.data.iter().zip(&expected.mask.data).enumerate() {
        assert!(
            a == b || (resized[i] - 0.5).abs() < BOUND,
            "{what}: pixel {i} of probability {}",
            resized[i]
        );
    }
    worst
}

/// Answers are the same bits.
fn identical(what: &str, found: &[Answer], expected: &[Answer]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (k, (a, b)) in found.iter().zip(expected).enumerate() {
        let bits = |a: &Answer| probability(a).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{what}: expression {k}: probabilities");
        assert!(a.mask == b.mask && a.score.to_bits() == b.score.to_bits(), "{what}: expression {k}");
    }
}

/// How often each node of each graph ran.
type Counts = Rc<RefCell<HashMap<(&'static str, String), usize>>>;

fn counted(savings: Savings) -> (Engine, Counts) {
    let mut engine = engine_with(Options { savings, ..Options::default() });
    let counts = Counts::default();
    let into = Rc::clone(&counts);
    engine.observe(move |run| *into.borrow_mut().entry((run.graph, run.node.name.clone())).or_default() += 1);
    (engine, counts)
}

/// Parts of the graphs, by the start of their nodes' names: the system prompt, the vision tower, the mask decoder's part that no expression
/// touches, the language model, the masks.
const PARTS: [(&str, &str); 5] =
    [("system", "llm"), ("image", ""), ("text", "dec."), ("text", "llm."), ("masks", "")];

/// The number of runs of each of [`PARTS`], which must be the same for all its nodes; 0 if it never ran.
fn runs(counts: &Counts) -> [usize; 5] {
    let counts = counts.borrow();
    PARTS.map(|(graph, part)| {
        let of_part = counts.iter().filter(|((g, node), _)| *g == graph && node.starts_with(part));
        let mut of: Vec<usize> = of_part.map(|(_, n)| *n).collect();
        of.dedup();
        assert!(of.len() <= 1, "{graph} {part}: its nodes ran {of:?} times");
        of.first().copied().unwrap_or(0)
    })
}

#[test]
fn eight_expressions_see_the_image_once() {
    for prompting in [Prompting::Single, Prompting::Joint] {
        let (mut engine, counts) = counted(Savings::ALL);
        ask(&mut engine, &EXPRESSIONS, prompting);
        assert_eq!(runs(&counts), [1; 5], "{prompting:?}");
        let vit = |(g, n): &&(&str, String)| n.starts_with("vit.") && *g == "image";
        assert!(counts.borrow().keys().filter(vit).count() > 20, "the vision tower is in the log");
        let elsewhere = |(g, n): &(&str, String)| *g != "image" && *g != "pictures" && n.starts_with("vit.");
        assert!(!counts.borrow().keys().any(elsewhere));
        // A second picture: the system prompt stays.
        ask(&mut engine, &EXPRESSIONS[..2], prompting);
        assert_eq!(runs(&counts), [1, 2, 2, 2, 2], "{prompting:?}");
    }
}

#[test]
fn what_is_not_saved_runs_again() {
    let without = |name: &str| Savings::ALL.without(name).unwrap();
    for (savings, expected) in [
        (without("system-once"), [0, 1, 1, 1, 1]),
        (without("image-once"), [1, 8, 8, 8, 8]),
        (without("packed"), [1, 1, 1, 8, 8]),
        (Savings::NONE, [0, 8, 8, 8, 8]),
    ] {
        let (mut engine, counts) = counted(savings);
        ask(&mut engine, &EXPRESSIONS, Prompting::Single);
        assert_eq!(runs(&counts), expected, "{savings:?}");
    }
    assert_eq!(Savings::ALL.without("no such saving"), None);
}

#[test]
fn every_saving_off_gives_the_same_masks() {
    for prompting in [Prompting::Single, Prompting::Joint] {
        let expected = ask(&mut engine(), &EXPRESSIONS, prompting);
        let off = Savings::NAMES.map(|name| (name, Savings::ALL.without(name).unwrap()));
        for (name, savings) in off.into_iter().chain([("all", Savings::NONE)]) {
            let found =
                ask(&mut engine_with(Options { savings, ..Options::default() }), &EXPRESSIONS, prompting);
            let worst = found
                .iter()
                .zip(&expected)
                .enumerate()
                .map(|(k, (a, b))| same(&format!("{prompting:?} without {name}, expression {k}"), a, b))
                .fold(0.0, f32::max);
            println!("{prompting:?} without {name}: worst difference {worst:.1e}");
        }
    }
}

/// The whole prompt in one graph, nothing shared, is what a dump shows.
#[test]
fn the_dump_shows_what_segment_computes() {
    let mut engine = engine();
    let checkpoint = engine.checkpoint().clone();
    let size = checkpoint.config.force_image_size;
    let pixel_values = normalize(&resize_bicubic(&scene(), size, size).unwrap());
    let tokens = Tokens::read(&checkpoint.dir).unwrap();
    for expressions in [&EXPRESSIONS[..1], &EXPRESSIONS[..3]] {
        let input_ids = {
            let prompts = engine.prompts().unwrap();
            [prompts.prefix(), prompts.image(), prompts.joint(expressions).unwrap().ids].concat()
        };
        let input = Input { pixel_values: pixel_values.clone(), input_ids, reevaluate: true, resized: None };
        let values = dump(&checkpoint, &tokens, &input, None, Choice::Cpu).unwrap();
        let Data::F32(mask) = &values["dec.mask"].data else { panic!("a mask is f32") };
        for (k, a) in ask(&mut engine, expressions, Prompting::Joint).into_iter().enumerate() {
            let dumped = mask[k * size * size..][..size * size].to_vec();
            let mut of_dump = a.clone();
            of_dump.probability = Some(dumped);
            let worst = same(&format!("{} expressions, {k}", expressions.len()), &a, &of_dump);
            println!("dump and segment, expression {k} of {}: {worst:.1e}", expressions.len());
        }
    }
}

#[test]
fn an_expression_among_others_is_as_it_is_alone() {
    let mut engine = engine();
    let together = ask(&mut engine, &EXPRESSIONS, Prompting::Single);
    let mut backwards = EXPRESSIONS;
    backwards.reverse();
    let mut backwards = ask(&mut engine, &backwards, Prompting::Single);
    backwards.reverse();
    for (k, e) in EXPRESSIONS.iter().enumerate() {
        let alone = ask(&mut engine, &[e], Prompting::Single);
        identical(&format!("{e:?} among others"), std::slice::from_ref(&together[k]), &alone);
        identical(&format!("{e:?} in another order"), std::slice::from_ref(&backwards[k]), &alone);
    }
}

/// What all sequences begin with is computed once a picture: the rows of the token matrix.
#[test]
fn what_opens_all_sequences_runs_once() {
    let mut engine = engine();
    let asked: Vec<_> = {
        let prompts = engine.prompts().unwrap();
        EXPRESSIONS.iter().map(|e| prompts.single(e).unwrap()).collect()
    };
    let opening = asked[0].opening;
    assert!(opening > 1 && asked.iter().all(|s| s.ids[..opening] == asked[0].ids[..opening]));
    let image = engine.prompts().unwrap().image().len();
    let rows = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&rows);
    engine.observe(move |run| {
        if run.graph == "text" && run.node.name == "llm.tok_embeddings" {
            into.borrow_mut().push(run.node.op.writes()[0].shape[0]);
        }
    });
    let ours: usize = asked.iter().map(|s| s.slots[0] - opening).sum();
    ask(&mut engine, &EXPRESSIONS, Prompting::Single);
    assert_eq!(*rows.borrow(), [image + opening + ours]);
}

/// A slot that is read from the first row behind the opening.
#[test]
fn a_slot_right_behind_the_opening() {
    let mut engine = engine_with(Options { user_text: UserText::Parsed, ..Options::default() });
    let sentences = ["Show the white square.", "[SEG] is a ring.", "Show the orange ring."];
    let slot = engine.prompts().unwrap().reasoning(sentences[1]).unwrap();
    assert!(slot.opening > 0 && slot.slots[0] == slot.opening + 1, "{slot:?}");
    let together = ask(&mut engine, &sentences, Prompting::Reasoning);
    for (e, found) in sentences.iter().zip(&together) {
        identical(e, std::slice::from_ref(found), &ask(&mut engine, &[e], Prompting::Reasoning));
    }
}

/// Sequences of one request need several runs, the longest not in the first: each must have room in the K/V cache.
#[test]
fn a_long_expression_after_a_short_one() {
    let long = format!("white square {}", "a ".repeat(1900));
    let expressions = ["white square", long.as_str(), "orange ring"];
    let mut engine = engine();
    let rows = engine.prompts().unwrap().single(&long).unwrap().ids.len();
    assert!(rows > 3500, "{rows} tokens");
    let answers = ask(&mut engine, &expressions, Prompting::Single);
    for (k, e) in expressions.iter().enumerate() {
        same(
            &format!("expression {k}"),
            &answers[k],
            &ask(&mut engine_with(Options::default()), &[e], Prompting::Single)[0],
        );
    }
}

#[test]
fn the_same_request_gives_the_same_bits() {
    for prompting in [Prompting::Single, Prompting::Joint] {
        let mut first = engine();
        let expected = ask(&mut first, &EXPRESSIONS, prompting);
        identical("again", &ask(&mut first, &EXPRESSIONS, prompting), &expected);
        // What ran before leaves no trace.
        first.segment(&picture("images/002.jpg"), &["red ring"], prompting, false).unwrap();
        identical("after another picture", &ask(&mut first, &EXPRESSIONS, prompting), &expected);
        identical("in another engine", &ask(&mut engine(), &EXPRESSIONS, prompting), &expected);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| ask(&mut engine(), &EXPRESSIONS, Prompting::Single))
    };
    let expected = with(1);
    for threads in [2, 3, 7] {
        identical(&format!("{threads} threads"), &with(threads), &expected);
    }
}

/// `--log-nodes` shows it too, in every mode.
#[test]
fn the_log_of_nodes_shows_one_run_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (log, out) = (folder.path().join("nodes.jsonl"), folder.path().join("out"));
    let (log, out, model) = (log.to_str().unwrap(), out.to_str().unwrap(), model());
    let image = common::demo::assets().join("images/000.png").display().to_string();
    for (prompting, without, images) in [
        ("single", None, 1),
        ("joint", None, 1),
        ("single", Some("image-once"), 8),
        ("single", Some("all"), 8),
    ] {
        let mut args =
            vec!["segment", "--model", &model, "--image", &image, "--out", out, "--log-nodes", log];
        args.extend(["--prompting", prompting]);
        args.extend(EXPRESSIONS.iter().flat_map(|e| ["--expr", *e]));
        args.extend(without.into_iter().flat_map(|name| ["--without", name]));
        let o = run(&args);
        assert!(o.status.success(), "{o:?}");
        let mut counts: HashMap<(String, String), usize> = HashMap::new();
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let v: serde_json::Value = serde_json::from_str(line).unwrap();
            let field = |name: &str| v[name].as_str().unwrap().to_string();
            assert!(v["us"].is_u64() && !field("op").is_empty(), "{line}");
            *counts.entry((field("graph"), field("node"))).or_default() += 1;
        }
        let of_image = |g: &str, node: &str| g == "image" || g == "text" && node.starts_with("dec.");
        let image: Vec<_> = counts.iter().filter(|((g, node), _)| of_image(g, node)).collect();
        assert!(image.len() > 50 && image.iter().all(|(_, n)| **n == images), "{prompting} {without:?}");
    }
}
