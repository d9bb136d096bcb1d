//! 5x5 convolution of one channel, zero outside.

use multiversion::multiversion;
use rayon::prelude::*;

/// `y[q,r,s] = b + Σ w[5u + v] * x[q, r+u-2, s+v-2]`; `y`, `x` `(Q, H, W)`.
pub fn conv5x5(y: &mut [f32], x: &[f32], w: &[f32], b: f32, [h, width]: [usize; 2]) {
    y.par_chunks_mut(width).enumerate().for_each(|(line, y)| {
        let (q, r) = (line / h, line % h);
        y.fill(b);
        for u in 0..5 {
            let Some(row) = (r + u).checked_sub(2).filter(|&row| row < h) else { continue };
            add_line(y, &x[(q * h + row) * width..][..width], &w[5 * u..][..5]);
        }
    });
}

/// `y[s] += Σ w[v] * x[s+v-2]`
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_line(y: &mut [f32], x: &[f32], w: &[f32]) {
    for (v, w) in w.iter().enumerate() {
        let (first, last) = (2usize.saturating_sub(v), (y.len() + 2).saturating_sub(v).min(y.len()));
        if first < last {
            let x = &x[first + v - 2..last + v - 2];
            y[first..last].iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
        }
    }
}
