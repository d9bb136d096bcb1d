//! How long the simulator takes: a bf16 GEMM of M = 1025, N = 4096, K = 1024 and attention over 1025 tokens, 16 heads of
//! 64, on one and two threads, without checks and counters and with all of them.
//!
//! `cargo bench -p ptxsim --bench speed [RUNS]`: medians of RUNS (5) after a run to warm up.

#[path = "../tests/common/mod.rs"]
mod common;

use common::cases::{launch_attention, launch_gemm};
use common::{Bf16, Gpu, Rng, module};
use ptxsim::{Checks, Options};

/// A kernel file, and a function that fills a device's memory and gives the launch.
type Work = (&'static str, &'static str, fn(&mut Gpu) -> Box<dyn Fn(&mut Gpu)>);

const WORK: [Work; 2] = [
    ("GEMM 1025 x 4096 x 1024", "gemm.cu", |gpu| {
        let [m, n, k] = [1025, 4096, 1024];
        let mut rng = Rng::new(1);
        let buffers =
            [gpu.alloc::<Bf16>(m * n), gpu.upload(&rng.bf16s(m * k)), gpu.upload(&rng.bf16s(n * k))];
        Box::new(move |gpu| launch_gemm(gpu, buffers, [m, n, k]))
    }),
    ("attention 16 x 1025 x 64", "attention.cu", |gpu| {
        let n = 16 * 1025 * 64;
        let mut rng = Rng::new(2);
        let [q, k, v] = [(); 3].map(|()| gpu.upload(&rng.bf16s(n)));
        let y = gpu.alloc::<Bf16>(n);
        Box::new(move |gpu| launch_attention(gpu, [y, q, k, v], 16, 1025))
    }),
];

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("{}, {cores} cores", name.map_or("unknown CPU", |(_, n)| n.trim()))
}

fn main() {
    // Cargo adds `--bench`.
    let runs = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(5).max(1);
    println!("{}; seconds, median of {runs} after a warm-up\n", cpu());
    println!(
        "| kernel (compute_80) | checks, counters | 1 thread | 2 threads | gain | warp instructions | mma |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, file, setup) in WORK {
        for (label, checks, counters) in [("none", Checks::NONE, false), ("all", Checks::ALL, true)] {
            let mut medians = [0.0; 2];
            let mut counted = Default::default();
            for (threads, median) in (1..).zip(&mut medians) {
                let mut gpu =
                    Gpu::new(module(file, "80"), Options { checks, counters, threads, ..Options::default() });
                let launch = setup(&mut gpu);
                (0..=runs).for_each(|_| launch(&mut gpu));
                assert!(gpu.reports.iter().all(|r| r.is_clean()), "{}", gpu.findings());
                let mut seconds: Vec<f64> = gpu.reports[1..].iter().map(|r| r.seconds).collect();
                seconds.sort_by(f64::total_cmp);
                *median = seconds[runs / 2];
                let c = &gpu.reports[0].counters;
                counted = (c.total.warps, c.tensor.values().map(|t| t.ops).sum::<u64>());
            }
            let count = |n: u64| if counters { format!("{:.2} M", n as f64 / 1e6) } else { String::new() };
            let [one, two] = medians;
            println!(
                "| {name} | {label} | {one:.3} | {two:.3} | {:.2} | {} | {} |",
                one / two,
                count(counted.0),
                count(counted.1)
            );
        }
    }
}
