//! The real-width pieces (8B dimensions, synthetic weights) on the CPU: milliseconds, median of several runs, and the product alone.
//!
//!     cargo bench --bench pieces
//!
//! Prints one line of JSON a piece. `tools/bench_torch.py` times the same pieces in PyTorch, turn by turn with this, and writes the record.

#[path = "../tests/common/pieces.rs"]
#[allow(dead_code)] // The tests use more of it.
mod pieces;

use mllmseg::reference::{self, Precision, Then, Weights};
use std::time::Instant;

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

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
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
