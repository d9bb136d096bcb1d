//! 3x3 convolution with ReLU as a matmul: the nine neighbours of a pixel side by side, times `(O, 9*D)` weights.

use super::matmul::matmul_parts;
use super::{Precision, Then, Weights};

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

/// `y` `(Q*G*G, O)`, `x` `(Q*G*G, D)`, `w` `(O, 3, 3, D)`, `b` `(O)`; zero outside the map.
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
    matmul_parts(y, [9, d], neighbour, w, o, Some(b), Then::Relu, precision);
}
