//! Causal attention of packed sequences: each segment's queries see its earlier K/V ranges in full and its own up to themselves.

use super::Precision;
use super::attend::{Job, Span, attend};
use crate::ops::SEGMENT;

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

/// `y`, `q` `(T, NH, HD)`; `k`, `v` `(NKV, CAP, HD)`; `segments` `(S, SEGMENT)`, see [`SEGMENT`].
pub fn attention_ranges<'a>(
    y: &mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    segments: &[i32],
    d: Heads,
    precision: Precision,
) {
    let (hd, group) = (d.head_dim, d.heads / d.kv_heads);
    let stride = d.heads * hd;
    let mut jobs = Vec::new();
    for s in segments.chunks_exact(SEGMENT) {
        let s: [usize; SEGMENT] = std::array::from_fn(|i| s[i] as usize);
        let ranges = [(s[2], s[3]), (s[4], s[5]), (s[6], s[1])];
        for head in 0..d.kv_heads {
            let at = s[0] * stride + head * group * hd;
            let part = |data: &'a [f32], start, rows| Span {
                data: &data[(head * d.cap + start) * hd..],
                stride: hd,
                rows,
            };
            let seen = ranges.into_iter().filter(|r| r.1 > 0);
            jobs.push(Job {
                q: Span { data: &q[at.min(q.len())..], stride, rows: s[1] },
                heads: group,
                keys: seen.map(|(start, rows)| [part(k, start, rows), part(v, start, rows)]).collect(),
                causal: true,
                y: (at, stride),
            });
        }
    }
    attend(y, &jobs, hd, precision);
}
