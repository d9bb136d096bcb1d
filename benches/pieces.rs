//! The real-width pieces (8B dimensions, synthetic weights) on the CPU: milliseconds and GFLOP/s, median of several runs.
//!
//!     cargo bench --bench pieces [-- FILTER]
//!
//! `tools/bench_torch.py` times the same pieces in PyTorch on the same machine.

use mllmseg::reference::{self, Precision, Then, Weights};
use std::time::Instant;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for (m, n, k) in [
        (1025, 3072, 1024),
        (1025, 4096, 1024),
        (1025, 1024, 4096),
        (320, 6144, 4096),
        (320, 14336, 4096),
        (320, 4096, 14336),
        (1024, 196, 9216),
        (40, 14336, 4096),
        (8, 14336, 4096),
        (1, 14336, 4096),
    ] {
        let name = format!("matmul {m}x{n}x{k}");
        if !name.contains(&filter) {
            continue;
        }
        let x = vec![0.5f32; m * k];
        let w = vec![half::bf16::from_f32(0.25); n * k];
        let mut y = vec![0.0; m * n];
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let t = Instant::now();
                reference::matmul(&mut y, &x, Weights::Bf16(&w), n, None, Then::Store, Precision::F32);
                t.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{name:<28} {:8.2} ms {:8.1} GFLOP/s (best {:.1})",
            times[3] * 1e3,
            2e-9 * (m * n * k) as f64 / times[3],
            2e-9 * (m * n * k) as f64 / times[0]
        );
    }
}
