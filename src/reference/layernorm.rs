//! LayerNorm of `x`, of `x + r`, or of `x` plus one vector an expression: `(v - mean) * rsqrt(var + eps) * w + b`, moments in f64.

use super::{ViewMut, math};
use multiversion::multiversion;
use rayon::prelude::*;

/// What is added to `x` before the norm.
pub enum Summand<'a> {
    /// Nothing.
    Nothing,
    /// `(N, C)`, row by row.
    Rows(&'a [f32]),
    /// `(Q, C)`: row `q` goes to every row of image `image_of[q]`.
    #[allow(missing_docs)]
    Broadcast { r: &'a [f32], image_of: &'a [i32] },
}

/// `y` `(N, C)`; `x` `(N, C)`, or one such matrix of `N/Q` rows an image with [`Summand::Broadcast`].
pub fn layernorm(y: ViewMut, x: &[f32], add: Summand, w: &[f32], b: &[f32], eps: f32) {
    let c = w.len();
    let rows = y.data.len() / y.stride;
    let per_q = match &add {
        Summand::Broadcast { image_of, .. } => rows / image_of.len().max(1),
        _ => 0,
    };
    let (col, stride) = (y.col, y.stride);
    y.data.par_chunks_mut(stride).with_min_len(16).enumerate().for_each(|(n, y)| {
        let y = &mut y[col..col + c];
        match add {
            Summand::Nothing => y.copy_from_slice(&x[n * c..][..c]),
            Summand::Rows(r) => sum(y, &x[n * c..][..c], &r[n * c..][..c]),
            Summand::Broadcast { r, image_of } => {
                let (q, p) = (n / per_q, n % per_q);
                sum(y, &x[(image_of[q] as usize * per_q + p) * c..][..c], &r[q * c..][..c]);
            }
        }
        row(y, w, b, eps);
    });
}

fn sum(y: &mut [f32], x: &[f32], r: &[f32]) {
    for i in 0..y.len() {
        y[i] = x[i] + r[i];
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn row(y: &mut [f32], w: &[f32], b: &[f32], eps: f32) {
    let mean = math::mean(y, |v| v);
    let variance = math::mean(y, |v| (v - mean) * (v - mean));
    let (mean, rstd) = (mean as f32, (1.0 / (variance + f64::from(eps)).sqrt()) as f32);
    for i in 0..y.len() {
        y[i] = (y[i] - mean) * rstd * w[i] + b[i];
    }
}
