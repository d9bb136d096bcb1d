//! matmul and conv3x3 on the simulated driver with every check on, beside `reference/`: every epilogue at every tile, one less, as many and
//! one more than a tile's rows, columns and depth; outliers; one row; nothing. A row's bits do not depend on the tile or on its neighbours.

mod common;

use common::gpu::{Case, Ran, normal, round};
use mllmseg::graph::DType::{Act, F32};
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

/// `y = then(x @ wᵀ + b)` on both devices.
fn product(
    m: usize,
    n: usize,
    k: usize,
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
    let ran = case.run(op);
    (ran, before)
}

/// No further from the reference than a plain bf16 implementation: its result rounded, and with a residual the product rounded first.
fn check(m: usize, n: usize, k: usize, then: Then, tile: Option<usize>) {
    let (ran, before) = product(m, n, k, then, tile, 0);
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

/// Neither the main loop nor the way out has a bank conflict, and what is loaded is used.
#[test]
fn shared_memory_has_no_bank_conflicts() {
    if !common::gpu::counted() {
        return;
    }
    for tile in 0..MATMUL_TILES {
        for then in [Store, Residual, SiluMul] {
            let (ran, _) = product(128, 256, 512, then, Some(tile), 0);
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

#[test]
fn conv3x3() {
    for (q, g, d, o) in [(1, 32, 32, 196), (2, 5, 40, 16), (3, 4, 8, 65), (1, 12, 64, 196)] {
        let mut case = Case::new();
        let (m, k) = (q * g * g, 9 * d);
        let x = case.input("x", Act, &[q, g * g, d], &values(1, m * d, 1.0));
        let w = case.input("w", Act, &[o, 3, 3, d], &values(2, o * k, 1.0 / (k as f32).sqrt()));
        let b = case.input("b", F32, &[o], &normal(3, o));
        let y = case.output("y", Act, &[q, g * g, o]);
        let ran = [0, 1].map(|tile| case.run(ops::conv3x3(&y, &x, &w, &b, g).unwrap().with_tile(tile)));
        assert_eq!(ran.len(), ops::CONV3X3_TILES);
        let plain: Vec<f32> = ran[0].outputs[0].cpu.iter().map(|&v| round(v)).collect();
        ran[0].outputs[0].expect_as_close_as(&plain, 1e-6, true);
        assert_eq!(ran[0].outputs[0].gpu, ran[1].outputs[0].gpu, "a row's bits depend on the tile");
    }
}
