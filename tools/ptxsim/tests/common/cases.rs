//! The kernels with their inputs, and their answers by plain arithmetic.
//!
//! Sums are of small integers wherever they can be: then any order of additions gives the same bits, and a test asks for
//! equality.

use super::{Bf16, Gpu, Rng};
use ptxsim::LaunchConfig;
use ptxsim::tensor::tensormap::{TensorMap, TiledParams};

/// A kernel file and what to run of it.
pub struct Case {
    pub name: &'static str,
    pub file: &'static str,
    pub archs: &'static [&'static str],
    /// Whether the order in which blocks and warps run shows in the counters (a loop that waits for another).
    pub waits: bool,
    pub run: fn(&mut Gpu, &mut Rng),
}

impl Case {
    const fn new(name: &'static str, file: &'static str, run: fn(&mut Gpu, &mut Rng)) -> Case {
        Case { name, file, archs: &["80", "90a"], waits: false, run }
    }
    const fn hopper(self) -> Case {
        Case { archs: &["90a"], ..self }
    }
    const fn waits(self) -> Case {
        Case { waits: true, ..self }
    }
}

pub static CASES: [Case; 19] = [
    Case::new("reduce", "reduce.cu", reduce),
    Case::new("scan_block", "scan.cu", scan_block),
    Case::new("scan_chained", "scan.cu", scan_chained).waits(),
    Case::new("histogram", "histogram.cu", histogram),
    Case::new("transpose", "transpose.cu", transpose),
    Case::new("gemm", "gemm.cu", gemm),
    Case::new("attention", "attention.cu", attention),
    Case::new("layernorm", "layernorm.cu", layernorm),
    Case::new("bicubic", "bicubic.cu", bicubic),
    Case::new("radix", "radix.cu", radix),
    Case::new("pipeline", "pipeline.cu", pipeline).waits(),
    Case::new("wmma", "wmma.cu", wmma),
    Case::new("misc", "misc.cu", misc),
    Case::new("print", "misc.cu", print),
    Case::new("grid_sync", "grid_sync.cu", grid_sync).waits(),
    Case::new("cluster", "cluster.cu", cluster).hopper(),
    Case::new("bulk", "wgmma.cu", bulk).hopper().waits(),
    Case::new("wgmma", "wgmma.cu", wgmma).hopper().waits(),
    Case::new("wgmma_multicast", "wgmma.cu", wgmma_multicast).hopper().waits(),
];

pub fn case(name: &str) -> &'static Case {
    CASES.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no case `{name}`"))
}

fn blocks(n: usize, each: usize) -> u32 {
    n.div_ceil(each) as u32
}

fn reduce(gpu: &mut Gpu, rng: &mut Rng) {
    for (n, grid) in [(1, 1), (255, 1), (5000, 3)] {
        let ints = rng.ints(n, -100, 100);
        let floats: Vec<f32> = ints.iter().map(|&v| v as f32).collect();
        let x = gpu.upload(&floats);
        let (y, partial, ticket) = (gpu.alloc::<f32>(1), gpu.alloc::<f32>(grid), gpu.zeros::<u32>(1));
        let launch = LaunchConfig::new(grid as u32, 256);
        gpu.launch("sum_f32", &launch.clone().arg(y).arg(x).arg(n as u32).arg(partial).arg(ticket));
        let got = gpu.download::<f32>(y, 1);
        gpu.equal("sum_f32", &got, &[floats.iter().sum()]);

        let (y, x32) = (gpu.zeros::<i32>(1), gpu.upload(&ints));
        gpu.launch("sum_s32_redux", &launch.clone().arg(y).arg(x32).arg(n as u32));
        let got = gpu.download::<i32>(y, 1);
        gpu.equal("sum_s32_redux", &got, &[ints.iter().sum()]);

        let y = gpu.zeros::<u64>(1);
        gpu.launch("argmax_f32", &launch.arg(y).arg(x).arg(n as u32));
        let best = (0..n).rev().max_by(|&a, &b| floats[a].total_cmp(&floats[b])).unwrap();
        let got = !(gpu.download::<u64>(y, 1)[0] as u32) as usize;
        gpu.equal("argmax_f32", &[got], &[best]);
    }
}

fn prefix_sums(x: &[u32]) -> Vec<u32> {
    x.iter()
        .scan(0u32, |sum, v| {
            *sum = sum.wrapping_add(*v);
            Some(*sum)
        })
        .collect()
}

fn scan_block(gpu: &mut Gpu, rng: &mut Rng) {
    for n in [1, 200, 256] {
        let x: Vec<u32> = (0..n).map(|_| rng.u32()).collect();
        let (y, dx) = (gpu.alloc::<u32>(n), gpu.upload(&x));
        gpu.launch("scan_block", &LaunchConfig::new(1, 256).arg(y).arg(dx).arg(n as u32));
        let got = gpu.download::<u32>(y, n);
        gpu.equal("scan_block", &got, &prefix_sums(&x));
    }
}

fn scan_chained(gpu: &mut Gpu, rng: &mut Rng) {
    for n in [4usize, 1024, 9000] {
        let tiles = n.div_ceil(1024);
        let x: Vec<u32> = (0..n).map(|_| rng.u32()).collect();
        let (y, dx) = (gpu.alloc::<u32>(n), gpu.upload(&x));
        let (ticket, state) = (gpu.zeros::<u32>(1), gpu.zeros::<u32>(tiles));
        let (aggregate, prefix) = (gpu.alloc::<u32>(tiles), gpu.alloc::<u32>(tiles));
        let launch = LaunchConfig::new(tiles as u32, 256);
        gpu.launch(
            "scan_chained",
            &launch.arg(y).arg(dx).arg(n as u32).arg(ticket).arg(state).arg(aggregate).arg(prefix),
        );
        let got = gpu.download::<u32>(y, n);
        gpu.equal("scan_chained", &got, &prefix_sums(&x));
    }
}

fn histogram(gpu: &mut Gpu, rng: &mut Rng) {
    for (n, grid) in [(3, 1), (4099, 3)] {
        // A third of the bytes are equal, so that lanes meet in one bin.
        let x: Vec<u8> = (0..n).map(|_| if rng.int(0, 2) == 0 { 77 } else { rng.u32() as u8 }).collect();
        let (count, dx) = (gpu.zeros::<u32>(256), gpu.upload(&x));
        gpu.launch("histogram_u8", &LaunchConfig::new(grid, 256).arg(count).arg(dx).arg(n as u32));
        let mut want = [0u32; 256];
        x.iter().for_each(|&b| want[usize::from(b)] += 1);
        let got = gpu.download::<u32>(count, 256);
        gpu.equal("count", &got, &want);
    }
}

fn transpose(gpu: &mut Gpu, rng: &mut Rng) {
    for (r, c) in [(64, 32), (37, 70)] {
        let x = rng.f32s(r * c);
        let dx = gpu.upload(&x);
        let want: Vec<f32> = (0..r * c).map(|i| x[i % r * c + i / r]).collect();
        for kernel in ["transpose_plain", "transpose_conflicted", "transpose_padded", "transpose_swizzled"] {
            let y = gpu.alloc::<f32>(r * c);
            let launch = LaunchConfig::with_dims([blocks(c, 32), blocks(r, 32), 1], [32, 8, 1]);
            gpu.launch(kernel, &launch.arg(y).arg(dx).arg(r as u32).arg(c as u32));
            let got = gpu.download::<f32>(y, r * c);
            gpu.equal(kernel, &got, &want);
        }
    }
}

/// `x (m, k) @ w (n, k)^T` in integers.
pub fn matmul(x: &[i32], w: &[i32], k: usize) -> Vec<i32> {
    x.chunks(k).flat_map(|x| w.chunks(k).map(|w| x.iter().zip(w).map(|(a, b)| a * b).sum())).collect()
}
fn to_bf16(v: &[i32]) -> Vec<Bf16> {
    v.iter().map(|&v| Bf16::of(v as f32)).collect()
}

/// Launches gemm_bf16 on buffers that exist.
pub fn launch_gemm(gpu: &mut Gpu, [y, x, w]: [u64; 3], [m, n, k]: [usize; 3]) {
    let launch = LaunchConfig::with_dims([blocks(n, 128), blocks(m, 128), 1], [256, 1, 1]).shared(65536);
    gpu.launch("gemm_bf16", &launch.arg(y).arg(x).arg(w).arg(m as u32).arg(n as u32).arg(k as u32));
}

fn gemm(gpu: &mut Gpu, rng: &mut Rng) {
    // Tails of every side, fewer steps than stages, a step that is half filled.
    for [m, n, k] in [[130, 136, 200], [1, 2, 8], [64, 130, 48]] {
        let (x, w) = (rng.ints(m * k, -4, 4), rng.ints(n * k, -4, 4));
        let (y, dx, dw) = (gpu.alloc::<Bf16>(m * n), gpu.upload(&to_bf16(&x)), gpu.upload(&to_bf16(&w)));
        launch_gemm(gpu, [y, dx, dw], [m, n, k]);
        let got = gpu.download::<Bf16>(y, m * n);
        gpu.equal(&format!("y ({m}, {n}), K = {k}:"), &got, &to_bf16(&matmul(&x, &w, k)));
    }
}

/// Launches attention_bf16 on buffers that exist.
pub fn launch_attention(gpu: &mut Gpu, [y, q, k, v]: [u64; 4], heads: usize, t: usize) {
    let launch = LaunchConfig::with_dims([blocks(t, 64), heads as u32, 1], [128, 1, 1]).shared(40960);
    let scale = std::f32::consts::LOG2_E / 8.0;
    gpu.launch("attention_bf16", &launch.arg(y).arg(q).arg(k).arg(v).arg(t as u32).arg(scale));
}

fn attention(gpu: &mut Gpu, rng: &mut Rng) {
    for (heads, t) in [(2, 150), (1, 1), (1, 64)] {
        let n = heads * t * 64;
        // Queries of some length, so that the softmax has peaks and the running maximum moves.
        let q: Vec<Bf16> = (0..n).map(|_| Bf16::of(rng.f32() * 4.0)).collect();
        let (k, v) = (rng.bf16s(n), rng.bf16s(n));
        let buffers = [gpu.alloc::<Bf16>(n), gpu.upload(&q), gpu.upload(&k), gpu.upload(&v)];
        launch_attention(gpu, buffers, heads, t);
        let row = |x: &[Bf16], h: usize, i: usize| -> Vec<f64> {
            x[(h * t + i) * 64..][..64].iter().map(|v| f64::from(v.f32())).collect()
        };
        let mut want = Vec::with_capacity(n);
        for h in 0..heads {
            for i in 0..t {
                let qi = row(&q, h, i);
                let dot = |u| qi.iter().zip(row(&k, h, u)).map(|(a, b)| a * b).sum::<f64>() / 8.0;
                let s: Vec<f64> = (0..t).map(dot).collect();
                let top = s.iter().cloned().fold(f64::MIN, f64::max);
                let p: Vec<f64> = s.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = p.iter().sum();
                let mut y = [0.0; 64];
                for (u, p) in p.iter().enumerate() {
                    row(&v, h, u).iter().zip(&mut y).for_each(|(v, y)| *y += p * v / sum);
                }
                want.extend(y.map(|v| v as f32));
            }
        }
        let got: Vec<f32> = gpu.download::<Bf16>(buffers[0], n).iter().map(|v| v.f32()).collect();
        // |v| <= 1: each probability is rounded to bf16 (2^-9 of it), and so is the result.
        gpu.compare(&format!("y ({heads}, {t}, 64):"), &got, &want, |a, b| (a - b).abs() <= 2f32.powi(-8));
    }
}

fn layernorm(gpu: &mut Gpu, rng: &mut Rng) {
    for (n, c) in [(3, 1024), (2, 8), (1, 520)] {
        let (x, w, b) = (rng.bf16s(n * c), rng.bf16s(c), rng.bf16s(c));
        let y = gpu.alloc::<Bf16>(n * c);
        let (dx, dw, db) = (gpu.upload(&x), gpu.upload(&w), gpu.upload(&b));
        gpu.launch(
            "layernorm_bf16",
            &LaunchConfig::new(n as u32, 128).arg(y).arg(dx).arg(dw).arg(db).arg(c as u32).arg(1e-6f32),
        );
        let want: Vec<f32> = x
            .chunks(c)
            .flat_map(|row| {
                let row: Vec<f64> = row.iter().map(|v| f64::from(v.f32())).collect();
                let mean = row.iter().sum::<f64>() / c as f64;
                let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
                let rstd = 1.0 / (var + 1e-6).sqrt();
                let (w, b) = (&w, &b);
                (0..c)
                    .map(move |i| {
                        ((row[i] - mean) * rstd * f64::from(w[i].f32()) + f64::from(b[i].f32())) as f32
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        let got: Vec<f32> = gpu.download::<Bf16>(y, n * c).iter().map(|v| v.f32()).collect();
        // Half a unit in bf16's last place, and f32's error where the sum cancels.
        gpu.compare("y", &got, &want, |a, b| (a - b).abs() <= b.abs() * 2f32.powi(-8) + 1e-5);
    }
}

fn bicubic(gpu: &mut Gpu, rng: &mut Rng) {
    for ([h, w], [oh, ow]) in [([13, 17], [29, 40]), ([40, 31], [9, 35])] {
        let x: Vec<u8> = (0..h * w * 3).map(|_| rng.u32() as u8).collect();
        let (y, dx) = (gpu.alloc::<f32>(3 * oh * ow), gpu.upload(&x));
        let launch = LaunchConfig::with_dims([blocks(ow, 32), blocks(oh, 8), 1], [32, 8, 1]);
        gpu.launch(
            "bicubic_u8",
            &launch.arg(y).arg(dx).arg(h as u32).arg(w as u32).arg(oh as u32).arg(ow as u32),
        );
        let keys = |d: f64| match d.abs() {
            d if d <= 1.0 => 1.25 * d.powi(3) - 2.25 * d * d + 1.0,
            d if d < 2.0 => -0.75 * (d.powi(3) - 5.0 * d * d + 8.0 * d - 4.0),
            _ => 0.0,
        };
        let taps = |i: usize, n: usize, out: usize| {
            let s = (i as f64 + 0.5) * n as f64 / out as f64 - 0.5;
            let i0 = s.floor();
            (-1..=2)
                .map(move |u| ((i0 as i64 + u).clamp(0, n as i64 - 1) as usize, keys(u as f64 - (s - i0))))
        };
        let mut want = Vec::new();
        for ch in 0..3 {
            for i in 0..oh {
                for j in 0..ow {
                    let mut sum = 0.0;
                    for (r, wr) in taps(i, h, oh) {
                        for (c, wc) in taps(j, w, ow) {
                            sum += wr * wc * f64::from(x[(r * w + c) * 3 + ch]);
                        }
                    }
                    want.push((sum / 255.0) as f32);
                }
            }
        }
        let got = gpu.download::<f32>(y, want.len());
        // The coordinate is rounded to f32, 2^-19 of a pixel here; the slope is at most a few units a pixel.
        gpu.compare("y", &got, &want, |a, b| (a - b).abs() <= 2e-5);
    }
}

fn radix(gpu: &mut Gpu, rng: &mut Rng) {
    const TILE: usize = 512;
    let n: usize = 1300;
    let mut want: Vec<u32> = (0..n).map(|_| rng.u32() >> (rng.u32() % 32)).collect();
    let grid = n.div_ceil(TILE);
    let (mut from, mut to, count) = (gpu.upload(&want), gpu.alloc::<u32>(n), gpu.alloc::<u32>(256 * grid));
    for shift in [0u32, 8, 16, 24] {
        let wide = LaunchConfig::new(grid as u32, 128);
        gpu.launch("radix_count", &wide.clone().arg(count).arg(from).arg(n as u32).arg(shift));
        gpu.launch("radix_scan", &LaunchConfig::new(1, 128).arg(count).arg(256 * grid as u32));
        gpu.launch("radix_scatter", &wide.arg(to).arg(from).arg(count).arg(n as u32).arg(shift));
        std::mem::swap(&mut from, &mut to);
    }
    want.sort_unstable();
    let got = gpu.download::<u32>(from, n);
    gpu.equal("keys", &got, &want);
}

fn pipeline(gpu: &mut Gpu, rng: &mut Rng) {
    for (rows, grid) in [(25, 2), (2, 1)] {
        let x: Vec<f32> = (0..rows * 512).map(|_| rng.int(-50, 50) as f32).collect();
        let (y, dx, ticket) = (gpu.alloc::<f32>(rows), gpu.upload(&x), gpu.zeros::<u32>(1));
        gpu.launch("row_sums", &LaunchConfig::new(grid, 128).arg(y).arg(dx).arg(rows as u32).arg(ticket));
        let want: Vec<f32> = x.chunks(512).map(|r| r.iter().sum()).collect();
        let got = gpu.download::<f32>(y, rows);
        gpu.equal("y", &got, &want);
    }
}

fn wmma(gpu: &mut Gpu, rng: &mut Rng) {
    let (m, n, k) = (64, 64, 48);
    let (x, w) = (rng.ints(m * k, -9, 9), rng.ints(n * k, -9, 9));
    let want = matmul(&x, &w, k);
    let f32s = |v: &[i32]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let f16s = |v: &[i32]| v.iter().map(|&v| half::f16::from_f32(v as f32).to_bits()).collect::<Vec<_>>();
    let s8s = |v: &[i32]| v.iter().map(|&v| v as i8).collect::<Vec<_>>();
    let runs = [
        ("wmma_f16", [16, 16], gpu.upload(&f16s(&x)), gpu.upload(&f16s(&w))),
        ("wmma_bf16", [32, 8], gpu.upload(&to_bf16(&x)), gpu.upload(&to_bf16(&w))),
        ("wmma_tf32", [16, 16], gpu.upload(&f32s(&x)), gpu.upload(&f32s(&w))),
        ("wmma_s8", [8, 32], gpu.upload(&s8s(&x)), gpu.upload(&s8s(&w))),
    ];
    for (kernel, [tile_m, tile_n], dx, dw) in runs {
        let y = gpu.alloc::<f32>(m * n);
        let launch = LaunchConfig::with_dims([blocks(n, tile_n), blocks(m, tile_m), 1], [32, 1, 1]);
        gpu.launch(kernel, &launch.arg(y).arg(dx).arg(dw).arg(n as u32).arg(k as u32));
        if kernel == "wmma_s8" {
            let got = gpu.download::<i32>(y, m * n);
            gpu.equal(kernel, &got, &want);
        } else {
            let got = gpu.download::<f32>(y, m * n);
            gpu.equal(kernel, &got, &f32s(&want));
        }
    }
}

fn misc(gpu: &mut Gpu, rng: &mut Rng) {
    let n = 150;
    let wide = LaunchConfig::new(2, 96);

    let c = 20;
    let (x, w) = (rng.ints(n * c, -128, 127), rng.ints(c, -128, 127));
    let s8s = |v: &[i32]| v.iter().map(|&v| v as i8).collect::<Vec<_>>();
    let (y, dx, dw) = (gpu.alloc::<i32>(n), gpu.upload(&s8s(&x)), gpu.upload(&s8s(&w)));
    gpu.launch("dot_s8", &wide.clone().arg(y).arg(dx).arg(dw).arg(n as u32).arg(c as u32));
    let got = gpu.download::<i32>(y, n);
    gpu.equal("dot_s8", &got, &matmul(&x, &w, c));

    let y = gpu.alloc::<u32>(64);
    gpu.launch("fibonacci_u32", &LaunchConfig::new(1, 64).arg(y));
    let fibonacci: Vec<u32> = (0..64).map(|i| (0..i % 12).fold((0, 1), |(a, b), _| (b, a + b)).0).collect();
    let got = gpu.download::<u32>(y, 64);
    gpu.equal("fibonacci_u32", &got, &fibonacci);

    let x = rng.f32s(n);
    let steps = 7;
    let program: Vec<(i32, f32)> = (0..4 * steps).map(|_| (rng.int(0, 10), rng.f32())).collect();
    let words: Vec<[u32; 2]> = program.iter().map(|&(op, v)| [op as u32, v.to_bits()]).collect();
    let (y, dx, dp) = (gpu.alloc::<f32>(n), gpu.upload(&x), gpu.upload(&words));
    gpu.launch("interpret", &wide.clone().arg(y).arg(dx).arg(dp).arg(steps as u32).arg(n as u32));
    let apply = |v: f32, (op, s): (i32, f32)| match op {
        0 => v + s,
        1 => v * s,
        2 => v - 2.0 * s,
        3 => v.max(s),
        4 => v.abs().sqrt() + s,
        5 => s / (v + 7.0),
        6 => v * v - s,
        7 => v.min(s),
        8 => v.floor() + s,
        9 => v.copysign(s),
        _ => v,
    };
    let want: Vec<f32> =
        (0..n).map(|i| program[i % 4 * steps..][..steps].iter().fold(x[i], |v, s| apply(v, *s))).collect();
    let got = gpu.download::<f32>(y, n);
    gpu.equal("interpret", &got, &want);

    let x = rng.f32s(n * 16);
    let (y, dx) = (gpu.alloc::<f32>(n), gpu.upload(&x));
    gpu.launch("select_f32", &wide.clone().arg(y).arg(dx).arg(n as u32));
    let kth = |(i, row): (usize, &[f32])| {
        let mut row = row.to_vec();
        row.sort_by(f32::total_cmp);
        row[i % 16]
    };
    let want: Vec<f32> = x.chunks(16).enumerate().map(kth).collect();
    let got = gpu.download::<f32>(y, n);
    gpu.equal("select_f32", &got, &want);

    let y = gpu.alloc::<u32>(n);
    gpu.launch("collatz", &wide.clone().arg(y).arg(n as u32));
    let steps = |i: u32| {
        std::iter::successors(Some(i), |&v| (v != 1).then(|| if v % 2 == 1 { 3 * v + 1 } else { v / 2 }))
            .count() as u32
            - 1
    };
    let got = gpu.download::<u32>(y, n);
    gpu.equal("collatz", &got, &(1..=n as u32).map(steps).collect::<Vec<_>>());

    let (y, dx) = (gpu.alloc::<f32>(n), gpu.upload(&x[..n]));
    gpu.launch("scale_by_table", &wide.arg(y).arg(dx).arg(n as u32));
    let want: Vec<f32> = (0..n).map(|i| x[i] * [1.0, 10.0, 100.0, 1000.0][i % 4]).collect();
    let got = gpu.download::<f32>(y, n);
    gpu.equal("scale_by_table", &got, &want);
    let (calls, bytes) = gpu.module.symbol("d_calls").expect("the module has d_calls");
    assert_eq!(bytes, 4);
    let got = gpu.download::<u32>(calls, 1);
    gpu.equal("d_calls", &got, &[n as u32]);
}

fn print(gpu: &mut Gpu, _: &mut Rng) {
    gpu.launch("print", &LaunchConfig::new(2, 8).arg(14));
    let line = |i: u64| {
        format!(
            "thread {i} of print: {:.3} {:5} {} {:x}\n",
            i as f64 * 0.5,
            7 * i,
            char::from(b'a' + i as u8),
            0x12_3456_7890 + i
        )
    };
    let want: String = [0, 4, 8, 12].map(line).concat();
    let got = gpu.reports[0].output.clone();
    gpu.equal("output", &[&*got], &[&*want]);
}

fn grid_sync(gpu: &mut Gpu, rng: &mut Rng) {
    for (grid, steps) in [(4, 6), (1, 1)] {
        let n = grid * 64;
        let mut want = rng.ints(n, -8, 8).iter().map(|&v| v as f32).collect::<Vec<_>>();
        let (x, spare) = (gpu.upload(&want), gpu.alloc::<f32>(n));
        let mut launch = LaunchConfig::new(grid as u32, 64).arg(x).arg(spare).arg(n as u32).arg(steps as u32);
        launch.cooperative = true;
        gpu.launch("heat_f32", &launch);
        for _ in 0..steps {
            want =
                (0..n).map(|i| (want[(i + n - 1) % n] + 2.0 * want[i] + want[(i + 1) % n]) * 0.25).collect();
        }
        let got = gpu.download::<f32>(if steps % 2 == 0 { x } else { spare }, n);
        gpu.equal("x", &got, &want);
    }
}

fn cluster(gpu: &mut Gpu, rng: &mut Rng) {
    let n = 3000;
    let x: Vec<u16> = (0..n).map(|_| rng.int(0, 1023) as u16).collect();
    let (count, dx) = (gpu.zeros::<u32>(1024), gpu.upload(&x));
    let mut launch = LaunchConfig::new(8, 128);
    launch.cluster = [4, 1, 1];
    gpu.launch("histogram_cluster", &launch.clone().arg(count).arg(dx).arg(n as u32));
    let mut want = [0u32; 1024];
    x.iter().for_each(|&b| want[usize::from(b)] += 1);
    let got = gpu.download::<u32>(count, 1024);
    gpu.equal("count", &got, &want);

    let x: Vec<u32> = (0..8 * 128).map(|_| rng.u32()).collect();
    let (y, dx) = (gpu.alloc::<u32>(x.len()), gpu.upload(&x));
    gpu.launch("rotate_cluster", &launch.arg(y).arg(dx));
    let want: Vec<u32> = (0..x.len()).map(|i| x[i / 512 * 512 + (i + 128) % 512]).collect();
    let got = gpu.download::<u32>(y, x.len());
    gpu.equal("rotate", &got, &want);
}

fn bulk(gpu: &mut Gpu, rng: &mut Rng) {
    let x: Vec<u32> = (0..2048).map(|_| rng.u32()).collect();
    let (y, dx) = (gpu.alloc::<u32>(x.len()), gpu.upload(&x));
    gpu.launch("bulk_increment", &LaunchConfig::new(2, 128).arg(y).arg(dx));
    let want: Vec<u32> = x.iter().map(|v| v.wrapping_add(1)).collect();
    let got = gpu.download::<u32>(y, x.len());
    gpu.equal("y", &got, &want);
}

fn wgmma(gpu: &mut Gpu, rng: &mut Rng) {
    hopper_gemm(gpu, rng, "wgmma_bf16", 1);
}
fn wgmma_multicast(gpu: &mut Gpu, rng: &mut Rng) {
    hopper_gemm(gpu, rng, "wgmma_multicast_bf16", 2);
}

/// `y = x @ w^T` through TMA and wgmma, by clusters of `cluster` blocks along M.
fn hopper_gemm(gpu: &mut Gpu, rng: &mut Rng, kernel: &str, cluster: usize) {
    for [m, n, k] in [[256, 64, 128], [130, 72, 328]] {
        let (x, w) = (rng.ints(m * k, -4, 4), rng.ints(n * k, -4, 4));
        let (y, dx, dw) = (gpu.alloc::<Bf16>(m * n), gpu.upload(&to_bf16(&x)), gpu.upload(&to_bf16(&w)));
        let mut launch = LaunchConfig::with_dims(
            [blocks(n, 64), blocks(m, 128 * cluster) * cluster as u32, 1],
            [384, 1, 1],
        );
        launch.cluster = [1, cluster as u32, 1];
        launch.params = [(y, m, n, 64), (dx, m, k, 64), (dw, n, k, 64 / cluster)].map(tensor_map).concat();
        gpu.launch(kernel, &launch.shared(3 * 24576 + 1024).arg(k as u32));
        let got = gpu.download::<Bf16>(y, m * n);
        gpu.equal(&format!("y ({m}, {n}), K = {k}:"), &got, &to_bf16(&matmul(&x, &w, k)));
    }
}

/// A tensor map of a (rows, columns) bf16 matrix with boxes of so many rows by 64 columns, 128-byte swizzle.
fn tensor_map((address, rows, columns, box_rows): (u64, usize, usize, usize)) -> [u8; 128] {
    let params = TiledParams {
        data_type: 9, // CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        address,
        dims: &[columns as u64, rows as u64],
        strides: &[columns as u64 * 2],
        box_dims: &[64, box_rows as u32],
        element_strides: &[1, 1],
        interleave: 0,
        swizzle: 3, // CU_TENSOR_MAP_SWIZZLE_128B
        l2_promotion: 0,
        oob_fill: 0,
    };
    TensorMap::tiled(&params).expect("a map that the driver takes").to_bytes()
}
