//! 3x3 convolution with ReLU as a matmul: the nine neighbours of a cell side by side, times `(O, 9*D)` weights; then its channels laid out as pixels.

use super::matmul::matmul_parts;
use super::{Precision, Then, Weights};
use rayon::prelude::*;

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

/// `y[q, P*i + u, P*j + v] = x[q, i*G + j, P*u + v]`: `x` `(Q, G*G, P*P)`, `y` `(Q, G*P, G*P)`.
fn cells_to_pixels(y: &mut [f32], x: &[f32], side: usize, cell: usize) {
    let size = side * cell;
    y.par_chunks_mut(size).enumerate().for_each(|(line, y)| {
        let (q, i, u) = (line / size, line % size / cell, line % cell);
        for (j, y) in y.chunks_exact_mut(cell).enumerate() {
            y.copy_from_slice(&x[((q * side + i) * side + j) * cell * cell + cell * u..][..cell]);
        }
    });
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
    let mut cells = vec![0.0; y.len()];
    matmul_parts(&mut cells, [9, d], neighbour, w, o, Some(b), Then::Relu, precision);
    cells_to_pixels(y, &cells, side, o.isqrt());
}
