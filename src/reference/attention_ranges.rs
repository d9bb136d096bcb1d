//! Causal attention of packed sequences: each segment's queries see its earlier K/V ranges in full and its own up to themselves.

use super::math;
use crate::ops::SEGMENT;
use crate::reference::matmul::{Operand, Shared, gemm};
use rayon::prelude::*;

/// Head counts and the K/V cache's rows.
#[derive(Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
    /// K/V rows.
    pub cap: usize,
    /// Head size.
    pub head_dim: usize,
}

/// Queries of one task.
const BLOCK: usize = 64;

/// `y`, `q` `(T, NH, HD)`; `k`, `v` `(NKV, CAP, HD)`; `segments` `(S, SEGMENT)`, see [`SEGMENT`].
pub fn attention_ranges(y: &mut [f32], q: &[f32], k: &[f32], v: &[f32], segments: &[i32], d: Heads) {
    let (hd, group) = (d.head_dim, d.heads / d.kv_heads);
    let stride = d.heads * hd;
    let mut tasks = Vec::new();
    for s in segments.chunks_exact(SEGMENT) {
        let s: [usize; SEGMENT] = std::array::from_fn(|i| s[i] as usize);
        for first in (0..s[1]).step_by(BLOCK) {
            tasks.extend((0..d.heads).map(|head| (s, first, head)));
        }
    }
    let y = Shared::new(y);
    tasks.into_par_iter().for_each_init(Default::default, |(scores, out), (s, first, head)| {
        let (scores, out): (&mut Vec<f32>, &mut Vec<f32>) = (scores, out);
        let n = BLOCK.min(s[1] - first);
        let own = first + n; // keys of its own range that the last query sees
        let ranges = [(s[2], s[3]), (s[4], s[5]), (s[6], own)];
        let keys = s[3] + s[5] + own;
        scores.resize(n * keys, 0.0);
        let row = (s[0] + first) * stride + head * hd;
        let queries = Operand { data: &q[row..], rows: stride, cols: 1 };
        let part = |start: usize, len: usize| {
            let at = (head / group * d.cap + start) * hd;
            at..at + len * hd
        };
        let mut col = 0;
        for (start, len) in ranges.into_iter().filter(|r| r.1 > 0) {
            let keys_of = Operand { data: &k[part(start, len)], rows: hd, cols: 1 };
            gemm(&mut scores[col..], keys, false, [n, len, hd], queries, keys_of.t());
            col += len;
        }
        for (i, row) in scores.chunks_mut(keys).enumerate() {
            let seen = s[3] + s[5] + first + i + 1;
            math::softmax(&mut row[..seen], 1.0 / (hd as f32).sqrt());
            row[seen..].fill(0.0);
        }
        out.resize(n * hd, 0.0);
        let mut col = 0;
        for (start, len) in ranges.into_iter().filter(|r| r.1 > 0) {
            let values = Operand { data: &v[part(start, len)], rows: hd, cols: 1 };
            let weights = Operand { data: &scores[col..], rows: keys, cols: 1 };
            gemm(out, hd, col > 0, [n, hd, len], weights, values);
            col += len;
        }
        for (i, o) in out.chunks(hd).enumerate() {
            // SAFETY: each task owns its head's columns in its queries' rows; segments do not share rows.
            unsafe { y.write(row + i * stride, o) };
        }
    });
}
