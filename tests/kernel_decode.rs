//! The kernels of text generation on the simulated driver with every check on, beside `reference/`: attention over K/V pages, products of at
//! most 16 rows, sampling. A row has the same bits in a prompt's chunk, decoded alone, and in any company; tokens drawn are the reference's.
//! Weights, keys and values are read once.

mod common;

use common::gpu::{Case, Output, Ran, normal, round};
use mllmseg::graph::DType::{Act, F32, I32};
use mllmseg::graph::{Graph, Tensor};
use mllmseg::ops::{self, Epilogue, KvPages, PAGE, SMALL_ROWS, attention_parts};
use mllmseg::reference::{SAMPLE_DRAWS, SAMPLE_KNOBS, inv_freq};
use std::ops::Range;
use std::process::Command;

const HD: usize = 128;

/// Twice the error of probabilities rounded to bf16: an average of values of size 1 to 10 over few or many keys.
#[track_caller]
fn check(y: &Output) {
    let plain: Vec<f32> = y.cpu.iter().map(|&v| round(v * (1.0 + 1.0 / 256.0))).collect();
    y.expect_as_close_as(&plain, 4e-3, true);
}

/// Pages of several sequences, out of order; what no sequence fills is NaN.
struct Pages {
    nkv: usize,
    max_pages: usize,
    table: Vec<i32>,
    k: Vec<f32>,
    v: Vec<f32>,
    total: usize,
}

impl Pages {
    /// Of sequences so many keys long, slot after slot.
    fn new(nkv: usize, lengths: &[usize], max_pages: usize) -> Self {
        let total = lengths.iter().map(|n| n.div_ceil(PAGE)).sum::<usize>() + 2;
        let mut free = (0..total).map(|i| (i * 7 + 3) % total).collect::<Vec<_>>();
        if total.is_multiple_of(7) {
            free = (0..total).rev().collect();
        }
        let mut pages = Self {
            nkv,
            max_pages,
            table: vec![i32::MAX; lengths.len() * max_pages], // an entry that must not be read
            k: vec![f32::NAN; total * nkv * PAGE * HD],
            v: vec![f32::NAN; total * nkv * PAGE * HD],
            total,
        };
        for (s, &length) in lengths.iter().enumerate() {
            for i in 0..length.div_ceil(PAGE) {
                let page = free.pop().unwrap();
                pages.table[s * max_pages + i] = page as i32;
                let rows = PAGE.min(length - i * PAGE);
                for g in 0..nkv {
                    // A key depends on its sequence, position and head alone.
                    let seed = 1000 + (s * 31 + i) as u64 * 64 + g as u64;
                    let at = (page * nkv + g) * PAGE * HD;
                    pages.k[at..at + rows * HD].copy_from_slice(&normal(seed, PAGE * HD)[..rows * HD]);
                    pages.v[at..at + rows * HD].copy_from_slice(&normal(seed + 7777, PAGE * HD)[..rows * HD]);
                }
            }
        }
        pages
    }

    fn operands(&self, case: &mut Case) -> (KvPages, Tensor) {
        let shape = [1, self.total, self.nkv, PAGE, HD];
        let [k, v] = [("k", &self.k), ("v", &self.v)].map(|(name, x)| case.input(name, Act, &shape, x));
        let table = case.ints("pages", &[self.table.len() / self.max_pages, self.max_pages], &self.table);
        (KvPages { k, v }, table)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    Paged,
    Decode,
}
use Kernel::*;

/// The query of a row depends on its slot and position alone.
fn queries(nh: usize, rows: &[(i32, i32)]) -> Vec<f32> {
    rows.iter().flat_map(|&(s, p)| normal((s * 100_003 + p) as u64 + 5, nh * HD)).collect()
}

/// Attention of `rows`, (slot, position) each.
fn attend(kernel: Kernel, nh: usize, pages: &Pages, rows: &[(i32, i32)]) -> Ran {
    let (mut case, t) = (Case::new(), rows.len());
    let q = case.input("q", Act, &[t, nh, HD], &queries(nh, rows));
    let (kv, table) = pages.operands(&mut case);
    let seq = case.ints("seq", &[t], &rows.iter().map(|r| r.0).collect::<Vec<_>>());
    let positions = case.ints("positions", &[t], &rows.iter().map(|r| r.1).collect::<Vec<_>>());
    let y = case.output("y", Act, &[t, nh * HD]);
    let mut graph = Graph::new();
    if kernel == Paged {
        graph
            .push("op", ops::attention_paged(&y, &q, &kv, 0, &seq, &positions, &table, pages.total).unwrap());
    } else {
        let parts = graph.buffer("parts", F32, attention_parts(t, nh, HD, pages.max_pages));
        let op =
            ops::attention_decode(&y, &parts, &q, &kv, 0, &seq, &positions, &table, pages.total).unwrap();
        graph.push("op", op);
    }
    case.run_graph(graph)
}

/// Rows of one slot at these positions.
fn chunk(slot: i32, positions: Range<i32>) -> Vec<(i32, i32)> {
    positions.map(|p| (slot, p)).collect()
}

/// One row behind contexts of one key, a page less one, a page, one more, the same for a span of pages, and several spans; both kernels.
#[test]
fn contexts_at_the_edges_of_pages_and_spans() {
    for (nh, nkv) in [(32, 8), (16, 8), (4, 2), (6, 2)] {
        let lengths = [1, 63, 64, 65, 255, 256, 257, 700];
        let pages = Pages::new(nkv, &lengths, 13);
        let rows: Vec<_> = lengths.iter().enumerate().map(|(s, &n)| (s as i32, n as i32 - 1)).collect();
        let decoded = attend(Decode, nh, &pages, &rows);
        check(&decoded.outputs[0]);
        if nh != 32 {
            let paged = attend(Paged, nh, &pages, &rows);
            assert_eq!(paged.outputs[0].gpu, decoded.outputs[0].gpu, "{nh} heads of queries, {nkv} of keys");
        }
    }
}

/// A prompt in one piece, in chunks of any size among rows of other sequences and of none, and row by row: the same bits on each device.
#[test]
fn a_row_has_the_same_bits_however_it_comes() {
    let (nh, nkv, c) = (4, 2, 4 * HD);
    let pages = Pages::new(nkv, &[330, 70, 130], 6);
    let whole = attend(Paged, nh, &pages, &chunk(0, 0..330)).outputs.remove(0);
    check(&whole);
    let expect = |ran: &Output, from: usize, position: usize, rows: usize, what: &str| {
        for (got, all) in [(&ran.gpu, &whole.gpu), (&ran.cpu, &whole.cpu)] {
            assert_eq!(got[from * c..(from + rows) * c], all[position * c..(position + rows) * c], "{what}");
        }
    };
    for (first, n) in [(0, 1), (0, 63), (1, 64), (64, 65), (250, 80), (329, 1)] {
        let mut rows = chunk(1, 60..67);
        rows.push((-1, 0));
        rows.extend(chunk(0, first..first + n));
        rows.extend(chunk(2, 129..130));
        let y = attend(Paged, nh, &pages, &rows).outputs.remove(0);
        expect(&y, 8, first as usize, n as usize, &format!("chunk of {n} rows at {first}"));
        assert!(y.gpu[7 * c..8 * c].iter().chain(&y.cpu[7 * c..8 * c]).all(|&v| v == 0.0), "nobody's row");
    }
    // Decoded alone, with empty places in the batch, and several rows of one sequence at once, as speculation has them.
    for rows in [
        chunk(0, 329..330),
        [chunk(1, 69..70), vec![(-1, 7)], chunk(0, 255..256), vec![(-1, 0)]].concat(),
        [chunk(0, 250..261), chunk(2, 0..3)].concat(),
    ] {
        let y = attend(Decode, nh, &pages, &rows).outputs.remove(0);
        for (i, &(slot, position)) in rows.iter().enumerate() {
            match slot {
                0 => expect(&y, i, position as usize, 1, &format!("decoded at {position}")),
                -1 => assert!(y.gpu[i * c..(i + 1) * c].iter().all(|&v| v == 0.0), "nobody's row"),
                _ => {}
            }
        }
    }
}

/// Keys and values once, in 16-byte accesses; parts add a sixty-fourth of the group's size twice. No bank conflicts.
#[test]
fn keys_and_values_are_read_once() {
    if !common::gpu::counted() {
        return;
    }
    for (nh, nkv, rows) in
        [(32, 8, chunk(0, 1023..1024)), (16, 8, chunk(0, 1022..1024)), (16, 8, chunk(0, 899..900))]
    {
        let pages = Pages::new(nkv, &[rows.last().unwrap().1 as usize + 1], 16);
        let ran = attend(Decode, nh, &pages, &rows);
        check(&ran.outputs[0]);
        let kernels = ran.report["kernels"].as_object().unwrap();
        let sum = |kernel: &str, part: &str, key: &str| {
            kernels[kernel]["counters"][part][key].as_u64().unwrap_or_else(|| panic!("{part}.{key}"))
        };
        let (first, second) = ("attention_decode_bf16_hd128", "attention_decode_sum_bf16_hd128");
        let kv = 2 * 2 * (rows.last().unwrap().1 as usize + 1) * nkv * HD;
        let fewest = kv + 2 * 2 * rows.len() * nh * HD; // and queries and results
        let moved: u64 = [first, second]
            .iter()
            .map(|k| 32 * (sum(k, "global_load", "sectors") + sum(k, "global_store", "sectors")))
            .sum();
        assert!(moved as f64 <= 1.05 * fewest as f64, "{nh}, {nkv}: {moved} bytes for {fewest}");
        for part in ["shared_load", "shared_store"] {
            assert_eq!(sum(first, part, "wavefronts"), sum(first, part, "ideal"), "{part}");
        }
    }
}

#[test]
fn a_prompt_has_no_bank_conflicts() {
    if !common::gpu::counted() {
        return;
    }
    let pages = Pages::new(1, &[330], 6);
    let ran = attend(Paged, 2, &pages, &chunk(0, 250..330));
    let c = &ran.report["kernels"]["attention_paged_bf16_hd128"]["counters"];
    for part in ["shared_load", "shared_store"] {
        assert_eq!(c[part]["wavefronts"], c[part]["ideal"], "{part}");
    }
}

#[test]
fn rope_into_pages() {
    let (nh, nkv, width) = (8, 2, 12 * HD);
    let rows = [(1, 0), (1, 1), (0, 63), (-1, 5), (0, 64), (0, 191)];
    let table = [4, 0, 2, 3, 9, 9]; // slot 1 has one page
    let t = rows.len();
    for with_q in [true, false] {
        let mut case = Case::new();
        let qkv = case.input("qkv", Act, &[t, width], &normal(1, t * width));
        let seq = case.ints("seq", &[t], &rows.map(|r| r.0));
        let positions = case.ints("positions", &[t], &rows.map(|r| r.1));
        let pages = case.ints("pages", &[2, 3], &table);
        let freqs = [inv_freq(1e6, HD), inv_freq(2.5e6, HD)].concat();
        let freq = case.input("inv_freq", F32, &[2, HD / 2], &freqs);
        let q = case.output("q", Act, &[t, nh, HD]);
        let before = vec![0.5; 5 * nkv * PAGE * HD];
        let [k, v] = ["k", "v"].map(|n| case.inout(n, Act, &[1, 5, nkv, PAGE, HD], &before));
        let to = with_q.then_some(&q);
        let kv = KvPages { k, v };
        let op = ops::rope_split_paged(to, &kv, 0, &qkv, &seq, &positions, &pages, &freq, nh).unwrap();
        let ran = case.run(op);
        for y in &ran.outputs[usize::from(!with_q)..] {
            let plain: Vec<f32> = y.cpu.iter().map(|&v| round(v)).collect();
            y.expect_as_close_as(&plain, 0.0, true);
        }
        ran.outputs[2].expect_equal(); // v is copied
        // Row 2: slot 0, position 63: the last of page 4; row 5: position 191, the last of page 2.
        for (row, page) in [(2, 4), (5, 2)] {
            for g in 0..nkv {
                let at = ((page * nkv + g) * PAGE + 63) * HD;
                let from = row * width + (g * 6 + 5) * HD;
                let expected: Vec<f32> =
                    normal(1, t * width)[from..from + HD].iter().map(|&v| round(v)).collect();
                assert_eq!(ran.outputs[2].gpu[at..at + HD], expected, "row {row}, head {g}");
            }
        }
        let written = ran.outputs[2].gpu.chunks(HD).filter(|r| r.iter().any(|&v| v != 0.5)).count();
        assert_eq!(written, 5 * nkv, "rows of v that were written");
    }
}

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

fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    normal(seed, n).into_iter().map(|v| round(v * scale)).collect()
}

/// Which kernels make the product.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// matmul_small
    Small,
    /// matmul_small with RMSNorm fused
    Normed,
    /// rmsnorm and matmul in a tile of 64x64, of all 16 rows
    Apart { norm: bool },
}

/// `y = then(x @ wᵀ + b)` of the first `m` of 16 rows.
fn product(m: usize, n: usize, k: usize, then: Then, way: Way) -> Ran {
    let mut case = Case::new();
    let m = if matches!(way, Way::Apart { .. }) { SMALL_ROWS } else { m };
    let x = case.input("x", Act, &[m, k], &values(1, m * k, 3.0));
    let w = case.input("w", Act, &[n, k], &values(2, n * k, 1.0 / (k as f32).sqrt()));
    let bias = (then != SiluMul).then(|| case.input("b", Act, &[n], &values(3, n, 0.5)));
    let y = match then {
        Residual | ScaledResidual => case.inout("y", Act, &[m, n], &values(4, m * n, 1.0)),
        Wide => case.output("y", F32, &[m, n]),
        _ => case.output("y", Act, &[m, n]),
    };
    let epilogue = match then {
        Store | Wide => Epilogue::Store,
        Gelu => Epilogue::Gelu,
        Relu => Epilogue::Relu,
        Residual => Epilogue::Residual,
        ScaledResidual => Epilogue::ScaledResidual(case.input("ls", Act, &[n], &values(6, n, 0.5))),
        SiluMul => {
            Epilogue::SiluMul(case.input("w3", Act, &[n, k], &values(5, n * k, 1.0 / (k as f32).sqrt())))
        }
    };
    let norm = case.input("norm", Act, &[k], &values(7, k, 1.0));
    let mut graph = Graph::new();
    let mut op = match way {
        Way::Small => ops::matmul(&y, &x, &w).unwrap(),
        Way::Normed => ops::matmul(&y, &x, &w).unwrap().norm(&norm, 1e-5).unwrap(),
        Way::Apart { norm: false } => ops::matmul(&y, &x, &w).unwrap().with_tile(2),
        Way::Apart { norm: true } => {
            let normed = graph.act("normed", [m, k]);
            graph.push("norm", ops::rmsnorm(&normed, &x, &norm, 1e-5).unwrap());
            ops::matmul(&y, &normed, &w).unwrap().with_tile(2)
        }
    };
    if let Some(b) = &bias {
        op = op.bias(b).unwrap();
    }
    graph.push("op", op.then(epilogue).unwrap());
    case.run_graph(graph)
}

/// Every epilogue; rows 1 to 16; columns and depths one vector, one less, as many and one more than a block's, a tile's and a piece's: the bits of
/// the large kernel, and of RMSNorm before it.
#[test]
fn small_products_have_the_bits_of_large_ones() {
    for (then, n, k) in [
        (Store, 8, 8),
        (Wide, 67, 64),
        (Gelu, 62, 72),
        (Relu, 64, 256),
        (Residual, 72, 264),
        (ScaledResidual, 66, 512),
        (SiluMul, 72, 520),
        (SiluMul, 10, 2048),
        (Residual, 40, 4096),
        (Wide, 33, 1088),
    ] {
        for norm in [false, true] {
            let large = product(SMALL_ROWS, n, k, then, Way::Apart { norm });
            for m in [1, 2, 7, 8, 9, 16] {
                let way = if norm { Way::Normed } else { Way::Small };
                let small = product(m, n, k, then, way);
                let what = format!("{then:?} of {m} rows, {n} columns, depth {k}, norm {norm}");
                assert_eq!(small.outputs[0].gpu, large.outputs[0].gpu[..m * n], "{what}");
                let apart =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let (cpu, large) = (&small.outputs[0].cpu, &large.outputs[0].cpu[..m * n]);
                assert!(apart(cpu, large) < 1e-5 * k as f32, "{what}: the reference's");
            }
        }
    }
}

/// Weights once, in 16-byte accesses, all of each sector; x once a block; no bank conflicts; columns of blocks that the GPU's size chooses.
#[test]
fn weights_are_read_once() {
    if !common::gpu::counted() {
        return;
    }
    for (m, n, k, then, norm) in [
        (1, 6144, 2048, Store, true),
        (1, 4096, 512, Residual, false),
        (16, 4096, 512, Store, false),
        (3, 2048, 1024, SiluMul, true),
    ] {
        let ran = product(m, n, k, then, if norm { Way::Normed } else { Way::Small });
        let kernels = ran.report["kernels"].as_object().unwrap();
        let (name, kernel) = kernels.iter().next().unwrap();
        let c = &kernel["counters"];
        let number = |part: &str, key: &str| c[part][key].as_u64().unwrap() as usize;
        let columns: usize = name.rsplit('_').next().unwrap().parse().unwrap();
        assert_eq!(columns, if n == 2048 { 32 } else { 64 }, "{name}");
        let weights = 2 * n * k * if then == SiluMul { 2 } else { 1 };
        let (moved, x) = (32 * number("global_load", "sectors"), n / columns * m * k * 2);
        assert!(moved as f64 <= 1.05 * (weights + x * if norm { 3 } else { 1 }) as f64, "{name}: {moved}");
        if m == 1 {
            assert!(moved as f64 <= 1.05 * weights as f64, "{name}: {moved} bytes for {weights}");
        }
        for part in ["shared_load", "shared_store"] {
            assert_eq!(number(part, "wavefronts"), number(part, "ideal"), "{name}: {part}");
        }
    }
}

#[test]
fn a_norm_of_many_rows_is_refused() {
    let mut case = Case::new();
    let [x, w] = ["x", "w"].map(|n| case.output(n, Act, &[17, 64]));
    let (y, norm) = (case.output("y", Act, &[17, 17]), case.output("norm", Act, &[64]));
    let e = ops::matmul(&y, &x, &w).unwrap().norm(&norm, 1e-5).err().unwrap().to_string();
    assert!(e.contains("at most 16 rows") && e.contains("17"), "{e}");
}

/// Parameters of one sequence.
#[derive(Clone, Copy)]
struct How {
    temperature: f32,
    top_p: f32,
    penalty: f32,
    top_k: i32,
    seed: u64,
    counter: i32,
}

const GREEDY: How = How { temperature: 0.0, top_p: 1.0, penalty: 1.0, top_k: 0, seed: 0, counter: 0 };

/// Tokens chosen from rows of logits, and what is seen afterwards: both devices'.
fn draw(logits: &[f32], v: usize, how: &[How], seen: &[i32]) -> Ran {
    let (mut case, b) = (Case::new(), how.len());
    let logits = case.input("logits", F32, &[b, v], logits);
    let knobs: Vec<f32> = how.iter().flat_map(|h| [h.temperature, h.top_p, h.penalty]).collect();
    let draws: Vec<i32> =
        how.iter().flat_map(|h| [h.top_k, h.seed as i32, (h.seed >> 32) as i32, h.counter]).collect();
    let knobs = case.input("knobs", F32, &[b, SAMPLE_KNOBS], &knobs);
    let draws = case.ints("draws", &[b, SAMPLE_DRAWS], &draws);
    let token = case.output("token", I32, &[b]);
    let seen = case.inout_ints("seen", &[b, v.div_ceil(32)], seen);
    case.run(ops::sample(&token, &logits, &knobs, &draws, &seen).unwrap())
}

/// The same tokens as the reference's for every combination, from peaked and flat logits; a sequence's token does not depend on the batch.
#[test]
fn the_same_tokens_are_drawn() {
    let v = 3001usize;
    let words = v.div_ceil(32);
    let mut how = Vec::new();
    for temperature in [0.0, 0.3, 1.0, 3.0] {
        for top_k in [0, 1, 50, 2000] {
            for top_p in [0.0, 0.5, 0.95, 1.0] {
                for penalty in [1.0, 1.3] {
                    let i = how.len() as i32;
                    how.push(How {
                        temperature,
                        top_p,
                        penalty,
                        top_k,
                        seed: 0x1234_5678_9abc + i as u64 / 3,
                        counter: i,
                    });
                }
            }
        }
    }
    let b = how.len();
    let mut logits = normal(3, b * v);
    for (i, row) in logits.chunks_mut(v).enumerate() {
        let scale = [0.0, 0.1, 2.0, 8.0][i % 4]; // all equal, flat, as a model's, peaked
        row.iter_mut().for_each(|l| *l = (*l * scale * 8.0).round() / 8.0); // with ties
    }
    let seen: Vec<i32> = normal(9, b * words).iter().map(|v| v.to_bits() as i32).collect();
    let ran = draw(&logits, v, &how, &seen);
    ran.outputs.iter().for_each(Output::expect_equal);
    let drawn: std::collections::BTreeSet<i32> = ran.outputs[0].gpu.iter().map(|&t| t as i32).collect();
    assert!(drawn.len() > b / 4, "{} different tokens in {b} draws", drawn.len());
    for i in [5, 77] {
        let alone = draw(&logits[i * v..(i + 1) * v], v, &how[i..=i], &seen[i * words..(i + 1) * words]);
        assert_eq!(alone.outputs[0].gpu[0], ran.outputs[0].gpu[i], "sequence {i} alone");
    }
}

/// The vocabulary's size, rows that are not aligned, logits that are no numbers.
#[test]
fn the_same_tokens_of_a_whole_vocabulary() {
    let v = 92_553usize;
    let how = [
        How { temperature: 0.8, top_p: 0.9, penalty: 1.1, top_k: 40, seed: 7, counter: 3 },
        How { temperature: 1.0, top_p: 0.95, seed: 8, ..GREEDY },
        How { temperature: 1.5, seed: 9, counter: 1, ..GREEDY },
        GREEDY,
    ];
    let mut logits = normal(4, how.len() * v);
    logits[3 * v + 77] = 60.0;
    logits[3 * v + 40_000] = 60.0; // a tie: the first
    let ran = draw(&logits, v, &how, &vec![0x1010_1010; how.len() * v.div_ceil(32)]);
    ran.outputs.iter().for_each(Output::expect_equal);
    assert_eq!(ran.outputs[0].gpu[3], 77.0);

    let greedy = draw(&logits[..v], v, &[GREEDY], &vec![0; v.div_ceil(32)]);
    if common::gpu::counted() {
        let loads = &greedy.report["kernels"]["sample_f32"]["counters"]["global_load"]["sectors"];
        assert!(
            32.0 * loads.as_f64().unwrap() <= 1.05 * 4.0 * v as f64,
            "{loads} sectors of logits, read once"
        );
    }

    let hot = How { temperature: 1.0, ..GREEDY };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (row, how, token) in [
        ([nan, -inf, 1.0, nan], GREEDY, 2.0),
        ([nan, -inf, nan, -inf], GREEDY, 0.0),
        ([nan, -inf, nan, -inf], hot, 0.0),
        ([1.0, inf, 2.0, inf], hot, 1.0),
        ([nan, -inf, -3.0, nan], hot, 2.0),
        ([-0.0, 0.0, -1.0, 0.0], GREEDY, 0.0),
    ] {
        let ran = draw(&row, 4, &[how], &[0]);
        ran.outputs.iter().for_each(Output::expect_equal);
        assert_eq!(ran.outputs[0].gpu[0], token, "{row:?}");
        assert_eq!(ran.outputs[1].gpu[0], (1 << token as i32) as f32, "{row:?}: seen");
    }
}

/// Not a test of its own: prints results for [`any_order_of_warps_gives_the_same_bits`], which runs it under other orders.
#[test]
#[ignore = "run by any_order_of_warps_gives_the_same_bits"]
fn digest() {
    let pages = Pages::new(2, &[300, 70], 6);
    let rows = [chunk(0, 295..300), vec![(-1, 0)], chunk(1, 69..70)].concat();
    let how = How { temperature: 1.0, top_p: 0.9, top_k: 300, seed: 1, ..GREEDY };
    let results = [
        attend(Paged, 4, &pages, &rows),
        attend(Decode, 4, &pages, &rows),
        product(5, 72, 520, SiluMul, Way::Normed),
        draw(&normal(1, 2000), 2000, &[how], &[0; 63]),
    ];
    let bits = results.iter().flat_map(|r| &r.outputs).flat_map(|o| &o.gpu).map(|v| v.to_bits());
    let digest = bits.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    println!("digest {digest:016x}");
}

#[test]
fn any_order_of_warps_gives_the_same_bits() {
    let run = |seed: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "digest", "--ignored", "--nocapture"]).env("PTXSIM_SEED", seed);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        let at = text.find("digest ").expect("a digest is printed");
        text[at..at + 23].to_string()
    };
    let first = run("0");
    for seed in ["1", "77"] {
        assert_eq!(run(seed), first, "seed {seed}");
    }
}

/// Ids that are not negative stay; the others are tokens chosen before. Fewer rows than a block, a block, and more.
#[test]
fn ids_are_taken_from_the_step_before() {
    for t in [1, 16, 32, 33, 70] {
        let mut case = Case::new();
        let ids: Vec<i32> = (0..t).map(|i| if i % 3 == 0 { 100 + i } else { -1 - (i * 5) % 17 }).collect();
        let tokens: Vec<i32> = (0..17).map(|i| 90_000 + i).collect();
        let at = case.inout_ints("ids", &[t as usize], &ids);
        let tokens = case.ints("tokens", &[17], &tokens);
        let ran = case.run(ops::next_ids(&at, &tokens).unwrap());
        ran.outputs[0].expect_equal();
        let expected = ids.iter().map(|&id| if id < 0 { (90_000 - 1 - id) as f32 } else { id as f32 });
        assert_eq!(ran.outputs[0].gpu, expected.collect::<Vec<_>>());
    }
}
