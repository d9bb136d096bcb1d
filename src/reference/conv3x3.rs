//! 3x3 convolution with ReLU as a matmul: the nine neighbours of a cell side by side, times `(O, 9*D)` weights; then its channels laid out as pixels.

use super::gemm::store_transposed;
use super::matmul::{Shared, Tile, matmul_parts};
use super::{Precision, Then, Weights};
use std::ops::Range;

/// Folds BatchNorm (running statistics) into a convolution: `w' = w * s`, `b' = (b - mean) * s + beta`, `s = gamma / sqrt(var + eps)`,
/// and reorders `w` `(O, D, 3, 3)` to `(O, 3, 3, D)`.
pub fn fold_batchnorm(w: &[f32], b: &[f32], bn: [&[f32]; 4], eps: f64) -> (Vec<f32>, Vec<f32>) {
    let [gamma, beta, mean, var] = bn;
    let (o, d) = (b.len(), w.len() / b.len() / 9);
    let scale: Vec<f64> = (0..o).map(|i| f64::from(gamma[i]) / (f64::from(var[i]) + eps).sqrt()).collect();
    let mut folded = vec![0.0; w.len()];
    for (i, row) in folded.chunks_exact_mut(9 * d).enumerate() {
        for (tap, y) in row.chunks_exact_mut(d).enumerate() {
            for (c, y) in y.iter_mut().enumerate() {
                *y = (f64::from(w[(i * d + c) * 9 + tap]) * scale[i]) as f32;
            }
        }
    }
    let shift = |i: usize| ((f64::from(b[i]) - f64::from(mean[i])) * scale[i] + f64::from(beta[i])) as f32;
    (folded, (0..o).map(shift).collect())
}

/// Stores a tile of channels of cells as pixels: `y[q, P*i + u, P*j + v] = x[q, i*G + j, P*u + v]` of `x` `(Q, G*G, P*P)`, `y` `(Q, G*P, G*P)`.
fn cells_to_pixels(side: usize, cell: usize) -> impl Fn(&Shared, Tile) + Sync {
    move |y, Tile { yt, stride, first, top, shape: [rows, height] }| {
        for cells in cut(top..top + height, side) {
            for channels in cut(first..first + rows, cell) {
                let (n, c) = (cells.start, channels.start);
                let line = (n / side * cell + c / cell) * side * cell;
                let at = line + n % side * cell + c % cell;
                let to = y.place(at, (cells.len() - 1) * cell + channels.len());
                let yt = &yt[(c - first) * stride + n - top..];
                // SAFETY: inside by `place`; each task owns the pixels of its channels of its cells.
                unsafe { store_transposed(to, cell, yt, stride, [channels.len(), cells.len()], false) };
            }
        }
    }
}

/// A range cut at the multiples of `step`.
fn cut(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = range;
    (start / step..end.div_ceil(step)).map(move |i| start.max(i * step)..end.min((i + 1) * step))
}

/// `y` `(Q, G*P, G*P)`, `x` `(Q*G*G, D)`, `w` `(P*P, 3, 3, D)`, `b` `(P*P)`; zero outside the map.
pub fn conv3x3(y: &mut [f32], x: &[f32], w: Weights, b: &[f32], side: usize, precision: Precision) {
    let (o, d) = (b.len(), w.len() / b.len() / 9);
    let pixels = side * side;
    let neighbour = |n: usize, tap: usize| {
        let (r, s) = (n % pixels / side, n % side);
        let (u, v) = (r + tap / 3, s + tap % 3); // one more than the pixel read
        if !(1..=side).contains(&u) || !(1..=side).contains(&v) {
            return &[][..];
        }
        &x[(n / pixels * pixels + (u - 1) * side + v - 1) * d..][..d]
    };
    let store = cells_to_pixels(side, o.isqrt());
    matmul_parts(y, [9, d], neighbour, w, o, Some(b), Then::Relu, precision, store);
}
