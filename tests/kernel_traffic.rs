//! What every kernel that is neither a matmul nor a decoding one moves, counted on the simulator at the model's shapes: bytes, sectors, bank conflicts. Those of
//! matmul and conv3x3 stand in kernel_matmul.rs, of the decoding kernels in kernel_decode.rs.

mod common;

use common::gpu::{Case, Ran, normal, round};
use mllmseg::graph::DType::{Act, F32, I32, U8};
use mllmseg::graph::Graph;
use mllmseg::image::resize_table;
use mllmseg::ops;

const EPS: f32 = 1e-5;

/// What a kernel may move. Sectors are counted as warps ask for them, so what L1 and L2 give again counts, too.
#[derive(Clone, Copy)]
struct Most {
    /// Bytes of its sectors over the least.
    moved: f64,
    /// Bytes of the sectors of loads, and of stores, over those that lanes ask for.
    loads: f64,
    stores: f64,
    /// Wavefronts of shared memory over the fewest.
    conflicts: f64,
}

/// One pass, whole sectors, no bank conflict.
const ONCE: Most = Most { moved: 1.05, loads: 1.05, stores: 1.05, conflicts: 1.0 };

/// Runs the graph, whose launches are those of `expected`: the kernel, the least bytes, how far it may be from them.
fn check(case: &Case, graph: Graph, expected: &[(&str, usize, Most)]) -> Ran {
    let ran = case.run_graph(graph);
    let launches = ran.report["launches"].as_array().unwrap();
    assert_eq!(launches.len(), expected.len());
    let mut missed = Vec::new();
    for (launch, &(name, least, most)) in launches.iter().zip(expected) {
        assert_eq!(launch["kernel"], name);
        let counters = &launch["counters"];
        let number = |part: &str, key: &str| counters[part][key].as_f64().unwrap();
        let sectors = |part: &str| 32.0 * number(part, "sectors");
        let share = |a: f64, b: f64| if b == 0.0 { 1.0 } else { a / b };
        let all = ["global_load", "global_store", "global_atomic"].map(sectors).iter().sum::<f64>();
        let shared = |key: &str| number("shared_load", key) + number("shared_store", key);
        let found = Most {
            moved: all / least as f64,
            loads: share(sectors("global_load"), number("global_load", "bytes")),
            stores: share(sectors("global_store"), number("global_store", "bytes")),
            conflicts: share(shared("wavefronts"), shared("ideal")),
        };
        let Most { moved, loads, stores, conflicts } = found;
        let touched = counters["distinct_bytes"].as_f64().unwrap();
        let text = format!(
            "{name}: moved {all} bytes, {moved:.3} of {least}, {touched} distinct; loads {loads:.3}, stores {stores:.3}, wavefronts {conflicts:.3}"
        );
        println!("{text}");
        if moved > most.moved || loads > most.loads || stores > most.stores || conflicts > most.conflicts {
            missed.push(text);
        }
        let local = ["ld.local", "st.local"];
        let opcodes = counters["opcodes"].as_object().unwrap();
        assert!(!opcodes.keys().any(|o| local.iter().any(|l| o.starts_with(l))), "{name} uses local memory");
    }
    assert!(missed.is_empty(), "more than they may: {missed:#?}");
    ran
}

#[test]
fn norms_and_copies() {
    if !common::gpu::counted() {
        return;
    }
    let (n, c) = (64, 2048);
    let rows = 2 * n * c;
    let mut case = Case::new();
    let [x, r] = [1, 2].map(|seed| case.input("x", Act, &[n, c], &normal(seed, n * c)));
    let [w, b] = [3, 4].map(|seed| case.input("w", Act, &[c], &normal(seed, c)));
    let [wide_w, wide_b] = [5, 6].map(|seed| case.input("w", Act, &[4 * c], &normal(seed, 4 * c)));
    let ys: Vec<_> = (0..7).map(|_| case.output("y", Act, &[n, c])).collect();
    let wide = case.output("y", Act, &[n / 4, 4 * c]);
    let order: Vec<i32> = (0..n as i32).rev().collect();
    let ids = case.ints("ids", &[n], &order);
    let class = case.input("class", Act, &[1, 1, c], &normal(8, c));
    let position = case.input("position", Act, &[1, n + 1, c], &normal(9, (n + 1) * c));
    let tokens = case.output("tokens", Act, &[1, n + 1, c]);
    let logits = case.input("logits", F32, &[4, 30000], &normal(10, 120_000));
    let best = case.output("best", I32, &[4]);
    let mut g = Graph::new();
    g.push("a", ops::rmsnorm(&ys[0], &x, &w, EPS).unwrap());
    g.push("b", ops::layernorm(&ys[1].all(), &x, &w, &b, EPS).unwrap());
    g.push("c", ops::add_layernorm(&ys[2], &x, &r, &w, &b, EPS).unwrap());
    g.push("d", ops::shuffle_layernorm(&wide, &x, &wide_w, &wide_b, 8, EPS).unwrap());
    g.push("e", ops::copy(&ys[3].all(), &x).unwrap());
    g.push("f", ops::pixel_shuffle(&ys[4].reshape([n / 4, 4 * c]), &x, 8).unwrap());
    g.push("g", ops::embed(&ys[5], &ids, &x, None).unwrap());
    g.push("h", ops::gather_rows(&ys[6], &x, &ids).unwrap());
    g.push("i", ops::vit_tokens(&tokens, &x.reshape([n, c]), &class, &position).unwrap());
    g.push("j", ops::argmax(&best, &logits).unwrap());
    check(
        &case,
        g,
        &[
            // Weights once a row, from L1: with them, 1.5 to 2.0 times the distinct bytes. Registers that held them for several rows would take warps.
            ("rmsnorm_bf16_v1", 3 * rows, ONCE),
            ("layernorm_bf16_v1", 4 * rows, ONCE),
            ("layernorm_bf16_v1", 5 * rows, ONCE),
            ("layernorm_bf16_v4", 4 * rows, ONCE),
            ("copy_bf16", 2 * rows, ONCE),
            ("pixel_shuffle_bf16", 2 * rows, ONCE),
            // A row's number once a warp.
            ("embed_bf16", 2 * rows, Most { loads: 1.06, ..ONCE }),
            ("gather_rows_bf16", 2 * rows, Most { loads: 1.06, ..ONCE }),
            ("vit_tokens_bf16", 3 * rows + 2 * 3 * c, ONCE),
            // One number a row is stored.
            ("argmax_f32", 480_000, Most { stores: 8.0, ..ONCE }),
        ],
    );
}

#[test]
fn rope() {
    if !common::gpu::counted() {
        return;
    }
    let (t, nh, nkv, hd, cap) = (64, 32, 8, 128, 64);
    let mut case = Case::new();
    let width = (nh + 2 * nkv) * hd;
    let qkv = case.input("qkv", Act, &[t, width], &normal(1, t * width));
    let [positions, kv_rows] =
        ["positions", "kv_rows"].map(|n| case.ints(n, &[t], &(0..t as i32).collect::<Vec<_>>()));
    let freq = case.input("inv_freq", F32, &[hd / 2], &mllmseg::reference::inv_freq(1e6, hd));
    let q = case.output("q", Act, &[t, nh, hd]);
    let [k, v] = ["k", "v"].map(|n| case.output(n, Act, &[1, nkv, cap, hd]));
    let kv = ops::KvCache { k, v };
    let mut g = Graph::new();
    g.push("a", ops::rope_split(Some(&q), &kv, 0, &qkv, &positions, &kv_rows, &freq, nh).unwrap());
    check(&case, g, &[("rope_split_bf16", 4 * t * width, ONCE)]);
}

#[test]
fn pictures() {
    if !common::gpu::counted() {
        return;
    }
    let (n, h, w, side, cell, k) = (16usize, 427usize, 640usize, 32, 14, 592);
    let s = side * cell;
    let mut case = Case::new();
    let (size, lines) = ((h * w * 3).next_multiple_of(16), h.next_multiple_of(4));
    let bytes: Vec<u8> = (0..n * size).map(|i| (i * 37 % 251) as u8).collect();
    let ((across, a), (down, d)) = (resize_table(w, s), resize_table(h, s));
    let pictures = (0..n).flat_map(|i| [i * size / 16, h, w, i * lines, 0, a, across.len(), d]);
    let pictures: Vec<i32> = pictures.map(|v| v as i32).collect();
    let source = case.bytes("source", &bytes);
    let tables = [across, down].concat();
    let [across, down] = [a, d].map(|quads| 4 * (s + 3 * quads * s));
    let tables = case.ints("tables", &[tables.len()], &tables);
    let pictures = case.ints("pictures", &[n, ops::PICTURE], &pictures);
    let (resized, lines) = (3 * n * lines * s, case.scratch("lines", U8, &[n * lines, s, 3]));
    let y = case.output("y", Act, &[n * side * side, k]);
    let pixels = case.input("pixels", F32, &[1, 3, s, s], &normal(2, 3 * s * s));
    let patches = case.output("patches", Act, &[side * side, k]);
    let mut g = Graph::new();
    g.push("a", ops::preprocess(&y, &lines, &source, &tables, &pictures, cell).unwrap());
    g.push("b", ops::patchify(&patches, &pixels, cell).unwrap());
    let ran = check(
        &case,
        g,
        &[
            // A block's 112 results of a line come from 160 pixels and those of windows that reach beyond them, 17 or 18 sectors for 15; it reads
            // weights once for each 128 lines. Blocks twice as large in either way would leave multiprocessors less than two.
            ("preprocess_across", n * size + resized + across, Most { moved: 1.2, loads: 1.08, ..ONCE }),
            // A block goes down 8 of 32 rows of patches: as few of its lines as that allows are another's, too.
            ("preprocess_down_bf16", resized + down + 2 * n * side * side * k, ONCE),
            // The zeros at the rows' ends meet in banks.
            ("patchify_bf16", 4 * 3 * s * s + 2 * side * side * k, Most { conflicts: 1.01, ..ONCE }),
        ],
    );
    // Blocks of many patches, which fewer pictures (kernel_small.rs) do not make, and the same bits.
    assert!(ran.outputs[0].gpu.iter().zip(&ran.outputs[0].cpu).all(|(&gpu, &cpu)| gpu == round(cpu)));
}

#[test]
fn mask_decoder() {
    if !common::gpu::counted() {
        return;
    }
    let (q, s, g_side, dim, groups) = (16, 448, 16, 1024, 4);
    let mut case = Case::new();
    let smooth = |i: usize| ((i % s) as f32 * 0.05).sin() * ((i / s) as f32 * 0.03).cos() * 4.0;
    let x = case.input("x", Act, &[q, s, s], &(0..q * s * s).map(smooth).collect::<Vec<_>>());
    let w = case.input("w", Act, &[1, 1, 5, 5], &normal(2, 25).iter().map(|v| 0.1 * v).collect::<Vec<_>>());
    let b = case.input("b", Act, &[1], &[0.25]);
    let words = 427 * 20;
    let places: Vec<i32> = (0..q).flat_map(|i| [i * words, 427, 640]).map(|v| v as i32).collect();
    let masks = case.ints("masks", &[q, ops::DESCRIPTOR], &places);
    let bits = case.output("bits", I32, &[q * words]);
    let stats = case.output("stats", I32, &[q, ops::STATS]);
    let [y, z] = ["y", "z"].map(|name| case.output(name, F32, &[q, s, s]));
    let n = g_side * g_side;
    let map = case.input("map", Act, &[n, dim], &normal(1, n * dim));
    let conv = case.input("conv", Act, &[n, 8 * groups], &normal(2, n * 8 * groups));
    let init = case.input("init_pos", Act, &[1, 8 * groups, 1, 1], &normal(3, 8 * groups));
    let offset = case.output("offset", F32, &[n, 8 * groups]);
    let sampled = case.output("sampled", Act, &[4 * n, dim]);
    let mut g = Graph::new();
    g.push("a", ops::mask_head(&bits, &stats, None, &x, &w, &b, &masks).unwrap());
    g.push("c", ops::conv5x5(&y, &x, &w, &b).unwrap());
    g.push("d", ops::sigmoid(&z, &y).unwrap());
    g.push("e", ops::dysample_offset(&offset, &conv, &init).unwrap());
    g.push("f", ops::dysample(&sampled.all(), &map, &offset, g_side, groups).unwrap());
    check(
        &case,
        g,
        &[
            ("mask_head_clear", 4 * q * ops::STATS, ONCE),
            // Of 28 lines, 33 are read: 16 masks are then 256 blocks, two for each multiprocessor of an A100; and each adds to the statistics. 1.05
            // would take blocks of 112 lines, and 54 masks for as many of those.
            ("mask_head_bf16", 2 * q * s * s + 4 * q * words, Most { moved: 1.18, ..ONCE }),
            ("conv5x5_bf16", 6 * q * s * s, ONCE), // 32 lines for 28
            ("sigmoid_f32", 8 * q * s * s, ONCE),
            ("dysample_offset_bf16", 6 * n * 8 * groups, ONCE),
            // Each result reads four corners, from L1 and L2.
            ("dysample_bf16", 5 * 2 * 4 * n * dim, ONCE),
        ],
    );
}

#[test]
fn attentions() {
    if !common::gpu::counted() {
        return;
    }
    let mut case = Case::new();
    let (t, hd) = (1024, 64);
    let qkv = case.input("qkv", Act, &[t, 3 * hd], &normal(1, t * 3 * hd));
    let y = case.output("y", Act, &[t, hd]);
    let wide = case.input("wide", Act, &[256, 3 * 128], &normal(2, 256 * 384));
    let z = case.output("z", Act, &[256, 128]);
    let (nh, rows, cap) = (4, 64, 256);
    let q = case.input("q", Act, &[rows, nh, 128], &normal(3, rows * nh * 128));
    let [k, v] = [4, 5].map(|seed| case.input("kv", Act, &[1, 1, cap, 128], &normal(seed, cap * 128)));
    let segments = case.ints("segments", &[1, ops::SEGMENT], &[0, rows as i32, 0, 64, 64, 128, 192]);
    let o = case.output("o", Act, &[rows, nh * 128]);
    let mut g = Graph::new();
    let [a, b, c] = [0, 1, 2].map(|i| qkv.cols(i * hd, hd));
    g.push("a", ops::attention(&y, &a, &b, &c, 1, 1).unwrap());
    let [a, b, c] = [0, 1, 2].map(|i| wide.cols(i * 128, 128));
    g.push("b", ops::attention(&z, &a, &b, &c, 1, 1).unwrap());
    g.push("c", ops::attention_ranges(&o, &q, &ops::KvCache { k, v }, 0, &segments, cap).unwrap());
    check(
        &case,
        g,
        &[
            // Keys and values once a block of 128 queries.
            ("attention_bf16_hd64", 2 * t * hd * (2 + 2 * t / 128), ONCE),
            ("attention_bf16_hd128", 2 * 256 * 128 * (2 + 2 * 2), ONCE),
            // Two blocks, of 32 rows by 4 heads.
            ("attention_ranges_bf16_hd128", 2 * 128 * (2 * rows * nh + 2 * (2 * 192 + 32 + 64)), ONCE),
        ],
    );
}
