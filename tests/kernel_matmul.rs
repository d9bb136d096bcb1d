//! matmul and conv3x3 on the simulated driver with every check on, beside `reference/`: every epilogue at every tile, one less, as many and
//! one more than a tile's rows, columns and depth; outliers; one row; nothing. A row's bits do not depend on the tile or on its neighbours, nor
//! on the order in which blocks run, be K summed in one part or in several.

mod common;

use common::gpu::{Case, Ran, normal, round};
use mllmseg::graph::DType::{Act, F32, I32};
use mllmseg::graph::Tensor;
use mllmseg::ops::{self, Epilogue, MATMUL_TILES};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Store,
    Wide,
    Gelu,
    Relu,
    Residual,
    ScaledResidual,
    SiluMul,
}
use Then::*;

const ALL: [Then; 7] = [Store, Wide, Gelu, Relu, Residual, ScaledResidual, SiluMul];

fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    normal(seed, n).into_iter().map(|v| round(v * scale)).collect()
}

/// `y = then(x @ wᵀ + b)` on both devices, K in one part.
fn product(
    m: usize,
    n: usize,
    k: usize,
    then: Then,
    tile: Option<usize>,
    first_row: usize,
) -> (Ran, Vec<f32>) {
    product_in_parts([m, n, k], 1, then, tile, first_row)
}

/// The same, K in `parts` parts.
fn product_in_parts(
    [m, n, k]: [usize; 3],
    parts: usize,
    then: Then,
    tile: Option<usize>,
    first_row: usize,
) -> (Ran, Vec<f32>) {
    let mut case = Case::new();
    let xs = values(1, (first_row + m) * k, 1.0).split_off(first_row * k);
    let ws = values(2, n * k, 1.0 / (k as f32).sqrt());
    let (bs, before) = (values(3, n, 0.5), values(4, (first_row + m) * n, 1.0).split_off(first_row * n));
    let (w3s, ls) = (values(5, n * k, 1.0 / (k as f32).sqrt()), values(6, n, 0.5));
    let x = case.input("x", Act, &[m, k], &xs);
    let w = case.input("w", Act, &[n, k], &ws);
    let bias: Option<Tensor> = (then != SiluMul).then(|| case.input("b", Act, &[n], &bs));
    let y = match then {
        Residual | ScaledResidual => case.inout("y", Act, &[m, n], &before),
        Wide => case.output("y", F32, &[m, n]),
        _ => case.output("y", Act, &[m, n]),
    };
    let epilogue = match then {
        Store | Wide => Epilogue::Store,
        Gelu => Epilogue::Gelu,
        Relu => Epilogue::Relu,
        Residual => Epilogue::Residual,
        ScaledResidual => Epilogue::ScaledResidual(case.input("ls", Act, &[n], &ls)),
        SiluMul => Epilogue::SiluMul(case.input("w3", Act, &[n, k], &w3s)),
    };
    let mut op = ops::matmul(&y, &x, &w).unwrap();
    if let Some(b) = &bias {
        op = op.bias(b).unwrap();
    }
    op = op.then(epilogue).unwrap();
    if let Some(tile) = tile {
        op = op.with_tile(tile);
    }
    if parts > 1 {
        let sums = case.scratch("sums", F32, &[parts, ops::matmul_parts_room(m, n)]);
        op = op.with_parts(&sums).unwrap();
    }
    let ran = case.run(op);
    (ran, before)
}

/// No further from the reference than a plain bf16 implementation: its result rounded, and with a residual the product rounded first.
fn check(m: usize, n: usize, k: usize, then: Then, tile: Option<usize>) {
    check_in_parts([m, n, k], 1, then, tile);
}

fn check_in_parts([m, n, k]: [usize; 3], parts: usize, then: Then, tile: Option<usize>) {
    let (ran, before) = product_in_parts([m, n, k], parts, then, tile, 0);
    let y = &ran.outputs[0];
    assert!(m * n == 0 || y.gpu.len() == m * n);
    let plain: Vec<f32> = match then {
        Wide => y.cpu.clone(),
        // The rounded product is off by half a unit of its own last place.
        Residual | ScaledResidual => {
            y.cpu.iter().zip(&before).map(|(y, b)| round(round(y - b) + b)).collect()
        }
        _ => y.cpu.iter().map(|&v| round(v)).collect(),
    };
    let floor = if then == Wide { 1e-5 * (k as f32).sqrt() } else { 1e-6 };
    y.expect_as_close_as(&plain, floor, m * n > 64);
}

#[test]
fn every_epilogue_at_every_tile() {
    for tile in 0..MATMUL_TILES {
        for then in ALL {
            check(37, 72, 104, then, Some(tile));
        }
    }
}

#[test]
fn edges_of_tiles() {
    // rows and columns of a block, by tile; SwiGLU's tiles are half as wide
    for (tile, (bm, bn)) in [(128, 256), (128, 128), (64, 64), (32, 64)].into_iter().enumerate() {
        for (m, n, k) in [
            (bm - 1, bn - 1, 24),
            (bm, bn, 32),
            (bm + 1, bn + 1, 40),
            (bm + 1, bn + 8, 8),
            (2 * bm - 1, 16, 40),
            (bm + bm / 2, 24, 40),
            (1, bn + 8, 32 * 3),
            (3, 8, 32 * 9 + 8),
        ] {
            check(m, n, k, if m % 2 == 0 { Store } else { Residual }, Some(tile));
        }
        check(bm + 1, bn / 2 + 8, 72, SiluMul, Some(tile));
        check(bm + 1, bn + 3, 72, Wide, Some(tile));
    }
}

#[test]
fn shapes_of_the_model() {
    for (m, n, k, then) in [
        (41, 384, 1024, Gelu),           // fc1, a few of its columns
        (40, 256, 4096, ScaledResidual), // fc2
        (20, 640, 2048, Residual),       // wo
        (20, 448, 1024, SiluMul),        // w1 and w3
        (2, 515, 4096, Wide),            // logits: an odd number of columns
        (256, 32, 1024, Store),          // DySample's offsets
        (1, 1024, 4096, Store),          // text_down, one expression
        (64, 64, 592, Store),            // patches, padded
    ] {
        check(m, n, k, then, None);
    }
}

#[test]
fn nothing_is_no_launch() {
    for then in ALL {
        let (ran, _) = product(0, 64, 64, then, None, 0);
        assert!(ran.report["launches"].as_array().unwrap().is_empty());
    }
}

/// A row alone, and among others, in any tile: the same bits.
#[test]
fn a_row_has_the_same_bits_everywhere() {
    for then in ALL {
        let (n, k) = (72, 296);
        let (all, _) = product(70, n, k, then, Some(1), 0);
        for tile in 0..MATMUL_TILES {
            let (same, _) = product(70, n, k, then, Some(tile), 0);
            assert_eq!(same.outputs[0].gpu, all.outputs[0].gpu, "{then:?}, tile {tile}");
            let (alone, _) = product(1, n, k, then, Some(tile), 69);
            assert_eq!(
                alone.outputs[0].gpu,
                all.outputs[0].gpu[69 * n..],
                "{then:?}, tile {tile}: a row alone"
            );
        }
    }
}

/// Ends of K and of parts within and at the end of the columns that a tile multiplies at once; a last part that is short, or missing.
#[test]
fn sums_in_parts() {
    for (tile, (bm, bn)) in [(128, 256), (128, 128), (64, 64), (32, 64)].into_iter().enumerate() {
        for (i, then) in [Store, Gelu, Relu, Residual, ScaledResidual].into_iter().enumerate() {
            let k = [192, 200, 256 + 32, 8, 640][i];
            check_in_parts([bm + 1, bn + [8, 1, 0, 16, 3][i], k], 2 + i % 3, then, Some(tile));
        }
    }
    for (m, n, k) in [(16, 40, 64 * 3), (5, 33, 64 * 3 + 8), (1, 64, 640), (17, 96, 1024)] {
        check_in_parts([m, n, k], 3, Residual, None);
    }
}

/// A row alone, and among others, in any tile and in the kernel for few rows: the same bits for as many parts.
#[test]
fn parts_of_a_row_have_the_same_bits_everywhere() {
    for then in [Store, ScaledResidual] {
        let (n, k) = (72, 616);
        for parts in 2..=3 {
            let (all, _) = product_in_parts([141, n, k], parts, then, Some(1), 0);
            let all = &all.outputs[0].gpu;
            for tile in 0..MATMUL_TILES {
                let (same, _) = product_in_parts([141, n, k], parts, then, Some(tile), 0);
                assert_eq!(&same.outputs[0].gpu, all, "{then:?}, {parts} parts, tile {tile}");
            }
            for (rows, tile) in [(1, Some(0)), (1, None), (16, None), (17, None)] {
                let (last, _) = product_in_parts([rows, n, k], parts, then, tile, 141 - rows);
                assert_eq!(
                    last.outputs[0].gpu,
                    all[(141 - rows) * n..],
                    "{then:?}, {parts} parts, {rows} rows"
                );
            }
        }
    }
}

/// Whatever block of a tile is the last, and whatever warp of a block: the same bits. The order is the simulator's, in a process of its own.
#[test]
fn the_order_of_blocks_changes_no_bit() {
    const SEED: &str = "PTXSIM_SEED";
    if !common::gpu::counted() {
        return;
    }
    if std::env::var_os(SEED).is_some() {
        for tile in 0..MATMUL_TILES {
            let (ran, _) = product_in_parts([129, 264, 520], 3, Residual, Some(tile), 0);
            let bits = ran.outputs[0].gpu.iter().map(|v| u64::from(v.to_bits()));
            println!(
                "bits of tile {tile}: {:x}",
                bits.fold(7, |a: u64, v| a.rotate_left(5).wrapping_mul(31) ^ v)
            );
        }
        return;
    }
    let run = |seed: &str| {
        let name = "the_order_of_blocks_changes_no_bit";
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        let o = test.args(["--exact", name, "--nocapture"]).env(SEED, seed).output().unwrap();
        assert!(o.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&o.stderr));
        let text = String::from_utf8(o.stdout).unwrap();
        text.lines().filter_map(|l| l.find("bits of").map(|at| l[at..].to_string())).collect::<Vec<_>>()
    };
    let expected = run("0");
    assert_eq!(expected.len(), MATMUL_TILES);
    let same = |l: &String| l.split(": ").nth(1) == expected[0].split(": ").nth(1);
    assert!(expected.iter().all(same), "{expected:?}");
    for seed in ["1", "2", "7"] {
        assert_eq!(run(seed), expected, "seed {seed}");
    }
}

/// What fills no tile is made by low ones: no rows beyond the next 32, or 64 where tiles are wide.
#[test]
fn rows_fill_tiles() {
    if !common::gpu::counted() {
        return;
    }
    for (tile, (bm, bn, low)) in
        [(128, 256, 64), (128, 128, 32), (64, 64, 32), (32, 64, 32)].into_iter().enumerate()
    {
        for m in [bm, bm + 1, bm + low + 1, 3 * bm - 1, 2 * bm + low] {
            let (ran, _) = product(m, bn, 32, Store, Some(tile), 0);
            let tensor = ran.report["launches"][0]["counters"]["tensor"].as_object().unwrap();
            let flops: u64 = tensor.values().map(|t| t["flops"].as_u64().unwrap()).sum();
            assert_eq!(flops, (2 * m.next_multiple_of(low) * bn * 32) as u64, "tile {tile}, {m} rows");
        }
    }
}

/// Neither the main loop nor the way out has a bank conflict, and what is loaded is used.
#[test]
fn shared_memory_has_no_bank_conflicts() {
    if !common::gpu::counted() {
        return;
    }
    for tile in 0..MATMUL_TILES {
        for then in [Store, Residual, SiluMul] {
            let parts = if then == Residual { 2 } else { 1 };
            let (ran, _) = product_in_parts([128 + 32, 256, 512], parts, then, Some(tile), 0);
            let kernels = ran.report["kernels"].as_object().unwrap();
            let c = &kernels.values().next().unwrap()["counters"];
            for part in ["shared_load", "shared_store"] {
                assert_eq!(c[part]["wavefronts"], c[part]["ideal"], "{then:?}, tile {tile}: {part}");
            }
            for part in ["global_load", "global_store"] {
                let number = |key: &str| c[part][key].as_u64().unwrap();
                assert!(
                    number("bytes") * 100 >= number("sectors") * 32 * 95,
                    "{then:?}, tile {tile}: {}",
                    c[part]
                );
            }
        }
    }
}

/// The first of equal products, at the edges of both tiles, by a bit as `argmax` of the logits in memory decides.
#[test]
fn argmax_of_a_product() {
    for (m, n, k) in [(1, 1, 8), (31, 63, 40), (32, 64, 64), (33, 65, 24), (129, 257, 32), (2, 515, 1024)] {
        let mut case = Case::new();
        let x = case.input("x", Act, &[m, k], &values(1, m * k, 1.0));
        // Some columns are equal: the first counts.
        let mut ws = values(2, n * k, 1.0);
        if n > 40 {
            ws.copy_within(20 * k..30 * k, 31 * k);
        }
        let w = case.input("w", Act, &[n, k], &ws);
        let logits = case.output("logits", F32, &[m, n]);
        let expected = case.output("expected", I32, &[m]);
        let partial = case.scratch("partial", I32, &[ops::argmax_partials(n), m, 2]);
        let ys: Vec<_> = (0..ops::ARGMAX_TILES).map(|_| case.output("y", I32, &[m])).collect();
        let mut g = mllmseg::graph::Graph::new();
        g.push("logits", ops::matmul(&logits, &x, &w).unwrap());
        g.push("argmax", ops::argmax(&expected, &logits).unwrap());
        for (tile, y) in ys.iter().enumerate() {
            g.push("both", ops::matmul_argmax(y, &partial, &x, &w).unwrap().with_tile(tile));
        }
        let ran = case.run_graph(g);
        for y in &ran.outputs[2..] {
            assert_eq!(y.gpu, ran.outputs[1].gpu, "{m} x {n} x {k}");
        }
    }
}

#[test]
fn conv3x3() {
    for (q, g, d, p) in [(1, 32, 32, 14), (2, 6, 40, 4), (3, 4, 8, 8), (1, 12, 64, 14), (2, 4, 8, 2)] {
        let mut case = Case::new();
        let (m, k, o) = (q * g * g, 9 * d, p * p);
        let x = case.input("x", Act, &[q, g * g, d], &values(1, m * d, 1.0));
        let w = case.input("w", Act, &[o, 3, 3, d], &values(2, o * k, 1.0 / (k as f32).sqrt()));
        let b = case.input("b", F32, &[o], &normal(3, o));
        let y = case.output("y", Act, &[q, g * p, g * p]);
        let ran = [0, 1].map(|tile| case.run(ops::conv3x3(&y, &x, &w, &b, g).unwrap().with_tile(tile)));
        assert_eq!(ran.len(), ops::CONV3X3_TILES);
        let plain: Vec<f32> = ran[0].outputs[0].cpu.iter().map(|&v| round(v)).collect();
        ran[0].outputs[0].expect_as_close_as(&plain, 1e-6, true);
        assert_eq!(ran[0].outputs[0].gpu, ran[1].outputs[0].gpu, "a row's bits depend on the tile");
        if !common::gpu::counted() || g != 32 {
            continue;
        }
        for ran in ran {
            let kernels = ran.report["kernels"].as_object().unwrap();
            let c = &kernels.values().next().unwrap()["counters"];
            let number = |part: &str, key: &str| c[part][key].as_u64().unwrap();
            assert_eq!(number("shared_load", "wavefronts"), number("shared_load", "ideal"));
            // Outside the main loop: a cell's pixels are 28 bytes of a line.
            assert!(number("shared_store", "wavefronts") <= 2 * number("shared_store", "ideal"), "{c}");
            assert_eq!(number("global_store", "bytes"), (2 * m * o) as u64, "pixels are stored once");
            assert_eq!(number("global_store", "bytes"), 32 * number("global_store", "sectors"));
        }
    }
}
