//! The reference operators against plain formulas in f64, where golden tensors do not reach: borders, tails, ties, ranges, windows.
//!
//! Copies, permutations and argmax are bitwise equal. A sum of products is within `16 * 2^-24` of the sum of its terms' magnitudes:
//! what f32 sums in any order keep for the lengths here, with room; a mistake is off by thousands of that.

use half::bf16;
use mllmseg::image::Mask;
use mllmseg::ops::SEGMENT;
use mllmseg::reference::{self as r, Heads, Precision, Rows, Summand, Then, View, ViewMut, Weights};
use proptest::prelude::*;

const EPS: f64 = 1.0 / (1u32 << 24) as f64;

/// Numbers in [-1, 1) that depend on the seed alone.
fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n + 8).map(|_| next()).skip(8).collect()
}

/// An exact value and the size of what was summed for it.
#[derive(Clone, Copy, Default)]
struct Exact {
    value: f64,
    size: f64,
}

impl Exact {
    fn add(&mut self, term: f64) {
        self.value += term;
        self.size += term.abs();
    }

    fn product(terms: impl Iterator<Item = (f32, f32)>) -> Self {
        terms.fold(Self::default(), |mut e, (a, b)| {
            e.add(f64::from(a) * f64::from(b));
            e
        })
    }
}

/// Every value within `16 * 2^-24` of the size of its terms.
#[track_caller]
fn close(what: &str, found: &[f32], exact: &[Exact]) {
    within(16.0 * EPS, what, found, exact);
}

/// Every value within `bound` of the size of its terms.
#[track_caller]
fn within(bound: f64, what: &str, found: &[f32], exact: &[Exact]) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(exact).enumerate() {
        let bound = bound * e.size + 1e-30;
        let off = (f64::from(*f) - e.value).abs();
        assert!(
            off <= bound,
            "{what}: element {i} is {f}, exactly {}: off by {off:e}, bound {bound:e}",
            e.value
        );
    }
}

fn all_mut(data: &mut [f32], width: usize) -> ViewMut<'_> {
    ViewMut { data, stride: width, col: 0, width }
}

#[test]
fn argmax_takes_the_first_of_equal_ones() {
    let inf = f32::INFINITY;
    let rows: [([f32; 4], i32); 8] = [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([5.0, 5.0, 5.0, 5.0], 0),
        ([-4.0, -3.0, -2.0, -1.0], 3),
        ([0.0, -0.0, 0.0, -0.0], 0),
        ([-inf, -inf, -1e30, -inf], 2),
        ([1.0, inf, inf, 1.0], 1),
        ([-inf; 4], 0),
        ([f32::MIN_POSITIVE, 1e-45, 0.0, -1.0], 0),
    ];
    for (row, expected) in rows {
        let mut y = [-1, -1];
        r::argmax(&mut y, &[row, row].concat());
        assert_eq!(y, [expected; 2], "{row:?}");
    }
}

#[test]
fn rmsnorm_and_layernorm_are_their_formulas() {
    for (n, c) in [(1, 1), (1, 8), (3, 17), (33, 128), (2, 4096)] {
        let scale = 3.0f32;
        let x: Vec<f32> = random(1, n * c).iter().map(|v| v * scale + 0.5).collect();
        let (w, b, add) = (random(2, c), random(3, c), random(4, n * c));
        let eps = 1e-5f32;
        let mut y = vec![0.0; n * c];
        r::rmsnorm(&mut y, &x, &w, eps);
        let exact: Vec<Exact> = x
            .chunks(c)
            .flat_map(|row| {
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / c as f64;
                let rstd = 1.0 / (mean + f64::from(eps)).sqrt();
                row.iter().zip(&w).map(move |(v, w)| Exact::product([(*v, *w)].into_iter()).scaled(rstd))
            })
            .collect();
        close(&format!("rmsnorm {n}x{c}"), &y, &exact);

        let norm = |rows: &[f64]| -> Vec<Exact> {
            rows.chunks(c)
                .flat_map(|row| {
                    let mean = row.iter().sum::<f64>() / c as f64;
                    let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
                    let rstd = 1.0 / (var + f64::from(eps)).sqrt();
                    row.iter()
                        .enumerate()
                        .map(|(i, v)| {
                            let (w, b) = (f64::from(w[i]), f64::from(b[i]));
                            Exact {
                                value: (v - mean) * rstd * w + b,
                                size: (v.abs() + mean.abs()) * rstd * w.abs() + b.abs(),
                            }
                        })
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        // A window of a wider matrix: what is beside it stays.
        let mut y = vec![7.0; n * (c + 3)];
        let window = ViewMut { data: &mut y, stride: c + 3, col: 2, width: c };
        r::layernorm(window, &x, Summand::Nothing, &w, &b, eps);
        let inside: Vec<f32> = y.chunks(c + 3).flat_map(|row| row[2..2 + c].to_vec()).collect();
        assert!(y.chunks(c + 3).all(|row| row[..2] == [7.0; 2] && row[c + 2] == 7.0));
        close(&format!("layernorm {n}x{c}"), &inside, &norm(&wide(&x)));

        let mut y = vec![0.0; n * c];
        r::layernorm(all_mut(&mut y, c), &x, Summand::Rows(&add), &w, &b, eps);
        let sum: Vec<f64> = x.iter().zip(&add).map(|(a, b)| f64::from(a + b)).collect();
        close(&format!("add_layernorm {n}x{c}"), &y, &norm(&sum));

        // Two images of n rows, three expressions about them.
        let (two, vectors, image_of) = (random(5, 2 * n * c), random(6, 3 * c), [1, 0, 1]);
        let mut y = vec![0.0; 3 * n * c];
        let summand = Summand::Broadcast { r: &vectors, image_of: &image_of };
        r::layernorm(all_mut(&mut y, c), &two, summand, &w, &b, eps);
        let sum: Vec<f64> = (0..3 * n * c)
            .map(|i| {
                let (q, p, k) = (i / (n * c), i / c % n, i % c);
                f64::from(two[(image_of[q] as usize * n + p) * c + k] + vectors[q * c + k])
            })
            .collect();
        close(&format!("broadcast_add_layernorm {n}x{c}"), &y, &norm(&sum));
    }
}

impl Exact {
    fn scaled(self, by: f64) -> Self {
        Self { value: self.value * by, size: self.size * by }
    }
}

/// `softmax(scores) v`; `size` also counts what an error in the scores does to the weights.
fn attend(scores: &[f64], values: impl Fn(usize, usize) -> f32, hd: usize) -> Vec<Exact> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..hd)
        .map(|c| {
            let mut e = Exact::default();
            weights.iter().enumerate().for_each(|(j, w)| e.add(w / total * f64::from(values(j, c))));
            Exact { size: 4.0 * e.size, ..e }
        })
        .collect()
}

/// Numbers that bf16 represents: products of two are exact in f32, whichever way they are computed.
fn random_bf16(seed: u64, n: usize) -> Vec<f32> {
    random(seed, n).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

/// What attention of [`random_bf16`] may be off by. In bf16 only the weights are rounded, by 2^-8 each; `attend` counts each term four times.
const ATTENTION: [(Precision, f64); 2] =
    [(Precision::F32, 16.0 * EPS), (Precision::Bf16, 1.0 / (1u32 << 10) as f64)];

/// Window offsets, several items, key counts that differ from the queries', tails of the query block.
#[test]
fn attention_is_softmax_of_products() {
    for (batch, heads, hd, tq, tk) in
        [(1, 1, 8, 1, 1), (2, 2, 16, 65, 7), (1, 4, 32, 64, 200), (3, 1, 128, 3, 65), (1, 2, 64, 257, 257)]
    {
        let c = heads * hd;
        let stride = 3 * c + 5;
        let (qkv, kv) = (random_bf16(1, batch * tq * stride), random_bf16(2, batch * tk * stride));
        let q = View { data: &qkv, stride, col: 3, width: c };
        let k = View { data: &kv, stride, col: 0, width: c };
        let v = View { data: &kv, stride, col: 2 * c + 1, width: c };
        let at = |w: &View, row: usize, col: usize| w.data[row * w.stride + w.col + col];
        let mut exact = vec![Exact::default(); batch * tq * c];
        for (item, head, i) in triples(batch, heads, tq) {
            let scores: Vec<f64> = (0..tk)
                .map(|j| {
                    let terms = (0..hd).map(|d| {
                        (at(&q, item * tq + i, head * hd + d), at(&k, item * tk + j, head * hd + d))
                    });
                    Exact::product(terms).value / (hd as f64).sqrt()
                })
                .collect();
            let row = attend(&scores, |j, d| at(&v, item * tk + j, head * hd + d), hd);
            exact[(item * tq + i) * c + head * hd..][..hd].copy_from_slice(&row);
        }
        for (precision, bound) in ATTENTION {
            let mut y = vec![f32::NAN; batch * tq * c];
            r::attention(&mut y, q, k, v, batch, heads, precision);
            within(bound, &format!("attention {precision:?} {batch} {heads} {hd} {tq} {tk}"), &y, &exact);
        }
    }
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |n| (n / (b * c), n / c % b, n % c))
}

/// Packed segments with none, one or two earlier ranges, grouped heads, blocks with tails; rows of no segment stay.
#[test]
fn attention_ranges_sees_its_ranges_and_its_past() {
    for (heads, kv_heads, hd) in [(1, 1, 8), (4, 1, 16), (6, 3, 32), (8, 2, 64)] {
        let cap = 700;
        // first row, rows, two earlier ranges, own first K/V row
        let segments: [[usize; SEGMENT]; 5] = [
            [0, 1, 0, 0, 0, 0, 0],
            [1, 64, 0, 100, 0, 0, 100],
            [65, 65, 0, 100, 164, 30, 300],
            [131, 130, 0, 0, 5, 1, 400], // row 130 belongs to nobody
            [261, 3, 690, 10, 0, 60, 600],
        ];
        let t = 265;
        let (q, k, v) = (
            random_bf16(1, t * heads * hd),
            random_bf16(2, kv_heads * cap * hd),
            random_bf16(3, kv_heads * cap * hd),
        );
        let fields: Vec<i32> = segments.iter().flatten().map(|v| *v as i32).collect();
        let mut exact = vec![Exact { value: 9.0, size: 0.0 }; q.len()];
        for s in segments {
            for (i, head) in (0..s[1]).flat_map(|i| (0..heads).map(move |h| (i, h))) {
                let rows: Vec<usize> =
                    (s[2]..s[2] + s[3]).chain(s[4]..s[4] + s[5]).chain(s[6]..=s[6] + i).collect();
                let of = |data: &[f32], row: usize, d: usize| {
                    data[((head / (heads / kv_heads)) * cap + row) * hd + d]
                };
                let query = &q[((s[0] + i) * heads + head) * hd..][..hd];
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|&row| {
                        Exact::product((0..hd).map(|d| (query[d], of(&k, row, d)))).value / (hd as f64).sqrt()
                    })
                    .collect();
                let row = attend(&scores, |j, d| of(&v, rows[j], d), hd);
                exact[((s[0] + i) * heads + head) * hd..][..hd].copy_from_slice(&row);
            }
        }
        for (precision, bound) in ATTENTION {
            let mut y = vec![9.0; q.len()];
            let d = Heads { heads, kv_heads, cap, head_dim: hd };
            r::attention_ranges(&mut y, &q, &k, &v, &fields, d, precision);
            within(bound, &format!("attention_ranges {precision:?} {heads}/{kv_heads} x {hd}"), &y, &exact);
        }
    }
}

/// A query's result has the same bits alone, among others, and with the keys before it in a range of their own.
#[test]
fn attention_of_a_query_does_not_depend_on_the_others() {
    let (t, heads, hd) = (230, 2, 32);
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, t * heads * hd));
    let d = Heads { heads, kv_heads: heads, cap: t, head_dim: hd };
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |segments: &[i32]| {
            let mut y = vec![0.0; q.len()];
            r::attention_ranges(&mut y, &q, &k, &v, segments, d, precision);
            y
        };
        let whole = run(&[0, t as i32, 0, 0, 0, 0, 0]);
        for split in [1, 15, 16, 17, 96, 97, 229] {
            let (first, rest) = (split, t as i32 - split);
            let y = run(&[0, first, 0, 0, 0, 0, 0, first, rest, 0, first, 0, 0, first]);
            assert_eq!(y, whole, "{precision:?}, {split} and {rest}");
        }
        let c = heads * hd;
        let view = |data, width| View { data, stride: c, col: 0, width };
        let alone = |n: usize| {
            let mut y = vec![0.0; n * c];
            r::attention(&mut y, view(&q[..n * c], c), view(&k, c), view(&v, c), 1, heads, precision);
            y
        };
        let all = alone(t);
        [1, 16, 17, 33, 97]
            .into_iter()
            .for_each(|n| assert_eq!(alone(n), all[..n * c], "{precision:?}, {n}"));
    }
}

#[test]
fn rope_split_rotates_pairs_and_fills_the_cache() {
    for (heads, kv_heads, hd) in [(1, 1, 2), (4, 2, 8), (3, 1, 64), (8, 2, 128)] {
        let (t, cap, group) = (5, 20, heads / kv_heads);
        let (positions, kv_rows) = ([0, 1, 7, 1023, 32767], [19, 0, 7, 3, 4]);
        let freq = r::inv_freq(1e6, hd);
        for (i, f) in freq.iter().enumerate() {
            let exact = 1e6f64.powf(-2.0 * i as f64 / hd as f64);
            assert!(
                (f64::from(*f) / exact - 1.0).abs() < 32.0 * EPS,
                "inv_freq {i} of {hd}: {f}, exactly {exact}"
            );
        }
        let qkv = random(1, t * (heads + 2 * kv_heads) * hd);
        let (mut q, mut k, mut v) =
            (vec![0.0; t * heads * hd], vec![8.0; kv_heads * cap * hd], vec![8.0; kv_heads * cap * hd]);
        let at = Rows { positions: &positions, kv_rows: &kv_rows };
        let d = Heads { heads, kv_heads, cap, head_dim: hd };
        r::rope_split(Some(&mut q), &mut k, &mut v, &qkv, at, &freq, d);
        let rotated = |row: &[f32], position: i32| -> Vec<Exact> {
            (0..hd)
                .map(|i| {
                    let half = i % (hd / 2);
                    // The angle is f32, as published; its sine and cosine are judged exactly.
                    let (sin, cos) = f64::from(position as f32 * freq[half]).sin_cos();
                    let other =
                        if i < hd / 2 { -f64::from(row[i + hd / 2]) } else { f64::from(row[i - hd / 2]) };
                    let mut e = Exact::default();
                    e.add(f64::from(row[i]) * cos);
                    e.add(other * sin);
                    e
                })
                .collect()
        };
        let mut used = 0;
        for (n, row) in qkv.chunks(group * hd + 2 * hd).enumerate() {
            let (t, g) = (n / kv_heads, n % kv_heads);
            for j in 0..group {
                let found = &q[(t * heads + g * group + j) * hd..][..hd];
                close("q", found, &rotated(&row[j * hd..][..hd], positions[t]));
            }
            let to = (g * cap + kv_rows[t] as usize) * hd;
            close("k", &k[to..to + hd], &rotated(&row[group * hd..][..hd], positions[t]));
            assert_eq!(v[to..to + hd], row[(group + 1) * hd..], "v");
            used += hd;
        }
        assert_eq!(k.iter().filter(|x| **x == 8.0).count(), k.len() - used, "other rows of the cache stay");
        let (mut k2, mut v2) = (vec![8.0; k.len()], vec![8.0; v.len()]);
        r::rope_split(None, &mut k2, &mut v2, &qkv, at, &freq, d);
        assert!(k2 == k && v2 == v, "the same without q");
    }
}

/// `grid_sample` as it is defined, normalised coordinates and all, in f64.
#[test]
fn dysample_is_grid_sample() {
    for (items, side, d, groups, reach) in
        [(1, 1, 4, 1, 3.0), (2, 4, 8, 4, 0.4), (1, 7, 12, 3, 2.5), (1, 16, 32, 8, 40.0)]
    {
        let x = random(1, items * side * side * d);
        let offset: Vec<f32> =
            random(2, items * side * side * 8 * groups).iter().map(|v| v * reach).collect();
        let (stride, col, out) = (d + 4, 3, 2 * side);
        let mut y = vec![5.0; items * out * out * stride];
        r::dysample(ViewMut { data: &mut y, stride, col, width: d }, &x, &offset, side, groups);
        assert!(y.chunks(stride).all(|row| row[..col] == [5.0; 3] && row[col + d..] == [5.0]));
        for (n, row) in y.chunks(stride).enumerate() {
            let (b, line, column) = (n / (out * out), n / out % out, n % out);
            let (cell_r, cell_s, sub) = (line / 2, column / 2, line % 2 * 2 + column % 2);
            for c in 0..d {
                let g = c / (d / groups);
                let moves = &offset[((b * side + cell_r) * side + cell_s) * 8 * groups..];
                let pixel = |cell: usize, xy: usize| {
                    let coordinate = cell as f64 + 0.5 + f64::from(moves[(xy * groups + g) * 4 + sub]);
                    let normal = 2.0 * coordinate / side as f64 - 1.0;
                    (((normal + 1.0) * side as f64 - 1.0) / 2.0).clamp(0.0, (side - 1) as f64)
                };
                let (px, py) = (pixel(cell_s, 0), pixel(cell_r, 1));
                let mut exact = 0.0;
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (iy, ix) = (py.floor() as usize + dy, px.floor() as usize + dx);
                    let weight = (1.0 - (py - iy as f64).abs()) * (1.0 - (px - ix as f64).abs());
                    if iy < side && ix < side {
                        exact += weight * f64::from(x[((b * side + iy) * side + ix) * d + c]);
                    }
                }
                // The position is f32: its rounding moves the point by half an ulp of `side`.
                let bound = 64.0 * EPS * (side as f64 + f64::from(reach));
                let off = (f64::from(row[col + c]) - exact).abs();
                assert!(
                    off < bound,
                    "cell {line},{column} channel {c}: {} for {exact}, bound {bound:e}",
                    row[col + c]
                );
            }
        }
        let (shift, mut y) = (random(3, 8 * groups), vec![0.0; offset.len()]);
        r::dysample_offset(&mut y, &offset, &shift);
        let exact: Vec<Exact> = offset
            .iter()
            .enumerate()
            .map(|(i, v)| Exact::product([(0.25, *v), (1.0, shift[i % shift.len()])].into_iter()))
            .collect();
        close("dysample_offset", &y, &exact);
    }
}

/// A naive convolution, zero outside; `x` `(side*side, d)`.
fn convolve(
    x: &[f32],
    side: usize,
    d: usize,
    k: usize,
    weight: impl Fn(usize, usize, usize) -> f32,
) -> Vec<Exact> {
    (0..side * side)
        .map(|n| {
            let mut e = Exact::default();
            for (u, v, c) in triples(k, k, d) {
                let row = (n / side + u).checked_sub(k / 2).filter(|r| *r < side);
                let column = (n % side + v).checked_sub(k / 2).filter(|s| *s < side);
                if let (Some(row), Some(column)) = (row, column) {
                    e.add(f64::from(x[(row * side + column) * d + c]) * f64::from(weight(u, v, c)));
                }
            }
            e
        })
        .collect()
}

#[test]
fn convolutions_are_naive_loops() {
    for (q, side, d, cell) in [(1, 1, 3, 1), (2, 2, 5, 3), (1, 5, 16, 2), (2, 9, 32, 6), (1, 7, 4, 15)] {
        let (o, size) = (cell * cell, side * cell);
        let (x, w, b) = (random(1, q * side * side * d), random(2, o * 9 * d), random(3, o));
        let rounded: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        for weights in [Weights::F32(&w), Weights::Bf16(&rounded)] {
            let mut y = vec![f32::NAN; q * side * side * o];
            r::conv3x3(&mut y, &x, weights, &b, side, Precision::F32);
            let mut values = vec![0.0; w.len()];
            weights.widen(0, &mut values);
            for (item, channel) in (0..q).flat_map(|i| (0..o).map(move |c| (i, c))) {
                let x = &x[item * side * side * d..][..side * side * d];
                let exact: Vec<Exact> =
                    convolve(x, side, d, 3, |u, v, c| values[((channel * 3 + u) * 3 + v) * d + c])
                        .into_iter()
                        .map(|mut e| {
                            e.add(f64::from(b[channel]));
                            Exact { value: e.value.max(0.0), ..e }
                        })
                        .collect();
                let lines = y[item * size * size..][..size * size].chunks(size);
                let lines = lines.skip(channel / cell).step_by(cell);
                let found: Vec<f32> =
                    lines.flat_map(|l| l.iter().skip(channel % cell).step_by(cell)).copied().collect();
                close(&format!("conv3x3 {side} {d} {o} channel {channel}"), &found, &exact);
            }
        }
    }
    for (q, side) in [(1, 1), (2, 2), (1, 3), (3, 4), (1, 5), (2, 67)] {
        let (x, w) = (random(1, q * side * side), random(2, 25));
        let mut y = vec![f32::NAN; x.len()];
        r::conv5x5(&mut y, &x, &w, 0.25, [side, side]);
        for (x, y) in x.chunks(side * side).zip(y.chunks(side * side)) {
            let mut exact = convolve(x, side, 1, 5, |u, v, _| w[5 * u + v]);
            exact.iter_mut().for_each(|e| e.add(0.25));
            close(&format!("conv5x5 {side}"), y, &exact);
        }
    }
}

/// A convolution and BatchNorm one after the other are the folded convolution.
#[test]
fn folded_batchnorm_is_batchnorm() {
    let (o, d, eps) = (6, 4, 1e-5);
    let (w, b, x) = (random(1, o * d * 9), random(2, o), random(3, 9 * d));
    let (gamma, beta, mean) = (random(4, o), random(5, o), random(6, o));
    let var: Vec<f32> = random(7, o).iter().map(|v| v * v + 0.01).collect();
    let (folded, shift) = r::fold_batchnorm(&w, &b, [&gamma, &beta, &mean, &var], eps);
    for i in 0..o {
        let mut before = Exact::default();
        let mut after = Exact::default();
        for (tap, c) in (0..9).flat_map(|t| (0..d).map(move |c| (t, c))) {
            before.add(f64::from(w[(i * d + c) * 9 + tap]) * f64::from(x[tap * d + c]));
            after.add(f64::from(folded[(i * 9 + tap) * d + c]) * f64::from(x[tap * d + c]));
        }
        let of = |v: &[f32]| f64::from(v[i]);
        let exact = (before.value + of(&b) - of(&mean)) / (of(&var) + eps).sqrt() * of(&gamma) + of(&beta);
        assert!((after.value + of(&shift) - exact).abs() < 16.0 * EPS * (after.size + 10.0), "channel {i}");
    }
}

/// `F.interpolate(mode="bilinear", align_corners=False)` by its definition, in f64.
#[test]
fn resize_is_bilinear() {
    for (size, h, w) in
        [(1, 3, 2), (2, 2, 2), (14, 1, 1), (14, 1, 200), (32, 33, 5), (56, 113, 300), (224, 160, 173)]
    {
        let x: Vec<f32> = random(1, size * size).iter().map(|v| (v + 1.0) / 2.0).collect();
        let mut y = vec![f32::NAN; h * w];
        r::resize(&mut y, &x, size, h, w);
        let taps = |i: usize, output: usize| {
            let at = ((i as f64 + 0.5) * size as f64 / output as f64 - 0.5).max(0.0);
            let low = (at.floor() as usize).min(size - 1);
            (low, (low + 1).min(size - 1), at - low as f64)
        };
        let mut exact = Vec::new();
        for (i, j) in (0..h).flat_map(|i| (0..w).map(move |j| (i, j))) {
            let ((y0, y1, fy), (x0, x1, fx)) = (taps(i, h), taps(j, w));
            let at = |row: usize, col: usize| f64::from(x[row * size + col]);
            exact.push(
                at(y0, x0) * (1.0 - fy) * (1.0 - fx)
                    + at(y0, x1) * (1.0 - fy) * fx
                    + at(y1, x0) * fy * (1.0 - fx)
                    + at(y1, x1) * fy * fx,
            );
        }
        // Coordinates are f32, as published: at most `size` ulps of a pixel.
        let bound = 8.0 * EPS * size as f64;
        for (i, (f, e)) in y.iter().zip(&exact).enumerate() {
            assert!((f64::from(*f) - e).abs() < bound, "{size} to {h}x{w}: pixel {i} is {f}, exactly {e}");
        }
    }
}

/// Masks of different places in one buffer, beside the steps that make them: every bit, area, box and sum.
#[test]
fn mask_head_is_its_steps() {
    let size = 24;
    let pixels = size * size;
    let (w, b) = (random(2, 25), 0.1);
    let mut x = random(1, 4 * pixels);
    x[pixels..].fill(0.0); // the second mask is empty
    x[2 * pixels + 9 * size + 7..][..3].fill(3.0); // the others have few lines, the last one the last
    x[4 * pixels - 5..].fill(3.0);
    for (h, width) in [(1, 1usize), (1, 200), (33, 5), (113, 300), (24, 64)] {
        let (mut pre, mut p) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        r::conv5x5(&mut pre, &x, &w, b - 0.2, [size, size]);
        r::sigmoid(&mut p, &pre);
        // The first word, two between the first and the second mask, and the last one are nobody's.
        let words = h * width.div_ceil(32);
        let at = |q: usize| 1 + q * words + if q > 0 { 2 } else { 0 };
        let (mut bits, mut stats, mut kept) = (vec![7; at(4) + 1], [9; 32], vec![0.0; x.len()]);
        let places: Vec<i32> = (0..4).flat_map(|q| [at(q), h, width]).map(|v| v as i32).collect();
        r::mask_head(&mut bits, &mut stats, Some(&mut kept), &x, (&w, b - 0.2), &places, size);
        assert_eq!(kept, p);
        assert_eq!([bits[0], bits[at(1) - 2], bits[at(1) - 1], bits[at(4)]], [7; 4]);
        for (q, stats) in stats.chunks_exact(8).enumerate() {
            let mut y = vec![0.0; h * width];
            r::resize(&mut y, &p[q * pixels..][..pixels], size, h, width);
            let mask = Mask::from_bits(width, h, &bits[at(q)..][..words]).unwrap();
            assert!(mask.data.iter().zip(&y).all(|(m, v)| *m == u8::from(*v >= 0.5)), "mask {q}");
            assert_eq!(stats[0] as usize, mask.area());
            assert!(q != 1 || mask.area() == 0);
            assert!(q == 1 || h * width < pixels || mask.area() > 0);
            let [x0, y0, x1, y1] = [1, 2, 3, 4].map(|i| stats[i]);
            match mask.bbox() {
                Some(found) => assert_eq!(found.map(|v| v as i32), [x0, y0, x1 - x0 + 1, y1 - y0 + 1]),
                None => assert_eq!([x0, y0, x1, y1], [i32::MAX, i32::MAX, -1, -1]),
            }
            let sum: u64 = y.iter().filter(|v| **v >= 0.5).map(|v| (v * 1073741824.0) as u64).sum();
            assert_eq!((stats[6] as u32, stats[7] as u32), (sum as u32, (sum >> 32) as u32));
            assert_eq!(stats[5], 0);
        }
    }
    x[5] = f32::NAN;
    let (mut bits, mut stats) = ([0; 2], [0; 16]);
    r::mask_head(&mut bits, &mut stats, None, &x, (&w, b), &[0, 1, 1, 1, 1, 1], size);
    assert_eq!((stats[5], stats[13]), (1, 0));
}

/// Every epilogue, shapes across the tiles' edges.
#[test]
fn matmul_is_the_sum_of_products() {
    for (m, n, k) in [(1, 1, 1), (1, 300, 64), (3, 129, 513), (64, 128, 512), (513, 5, 33), (130, 257, 100)] {
        let (x, w, w3, b, ls) =
            (random(1, m * k), random(2, n * k), random(3, n * k), random(4, n), random(5, n));
        let before = random(6, m * n);
        let rounded: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        for weights in [Weights::F32(&w), Weights::Bf16(&rounded)] {
            let mut values = vec![0.0; w.len()];
            weights.widen(0, &mut values);
            let product = |w: &[f32], i: usize| {
                Exact::product(x[i / n * k..][..k].iter().copied().zip(w[i % n * k..][..k].iter().copied()))
            };
            let biased = |i: usize| {
                let mut e = product(&values, i);
                e.add(f64::from(b[i % n]));
                e
            };
            let check = |what: &str, then: Then, exact: &dyn Fn(usize) -> Exact| {
                let mut y = before.clone();
                r::matmul(&mut y, &x, weights, n, Some(&b), then, Precision::F32);
                let exact: Vec<Exact> = (0..m * n).map(exact).collect();
                close(&format!("matmul {m}x{n}x{k} {what}"), &y, &exact);
            };
            check("store", Then::Store, &biased);
            check("relu", Then::Relu, &|i| Exact { value: biased(i).value.max(0.0), ..biased(i) });
            check("residual", Then::Residual, &|i| {
                let mut e = biased(i);
                e.add(f64::from(before[i]));
                e
            });
            check("scaled", Then::ScaledResidual(&ls), &|i| {
                let e = biased(i).scaled(f64::from(ls[i % n]));
                Exact {
                    value: e.value + f64::from(before[i]),
                    size: e.size.abs() + f64::from(before[i]).abs(),
                }
            });
            check("swiglu", Then::SiluMul(Weights::F32(&w3)), &|i| {
                let (gate, up) = (biased(i), product(&w3, i));
                let value = gate.value / (1.0 + (-gate.value).exp()) * up.value;
                Exact { value, size: (gate.size + 1.0) * (up.size + 1.0) }
            });
            check("gelu", Then::Gelu, &|i| {
                let e = biased(i);
                Exact { value: gelu(e.value), size: 2.0 * e.size + 1.0 }
            });
        }
    }
}

/// `v/2 (1 + erf(v/√2))` by the series of erf, or its tail's absence.
fn gelu(v: f64) -> f64 {
    let z = v / std::f64::consts::SQRT_2;
    if z.abs() > 5.0 {
        return if z > 0.0 { v } else { 0.0 };
    }
    let (mut term, mut sum, mut n) = (z, z, 0.0);
    while term.abs() > 1e-18 {
        n += 1.0;
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    v / 2.0 * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}

#[test]
fn sigmoid_is_the_logistic_function() {
    let x: Vec<f32> =
        (-4000..=4000).map(|i| i as f32 * 0.025).chain([f32::INFINITY, f32::NEG_INFINITY, 0.0]).collect();
    let mut y = vec![0.0; x.len()];
    r::sigmoid(&mut y, &x);
    for (x, y) in x.iter().zip(&y) {
        let exact = 1.0 / (1.0 + (-f64::from(*x)).exp());
        assert!(
            (f64::from(*y) - exact).abs() < 8.0 * EPS * exact + 1e-37,
            "sigmoid({x}) = {y}, exactly {exact}"
        );
        assert!((0.0..=1.0).contains(y));
    }
}

#[test]
fn embeddings_and_tokens_are_rows() {
    let (c, table, images) = (3, random(1, 5 * 3), random(2, 4 * 3));
    let rounded: Vec<bf16> = table.iter().map(|v| bf16::from_f32(*v)).collect();
    let ids = [4, -1, 0, -4, 2];
    let row = |v: &[f32], i: usize| v[i * c..][..c].to_vec();
    let mut y = vec![f32::NAN; ids.len() * c];
    r::embed(&mut y, &ids, Weights::F32(&table), Some(&images), c);
    assert_eq!(
        y,
        [row(&table, 4), row(&images, 0), row(&table, 0), row(&images, 3), row(&table, 2)].concat()
    );
    r::embed(&mut y[..3], &[3], Weights::Bf16(&rounded), None, c);
    assert_eq!(y[..3], rounded[9..12].iter().map(|v| v.to_f32()).collect::<Vec<_>>());

    let (class, position, patches) = (random(3, c), random(4, 3 * c), random(5, 2 * 2 * c));
    let mut y = vec![f32::NAN; 2 * 3 * c];
    r::vit_tokens(&mut y, &patches, &class, &position);
    for (i, v) in y.iter().enumerate() {
        let (b, t, k) = (i / (3 * c), i / c % 3, i % c);
        let x = if t == 0 { class[k] } else { patches[(b * 2 + t - 1) * c + k] };
        assert_eq!(*v, x + position[t * c + k]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Channels of a patch stand one after the other, as the patch convolution's weights.
    #[test]
    fn patchify_orders_channels_rows_columns(b in 1usize..3, c in 1usize..4, rows in 1usize..4, cols in 1usize..4, p in 1usize..5) {
        let (h, w) = (rows * p, cols * p);
        let x = random(2, b * c * h * w);
        let mut y = vec![f32::NAN; x.len()];
        r::patchify(&mut y, &x, [b, c, h, w], p);
        for (n, v) in x.iter().enumerate() {
            let (item, channel, i, j) = (n / (c * h * w), n / (h * w) % c, n / w % h, n % w);
            let row = (item * rows + i / p) * cols + j / p;
            prop_assert_eq!(y[row * c * p * p + (channel * p + i % p) * p + j % p], *v);
        }
    }

    /// A permutation, and the one that is written down.
    #[test]
    fn pixel_shuffle_is_a_permutation(b in 1usize..3, half in 1usize..5, c in 1usize..5) {
        let side = 2 * half;
        let x: Vec<f32> = (0..b * side * side * c).map(|i| i as f32).collect();
        let mut y = vec![f32::NAN; x.len()];
        r::pixel_shuffle(&mut y, &x, side, c);
        for (n, v) in x.iter().enumerate() {
            let (item, row, column, k) = (n / (side * side * c), n / (side * c) % side, n / c % side, n % c);
            let quarter = row % 2 * 2 + column % 2;
            prop_assert_eq!(y[((item * half + row / 2) * half + column / 2) * 4 * c + quarter * c + k], *v);
        }
    }

    #[test]
    fn gather_rows_picks_rows(n in 1usize..20, c in 1usize..9, picks in prop::collection::vec(any::<prop::sample::Index>(), 0..30)) {
        let rows: Vec<i32> = picks.iter().map(|p| p.index(n) as i32).collect();
        let x = random(1, n * c);
        let mut y = vec![f32::NAN; rows.len() * c];
        r::gather_rows(&mut y, &x, &rows);
        let expected: Vec<f32> = rows.iter().flat_map(|&i| x[i as usize * c..][..c].to_vec()).collect();
        prop_assert_eq!(y, expected);
    }

    /// Into a window, the first rows of every item left out; what is beside the window stays.
    #[test]
    fn copy_fills_its_window(items in 1usize..4, rows in 2usize..6, c in 1usize..6, col in 0usize..4, after in 0usize..4, skip in 0usize..2) {
        let (kept, stride) = (rows - skip, col + c + after);
        let x = random(1, items * rows * c);
        let mut y = vec![9.0; items * kept * stride];
        r::copy(ViewMut { data: &mut y, stride, col, width: c }, &x, skip, rows);
        for (n, row) in y.chunks(stride).enumerate() {
            let from = n / kept * rows + skip + n % kept;
            prop_assert_eq!(&row[col..col + c], &x[from * c..][..c]);
            prop_assert!(row[..col].iter().chain(&row[col + c..]).all(|v| *v == 9.0));
        }
    }
}
