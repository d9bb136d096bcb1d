//! RMSNorm: `y[n,c] = w[c] * x[n,c] * rsqrt(mean_c(x²) + eps)`, the mean in f64. Source: `InternLM2RMSNorm`.

use super::math;
use multiversion::multiversion;
use rayon::prelude::*;

/// `y`, `x` `(N, C)`, `w` `(C)`.
pub fn rmsnorm(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let c = w.len();
    y.par_chunks_mut(c).zip(x.par_chunks(c)).with_min_len(16).for_each(|(y, x)| row(y, x, w, eps));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn row(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let rstd = (1.0 / (math::mean(x, |v| v * v) + f64::from(eps)).sqrt()) as f32;
    for i in 0..y.len() {
        y[i] = w[i] * (x[i] * rstd);
    }
}
