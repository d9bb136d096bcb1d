//! Seeded defects: the test kernels with one mistake each, and what must notice it.
//!
//! The kernels as they stand give no finding at all (`kernels.rs`); each mutant here must give the one that names its
//! mistake. The table is also the README's, and the two are compared.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use common::cases::case;
use common::{Gpu, Rng, compile, kernel_dir, module};
use ptxsim::{FaultKind, GpuSpec, LaunchConfig, Module, Options, ReportKind};

/// What notices a mutant.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    /// A check or a fault.
    Report(ReportKind),
    /// The comparison with plain arithmetic.
    Value,
    /// The counter of shared-memory wavefronts: more than the kernel as it stands.
    Conflicts,
}

const ILLEGAL: By = By::Report(ReportKind::Fault(FaultKind::IllegalAddress));
const MISALIGNED: By = By::Report(ReportKind::Fault(FaultKind::MisalignedAddress));
const DEADLOCK: By = By::Report(ReportKind::Fault(FaultKind::Deadlock));
const SHARED_RACE: By = By::Report(ReportKind::SharedRace);
const GLOBAL_RACE: By = By::Report(ReportKind::GlobalRace);
const UNINIT_SHARED: By = By::Report(ReportKind::UninitShared);
const UNINIT_GLOBAL: By = By::Report(ReportKind::UninitGlobal);
const UNINIT_LOCAL: By = By::Report(ReportKind::UninitLocal);
const IN_FLIGHT: By = By::Report(ReportKind::InFlight);
const PARTIAL: By = By::Report(ReportKind::PartialBarrier);
const MASK: By = By::Report(ReportKind::WrongMask);
const DIVERGENT: By = By::Report(ReportKind::DivergentAligned);
const PROXY: By = By::Report(ReportKind::MissingProxyFence);
const WGMMA: By = By::Report(ReportKind::WgmmaRegister);
const MBARRIER: By = By::Report(ReportKind::Mbarrier);
const UNWAITED: By = By::Report(ReportKind::Unwaited);

struct Mutant {
    case: &'static str,
    /// The mistake, for the README.
    what: &'static str,
    /// Text that occurs once in the kernel file, and what it becomes.
    find: &'static str,
    replace: &'static str,
    by: By,
}

const fn m(
    case: &'static str,
    what: &'static str,
    find: &'static str,
    replace: &'static str,
    by: By,
) -> Mutant {
    Mutant { case, what, find, replace, by }
}

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // -- reduce.cu
    m("reduce", "barrier removed between writing and reading the warps' sums",
      "__syncthreads();\n    if (warp == 0) v = warp_sum", "if (warp == 0) v = warp_sum", SHARED_RACE),
    m("reduce", "barrier removed before a flag in shared memory is read",
      "__syncthreads();\n    if (!s_last) return;", "if (!s_last) return;", SHARED_RACE),
    m("reduce", "`__threadfence` missing between a block's sum and its ticket",
      "__threadfence();  // the sum is seen by whoever sees the ticket", "", GLOBAL_RACE),
    m("reduce", "shuffle mask of 16 lanes, used by 32",
      "__shfl_down_sync(0xffffffff", "__shfl_down_sync(0x0000ffff", MASK),
    m("reduce", "full shuffle mask, reached by 8 lanes",
      "if (warp == 0) v = warp_sum(lane < kBlock / 32 ? s_sums[lane] : 0.f);",
      "if (warp == 0 && lane < kBlock / 32) v = warp_sum(s_sums[lane]);", MASK),
    m("reduce", "`redux` mask without lane 31", "__reduce_add_sync(0xffffffff", "__reduce_add_sync(0x7fffffff", MASK),
    m("reduce", "global read one past the end", "i < n; i += gridDim.x * kBlock) v += x[i];\n    v = block_sum",
      "i <= n; i += gridDim.x * kBlock) v += x[i];\n    v = block_sum", ILLEGAL),
    m("reduce", "shared accumulator never set to zero", "if (threadIdx.x == 0) s_sum = 0;", "", UNINIT_SHARED),
    m("reduce", "shared accumulator added to without an atomic", "atomicAdd(&s_sum, v)", "s_sum += v", SHARED_RACE),
    // -- scan.cu
    m("scan_block", "barrier removed from the scan's loop", "__syncthreads();\n    }\n    if (i < n) y[i] = s_sum", "}\n    if (i < n) y[i] = s_sum", SHARED_RACE),
    m("scan_block", "barrier moved into the branch of threads that add",
      "s_sum[from ^ 1][i] = s_sum[from][i] + (i >= d ? s_sum[from][i - d] : 0);\n        __syncthreads();",
      "s_sum[from ^ 1][i] = s_sum[from][i];\n        if (i >= d) {\n            s_sum[from ^ 1][i] += s_sum[from][i - d];\n            __syncthreads();\n        }", DIVERGENT),
    m("scan_block", "shared write one past the end", "s_sum[from ^ 1][i] = ", "s_sum[from ^ 1][i + 1] = ", ILLEGAL),
    m("scan_block", "distance off by one in the comparison", "(i >= d ? s_sum", "(i > d ? s_sum", By::Value),
    m("scan_chained", "flag stored without release", "st_release(state + tile, 2)", "*(volatile uint32_t*)(state + tile) = 2", GLOBAL_RACE),
    m("scan_chained", "flag loaded without acquire", "ld_acquire(state + t)", "*(volatile const uint32_t*)(state + t)", GLOBAL_RACE),
    m("scan_chained", "shuffle moved into the branch that uses it",
      "const uint32_t left = __shfl_up_sync(0xffffffff, v, d);\n        if (threadIdx.x % 32 >= d) v += left;",
      "if (threadIdx.x % 32 >= d) v += __shfl_up_sync(0xffffffff, v, d);", MASK),
    m("scan_chained", "barrier removed after the ticket", "s_tile = atomicAdd(ticket, 1);\n    __syncthreads();", "s_tile = atomicAdd(ticket, 1);", SHARED_RACE),
    m("scan_chained", "16-byte load of an address that is a multiple of 4", "const uint4*>(x + i)", "const uint4*>(x + i + 1)", MISALIGNED),
    // -- histogram.cu
    m("histogram", "shared counters without atomics", "atomicAdd(&s_count[w >> (8 * j) & 255], 1)", "s_count[w >> (8 * j) & 255] += 1", SHARED_RACE),
    m("histogram", "global counters without atomics", "atomicAdd(&count[b], s_count[b])", "count[b] += s_count[b]", GLOBAL_RACE),
    m("histogram", "barrier removed between clearing and counting", "__syncthreads();\n    const uint32_t* words", "const uint32_t* words", SHARED_RACE),
    m("histogram", "barrier removed between counting and adding up", "__syncthreads();\n    for (int b = threadIdx.x; b < kBins; b += kBlock)\n        if", "for (int b = threadIdx.x; b < kBins; b += kBlock)\n        if", SHARED_RACE),
    m("histogram", "last shared counter not cleared", "b < kBins; b += kBlock) s_count[b] = 0", "b < kBins - 1; b += kBlock) s_count[b] = 0", UNINIT_SHARED),
    m("histogram", "byte after the last one counted", "threadIdx.x < n % 4", "threadIdx.x <= n % 4", ILLEGAL),
    m("histogram", "words read from an odd address", "reinterpret_cast<const uint32_t*>(x)", "reinterpret_cast<const uint32_t*>(x + 1)", MISALIGNED),
    // -- transpose.cu
    m("transpose", "barrier removed between filling and reading the tile", "__syncthreads();\n", "", SHARED_RACE),
    m("transpose", "barrier reached by half of each warp", "__syncthreads();", "if (threadIdx.x < 16) __syncthreads();", DIVERGENT),
    m("transpose", "barrier reached by half of the warps", "__syncthreads();", "if (threadIdx.y < 4) __syncthreads();", PARTIAL),
    m("transpose", "tile one word too small", "s_tile[kTile * kPitch];", "s_tile[kTile * kPitch - 1];", ILLEGAL),
    m("transpose", "last column of the tile not filled", "if (r < R && c < C) s_tile", "if (r < R && c < C - 1) s_tile", UNINIT_SHARED),
    m("transpose", "swizzle dropped where the tile is read", "= s_tile[at(threadIdx.x, j)]", "= s_tile[threadIdx.x * kPitch + j]", By::Value),
    m("transpose", "swizzle dropped on both sides", "(kSwizzle ? c ^ r : c)", "c", By::Conflicts),
    m("transpose", "padding dropped", "transpose<33, false>", "transpose<32, false>", By::Conflicts),
    // -- gemm.cu
    m("gemm", "`wait_group` off by one", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>", IN_FLIGHT),
    m("gemm", "`wait_group` removed", "cp_async_wait<kStages - 2>();", "", IN_FLIGHT),
    m("gemm", "commit removed from the loop", "cp_async_commit();  // also", "// also", IN_FLIGHT),
    m("gemm", "barrier removed from the loop", "__syncthreads();  // this", "// this", SHARED_RACE),
    m("gemm", "tile fetched into the slot that is being read", "s_x + ahead % kStages", "s_x + step % kStages", SHARED_RACE),
    m("gemm", "swizzle dropped where tiles are filled", "s_tile + swizzle(r, c)", "s_tile + r * 64 + c * 16", By::Value),
    m("gemm", "swizzle dropped on both sides", "((chunk ^ (row / 2 % 4)) * 16)", "chunk * 16", By::Conflicts),
    m("gemm", "tail along K not cut off", "row0 + r < rows && k0 + c * 8 < K", "row0 + r < rows", ILLEGAL),
    m("gemm", "a row too many", "row0 + r < rows &&", "row0 + r <= rows &&", ILLEGAL),
    m("gemm", "`cp.async` of 16 bytes from an address that is a multiple of 2", "k0 + c * 8 : g", "k0 + c * 8 + 1 : g", MISALIGNED),
    m("gemm", "a column too many stored", "m < M && n < N", "m < M && n <= N", ILLEGAL),
    m("gemm", "last 8 rows of each tile not filled", "cp_async16(s_tile", "if (r < kTile - 8) cp_async16(s_tile", UNINIT_SHARED),
    m("gemm", "`ldmatrix` reached by 31 lanes", "for (int i = 0; i < 4; ++i) ldmatrix_x4(a", "for (int i = 0; i < 4; ++i) if (lane != 31) ldmatrix_x4(a", DIVERGENT),
    m("gemm", "second operand's tiles past the dynamic shared memory", "s_w = s_x + kStages", "s_w = s_x + (kStages + 1)", ILLEGAL),
    // -- attention.cu
    m("attention", "`wait_group` off by one", "cp_async_wait<0>", "cp_async_wait<1>", IN_FLIGHT),
    m("attention", "first commit removed", "load_tile(s_v, v + head, 0, T);\n    cp_async_commit();", "load_tile(s_v, v + head, 0, T);", IN_FLIGHT),
    m("attention", "barrier removed from the loop", "__syncthreads();  // this", "// this", SHARED_RACE),
    m("attention", "next keys fetched into the slot that is being read", "s_k + (slot ^ 1)", "s_k + slot", SHARED_RACE),
    m("attention", "key after the last one not masked", ">= T) s[j][e]", "> T) s[j][e]", By::Value),
    m("attention", "shuffle mask of every other lane", "__shfl_xor_sync(0xffffffff, m, 1)", "__shfl_xor_sync(0x55555555, m, 1)", MASK),
    m("attention", "a row too many read", "inside = t0 + r < T", "inside = t0 + r <= T", ILLEGAL),
    m("attention", "swizzle dropped where V is read", "s_v + slot * kTileBytes + swizzle(i * 16 + lane % 16, j * 2 + lane / 16)",
      "s_v + slot * kTileBytes + (i * 16 + lane % 16) * 128 + (j * 2 + lane / 16) * 16", By::Value),
    // -- layernorm.cu
    m("layernorm", "barrier removed between writing and reading the warps' sums", "__syncthreads();\n    v = 0.f", "v = 0.f", SHARED_RACE),
    m("layernorm", "barrier removed before the sums are used again", "__syncthreads();  // s_sums", "// s_sums", SHARED_RACE),
    m("layernorm", "the block's sum within the branch of threads that have data", "mean = block_sum(sum) / C", "mean = inside ? block_sum(sum) / C : 0.f", MASK),
    m("layernorm", "one warp's sum written of four", "if (threadIdx.x % 32 == 0) s_sums", "if (threadIdx.x == 0) s_sums", UNINIT_SHARED),
    m("layernorm", "a thread too many reads", "inside = c < C", "inside = c <= C", ILLEGAL),
    m("layernorm", "rows of 16-byte loads begin at odd columns", "size_t(blockIdx.x) * C;", "size_t(blockIdx.x) * C + 1;", MISALIGNED),
    // -- bicubic.cu
    m("bicubic", "local read one past the end", "wi[u] * wj[v] * px", "wi[u + v] * wj[u + v] * px", ILLEGAL),
    m("bicubic", "last weight never computed", "i < 4; ++i) {\n        const float d", "i < 3; ++i) {\n        const float d", UNINIT_LOCAL),
    m("bicubic", "last row not clamped", "min(max(i0 + u - 1, 0), H - 1)", "min(max(i0 + u - 1, 0), H)", ILLEGAL),
    // -- radix.cu
    m("radix", "full `match` mask in the tail", "__match_any_sync(valid", "__match_any_sync(0xffffffff", MASK),
    m("radix", "full shuffle mask within a group of equal digits", "__shfl_sync(same, base, leader)", "__shfl_sync(0xffffffff, base, leader)", MASK),
    m("radix", "barrier removed between the warps' counts and their sum", "__syncthreads();\n    for (int d = threadIdx.x; d < kDigits; d += kBlock) {", "for (int d = threadIdx.x; d < kDigits; d += kBlock) {", SHARED_RACE),
    m("radix", "barrier removed between reading left and adding", "__syncthreads();\n            s_sum[threadIdx.x] += left;", "s_sum[threadIdx.x] += left;", SHARED_RACE),
    m("radix", "half of the digits' counts not stored", "d < kDigits; d += kBlock) count[", "d < kBlock; d += kBlock) count[", UNINIT_GLOBAL),
    // -- pipeline.cu
    m("pipeline", "an arrival too few", "mbarrier_init(&s_full[s], 33)", "mbarrier_init(&s_full[s], 34)", DEADLOCK),
    m("pipeline", "producer does not wait for the slot to be empty", "mbarrier_wait(&s_empty[slot], (round & 1) ^ 1);", "", SHARED_RACE),
    m("pipeline", "producer waits for the wrong parity", "(round & 1) ^ 1", "round & 1", DEADLOCK),
    m("pipeline", "consumer gives the slot back before reading it",
      "float sum = 0.f;\n            for (int c = lane; c < kCols; c += 32) sum += s_row[slot][c];\n            mbarrier_arrive(&s_empty[slot]);",
      "float sum = 0.f;\n            mbarrier_arrive(&s_empty[slot]);\n            for (int c = lane; c < kCols; c += 32) sum += s_row[slot][c];", SHARED_RACE),
    m("pipeline", "arrival that does not wait for the copies", "cp_async_mbarrier_arrive_noinc(&s_full[slot])", "mbarrier_arrive(&s_full[slot])", IN_FLIGHT),
    m("pipeline", "barrier removed after the mbarriers' initialisation", "__syncthreads();\n\n    if (warp == 0) {", "if (warp == 0) {", MBARRIER),
    // -- misc.cu
    m("misc", "local read one past the end", "y[i] = v[i % 16];", "y[i] = v[i % 16 + 1];", ILLEGAL),
    // -- grid_sync.cu
    m("grid_sync", "a block's barrier in place of the grid's", "cooperative_groups::this_grid().sync();", "__syncthreads();", GLOBAL_RACE),
    // -- cluster.cu
    m("cluster", "cluster barrier removed between clearing and counting", "barrier_cluster_arrive();\n    barrier_cluster_wait();  // every", "// every", SHARED_RACE),
    m("cluster", "cluster barrier removed between counting and adding up", "barrier_cluster_arrive();\n    barrier_cluster_wait();  // no", "// no", SHARED_RACE),
    m("cluster", "rank of a block outside the cluster", "(cluster_ctarank() + 1) % kCluster", "cluster_ctarank() + 1", ILLEGAL),
    // -- wgmma.cu
    m("bulk", "`expect_tx` missing", "mbarrier_arrive_expect_tx(&s_full, sizeof s_x)", "mbarrier_arrive(&s_full)", IN_FLIGHT),
    m("bulk", "`expect_tx` of 16 bytes too few", "mbarrier_arrive_expect_tx(&s_full, sizeof s_x)", "mbarrier_arrive_expect_tx(&s_full, sizeof s_x - 16)", DEADLOCK),
    m("bulk", "`expect_tx` of 16 bytes too many", "mbarrier_arrive_expect_tx(&s_full, sizeof s_x)", "mbarrier_arrive_expect_tx(&s_full, sizeof s_x + 16)", DEADLOCK),
    m("bulk", "proxy fence missing before the bulk store", "s_x[i] += 1;\n    fence_proxy_async();", "s_x[i] += 1;", PROXY),
    m("bulk", "bulk store not waited for", "cp_async_bulk_wait<0>();\n    }\n}\n#endif", "}\n}\n#endif", UNWAITED),
    m("bulk", "bulk store not committed", "cp_async_bulk_commit();\n        cp_async_bulk_wait<0>();\n    }\n}\n#endif", "cp_async_bulk_wait<0>();\n    }\n}\n#endif", UNWAITED),
    m("bulk", "bulk copy from an address that is a multiple of 4", "x + blockIdx.x * 1024, sizeof", "x + blockIdx.x * 1024 + 1, sizeof", MISALIGNED),
    m("wgmma", "proxy fence missing before the tile is stored", "fence_proxy_async();  // the", "// the", PROXY),
    m("wgmma", "`wgmma.wait_group` missing", "wgmma_wait<0>();", "", WGMMA),
    m("wgmma", "`wgmma` not committed", "wgmma_commit();", "", WGMMA),
    m("wgmma", "swizzle dropped where the tile of y is written", "((j ^ (row % 8)) * 16)", "j * 16", By::Value),
    m("wgmma", "slot given back by an arrival too few", "2 * kCluster", "3 * kCluster", DEADLOCK),
    m("wgmma", "producer does not wait for the slot to be empty", "mbarrier_wait(&s_empty[stage], (round & 1) ^ 1);", "", SHARED_RACE),
    m("wgmma", "named barrier that waits for a warp group that never comes", "bar.sync 1, 256;", "bar.sync 1, 384;", DEADLOCK),
];

/// Runs a case on a module; every check on, in bounds of work.
fn run(name: &str, module: Arc<Module>) -> Gpu {
    let case = case(name);
    let gpu = GpuSpec::named(if case.archs[0] == "90a" { "h100" } else { "a100" }).expect("in the table");
    let options =
        Options { gpu, threads: 1, max_reports: 200, max_instructions: 2_000_000, ..Options::default() };
    let mut gpu = Gpu::new(module, options);
    (case.run)(&mut gpu, &mut Rng::new(1));
    gpu
}

fn wavefronts(gpu: &Gpu) -> u64 {
    gpu.reports.iter().map(|r| r.counters.shared_load.wavefronts + r.counters.shared_store.wavefronts).sum()
}

fn caught(gpu: &Gpu, m: &Mutant) -> bool {
    match m.by {
        By::Report(ReportKind::Fault(kind)) => {
            gpu.reports.iter().any(|r| r.fault.as_ref().is_some_and(|f| f.kind == kind))
        }
        By::Report(kind) => gpu.reports.iter().flat_map(|r| &r.reports).any(|r| r.kind == kind),
        By::Value => gpu.wrong.is_some(),
        By::Conflicts => {
            let case = case(m.case);
            gpu.wrong.is_none()
                && wavefronts(gpu) > wavefronts(&run(m.case, module(case.file, case.archs[0])))
        }
    }
}

fn try_mutant(m: &Mutant) -> Result<(), String> {
    let case = case(m.case);
    let source = std::fs::read_to_string(kernel_dir().join(case.file)).map_err(|e| e.to_string())?;
    let times = source.matches(m.find).count();
    if times != 1 {
        return Err(format!("`{}` is {times} times in {}", m.find, case.file));
    }
    let ptx = compile(case.file, &source.replace(m.find, m.replace), case.archs[0])?;
    let module = Module::parse(&ptx).map_err(|e| e.to_string())?;
    let gpu = run(m.case, module.into());
    if caught(&gpu, m) {
        return Ok(());
    }
    Err(format!("not caught by {:?}; values: {:?}; found:\n{}", m.by, gpu.wrong, gpu.findings()))
}

#[test]
fn every_mutant_is_reported_for_what_it_is() {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let only = std::env::var("MUTANT").unwrap_or_default(); // part of a case's name and description
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            s.spawn(|| {
                while let Some(m) = MUTANTS.get(next.fetch_add(1, Relaxed)) {
                    if format!("{}: {}", m.case, m.what).contains(&only)
                        && let Err(e) =
                            std::panic::catch_unwind(|| try_mutant(m)).unwrap_or(Err("panicked".into()))
                    {
                        failures.lock().unwrap().push(format!("{}: {}: {e}", m.case, m.what));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} mutants:\n\n{}",
        failures.len(),
        MUTANTS.len(),
        failures.join("\n")
    );
}

#[test]
fn freed_memory_stays_poisoned() {
    let mut gpu = Gpu::new(module("patterns.cu", "80"), Options::default());
    let (y, x) = (gpu.alloc::<u32>(32), gpu.upload(&[1u32; 32]));
    gpu.memory.free(x).unwrap();
    gpu.upload(&[2u32; 32]);
    gpu.launch("reversed_u32", &LaunchConfig::new(1, 32).arg(y).arg(x));
    let fault = gpu.reports[0].fault.as_ref().expect("x was freed");
    assert_eq!(fault.kind, FaultKind::IllegalAddress);
    assert!(fault.message.contains("freed"), "{fault}");
}

#[test]
fn unwritten_global_memory_is_named() {
    let mut gpu = Gpu::new(module("patterns.cu", "80"), Options::default());
    let (y, x) = (gpu.alloc::<u32>(32), gpu.alloc::<u32>(32));
    gpu.memory.fill(x, &[0], 124).unwrap();
    gpu.launch("reversed_u32", &LaunchConfig::new(1, 32).arg(y).arg(x));
    let report = &gpu.reports[0].reports[0];
    assert_eq!(
        (report.kind, report.thread, report.address),
        (ReportKind::UninitGlobal, [0, 0, 0], Some(x + 124))
    );
}

#[test]
fn a_grid_barrier_outside_a_cooperative_launch_traps() {
    let mut gpu = Gpu::new(module("grid_sync.cu", "80"), Options::default());
    let (x, spare) = (gpu.upload(&[1f32; 128]), gpu.alloc::<f32>(128));
    gpu.launch("heat_f32", &LaunchConfig::new(2, 64).arg(x).arg(spare).arg(128).arg(1));
    assert_eq!(gpu.reports[0].fault.as_ref().map(|f| f.kind), Some(FaultKind::Trap));
}

/// The README's table of mutants, made from the one above.
#[test]
fn the_readme_has_this_table() {
    let mut table = String::from("| kernel | defect | caught by |\n| --- | --- | --- |\n");
    for m in MUTANTS {
        let by = match m.by {
            By::Report(kind) => format!("`{}`", kind_name(kind)),
            By::Value => "wrong values".into(),
            By::Conflicts => "counter of bank conflicts".into(),
        };
        table += &format!("| {} | {} | {by} |\n", m.case, m.what);
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    assert!(readme.contains(&table), "README.md, \"Seeded defects\", should have this table:\n\n{table}");
}

fn kind_name(kind: ReportKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(s)) => s,
        Ok(serde_json::Value::Object(o)) => {
            o.values().next().and_then(|v| v.as_str()).unwrap_or_default().to_owned()
        }
        other => panic!("{other:?}"),
    }
}
