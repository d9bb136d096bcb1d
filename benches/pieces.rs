//! The real-width pieces (8B dimensions, synthetic weights) on the CPU: milliseconds, median of several runs, and the product alone.
//!
//!     cargo bench --bench pieces
//!     cargo bench --bench pieces -- request DIR [bf16|f32]
//!
//! Prints one line of JSON a piece. With `request`, whole requests to the checkpoint in DIR instead: a picture and three expressions, in one
//! prompt and one by one; the system prompt's K and V are there from an earlier request, `system_ms` is what they took.
//! `tools/bench_torch.py` times the same in PyTorch, turn by turn with this, and writes the record.

#[path = "../tests/common/pieces.rs"]
#[allow(dead_code)] // The tests use more of it.
mod pieces;

use mllmseg::image::Rgb;
use mllmseg::reference::{self, Precision, Then, Weights};
use mllmseg::{Engine, Options, Prompting};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// As RefCOCO's are.
const EXPRESSIONS: [&str; 3] =
    ["left guy in the blue shirt", "the dog", "woman with the red umbrella on the right"];

/// Median and least of `n` times, in milliseconds, after one run to warm up.
fn time(n: usize, mut f: impl FnMut()) -> (f64, f64) {
    f();
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[n / 2], times[0])
}

fn print(name: &str, precision: Precision, (median, least): (f64, f64)) {
    let precision = format!("{precision:?}").to_lowercase();
    let line =
        serde_json::json!({"piece": name, "precision": precision, "median_ms": median, "min_ms": least});
    println!("{line}");
}

/// Requests to the checkpoint in `dir`.
fn request(dir: &str, precision: Precision) {
    let options = Options { precision, ..Options::default() };
    let mut engine = Engine::open(dir, options).expect("a checkpoint");
    let system = Rc::new(Cell::new(0.0));
    let seen = Rc::clone(&system);
    engine.observe(move |run| {
        if run.graph == "system" {
            seen.set(seen.get() + run.time.as_secs_f64() * 1e3);
        }
    });
    let (width, height) = (640, 480);
    let data = (0..3 * width * height).map(|i| ((i * 2_654_435_761) >> 12) as u8).collect();
    let picture = Rgb::new(width, height, data).expect("a picture");
    let prompts = engine.prompts().expect("prompts");
    let sequence = prompts.joint(&EXPRESSIONS).expect("a prompt");
    let ids = [prompts.prefix(), prompts.image(), sequence.ids].concat();
    let mut runs = serde_json::Map::new();
    for (name, prompting) in [("joint", Prompting::Joint), ("single", Prompting::Single)] {
        let mut last = Default::default();
        let (median, least) = time(3, || {
            let found = engine.segment(&picture, &EXPRESSIONS, prompting, false).expect("masks");
            assert!(found.answers.iter().all(Result::is_ok));
            last = found.timings;
        });
        runs.insert(name.into(), serde_json::json!({"median_ms": median, "min_ms": least, "last": last}));
    }
    let precision = format!("{precision:?}").to_lowercase();
    let line = serde_json::json!({"piece": "request", "precision": precision, "system_ms": system.get(), "ids": ids, "runs": runs});
    println!("{line}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if let [first, dir, precision @ ..] = &args[..]
        && first == "request"
    {
        let bf16 = precision.first().is_none_or(|p| p == "bf16");
        return request(dir, if bf16 { Precision::Bf16 } else { Precision::F32 });
    }
    let filter = args.first().cloned().unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    let dir = tempfile::tempdir().expect("a folder for the weights");
    let made = pieces::Pieces::new(dir.path(), mllmseg::device::Choice::Cpu);
    let precisions =
        if reference::has_bf16() { vec![Precision::F32, Precision::Bf16] } else { vec![Precision::F32] };
    for precision in precisions {
        type Make<'a> = Box<dyn Fn() -> pieces::Piece + 'a>;
        let all: [(&str, Make); 5] = [
            ("vit_layer_1025", Box::new(|| made.vit_layer(precision))),
            ("llm_layer_320", Box::new(|| made.llm_layer(320, precision))),
            ("mlp1", Box::new(|| made.mlp1(precision))),
            ("res_decoder_1q", Box::new(|| made.decoder(1, true, precision))),
            ("res_decoder_3q", Box::new(|| made.decoder(3, true, precision))),
        ];
        for (name, make) in all.into_iter().filter(|(name, _)| wanted(name)) {
            let mut piece = make();
            piece.write();
            print(name, precision, time(5, || piece.run()));
        }
        for (m, n, k) in [(1025, 4096, 1024), (320, 14336, 4096), (40, 14336, 4096), (1, 14336, 4096)] {
            let name = format!("matmul_{m}x{n}x{k}");
            if wanted(&name) {
                let x = vec![0.5f32; m * k];
                let w = vec![half::bf16::from_f32(0.25); n * k];
                let mut y = vec![0.0; m * n];
                let mut run =
                    || reference::matmul(&mut y, &x, Weights::Bf16(&w), n, None, Then::Store, precision);
                print(&name, precision, time(5, &mut run));
            }
        }
    }
}
