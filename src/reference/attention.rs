//! `y = softmax(q kᵀ / √HD) v` for every head and item, no mask; see `attend.rs`.

use super::attend::{Job, Span, attend};
use super::{Precision, View};

/// `y` `(batch*Tq, NH*HD)`; `q` as many rows, `k` and `v` `batch*Tk` rows.
pub fn attention(y: &mut [f32], q: View, k: View, v: View, batch: usize, heads: usize, precision: Precision) {
    let c = q.width;
    let hd = c / heads;
    let rows = |w: &View| w.data.len() / w.stride / batch;
    let (tq, tk) = (rows(&q), rows(&k));
    let jobs: Vec<Job> = (0..batch * heads)
        .map(|i| {
            let (item, col) = (i / heads, i % heads * hd);
            Job {
                q: part(q, item * tq, tq, col),
                heads: 1,
                keys: vec![[part(k, item * tk, tk, col), part(v, item * tk, tk, col)]],
                causal: false,
                y: (item * tq * c + col, c),
            }
        })
        .collect();
    attend(y, &jobs, hd, precision);
}

/// `rows` rows of the window from `first` on, its columns from `col` on.
fn part(w: View<'_>, first: usize, rows: usize, col: usize) -> Span<'_> {
    Span { data: &w.data[first * w.stride + w.col + col..], stride: w.stride, rows }
}
