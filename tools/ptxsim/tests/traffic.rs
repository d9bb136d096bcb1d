//! Sectors and wavefronts of access patterns that can be counted on paper.
//!
//! A sector is 32 bytes; the rows of a warp's request that fall in the same one share it. Shared memory serves 32 banks of
//! 4 bytes a wavefront; words of one bank that are not the same word take one each. Requests of 8 and 16 bytes a lane go
//! in halves and quarters of a warp, so that 128 bytes is what a wavefront carries at best.

mod common;

use common::{Gpu, module};
use ptxsim::{Counters, LaunchConfig, Options};

fn run(kernel: &str, config: LaunchConfig) -> Counters {
    let mut gpu = Gpu::new(module("patterns.cu", "80"), Options::default());
    // 64 KiB of input, and enough of output; both begin at a multiple of 256.
    let (y, x) = (gpu.zeros::<u32>(1024), gpu.upload(&vec![1u32; 16384]));
    let mut config = config;
    let rest = std::mem::take(&mut config.params);
    config = config.arg(y);
    if !kernel.starts_with("shared") {
        config = config.arg(x);
    }
    config.params.extend(rest);
    gpu.launch(kernel, &config);
    assert!(gpu.reports[0].is_clean(), "{kernel}: {}", gpu.findings());
    gpu.reports.remove(0).counters
}

#[test]
fn sectors_of_global_loads() {
    let strided =
        |stride: i32, offset: i32| ("strided_u32", LaunchConfig::new(1, 32).arg(stride).arg(offset));
    let plain = |kernel| (kernel, LaunchConfig::new(1, 32));
    // (kernel, sectors, bytes asked for) of its one load
    let table = [
        (strided(1, 0), 4, 128), // 128 bytes from a multiple of 32
        (strided(1, 1), 5, 128), // the same, 4 bytes on: begins in one sector, ends in a fifth
        (strided(1, 7), 5, 128),
        (strided(1, 8), 4, 128),  // a whole sector on
        (strided(2, 0), 8, 128),  // half of each sector is used
        (strided(3, 0), 12, 128), // 31 * 12 + 4 = 376 bytes: sectors 0 to 11
        (strided(8, 0), 32, 128), // a sector a lane
        (strided(33, 0), 32, 128),
        (strided(0, 5), 1, 4), // one word for all
        (plain("broadcast_u32"), 1, 4),
        (plain("reversed_u32"), 4, 128),
        (plain("half_u32"), 4, 64), // 16 lanes, 8 bytes apart
        (plain("copy_u8"), 1, 32),
        (plain("copy_u16"), 2, 64),
        (plain("copy_u64"), 8, 256),
        (plain("copy_u128"), 16, 512),
    ];
    for ((kernel, config), sectors, bytes) in table {
        let at = format!("{kernel} {:?}", config.params);
        let c = run(kernel, config);
        assert_eq!(
            (c.global_load.requests, c.global_load.sectors, c.global_load.bytes),
            (1, sectors, bytes),
            "{at}"
        );
    }
}

#[test]
fn sectors_of_global_stores() {
    for (kernel, sectors, bytes) in [
        ("copy_u8", 1, 32),
        ("copy_u16", 2, 64),
        ("half_u32", 4, 64),
        ("copy_u64", 8, 256),
        ("copy_u128", 16, 512),
    ] {
        let c = run(kernel, LaunchConfig::new(1, 32));
        assert_eq!(
            (c.global_store.requests, c.global_store.sectors, c.global_store.bytes),
            (1, sectors, bytes),
            "{kernel}"
        );
    }
}

#[test]
fn wavefronts_of_shared_loads() {
    let strided = |stride: i32| ("shared_strided_u32", LaunchConfig::new(1, 32).arg(stride));
    let plain = |kernel| (kernel, LaunchConfig::new(1, 32));
    let matrix = |pitch: i32| ("shared_ldmatrix", LaunchConfig::new(1, 32).arg(pitch));
    // (kernel, wavefronts, the least it could take)
    let table = [
        (strided(1), 1, 1),
        (strided(0), 1, 1), // one word for all
        (strided(2), 2, 1), // 16 banks, two words each
        (strided(4), 4, 1),
        (strided(8), 8, 1),
        (strided(16), 16, 1),
        (strided(32), 32, 1), // one bank
        (strided(33), 1, 1),  // a padded column
        (strided(3), 1, 1),   // odd strides meet every bank
        (strided(6), 2, 1),
        (plain("shared_copy_u8"), 1, 1), // four lanes a word
        (plain("shared_copy_u64"), 2, 2),
        (plain("shared_copy_u128"), 4, 4),
        (matrix(16), 4, 4), // 8 rows of a matrix are 128 bytes in a row
        (matrix(80), 4, 4), // 20 words: rows begin at banks 0 20 8 28 16 4 24 12
        (matrix(32), 8, 4), // rows 0 and 4 begin at the same bank
        (matrix(64), 16, 4),
        (matrix(128), 32, 4), // all 8 rows of a matrix in the same banks
        (matrix(144), 4, 4),  // the padded row
    ];
    for ((kernel, config), wavefronts, ideal) in table {
        let at = format!("{kernel} {:?}", config.params);
        let c = run(kernel, config.shared(4096));
        assert_eq!(
            (c.shared_load.requests, c.shared_load.wavefronts, c.shared_load.ideal),
            (1, wavefronts, ideal),
            "{at}"
        );
        assert_eq!(
            (c.shared_store.requests, c.shared_store.wavefronts, c.shared_store.ideal),
            (32, 32, 32),
            "{at}: fill"
        );
    }
}

/// A tile of 32 x 32 words, by 8 warps: 32 requests in, 32 out. Sectors in: 4 a request.
#[test]
fn the_four_transpositions_cost_what_their_header_says() {
    // (kernel, sectors of stores, wavefronts of shared loads)
    let table = [
        ("transpose_plain", 32 * 32, 0),           // 32 rows a request
        ("transpose_conflicted", 32 * 4, 32 * 32), // a column is one bank
        ("transpose_padded", 32 * 4, 32),
        ("transpose_swizzled", 32 * 4, 32),
    ];
    for (kernel, sectors, wavefronts) in table {
        let mut gpu = Gpu::new(module("transpose.cu", "80"), Options::default());
        let (y, x) = (gpu.alloc::<f32>(1024), gpu.upload(&[1f32; 1024]));
        gpu.launch(kernel, &LaunchConfig::with_dims([1; 3], [32, 8, 1]).arg(y).arg(x).arg(32).arg(32));
        let c = &gpu.reports[0].counters;
        assert_eq!((c.global_load.requests, c.global_load.sectors), (32, 128), "{kernel}");
        assert_eq!((c.global_store.requests, c.global_store.sectors), (32, sectors), "{kernel}");
        assert_eq!(c.shared_load.wavefronts, wavefronts, "{kernel}");
        assert_eq!(c.distinct_bytes, 2 * 4096, "{kernel}");
        assert_eq!(c.shared_store.wavefronts, c.shared_store.ideal, "{kernel}");
    }
}

/// M = N = 128, K = 64: one block of 8 warps, 2 steps of 2 x 16 along K.
#[test]
fn gemm_counts() {
    use common::{Bf16, cases::launch_gemm};
    let mut gpu = Gpu::new(module("gemm.cu", "80"), Options::default());
    let one = vec![Bf16::of(1.0); 128 * 64];
    let (y, x, w) = (gpu.alloc::<Bf16>(128 * 128), gpu.upload(&one), gpu.upload(&one));
    launch_gemm(&mut gpu, [y, x, w], [128, 128, 64]);
    let c = &gpu.reports[0].counters;
    // 16 mma of 16 x 8 x 16 a warp and half step.
    let mma = &c.tensor["m16n8k16.f32.bf16.bf16.f32"];
    assert_eq!((mma.ops, mma.flops), (8 * 4 * 16, 2 * 128 * 128 * 64));
    // Six ldmatrix.x4 a warp and half step, four wavefronts each: the swizzle leaves no conflict.
    assert_eq!((c.shared_load.requests, c.shared_load.wavefronts), (8 * 4 * 6, 8 * 4 * 6 * 4));
    assert_eq!(c.shared_load.wavefronts, c.shared_load.ideal);
    // Each operand is fetched once: 16 bytes a copy, 8 rows of 64 bytes a request.
    assert_eq!((c.global_load.requests, c.global_load.sectors, c.global_load.bytes), (64, 1024, 32768));
    assert_eq!(c.async_bytes, 32768);
    // A store instruction is 8 rows of 16 bytes.
    assert_eq!(
        (c.global_store.requests, c.global_store.sectors, c.global_store.bytes),
        (8 * 32, 8 * 32 * 8, 32768)
    );
    assert_eq!(c.barriers, 8 * 2);
    assert_eq!(c.distinct_bytes, 2 * 16384 + 32768);
}
