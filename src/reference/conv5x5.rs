//! 5x5 convolution of one channel, zero outside.

use multiversion::multiversion;
use rayon::prelude::*;

/// Lines that a thread makes at a time.
const LINES: usize = 32;

/// `y[q,r,s] = b + Σ w[5u + v] * x[q, r+u-2, s+v-2]`; `y`, `x` `(Q, H, W)`.
pub fn conv5x5(y: &mut [f32], x: &[f32], w: &[f32], b: f32, [h, width]: [usize; 2]) {
    let w: &[f32; 25] = w.try_into().expect("5x5 weights");
    let stride = width + 4;
    for (y, x) in y.chunks_mut(h * width).zip(x.chunks(h * width)) {
        y.par_chunks_mut(LINES * width).enumerate().for_each(|(part, y)| {
            // The lines that are read, with zeros around them.
            let lines = y.len() / width;
            let mut padded = vec![0.0; (lines + 4) * stride];
            for (i, to) in padded.chunks_exact_mut(stride).enumerate() {
                if let Some(r) = (part * LINES + i).checked_sub(2).filter(|&r| r < h) {
                    to[2..][..width].copy_from_slice(&x[r * width..][..width]);
                }
            }
            for (y, x) in y.chunks_exact_mut(width).zip(padded.windows(5 * stride).step_by(stride)) {
                line(y, std::array::from_fn(|u| &x[u * stride..][..stride]), w, b);
            }
        });
    }
}

/// `y[s] = b + Σ w[5u + v] * x[u][s + v]`, all sums of a vector in registers.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn line(y: &mut [f32], x: [&[f32]; 5], w: &[f32; 25], b: f32) {
    let [x0, x1, x2, x3, x4] = x.map(|x| x.windows(5));
    for (y, ((((x0, x1), x2), x3), x4)) in y.iter_mut().zip(x0.zip(x1).zip(x2).zip(x3).zip(x4)) {
        let mut sum = b;
        for (u, x) in [x0, x1, x2, x3, x4].into_iter().enumerate() {
            for v in 0..5 {
                sum += w[5 * u + v] * x[v];
            }
        }
        *y = sum;
    }
}
