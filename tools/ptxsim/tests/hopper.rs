//! Kernels that use TMA, mbarriers, wgmma, clusters, bulk reductions and wmma: right answers with not one report; and what
//! breaks them is reported.

use ptxsim::tensor::formats::{bf16_to_f32, f32_to_bf16, f32_to_f16};
use ptxsim::tensor::tensormap::{DataType, TensorMap, TiledParams};
use ptxsim::{LaunchConfig, LaunchReport, LoadedModule, Memory, Module, Options, ReportKind, launch};

const GEMM: &str = include_str!("data/hopper/gemm.ptx");
const WMMA: &str = include_str!("data/hopper/wmma.ptx");

fn load(memory: &Memory, ptx: &str) -> LoadedModule {
    LoadedModule::load(Module::parse(ptx).unwrap().into(), memory).unwrap()
}

fn upload(memory: &Memory, bytes: &[u8]) -> u64 {
    let p = memory.alloc(bytes.len() as u64, 256).unwrap();
    memory.write(p, bytes).unwrap();
    p
}

fn download<const N: usize>(memory: &Memory, p: u64, len: usize) -> Vec<[u8; N]> {
    let mut bytes = vec![0; len * N];
    memory.read(p, &mut bytes).unwrap();
    bytes.as_chunks().0.to_vec()
}

/// A row-major (rows, columns) matrix.
fn map(p: u64, ty: DataType, dims: [u64; 2], tile: [u32; 2], swizzle: u32) -> [u8; 128] {
    let params = TiledParams {
        data_type: ty as u32,
        address: p,
        dims: &dims,
        strides: &[dims[0] * u64::from(ty.bytes())],
        box_dims: &tile,
        element_strides: &[1, 1],
        interleave: 0,
        swizzle,
        l2_promotion: 0,
        oob_fill: 0,
    };
    TensorMap::tiled(&params).unwrap().to_bytes()
}

struct Gemm {
    m: usize,
    n: usize,
    k: usize,
}

impl Gemm {
    /// Runs the kernel of `ptx`, and compares the result unless it faulted or reported.
    fn run(&self, ptx: &str, kernel: &str, seed: u64) -> LaunchReport {
        let (m, n, k) = (self.m, self.n, self.k);
        let memory = Memory::new(1 << 30);
        let module = load(&memory, ptx);
        let value = |i: usize, by: usize| f32_to_bf16(((i * by % 31) as f32 - 15.0) / 8.0);
        let a: Vec<u16> = (0..m * k).map(|i| value(i, 7)).collect();
        let b: Vec<u16> = (0..n * k).map(|i| value(i, 11)).collect();
        let bytes = |x: &[u16]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (pa, pb) = (upload(&memory, &bytes(&a)), upload(&memory, &bytes(&b)));
        let pc = memory.alloc((m * n * 4) as u64, 256).unwrap();
        let multicast = kernel == "gemm_multicast";
        let mut config =
            LaunchConfig::with_dims([n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1], [160, 1, 1])
                .shared(70 << 10);
        if multicast {
            config.cluster = [1, 2, 1];
        }
        let ty = DataType::Bfloat16;
        config.params.extend(map(pa, ty, [k as u64, m as u64], [64, 64], 3));
        config.params.extend(map(pb, ty, [k as u64, n as u64], [64, if multicast { 32 } else { 64 }], 3));
        config.params.extend(map(pc, DataType::Float32, [n as u64, m as u64], [64, 64], 0));
        let config = config.arg(k as i32);
        let gpu = ptxsim::GpuSpec::all().iter().find(|g| g.name.contains("h100")).unwrap();
        let report =
            launch(&memory, &module, kernel, &config, &Options { seed, gpu, ..Options::default() }).unwrap();
        if report.is_clean() {
            let c = download::<4>(&memory, pc, m * n);
            for row in 0..m {
                for column in 0..n {
                    let dot = (0..k).fold(0.0, |s, p| {
                        bf16_to_f32(a[row * k + p]).mul_add(bf16_to_f32(b[column * k + p]), s)
                    });
                    assert_eq!(f32::from_le_bytes(c[row * n + column]), dot, "{kernel} C[{row}][{column}]");
                }
            }
        }
        report
    }
}

fn clean(report: &LaunchReport) {
    assert!(report.is_clean(), "{:#?}", report.reports);
}

#[test]
fn tma_wgmma_gemm_is_right_and_clean() {
    for seed in 0..3 {
        clean(&Gemm { m: 64, n: 64, k: 64 }.run(GEMM, "gemm", seed));
        clean(&Gemm { m: 192, n: 128, k: 448 }.run(GEMM, "gemm", seed));
    }
    // Edges: rows and columns beyond the tensor are filled, and not stored.
    clean(&Gemm { m: 100, n: 72, k: 320 }.run(GEMM, "gemm", 0));
}

#[test]
fn clusters_share_tiles_by_multicast() {
    for seed in 0..3 {
        clean(&Gemm { m: 256, n: 128, k: 448 }.run(GEMM, "gemm_multicast", seed));
    }
}

#[test]
fn tensor_work_is_counted() {
    let report = Gemm { m: 128, n: 64, k: 128 }.run(GEMM, "gemm", 0);
    let work: u64 = report.counters.tensor.values().map(|t| t.flops).sum();
    assert_eq!(work, 2 * 128 * 64 * 128);
}

#[test]
fn bulk_copies_and_reductions() {
    let memory = Memory::new(1 << 28);
    let module = load(&memory, GEMM);
    let floats = |f: &dyn Fn(usize) -> f32| (0..256).flat_map(|i| f(i).to_le_bytes()).collect::<Vec<u8>>();
    let (y, x) =
        (upload(&memory, &floats(&|i| i as f32)), upload(&memory, &floats(&|i| 1.0 / (i + 1) as f32)));
    let config = LaunchConfig::new(1, 64).shared(1024).arg(y).arg(x).arg(256i32);
    let gpu = ptxsim::GpuSpec::all().iter().find(|g| g.name.contains("h100")).unwrap();
    let report =
        launch(&memory, &module, "bulk_add", &config, &Options { gpu, ..Options::default() }).unwrap();
    clean(&report);
    for (i, v) in download::<4>(&memory, y, 256).into_iter().enumerate() {
        assert_eq!(f32::from_le_bytes(v), i as f32 + 2.0 / (i + 1) as f32);
    }
}

/// The PTX with the `n`-th line (from 0) that contains `what` replaced.
fn mutate(ptx: &str, kernel: &str, what: &str, n: usize, with: &str) -> String {
    let start = ptx.find(&format!(".entry {kernel}(")).unwrap();
    let (head, tail) = ptx.split_at(start);
    let mut seen = 0;
    let lines: Vec<String> = tail
        .lines()
        .map(|line| {
            if line.contains(what) {
                seen += 1;
                if seen == n + 1 {
                    return line.replace(what, with);
                }
            }
            line.to_string()
        })
        .collect();
    assert!(seen > n, "{what}");
    head.to_string() + &lines.join("\n")
}

fn kinds(report: &LaunchReport) -> Vec<ReportKind> {
    report.reports.iter().map(|r| r.kind).collect()
}

#[test]
fn defects_are_reported_for_what_they_are() {
    let gemm = Gemm { m: 64, n: 64, k: 448 };
    let run =
        |what: &str, n: usize, with: &str| kinds(&gemm.run(&mutate(GEMM, "gemm", what, n, with), "gemm", 0));
    let has = |found: Vec<ReportKind>, kind: ReportKind, what: &str| {
        assert!(found.contains(&kind), "{what}: {found:?}")
    };
    let deadlock = ReportKind::Fault(ptxsim::FaultKind::Deadlock);

    has(run("wgmma.fence.sync.aligned;", 0, ""), ReportKind::WgmmaRegister, "no wgmma.fence");
    let no_fence = GEMM.replace("wgmma.fence.sync.aligned;", "");
    has(kinds(&gemm.run(&no_fence, "gemm", 0)), ReportKind::WgmmaRegister, "no wgmma.fence at all");
    let late = GEMM.replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;");
    has(kinds(&gemm.run(&late, "gemm", 0)), ReportKind::WgmmaRegister, "wait_group off by one");
    let uncommitted = GEMM.replace("wgmma.commit_group.sync.aligned;", "");
    has(kinds(&gemm.run(&uncommitted, "gemm", 0)), ReportKind::WgmmaRegister, "no wgmma.commit_group");
    has(run("fence.proxy.async.shared::cta;", 0, ""), ReportKind::MissingProxyFence, "no fence.proxy.async");
    has(run("cp.async.bulk.wait_group 0;", 0, ""), ReportKind::Unwaited, "no bulk wait_group");
    has(run("cp.async.bulk.commit_group;", 0, ""), ReportKind::Unwaited, "no bulk commit_group");
    has(run("mbarrier.arrive.release.cta.shared::cta.b64 _,", 0, "// "), deadlock, "no arrival at empty");
    let few = GEMM.replace(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r",
        "mbarrier.arrive.shared::cta.b64 _, [%r",
    );
    assert!(!kinds(&gemm.run(&few.replace("], 16384;", "];"), "gemm", 0)).is_empty(), "no expect_tx");
    has(run("bar.sync 1, 128;", 0, ""), ReportKind::SharedRace, "no barrier before the store");
}

#[test]
fn wmma_matches_a_triple_loop() {
    let memory = Memory::new(1 << 28);
    let module = load(&memory, WMMA);
    let value = |i: usize| (i * 5 % 13) as i32 - 6;
    for (kernel, n, k) in [
        ("wmma_f16", 16, 16),
        ("wmma_bf16", 16, 16),
        ("wmma_tf32", 16, 8),
        ("wmma_s8", 16, 16),
        ("wmma_f64", 8, 4),
    ] {
        let encode = |x: i32| -> Vec<u8> {
            match kernel {
                "wmma_f16" => f32_to_f16(x as f32).to_le_bytes().to_vec(),
                "wmma_bf16" => f32_to_bf16(x as f32).to_le_bytes().to_vec(),
                "wmma_tf32" => (x as f32).to_le_bytes().to_vec(),
                "wmma_f64" => f64::from(x).to_le_bytes().to_vec(),
                _ => vec![x as u8],
            }
        };
        let result = |x: i32| match kernel {
            "wmma_s8" => x.to_le_bytes().to_vec(),
            "wmma_f64" => f64::from(x).to_le_bytes().to_vec(),
            _ => (x as f32).to_le_bytes().to_vec(),
        };
        let a = upload(&memory, &(0..n * k).flat_map(|i| encode(value(i))).collect::<Vec<u8>>());
        let b = upload(&memory, &(0..n * k).flat_map(|i| encode(value(i + 3))).collect::<Vec<u8>>());
        let c = upload(&memory, &(0..n * n).flat_map(|i| result(i as i32)).collect::<Vec<u8>>());
        let config = LaunchConfig::new(1, 32).arg(a).arg(b).arg(c);
        clean(&launch(&memory, &module, kernel, &config, &Options::default()).unwrap());
        let want: Vec<u8> = (0..n * n)
            .flat_map(|i| {
                let (row, column) = (i / n, i % n);
                let dot: i32 = (0..k).map(|p| value(row * k + p) * value(column * k + p + 3)).sum();
                result(i as i32 + dot)
            })
            .collect();
        let mut got = vec![0; want.len()];
        memory.read(c, &mut got).unwrap();
        assert_eq!(got, want, "{kernel}");
    }
}

/// The sm_90 forms that well-known public kernels use, each once.
const FORMS: &str = r#".version 9.0
.target sm_90a
.address_size 64
.visible .entry forms(.param .align 64 .b8 map[128], .param .u64 p) {
    .reg .pred %p<4>;
    .reg .b16 %h<2>;
    .reg .b32 %r<8>;
    .reg .f32 %f<40>;
    .reg .b64 %rd<8>;
    .shared .align 1024 .b8 s[4096];
    mbarrier.init.shared::cta.b64 [%r0], 1;
    mbarrier.init.shared.b64 [%r0], %r1;
    mbarrier.inval.shared::cta.b64 [%r0];
    mbarrier.arrive.shared::cta.b64 %rd0, [%r0];
    mbarrier.arrive.shared::cta.b64 _, [%r0], 2;
    mbarrier.arrive.release.cta.shared::cta.b64 _, [%r0];
    mbarrier.arrive.shared::cluster.b64 _, [%r0];
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r0];
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r0], 512;
    mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %rd0, [%r0], %r1;
    mbarrier.expect_tx.shared::cta.b64 [%r0], %r1;
    mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r0], %r1;
    mbarrier.test_wait.shared::cta.b64 %p0, [%r0], %rd0;
    mbarrier.test_wait.parity.shared::cta.b64 %p0, [%r0], %r1;
    mbarrier.try_wait.parity.shared::cta.b64 %p0, [%r0], %r1;
    mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p0, [%r0], %r1;
    mbarrier.try_wait.parity.shared::cta.b64 %p0, [%r0], %r1, %r2;
    cp.async.mbarrier.arrive.shared::cta.b64 [%r0];
    cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r0];
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd1], %r1, [%r2];
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd1], %r1, [%r2], %h0;
    cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r0], [%r3], %r1, [%r2];
    cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r0], %r1;
    cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r0], %r1;
    cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%rd1], [%r0], %r1;
    cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r0], [%rd1, {%r1}], [%r2];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r0], [%rd1, {%r1, %r2}], [%r3], %rd2;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r0], [%rd1, {%r1, %r2}], [%r3], %h0, %rd2;
    cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd1, {%r1, %r2, %r3}], [%r4], %h0;
    cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r0], [%rd1, {%r1, %r2, %r3, %r4}], [%r5];
    cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r0], [%rd1, {%r1, %r2, %r3, %r4, %r5}], [%r6];
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [%r0];
    cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%rd1, {%r1, %r2, %r3}], [%r0];
    cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%rd1, {%r1, %r2}], [%r0];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    cp.async.bulk.wait_group.read 1;
    prefetch.tensormap [%rd1];
    fence.proxy.async;
    fence.proxy.async.shared::cta;
    fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.aligned;
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    mapa.shared::cluster.u32 %r1, %r0, %r2;
    mapa.u64 %rd1, %rd2, %r2;
    elect.sync _|%p1, 0xffffffff;
    elect.sync %r1|%p1, 0xffffffff;
    setmaxnreg.dec.sync.aligned.u32 40;
    setmaxnreg.inc.sync.aligned.u32 232;
    griddepcontrol.wait;
    griddepcontrol.launch_dependents;
    stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%r0], {%r1, %r2, %r3, %r4};
    stmatrix.sync.aligned.x2.m8n8.shared.b16 [%r0], {%r1, %r2};
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd1, %rd2, %p0, 1, 1, 0, 1;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, %rd2, %p0, 1, -1, 1;
    wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, %rd1, %rd2, %p0, 1, 1;
    wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3}, %rd1, %rd2, %p0, 1, 1;
    wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r0, %r1, %r2, %r3}, %rd1, %rd2, %p0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    ret;
}
"#;

#[test]
fn every_sm90_form_is_understood() {
    let module = Module::parse(FORMS).unwrap();
    let missing: Vec<_> = module.forms().into_iter().filter(|f| f.unsupported.is_some()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
