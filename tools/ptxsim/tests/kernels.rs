//! CUDA C++ kernels, as nvcc compiles them for sm_80 and sm_90a: right values, not one finding, and the same bits and
//! counters for every number of threads and every order of warps.

mod common;

use common::cases::case;
use common::{Gpu, Rng};
use ptxsim::{Checks, FaultKind, GpuSpec, LaunchConfig, Options};

fn options(arch: &str, threads: usize, seed: u64) -> Options {
    let gpu = GpuSpec::named(if arch == "90a" { "h100" } else { "a100" }).expect("in the table");
    Options { threads, seed, gpu, ..Options::default() }
}

fn check(name: &str) {
    let case = case(name);
    for arch in case.archs {
        let mut first: Option<Gpu> = None;
        // The data is the same each time; the order of warps is not.
        for (threads, seed) in [(1, 0), (2, 0), (2, 1), (1, 2)] {
            let what = format!("{name}, compute_{arch}, {threads} threads, seed {seed}");
            let mut gpu = Gpu::new(common::module(case.file, arch), options(arch, threads, seed));
            (case.run)(&mut gpu, &mut Rng::new(1));
            assert!(gpu.reports.iter().all(|r| r.is_clean()), "{what}:\n{}", gpu.findings());
            assert_eq!(gpu.wrong, None, "{what}");
            let Some(first) = &first else {
                first = Some(gpu);
                continue;
            };
            assert_eq!(gpu.bits, first.bits, "{what}: other bits than at first");
            if !case.waits {
                for (a, b) in gpu.reports.iter().zip(&first.reports) {
                    assert_eq!(a.counters, b.counters, "{what}: {}", a.kernel);
                }
            }
        }
        // Other data, and nothing checked.
        for seed in 2..4 {
            let options = Options { checks: Checks::NONE, counters: false, ..options(arch, 2, seed) };
            let mut gpu = Gpu::new(common::module(case.file, arch), options);
            (case.run)(&mut gpu, &mut Rng::new(seed));
            assert!(!gpu.faulted(), "{name}, compute_{arch}, seed {seed}, no checks:\n{}", gpu.findings());
            assert_eq!(gpu.wrong, None, "{name}, compute_{arch}, seed {seed}, no checks");
        }
    }
}

macro_rules! cases {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)) })* };
}
cases! {
    reduce scan_block scan_chained histogram transpose gemm attention layernorm bicubic radix pipeline wmma misc print
    grid_sync cluster bulk wgmma wgmma_multicast
}

#[test]
fn assert_names_file_line_and_condition() {
    let mut gpu = Gpu::new(common::module("misc.cu", "80"), options("80", 1, 0));
    let x = gpu.upload(&[5, 0, 7, -1, 3]);
    gpu.launch("assert_positive", &LaunchConfig::new(1, 5).arg(x).arg(3));
    assert!(gpu.reports[0].is_clean(), "{}", gpu.findings());
    gpu.launch("assert_positive", &LaunchConfig::new(1, 5).arg(x).arg(5));
    let fault = gpu.reports[1].fault.as_ref().expect("x[3] is negative");
    assert_eq!((fault.kind, fault.thread), (FaultKind::Assert, [3, 0, 0]));
    let said = format!("{}{}", fault.message, gpu.reports[1].output);
    assert!(said.contains("x[i] >= 0") && said.contains("misc.cu"), "{said}");
}
