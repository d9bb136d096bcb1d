//! Causal attention of packed rows over K/V pages: a row sees its sequence's keys up to its own position.
//!
//! Every row and head is computed for itself, in the order of its keys: its bits depend on nothing else in the batch, nor on how its
//! sequence was cut into chunks.

use super::{Short, math};
use crate::ops::PAGE;
use crate::reference::matmul::Shared;
use multiversion::multiversion;
use rayon::prelude::*;

/// Rows of one task: their scores stay in L2, and they read their K/V pages one after another.
const BLOCK: usize = 8;

/// Whose row each is, and where its sequence's keys lie.
#[derive(Clone, Copy)]
pub struct Paging<'a> {
    /// The slot of each row, `(T)`; -1 for a row that is nobody's.
    pub seq: &'a [i32],
    /// Its position, `(T)`.
    pub positions: &'a [i32],
    /// Pages of each slot, `(S, MAX_PAGES)`.
    pub pages: &'a [i32],
    /// `MAX_PAGES`
    pub max_pages: usize,
    /// Heads of K/V.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
}

impl Paging<'_> {
    /// First element of head `g`'s keys (or values) in page `i` of `slot`.
    pub(super) fn page(&self, slot: usize, i: usize, g: usize) -> usize {
        let page = self.pages[slot * self.max_pages + i] as usize;
        (page * self.kv_heads + g) * PAGE * self.head_dim
    }
}

/// `y`, `q` `(T, NH, HD)`; `k`, `v` `(PAGES, NKV, PAGE, HD)`. A row that is nobody's gets zeros.
pub fn attention_paged(y: &mut [f32], q: &[f32], k: &[f32], v: &[f32], at: Paging) {
    let (hd, rows) = (at.head_dim, at.seq.len());
    if rows == 0 {
        return;
    }
    let heads = q.len() / (rows * hd);
    let group = heads / at.kv_heads;
    let mut tasks = Vec::new();
    let mut first = 0;
    while first < rows {
        let same = at.seq[first..].iter().take(BLOCK).take_while(|&&s| s == at.seq[first]).count();
        tasks.extend((0..at.kv_heads).map(|g| (first..first + same, g)));
        first += same;
    }
    let y = Shared::new(y);
    tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores, (rows, g)| {
        // Queries of the task: (row, keys it sees, its first element in q and y).
        let slot = at.seq[rows.start];
        let queries = rows.flat_map(|t| {
            let seen = if slot < 0 { 0 } else { at.positions[t] as usize + 1 };
            (g * group..(g + 1) * group).map(move |head| (seen, (t * heads + head) * hd))
        });
        let queries: Vec<_> = queries.collect();
        let most = queries.iter().map(|q| q.0).max().unwrap_or(0);
        Short::resize(scores, queries.len() * most);
        let pages: Vec<usize> =
            (0..most.div_ceil(PAGE)).map(|i| at.page(slot.max(0) as usize, i, g)).collect();
        for (i, page) in pages.iter().enumerate() {
            for (n, &(seen, at)) in queries.iter().enumerate() {
                let keys = seen.saturating_sub(i * PAGE).min(PAGE);
                let to = &mut scores[n * most + i * PAGE..][..keys];
                dots(to, &q[at..at + hd], &k[*page..*page + keys * hd]);
            }
        }
        for (n, &(seen, _)) in queries.iter().enumerate() {
            math::softmax(&mut scores[n * most..][..seen], 1.0 / (hd as f32).sqrt());
        }
        for &(_, at) in &queries {
            // SAFETY: a task owns its heads in its rows.
            unsafe { y.row(at, hd) }.fill(0.0);
        }
        for (i, page) in pages.iter().enumerate() {
            for (n, &(seen, at)) in queries.iter().enumerate() {
                let keys = seen.saturating_sub(i * PAGE).min(PAGE);
                // SAFETY: as above.
                let to = unsafe { y.row(at, hd) };
                add_weighted(to, &scores[n * most + i * PAGE..][..keys], &v[*page..*page + keys * hd]);
            }
        }
    });
}

/// `y[n] = q · k[n]`; `k` `(N, HD)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn dots(y: &mut [f32], q: &[f32], k: &[f32]) {
    const LANES: usize = 16;
    let (body, tail) = q.as_chunks::<LANES>();
    for (y, k) in y.iter_mut().zip(k.chunks_exact(q.len())) {
        let (k_body, k_tail) = k.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for (q, k) in body.iter().zip(k_body) {
            for i in 0..LANES {
                sums[i] += q[i] * k[i];
            }
        }
        for step in [8, 4, 2, 1] {
            for i in 0..step {
                sums[i] += sums[i + step];
            }
        }
        *y = sums[0] + tail.iter().zip(k_tail).map(|(q, k)| q * k).sum::<f32>();
    }
}

/// `y += Σ_n p[n] * v[n]`, n ascending; `v` `(N, HD)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_weighted(y: &mut [f32], p: &[f32], v: &[f32]) {
    const LANES: usize = 64; // sums that stay in registers
    let stride = y.len();
    let (body, tail) = y.as_chunks_mut::<LANES>();
    for (c, y) in body.iter_mut().enumerate() {
        let mut sums = *y;
        for (p, v) in p.iter().zip(v.chunks_exact(stride)) {
            let v: &[f32; LANES] = v[c * LANES..].first_chunk().expect("a whole chunk of the row");
            for i in 0..LANES {
                sums[i] += p * v[i];
            }
        }
        *y = sums;
    }
    let from = stride - tail.len();
    for (p, v) in p.iter().zip(v.chunks_exact(stride)) {
        for (y, v) in tail.iter_mut().zip(&v[from..]) {
            *y += p * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition in f64: two sequences, pages out of order, a row of nobody's, head sizes with and without a tail.
    #[test]
    fn is_softmax_of_products() {
        for (heads, kv_heads, hd) in [(4, 2, 128), (3, 1, 20)] {
            let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0;
            let (pages, seq) = ([3, 1, 0, 2, -1, -1], [1, 1, -1, 0, 0, 0]);
            let positions = [62, 63, 9, 0, 64, 150];
            let elements = 4 * kv_heads * PAGE * hd;
            let k: Vec<f32> = (0..elements).map(|i| 3.0 * value(i)).collect();
            let v: Vec<f32> = (0..elements).map(|i| value(i + 99)).collect();
            let q: Vec<f32> = (0..seq.len() * heads * hd).map(|i| value(i + 7)).collect();
            let mut y = vec![f32::NAN; q.len()];
            let at = Paging {
                seq: &seq,
                positions: &positions,
                pages: &pages,
                max_pages: 3,
                kv_heads,
                head_dim: hd,
            };
            attention_paged(&mut y, &q, &k, &v, at);
            for (i, y) in y.chunks(hd).enumerate() {
                let (t, g) = (i / heads, i % heads / (heads / kv_heads));
                let keys = if seq[t] < 0 { 0 } else { positions[t] as usize + 1 };
                let row = |p: usize| {
                    let page = pages[seq[t] as usize * 3 + p / PAGE] as usize;
                    ((page * kv_heads + g) * PAGE + p % PAGE) * hd
                };
                let dot = |p: usize| {
                    (0..hd).map(|d| f64::from(q[i * hd + d]) * f64::from(k[row(p) + d])).sum::<f64>()
                };
                let weights: Vec<f64> = (0..keys).map(|p| (dot(p) / (hd as f64).sqrt()).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (d, y) in y.iter().enumerate() {
                    let exact: f64 = (0..keys).map(|p| weights[p] / sum * f64::from(v[row(p) + d])).sum();
                    assert!((f64::from(*y) - exact).abs() < 1e-5, "row {t}, element {d}: {y} for {exact}");
                }
            }
        }
    }
}
