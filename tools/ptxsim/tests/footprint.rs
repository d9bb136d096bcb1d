//! With every check on, the simulator takes at most twice the memory that the program itself allocates.
#![cfg(target_os = "linux")]

mod common;

use common::{Gpu, module};
use ptxsim::{LaunchConfig, Options};

/// The most memory that this process ever held, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("Linux has VmHWM");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn all_checks_on_take_at_most_twice_the_programs_memory() {
    let module = module("transpose.cu", "80");
    let before = peak();
    let n = 2048;
    let bytes = 2 * 4 * (n * n) as u64;
    let mut gpu = Gpu::new(module, Options { threads: 2, ..Options::default() });
    let (y, x) = (gpu.alloc::<f32>(n * n), gpu.zeros::<f32>(n * n));
    let grid = [n as u32 / 32, n as u32 / 32, 1];
    gpu.launch(
        "transpose_padded",
        &LaunchConfig::with_dims(grid, [32, 8, 1]).arg(y).arg(x).arg(n as u32).arg(n as u32),
    );
    assert!(gpu.reports[0].is_clean(), "{}", gpu.findings());
    assert_eq!(gpu.reports[0].counters.distinct_bytes, bytes);
    let grown = peak() - before;
    // 2 MiB for stacks and the register files of two workers.
    assert!(grown <= 2 * bytes + (2 << 20), "{bytes} bytes allocated, {grown} taken");
}
