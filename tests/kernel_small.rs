//! Kernels that are neither a matmul nor attention, on the simulated driver with every check on, beside `reference/`.
//!
//! Copies, permutations, gathers, argmax and masks: bitwise equal. Norms and elementwise ones: within twice the error of the same
//! computed plainly in bf16. Shapes: the model's widths, one row, tails of every block, and windows of wider matrices.

mod common;

use common::gpu::{Case, Output, normal, round};
use mllmseg::graph::DType::{Act, F32, I32, U8};
use mllmseg::image::{Rgb, resize_table};
use mllmseg::ops;

const EPS: f32 = 1e-5;

/// Rows and columns: decode, one vector, block edges, the widths of the model, the widest.
const ROWS: [(usize, usize); 9] =
    [(1, 4096), (3, 8), (2, 248), (2, 256), (5, 264), (7, 1024), (3, 2056), (2, 4104), (1, 16384)];

fn rounded(v: impl IntoIterator<Item = f32>) -> Vec<f32> {
    v.into_iter().map(round).collect()
}

#[test]
fn rmsnorm() {
    for (n, c) in ROWS {
        let mut case = Case::new();
        let (xs, ws) = (rounded(normal(1, n * c)), rounded(normal(2, c)));
        let x = case.input("x", Act, &[n, c], &xs);
        let w = case.input("w", Act, &[c], &ws);
        let y = case.output("y", Act, &[n, c]);
        let ran = case.run(ops::rmsnorm(&y, &x, &w, EPS).unwrap());
        let plain = xs.chunks(c).flat_map(|x| {
            let rstd = (x.iter().map(|v| v * v).sum::<f32>() / c as f32 + EPS).sqrt().recip();
            x.iter().zip(&ws).map(|(x, w)| round(w * round(x * rstd))).collect::<Vec<_>>()
        });
        ran.outputs[0].expect_as_close_as(&plain.collect::<Vec<_>>(), 0.0, false);
    }
}

/// `layernorm(v)` with the sum and the result rounded to bf16.
fn plain_layernorm(v: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
    let c = w.len();
    let row = |v: &[f32]| {
        let v = rounded(v.to_vec());
        let mean = v.iter().sum::<f32>() / c as f32;
        let rstd = (v.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / c as f32 + EPS).sqrt().recip();
        (0..c).map(|i| round(round((v[i] - mean) * rstd) * w[i] + b[i])).collect::<Vec<_>>()
    };
    v.chunks(c).flat_map(row).collect()
}

#[test]
fn layernorm_into_a_window() {
    for (n, c) in ROWS {
        let mut case = Case::new();
        let xs = rounded(normal(3, n * c));
        let (ws, bs) = (rounded(normal(4, c)), rounded(normal(5, c)));
        let x = case.input("x", Act, &[n, c], &xs);
        let [w, b] = [("w", &ws), ("b", &bs)].map(|(name, v)| case.input(name, Act, &[c], v));
        let before = normal(6, n * (c + 24));
        let y = case.inout("y", Act, &[n, c + 24], &before);
        let ran = case.run(ops::layernorm(&y.cols(8, c), &x, &w, &b, EPS).unwrap());
        let mut plain = rounded(before);
        let rows = plain_layernorm(&xs, &ws, &bs);
        for (to, from) in plain.chunks_mut(c + 24).zip(rows.chunks(c)) {
            to[8..8 + c].copy_from_slice(from);
        }
        let y = &ran.outputs[0];
        y.expect_as_close_as(&plain, 0.0, false);
        let outside = |v: &[f32]| -> Vec<f32> {
            v.chunks(c + 24).flat_map(|r| [&r[..8], &r[8 + c..]].concat()).collect()
        };
        assert_eq!(outside(&y.gpu), outside(&plain), "columns outside the window change");
    }
}

#[test]
fn layernorm_of_a_sum() {
    for (n, c) in ROWS {
        let mut case = Case::new();
        let (xs, rs) = (rounded(normal(7, n * c)), rounded(normal(8, n * c)));
        let (ws, bs) = (rounded(normal(9, c)), rounded(normal(10, c)));
        let [x, r] = [("x", &xs), ("r", &rs)].map(|(name, v)| case.input(name, Act, &[n, c], v));
        let [w, b] = [("w", &ws), ("b", &bs)].map(|(name, v)| case.input(name, Act, &[c], v));
        let y = case.output("y", Act, &[n, c]);
        let ran = case.run(ops::add_layernorm(&y, &x, &r, &w, &b, EPS).unwrap());
        let sum: Vec<f32> = xs.iter().zip(&rs).map(|(x, r)| x + r).collect();
        ran.outputs[0].expect_as_close_as(&plain_layernorm(&sum, &ws, &bs), 0.0, false);
    }
}

#[test]
fn layernorm_of_an_image_and_a_vector() {
    let (b, p, q, c) = (2, 5, 3, 264);
    let mut case = Case::new();
    let (xs, rs) = (rounded(normal(11, b * p * c)), rounded(normal(12, q * c)));
    let (ws, bs) = (rounded(normal(13, c)), rounded(normal(14, c)));
    let image_of = [1, 0, 1];
    let x = case.input("x", Act, &[b, p, c], &xs);
    let r = case.input("r", Act, &[q, c], &rs);
    let of = case.ints("image_of", &[q], &image_of);
    let [w, bias] = [("w", &ws), ("b", &bs)].map(|(name, v)| case.input(name, Act, &[c], v));
    let y = case.output("y", Act, &[q, p, c]);
    let ran = case.run(ops::broadcast_add_layernorm(&y, &x, &of, &r, &w, &bias, EPS).unwrap());
    let mut sum = Vec::new();
    for (i, image) in image_of.into_iter().enumerate() {
        for row in xs[image as usize * p * c..][..p * c].chunks(c) {
            sum.extend(row.iter().zip(&rs[i * c..]).map(|(x, r)| x + r));
        }
    }
    ran.outputs[0].expect_as_close_as(&plain_layernorm(&sum, &ws, &bs), 0.0, false);
}

#[test]
fn rows_go_to_their_places() {
    for c in [8, 256, 2048, 2056, 4096] {
        let mut case = Case::new();
        let table = case.input("table", Act, &[6, c], &normal(1, 6 * c));
        let images = case.input("images", Act, &[3, c], &normal(2, 3 * c));
        let ids = case.ints("ids", &[5], &[5, -1, 0, -3, 5]);
        let text = case.ints("text", &[2], &[3, 1]);
        let rows = case.ints("rows", &[4], &[2, 0, 5, 2]);
        let [a, b] = [("a", 5), ("b", 2)].map(|(name, n)| case.output(name, Act, &[n, c]));
        let picked = case.output("picked", Act, &[4, c]);
        let wide = case.inout("wide", Act, &[6, c + 16], &normal(3, 6 * (c + 16)));
        let kept = case.output("kept", Act, &[4, c]);
        let mut g = mllmseg::graph::Graph::new();
        g.push("embed", ops::embed(&a, &ids, &table, Some(&images)).unwrap());
        g.push("text", ops::embed(&b, &text, &table, None).unwrap());
        g.push("gather", ops::gather_rows(&picked, &table, &rows).unwrap());
        g.push("copy", ops::copy(&wide.cols(16, c), &table).unwrap());
        g.push("drop_cls", ops::drop_cls(&kept.all(), &table.reshape([2, 3, c])).unwrap());
        case.run_graph(g).outputs.iter().for_each(Output::expect_equal);
    }
}

#[test]
fn images_are_rearranged() {
    for (b, g, c) in [(1, 2, 8), (2, 4, 264), (1, 16, 128)] {
        let mut case = Case::new();
        let x = case.input("x", Act, &[b * g * g, c], &normal(1, b * g * g * c));
        let y = case.output("y", Act, &[b * g * g / 4, 4 * c]);
        case.run(ops::pixel_shuffle(&y, &x, g).unwrap()).outputs[0].expect_equal();
    }
    // the last groups of patches are short where G is no multiple of 8; K is 588 padded, or nothing is
    for (b, g, p, k) in [(1, 32, 14, 592), (2, 11, 14, 600), (1, 3, 4, 48)] {
        let mut case = Case::new();
        let s = g * p;
        let x = case.input("x", F32, &[b, 3, s, s], &rounded(normal(3, b * 3 * s * s)));
        let y = case.output("y", Act, &[b * g * g, k]);
        case.run(ops::patchify(&y, &x, p).unwrap()).outputs[0].expect_equal();
    }
}

/// Pictures smaller, larger and as large as the result, a line and a column, side by side in one run: Pillow's bits, normalised.
#[test]
fn preprocess_has_pillow_s_bits() {
    for (g, p, k, sizes) in [
        (4, 14, 592, &[(56, 56), (1, 1), (37, 300), (600, 41), (57, 55)][..]),
        (11, 4, 56, &[(1, 700), (90, 2)]),
        (32, 14, 592, &[(333, 517)]),
        (2, 24, 1728, &[(30, 50)]), // more than 48 KB of shared memory, static and dynamic together
        (4, 2, 16, &[(125, 40)]), // results whose quads are too many for the ring, a row of patches whose are not
        (8, 1, 8, &[(160, 9)]),
    ] {
        let pictures: Vec<Rgb> = sizes
            .iter()
            .map(|&(height, width)| {
                // hard edges overshoot, so that results are clipped
                let value = |i: usize| if (i / 7).is_multiple_of(3) { 255 } else { (i * 37 % 251) as u8 };
                Rgb { width, height, data: (0..height * width * 3).map(value).collect() }
            })
            .collect();
        let s = g * p;
        let (mut source, mut tables, mut rows, mut lines) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for x in &pictures {
            rows.extend([source.len() / 16, x.height, x.width, lines]);
            source.extend_from_slice(&x.data);
            source.resize(source.len().next_multiple_of(16), 0);
            lines += x.height.next_multiple_of(4);
            for n in [x.width, x.height] {
                let (table, quads) = resize_table(n, s);
                rows.extend([tables.len(), quads]);
                tables.extend(table);
            }
        }
        let rows: Vec<i32> = rows.into_iter().map(|v| v as i32).collect();
        let mut case = Case::new();
        let source = case.bytes("source", &source);
        let tables = case.ints("tables", &[tables.len()], &tables);
        let table = case.ints("pictures", &[pictures.len(), ops::PICTURE], &rows);
        let lines = case.scratch("lines", U8, &[lines, s, 3]);
        let y = case.output("y", Act, &[pictures.len() * g * g, k]);
        let ran = case.run(ops::preprocess(&y, &lines, &source, &tables, &table, p).unwrap());
        let y = &ran.outputs[0];
        assert_eq!(y.gpu, rounded(y.cpu.clone()), "{sizes:?} to {s}");
    }
}

/// The same bits as the two steps one after another.
#[test]
fn layernorm_of_a_shuffled_map() {
    for (b, g, c) in [(1, 2, 8), (2, 4, 264), (1, 6, 1024)] {
        let mut case = Case::new();
        let x = case.input("x", Act, &[b * g * g, c], &normal(1, b * g * g * c));
        let [w, bias] = [2, 3].map(|seed| case.input("w", Act, &[4 * c], &normal(seed, 4 * c)));
        let [y, steps] = ["y", "steps"].map(|name| case.output(name, Act, &[b * g * g / 4, 4 * c]));
        let shuffled = case.scratch("shuffled", Act, &[b * g * g / 4, 4 * c]);
        let mut graph = mllmseg::graph::Graph::new();
        graph.push("at once", ops::shuffle_layernorm(&y, &x, &w, &bias, g, EPS).unwrap());
        graph.push("shuffle", ops::pixel_shuffle(&shuffled, &x, g).unwrap());
        graph.push("norm", ops::layernorm(&steps.all(), &shuffled, &w, &bias, EPS).unwrap());
        let ran = case.run_graph(graph);
        assert_eq!(ran.outputs[0].gpu, ran.outputs[1].gpu);
        let plain = rounded(ran.outputs[0].cpu.clone());
        ran.outputs[0].expect_as_close_as(&plain, 0.0, true);
    }
}

/// What [`the_order_of_warps_changes_no_bit`] compares: run by it in processes of its own.
#[test]
#[ignore = "run by the_order_of_warps_changes_no_bit"]
fn digest() {
    let mut case = Case::new();
    let (m, n, k, s) = (70, 200, 104, 84);
    let x = case.input("x", Act, &[m, k], &normal(1, m * k));
    let w = case.input("w", Act, &[n, k], &normal(2, n * k));
    let product = case.output("product", Act, &[m, n]);
    let partial = case.scratch("partial", I32, &[ops::argmax_partials(n), m, 2]);
    let best = case.output("best", I32, &[m]);
    let qkv = case.input("qkv", Act, &[150, 192], &normal(3, 150 * 192));
    let o = case.output("o", Act, &[150, 64]);
    let pixels = case.input("pixels", Act, &[2, s, s], &normal(4, 2 * s * s));
    let conv = case.input("w", Act, &[1, 1, 5, 5], &normal(5, 25));
    let bias = case.input("b", Act, &[1], &[0.0]);
    let masks = case.ints("masks", &[2, 3], &[0, 150, 90, 450, 41, 300]);
    let bits = case.output("bits", I32, &[860]);
    let stats = case.output("stats", I32, &[2, ops::STATS]);
    let mut g = mllmseg::graph::Graph::new();
    g.push("matmul", ops::matmul(&product, &x, &w).unwrap());
    g.push("argmax", ops::matmul_argmax(&best, &partial, &x, &w).unwrap());
    let [q, k, v] = [0, 64, 128].map(|col| qkv.cols(col, 64));
    g.push("attention", ops::attention(&o, &q, &k, &v, 1, 1).unwrap());
    g.push("masks", ops::mask_head(&bits, &stats, None, &pixels, &conv, &bias, &masks).unwrap());
    let ran = case.run_graph(g);
    let mut hash = std::hash::DefaultHasher::new();
    for y in &ran.outputs {
        y.gpu.iter().for_each(|v| std::hash::Hash::hash(&v.to_bits(), &mut hash));
    }
    println!("digest {:016x}", std::hash::Hasher::finish(&hash));
}

/// Blocks run on one thread or several, warps in the order of a seed.
#[test]
fn the_order_of_warps_changes_no_bit() {
    if !common::gpu::counted() {
        return;
    }
    let _driver = common::gpu::driver();
    let run = |seed: &str, threads: &str| {
        let mut run = std::process::Command::new(std::env::current_exe().unwrap());
        let run = run.args(["digest", "--exact", "--ignored", "--nocapture"]);
        let out = run.env("PTXSIM_SEED", seed).env("PTXSIM_THREADS", threads).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        let line = text.lines().find_map(|l| l.split_once("digest ").filter(|d| d.1.len() == 16));
        line.unwrap_or_else(|| panic!("no digest in {text}")).1.to_string()
    };
    let first = run("0", "1");
    for (seed, threads) in [("1", "1"), ("7", "2"), ("123456", "4")] {
        assert_eq!(run(seed, threads), first, "seed {seed}, {threads} threads");
    }
}

#[test]
fn vit_tokens() {
    let (b, n, c) = (2, 9, 264);
    let mut case = Case::new();
    let values = [b * n * c, c, (1 + n) * c].map(|len| rounded(normal(len as u64, len)));
    let patches = case.input("patches", Act, &[b * n, c], &values[0]);
    let class = case.input("class", Act, &[1, 1, c], &values[1]);
    let position = case.input("position", Act, &[1, 1 + n, c], &values[2]);
    let y = case.output("y", Act, &[b, 1 + n, c]);
    let ran = case.run(ops::vit_tokens(&y, &patches, &class, &position).unwrap());
    ran.outputs[0].expect_as_close_as(&rounded(ran.outputs[0].cpu.clone()), 0.0, false);
}

#[test]
fn conv5x5_and_sigmoid() {
    for (q, s) in [(1, 8), (2, 68), (1, 448)] {
        let mut case = Case::new();
        let x = case.input("x", Act, &[q, s, s], &normal(1, q * s * s));
        let w = case.input("w", Act, &[1, 1, 5, 5], &normal(2, 25));
        let b = case.input("b", Act, &[1], &[0.25]);
        let [y, z] = ["y", "z"].map(|name| case.output(name, F32, &[q, s, s]));
        let mut g = mllmseg::graph::Graph::new();
        g.push("conv5x5", ops::conv5x5(&y, &x, &w, &b).unwrap());
        g.push("sigmoid", ops::sigmoid(&z, &y).unwrap());
        let ran = case.run_graph(g);
        // f32 all along: 25 products of size up to 30, and one exponential
        ran.outputs[0].expect_as_close_as(&ran.outputs[0].cpu.clone(), 1e-4, true);
        ran.outputs[1].expect_as_close_as(&ran.outputs[1].cpu.clone(), 3e-5, true);
    }
}

#[test]
fn argmax_takes_the_first_of_equal_ones() {
    for c in [1, 31, 1024, 1025, 2049] {
        let mut rows = normal(1, 5 * c);
        let same = rows[c / 2].max(50.0);
        rows[c / 2] = same;
        rows[c - 1] = same;
        rows[c..2 * c].fill(f32::NEG_INFINITY);
        rows[2 * c..3 * c].fill(f32::NAN);
        rows[3 * c] = f32::NAN;
        let mut case = Case::new();
        let x = case.input("x", F32, &[5, c], &rows);
        let y = case.output("y", I32, &[5]);
        case.run(ops::argmax(&y, &x).unwrap()).outputs[0].expect_equal();
    }
}

#[test]
fn dysample() {
    for (b, g, d, groups) in [(1, 16, 64, 4), (2, 3, 32, 4), (1, 4, 1032, 1)] {
        let mut case = Case::new();
        let n = b * g * g;
        let x = case.input("x", Act, &[n, d], &normal(1, n * d));
        // far beyond the border, too
        let conv = case.input("conv", Act, &[n, 8 * groups], &normal(2, n * 8 * groups));
        let init = case.input("init_pos", Act, &[1, 8 * groups, 1, 1], &normal(3, 8 * groups));
        let offset = case.output("offset", F32, &[n, 8 * groups]);
        let y = case.inout("y", Act, &[4 * n, d + 8], &vec![0.0; 4 * n * (d + 8)]);
        let mut graph = mllmseg::graph::Graph::new();
        graph.push("offset", ops::dysample_offset(&offset, &conv, &init).unwrap());
        graph.push("dysample", ops::dysample(&y.cols(8, d), &x, &offset, g, groups).unwrap());
        let ran = case.run_graph(graph);
        ran.outputs[0].expect_equal();
        let plain = rounded(ran.outputs[1].cpu.clone());
        ran.outputs[1].expect_as_close_as(&plain, 0.0, true);
    }
}

/// Where an operand is NaN, so is what is made of it, and nothing else: ReLU and the clamp to the border do not make a number of it.
#[test]
fn nan_stays_nan() {
    let with_nan = |seed, n: usize| {
        let mut v = normal(seed, n);
        v[n / 2] = f32::NAN;
        v
    };
    let (g, d, o) = (4, 64, 16);
    let n = g * g;
    let mut case = Case::new();
    let x = case.input("x", Act, &[n, d], &with_nan(1, n * d));
    let map = case.input("map", Act, &[n, d], &normal(2, n * d));
    let w = case.input("w", Act, &[d, d], &normal(3, d * d));
    let [of_many, of_few] = [n, 3].map(|rows| case.output("relu", Act, &[rows, d]));
    let taps = case.input("taps", Act, &[o, 3, 3, d], &normal(4, o * 9 * d));
    let b = case.input("b", F32, &[o], &normal(5, o));
    let pixels = case.output("pixels", Act, &[1, g * 4, g * 4]);
    let offset = case.input("offset", F32, &[n, 8], &with_nan(6, n * 8));
    let sampled = case.output("sampled", Act, &[4 * n, d]);
    let mut graph = mllmseg::graph::Graph::new();
    for (y, rows) in [(&of_many, 0..n), (&of_few, n / 2 - 1..n / 2 + 2)] {
        graph.push("relu", ops::matmul(y, &x.rows(rows), &w).unwrap().then(ops::Epilogue::Relu).unwrap());
    }
    graph.push("conv3x3", ops::conv3x3(&pixels, &x.reshape([1, n, d]), &taps, &b, g).unwrap());
    graph.push("dysample", ops::dysample(&sampled.all(), &map, &offset, g, 1).unwrap());
    for output in &case.run_graph(graph).outputs {
        let nan = |v: &[f32]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
        assert!(nan(&output.cpu).contains(&true) && nan(&output.cpu).contains(&false), "{}", output.name);
        assert_eq!(nan(&output.gpu), nan(&output.cpu), "{}", output.name);
    }
}

/// Sources smaller and larger than the map, lines of less than a word, of whole words and of one more; a mask that is empty, one that is full,
/// one with a NaN. Values are compared where none is near the threshold; every bit, box and count then follows.
#[test]
fn mask_head() {
    let sizes = [(40, 70), (1, 1), (181, 128), (97, 225)];
    mask_heads(84, &sizes);
    // so many that blocks are tall, and go down; lines that outgrow a block's room, in number and in length
    mask_heads(84, &sizes.repeat(9));
    mask_heads(84, &sizes.repeat(20));
    mask_heads(8, &[(700, 40), (1, 1), (2, 1500), (3, 1300)]);
}

fn mask_heads(s: usize, sizes: &[(usize, usize)]) {
    let q = sizes.len();
    let mut case = Case::new();
    let smooth = |i: usize| ((i % s) as f32 * 0.1 + (i / s) as f32 * 0.07).sin() * 4.0;
    let mut values: Vec<f32> = (0..q * s * s).map(smooth).collect();
    values[s * s..2 * s * s].fill(4.0);
    values[3 * s * s..4 * s * s].fill(-4.0);
    values[3 * s * s + s * s / 2] = f32::NAN;
    let x = case.input("x", Act, &[q, s, s], &values);
    let mut weights = normal(2, 25).iter().map(|v| v * 0.02).collect::<Vec<_>>();
    weights[12] = 1.0;
    let w = case.input("w", Act, &[1, 1, 5, 5], &weights);
    let b = case.input("b", Act, &[1], &[0.25]);
    let (mut at, mut masks) = (1usize, Vec::new());
    for &(h, w) in sizes {
        masks.extend([at, h, w].map(|v| v as i32));
        at += h * w.div_ceil(32);
    }
    let masks = case.ints("masks", &[q, ops::DESCRIPTOR], &masks);
    let bits = case.output("bits", I32, &[at]);
    let stats = case.output("stats", I32, &[q, ops::STATS]);
    let p = case.output("p", F32, &[q, s, s]);
    let (bits2, stats2) = (case.output("bits", I32, &[at]), case.output("stats", I32, &[q, ops::STATS]));
    let mut g = mllmseg::graph::Graph::new();
    g.push("asked", ops::mask_head(&bits, &stats, Some(&p), &x, &w, &b, &masks).unwrap());
    g.push("unasked", ops::mask_head(&bits2, &stats2, None, &x, &w, &b, &masks).unwrap());
    let ran = case.run_graph(g);
    let [bits, stats, p, bits2, stats2] = &ran.outputs[..] else { panic!("five outputs") };
    let finite = |v: &[f32]| v.iter().map(|v| if v.is_nan() { 9.0 } else { *v }).collect::<Vec<_>>();
    for (g, c) in finite(&p.gpu).iter().zip(finite(&p.cpu)) {
        assert!((g - c).abs() < 3e-6, "a probability is {g}, the reference's {c}");
    }
    assert!((bits2.gpu == bits.gpu) && (stats2.gpu == stats.gpu));
    // Words as f32 lose low bits: masks that are equal there are compared by their counts and boxes, too.
    assert_eq!(bits.gpu[1..], bits.cpu[1..]);
    for (g, c) in stats.gpu.chunks(ops::STATS).zip(stats.cpu.chunks(ops::STATS)) {
        assert_eq!(g[..6], c[..6]);
        assert_eq!(g[7], c[7]);
    }
    assert_eq!(stats.gpu[ops::STATS..][..6], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(stats.gpu[3 * ops::STATS + 5], 1.0);
}

#[test]
fn rope_split() {
    let (t, nh, nkv, hd, cap) = (5, 8, 2, 128, 16);
    for with_q in [true, false] {
        let mut case = Case::new();
        let width = (nh + 2 * nkv) * hd;
        let qkv = case.input("qkv", Act, &[t, width], &normal(1, t * width));
        let positions = case.ints("positions", &[t], &[0, 1, 1843, 32767, 131071]);
        let kv_rows = case.ints("kv_rows", &[t], &[3, 0, 15, 7, 8]);
        let freq = case.input("inv_freq", F32, &[hd / 2], &mllmseg::reference::inv_freq(1e6, hd));
        let q = case.output("q", Act, &[t, nh, hd]);
        let [k, v] = ["k", "v"].map(|n| case.inout(n, Act, &[1, nkv, cap, hd], &vec![0.5; nkv * cap * hd]));
        let kv = ops::KvCache { k, v };
        let to = with_q.then_some(&q);
        let ran = case.run(ops::rope_split(to, &kv, 0, &qkv, &positions, &kv_rows, &freq, nh).unwrap());
        for y in &ran.outputs[usize::from(!with_q)..] {
            y.expect_as_close_as(&rounded(y.cpu.clone()), 0.0, true);
        }
        ran.outputs[2].expect_equal(); // v is copied
    }
}

#[test]
fn nothing_to_do_is_no_launch() {
    let mut case = Case::new();
    let x = case.input("x", Act, &[0, 64], &[]);
    let w = case.input("w", Act, &[64], &normal(1, 64));
    let y = case.output("y", Act, &[0, 64]);
    let ran = case.run(ops::rmsnorm(&y, &x, &w, EPS).unwrap());
    assert!(ran.report["launches"].as_array().unwrap().is_empty());
}
