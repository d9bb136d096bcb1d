//! `y = softmax(q kᵀ / √HD) v` for every head and item, no mask; the products by the matmul library.

use super::{View, math};
use crate::reference::matmul::{Operand, Shared, gemm};
use rayon::prelude::*;

/// Queries of one task: a block of scores stays in L2.
const BLOCK: usize = 64;

/// `y` `(batch*Tq, NH*HD)`; `q` as many rows, `k` and `v` `batch*Tk` rows.
pub fn attention(y: &mut [f32], q: View, k: View, v: View, batch: usize, heads: usize) {
    let c = q.width;
    let hd = c / heads;
    let (tq, tk) = (q.data.len() / q.stride / batch, k.data.len() / k.stride / batch);
    let blocks = tq.div_ceil(BLOCK);
    let y = Shared::new(y);
    (0..batch * heads * blocks).into_par_iter().for_each_init(Default::default, |(scores, out), task| {
        let (scores, out): (&mut Vec<f32>, &mut Vec<f32>) = (scores, out);
        let (item, head, block) = (task / (heads * blocks), task / blocks % heads, task % blocks);
        let first = block * BLOCK;
        let n = BLOCK.min(tq - first);
        let col = head * hd;
        scores.resize(n * tk, 0.0);
        out.resize(n * hd, 0.0);
        gemm(scores, tk, false, [n, tk, hd], part(q, item * tq + first, col), part(k, item * tk, col).t());
        for row in scores.chunks_mut(tk) {
            math::softmax(row, 1.0 / (hd as f32).sqrt());
        }
        let weights = Operand { data: scores, rows: tk, cols: 1 };
        gemm(out, hd, false, [n, hd, tk], weights, part(v, item * tk, col));
        for (i, row) in out.chunks(hd).enumerate() {
            // SAFETY: each task owns the columns of its head in the rows of its block.
            unsafe { y.write((item * tq + first + i) * c + col, row) };
        }
    });
}

/// The window's rows from `row` on and its columns from `col` on.
fn part(w: View<'_>, row: usize, col: usize) -> Operand<'_> {
    Operand { data: &w.data[row * w.stride + w.col + col..], rows: w.stride, cols: 1 }
}
