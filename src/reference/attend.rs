//! `softmax(q kᵀ / √HD) v` of a head, what both attentions share: the microkernels of `gemm.rs` on scores that stay in L2.
//!
//! Scores stand transposed, a row a key and a lane a query: `kᵀ` is the broadcast operand of the first product, whose lanes are queries;
//! the softmax runs down the lanes with no sum across a vector; and the weights, where they lie, are the broadcast operand of the second
//! product, whose lanes are values. Keys and values are packed once a job, for all its heads and blocks of queries.
//! A query's sums run over its keys in order, whatever else is computed beside it.

use super::gemm::{Buffer, Kernel, Rows, WORDS, pack, pair};
use super::matmul::Shared;
use super::{Precision, math};
use multiversion::multiversion;
use rayon::prelude::*;
use std::cell::Cell;

/// Queries of one task: a multiple of every kernel's rows and lanes.
const BLOCK: usize = 96;
/// Queries that the softmax takes together.
const LANES: usize = 16;

/// Rows of one head: row `i` is `data[i*stride..][..HD]`.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub rows: usize,
}

impl<'a> Span<'a> {
    fn row(&self, i: usize, hd: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..hd]
    }
}

/// Queries that see the same keys, for the `heads` heads that share them: head `h` is `h*HD` further in `q` and in `y`.
pub(super) struct Job<'a> {
    pub q: Span<'a>,
    pub heads: usize,
    /// Ranges of keys and of their values, in order.
    pub keys: Vec<[Span<'a>; 2]>,
    /// The last range ends with the queries' own keys, of which each sees those up to itself.
    pub causal: bool,
    /// Where the first query's result goes, and the distance to the next one's.
    pub y: (usize, usize),
}

#[derive(Default)]
struct Buffers {
    keys: Buffer,
    values: Buffer,
}

#[derive(Default)]
struct Block {
    q: Buffer,
    scores: Buffer,
    y: Buffer,
}

thread_local! {
    static BUFFERS: Cell<Buffers> = Cell::default();
    static BLOCK_BUFFERS: Cell<Block> = Cell::default();
}

/// Runs the jobs, whose results do not overlap.
pub(super) fn attend(y: &mut [f32], jobs: &[Job], hd: usize, precision: Precision) {
    let y = Shared::new(y);
    jobs.par_iter().with_max_len(1).filter(|job| job.q.rows > 0).for_each(|job| {
        let kernel = Kernel::new(precision, job.q.rows, hd);
        let mut buffers = BUFFERS.take();
        let kv = Packed::new(&mut buffers, job, hd, kernel);
        let blocks = job.q.rows.div_ceil(BLOCK);
        // The last blocks, which see most keys, first.
        (0..job.heads * blocks).into_par_iter().rev().with_max_len(1).for_each(|task| {
            let mut buffers = BLOCK_BUFFERS.take();
            block(&y, job, &kv, hd, (task % job.heads, task / job.heads * BLOCK), &mut buffers);
            BLOCK_BUFFERS.set(buffers);
        });
        BUFFERS.set(buffers);
    });
}

/// Keys and values of a job, as its kernel reads them.
struct Packed<'a> {
    kernel: Kernel,
    total: usize,
    /// `[block of kernel.rows keys][word][key]`
    keys: &'a [u32],
    /// `[panel of kernel.lanes values][word of keys][value]`
    values: &'a [u32],
}

impl<'a> Packed<'a> {
    fn new(buffers: &'a mut Buffers, job: &Job, hd: usize, kernel: Kernel) -> Self {
        let Kernel { rows, lanes, per_word, .. } = kernel;
        let total: usize = job.keys.iter().map(|r| r[0].rows).sum();
        let row = |mut i: usize, which: usize| -> &[f32] {
            for range in &job.keys {
                if i < range[which].rows {
                    return range[which].row(i, hd);
                }
                i -= range[which].rows;
            }
            &[]
        };
        let keys = buffers.keys.words(total.next_multiple_of(rows) * hd / per_word);
        for (b, to) in keys.chunks_exact_mut(rows * hd / per_word).enumerate() {
            pack(to, rows, per_word, |i| row(b * rows + i, 0));
        }
        let steps = total.div_ceil(per_word);
        let values = buffers.values.words(hd.next_multiple_of(lanes) * steps);
        for s in 0..steps {
            let (a, b) = (row(s * per_word, 1), if per_word == 2 { row(2 * s + 1, 1) } else { &[] });
            for (p, panel) in values.chunks_exact_mut(lanes * steps).enumerate() {
                let part = |x: &'_ [f32]| (p * lanes).min(x.len())..((p + 1) * lanes).min(x.len());
                fill(&mut panel[s * lanes..][..lanes], &a[part(a)], &b[part(b)], per_word);
            }
        }
        Self { kernel, total, keys, values }
    }
}

/// One word of keys of a panel of values: those of key `a`, or pairs with those of key `b` (none: zeros).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn fill(to: &mut [u32], a: &[f32], b: &[f32], per_word: usize) {
    let (to, rest) = to.split_at_mut(a.len());
    if per_word == 1 {
        to.iter_mut().zip(a).for_each(|(to, a)| *to = a.to_bits());
    } else if b.is_empty() {
        to.iter_mut().zip(a).for_each(|(to, a)| *to = pair(*a, 0.0));
    } else {
        to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (a, b))| *to = pair(*a, *b));
    }
    rest.fill(0);
}

/// The broadcast operand of a kernel: its rows side by side, steps `w_step` words apart.
fn columns(w: &[u32], w_step: usize) -> Rows {
    let start = w.as_ptr().cast();
    Rows { start, row: 4, step: 4 * w_step, ahead: (start, 0) }
}

/// The queries from `first` on of one head.
fn block(y: &Shared, job: &Job, kv: &Packed, hd: usize, (head, first): (usize, usize), buffers: &mut Block) {
    let Kernel { rows, lanes, per_word, words: [run, _], .. } = kv.kernel;
    let n = BLOCK.min(job.q.rows - first);
    // Keys that every query of the block sees, and those that the last one does.
    let all = if job.causal { kv.total - job.q.rows + first + 1 } else { kv.total };
    let seen = if job.causal { all + n - 1 } else { kv.total };
    let (k_words, stride) = (hd / per_word, n.next_multiple_of(lanes).next_multiple_of(LANES));
    let (panels, steps) = (n.div_ceil(lanes), seen.div_ceil(per_word));

    let q = buffers.q.words(panels * lanes * k_words);
    for (p, to) in q.chunks_exact_mut(lanes * k_words).enumerate() {
        pack(to, lanes, per_word, |i| match p * lanes + i {
            i if i < n => &job.q.row(first + i, head * hd + hd)[head * hd..],
            _ => &[],
        });
    }
    // Room for the second product's last rows, which may reach past the last lane.
    let scores = buffers.scores.floats(seen.next_multiple_of(rows) * stride + rows);
    for (b, keys) in kv.keys.chunks_exact(rows * k_words).enumerate().take(seen.div_ceil(rows)) {
        for (p, q) in q.chunks_exact(lanes * k_words).enumerate() {
            let s = &mut scores[b * rows * stride + p * lanes..];
            assert!(s.len() >= (rows - 1) * stride + lanes);
            // SAFETY: the slices hold `k_words` steps of the kernel's rows and lanes, and its results by the assertion; `Kernel::new` chose one
            // whose instructions this CPU has.
            unsafe { run(k_words, columns(keys, rows), q.as_ptr(), s.as_mut_ptr(), stride, false) };
        }
    }
    for key in all..steps * per_word {
        let hidden = if key < seen { key - all + 1 } else { stride }; // queries before the key, or a key that is not there
        scores[key * stride..][..hidden].fill(f32::NEG_INFINITY);
    }
    let mut sums = [0.0; BLOCK];
    let weights = &mut scores[..steps * per_word * stride];
    softmax(weights, &mut sums[..stride], 1.0 / (hd as f32).sqrt(), per_word);

    let (w, w_step) = (bytemuck::cast_slice::<f32, u32>(scores), per_word * stride);
    let out_stride = hd.next_multiple_of(lanes);
    let out = buffers.y.floats(n.next_multiple_of(rows) * out_stride);
    let all_steps = kv.total.div_ceil(per_word);
    for word in (0..steps).step_by(WORDS) {
        let len = WORDS.min(steps - word);
        for (p, values) in kv.values.chunks_exact(all_steps * lanes).enumerate() {
            let x = &values[word * lanes..(word + len) * lanes];
            for r in (0..n).step_by(rows) {
                let (w, out) = (&w[word * w_step + r..], &mut out[r * out_stride + p * lanes..]);
                assert!(w.len() >= (len - 1) * w_step + rows && out.len() >= (rows - 1) * out_stride + lanes);
                // SAFETY: as above, by the assertion and the slice of `x`.
                unsafe { run(len, columns(w, w_step), x.as_ptr(), out.as_mut_ptr(), out_stride, word > 0) };
            }
        }
    }
    let (at, step) = job.y;
    for (i, (out, sum)) in out.chunks_exact(out_stride).zip(&sums[..n]).enumerate() {
        // SAFETY: each task owns its head's columns in its queries' rows; jobs do not share any.
        let y = unsafe { y.row(at + (first + i) * step + head * hd, hd) };
        y.iter_mut().zip(out).for_each(|(y, o)| *y = o / sum);
    }
}

/// Rows of `sums.len()` scores, a multiple of [`LANES`], become `exp(scale * (score - top))` of the lane's greatest one, as pairs of bf16 in
/// every other row if `per_word` is 2; `sums` their sums.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn softmax(scores: &mut [f32], sums: &mut [f32], scale: f32, per_word: usize) {
    let mut tops = [[f32::NEG_INFINITY; LANES]; BLOCK / LANES];
    for row in scores.chunks_exact(sums.len()) {
        let tops = tops.as_flattened_mut().iter_mut();
        tops.zip(row).for_each(|(top, s)| *top = if *s > *top { *s } else { *top });
    }
    let width = sums.len() / LANES;
    let scores = scores.as_chunks_mut::<LANES>().0;
    sums.fill(0.0);
    let sums = sums.as_chunks_mut::<LANES>().0;
    // Sums of few rows, then sums of those: closer than one long sum.
    for rows in scores.chunks_mut(32 * width) {
        let mut parts = [[0.0; LANES]; BLOCK / LANES];
        for row in rows.chunks_exact_mut(per_word * width) {
            let (first, second) = row.split_at_mut(width);
            for ((s, top), part) in first.iter_mut().zip(&tops).zip(&mut parts) {
                for i in 0..LANES {
                    s[i] = math::exp((s[i] - top[i]) * scale);
                    part[i] += s[i];
                }
            }
            for (((s, low), top), part) in second.iter().zip(first).zip(&tops).zip(&mut parts) {
                for i in 0..LANES {
                    let e = math::exp((s[i] - top[i]) * scale);
                    part[i] += e;
                    low[i] = f32::from_bits(pair(low[i], e));
                }
            }
        }
        for (sum, part) in sums.iter_mut().zip(&parts) {
            for i in 0..LANES {
                sum[i] += part[i];
            }
        }
    }
}
