//! Both attentions on the simulated driver with every check on, beside `reference/`: queries and keys one less, as many and one more than a
//! block's, one row, windows of a fused projection, shared and empty ranges, outliers; a row's bits alone and in a batch.

mod common;

use common::gpu::{Case, Output, Ran, normal, round};
use mllmseg::graph::DType::Act;
use mllmseg::ops::{self, KvCache, SEGMENT};

/// Twice the error of probabilities rounded to bf16: an average of values of size 1 to 10 over few or many keys.
fn check(y: &Output) {
    let plain: Vec<f32> = y.cpu.iter().map(|&v| round(v * (1.0 + 1.0 / 256.0))).collect();
    y.expect_as_close_as(&plain, 4e-3, true);
}

#[test]
fn attention() {
    for (batch, heads, hd, tq, tk) in [
        (1, 2, 64, 1, 1),
        (1, 1, 64, 127, 63),
        (2, 1, 64, 128, 64),
        (1, 2, 64, 129, 65),
        (1, 1, 64, 1025, 1025),
        (2, 2, 128, 63, 127),
        (1, 1, 128, 64, 128),
        (1, 3, 128, 65, 129),
        (1, 1, 128, 256, 256),
        (3, 2, 128, 10, 1), // cross-attention over one token
    ] {
        let c = heads * hd;
        let mut case = Case::new();
        let (nq, nk) = (batch * tq, batch * tk);
        let qs = case.input("q", Act, &[nq, c + 8], &normal(1, nq * (c + 8)));
        let kv = case.input("kv", Act, &[nk, 2 * c], &normal(2, nk * 2 * c));
        let y = case.output("y", Act, &[nq, c]);
        let (q, k, v) = (qs.cols(8, c), kv.cols(0, c), kv.cols(c, c));
        let ran = case.run(ops::attention(&y, &q, &k, &v, batch, heads).unwrap());
        check(&ran.outputs[0]);
    }
}

/// Scores that rise by hundreds from block to block, for other rows of the same warp fall, and begin far below zero: all that a row's scale goes
/// through. Then one overflowing score, which spoils its row alone.
#[test]
fn scores_that_outgrow_their_scale() {
    for (hd, tq, tk) in [(64, 130, 321), (128, 130, 163)] {
        let (heads, c) = (1, hd);
        let mut qs: Vec<f32> = normal(1, tq * c).iter().map(|v| 0.1 * v).collect();
        qs.chunks_mut(c).enumerate().for_each(|(r, q)| q[0] += [3.0, -3.0, 0.2, 0.0][r % 4]);
        let mut ks = normal(2, tk * c);
        ks.chunks_mut(c).enumerate().for_each(|(r, k)| k[0] = 3.0 * r as f32 - 400.0);
        let run = |qs: &[f32]| {
            let mut case = Case::new();
            let [q, k] = [("q", tq, qs), ("k", tk, &ks)].map(|(n, t, v)| case.input(n, Act, &[t, c], v));
            let v = case.input("v", Act, &[tk, c], &normal(3, tk * c));
            let y = case.output("y", Act, &[tq, c]);
            case.run(ops::attention(&y, &q.all(), &k.all(), &v.all(), 1, heads).unwrap()).outputs.remove(0)
        };
        let y = run(&qs);
        check(&y);
        qs[5 * c] = f32::INFINITY;
        let spoilt = run(&qs);
        for (r, (a, b)) in spoilt.gpu.chunks(c).zip(y.gpu.chunks(c)).enumerate() {
            assert!(if r == 5 { a.iter().all(|v| v.is_nan()) } else { a == b }, "row {r}");
        }
    }
}

/// Rows, K/V rows and segments of a packed batch.
fn ranges(
    hd: usize,
    nh: usize,
    nkv: usize,
    cap: usize,
    t: usize,
    segments: &[[i32; SEGMENT]],
    from: usize,
) -> Ran {
    let mut case = Case::new();
    let qs = normal(1, (from + t) * nh * hd).split_off(from * nh * hd);
    let q = case.input("q", Act, &[t, nh, hd], &qs);
    let [k, v] = [2, 3].map(|seed| case.input("kv", Act, &[1, nkv, cap, hd], &normal(seed, nkv * cap * hd)));
    let flat: Vec<i32> = segments.concat();
    let table = case.ints("segments", &[segments.len(), SEGMENT], &flat);
    let y = case.output("y", Act, &[t, nh * hd]);
    case.run(ops::attention_ranges(&y, &q, &KvCache { k, v }, 0, &table, cap).unwrap())
}

#[test]
fn causal_over_ranges() {
    let one = |rows, a: (i32, i32), b: (i32, i32), kv| [[0, rows, a.0, a.1, b.0, b.1, kv]];
    for (hd, nh, nkv) in [(128, 4, 1), (128, 2, 2), (128, 6, 2)] {
        for (t, segment) in [
            (1, one(1, (0, 0), (0, 0), 5)),
            (1, one(1, (3, 64), (0, 0), 67)),
            (16, one(16, (0, 63), (70, 65), 140)),
            (63, one(63, (0, 0), (0, 0), 0)),
            (64, one(64, (0, 1), (0, 0), 64)),
            (65, one(65, (0, 128), (130, 1), 131)),
            (130, one(130, (10, 40), (0, 0), 50)),
        ] {
            check(&ranges(hd, nh, nkv, 272, t, &segment, 0).outputs[0]);
        }
    }
}

/// Two images' texts behind a shared system prompt; empty segments are passed over.
#[test]
fn a_row_has_the_same_bits_alone_and_packed() {
    let (hd, nh, nkv, cap) = (128, 4, 1, 256);
    let packed = [
        [0, 21, 0, 30, 32, 70, 110],
        [21, 0, 0, 0, 0, 0, 0],
        [21, 40, 0, 30, 32, 70, 131],
        [61, 1, 0, 30, 0, 0, 171],
        [62, 17, 0, 0, 0, 0, 180],
    ];
    let all = ranges(hd, nh, nkv, cap, 79, &packed, 0);
    check(&all.outputs[0]);
    for mut s in packed.into_iter().filter(|s| s[1] > 0) {
        let (first, rows) = (s[0] as usize, s[1] as usize);
        s[0] = 0;
        let alone = ranges(hd, nh, nkv, cap, rows, &[s], first);
        let c = nh * hd;
        assert_eq!(
            alone.outputs[0].gpu,
            all.outputs[0].gpu[first * c..][..rows * c],
            "segment of {rows} rows"
        );
    }
}

#[test]
fn head_sizes_without_a_kernel_are_refused() {
    let mut case = Case::new();
    let x = case.input("x", Act, &[4, 96], &normal(1, 4 * 96));
    let y = case.output("y", Act, &[4, 96]);
    let op = ops::attention(&y, &x.all(), &x.all(), &x.all(), 1, 1).unwrap();
    let e = ops::Op::launch(&op, &ops::Gpu { arch: 80, sms: 108 }).unwrap_err().to_string();
    assert!(e.contains("head size") && e.contains("64 or 128") && e.contains("96"), "{e}");
}
