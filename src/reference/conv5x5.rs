//! 5x5 convolution of one channel, zero outside.

use rayon::prelude::*;

/// `y[q,r,s] = b + Σ w[5u + v] * x[q, r+u-2, s+v-2]`; `y`, `x` `(Q, H, W)`.
pub fn conv5x5(y: &mut [f32], x: &[f32], w: &[f32], b: f32, [h, width]: [usize; 2]) {
    y.par_chunks_mut(width).enumerate().for_each(|(line, y)| {
        let (q, r) = (line / h, line % h);
        y.fill(b);
        for u in 0..5 {
            let Some(row) = (r + u).checked_sub(2).filter(|&row| row < h) else { continue };
            let x = &x[(q * h + row) * width..][..width];
            for v in 0..5 {
                let (w, first, last) =
                    (w[5 * u + v], 2usize.saturating_sub(v), (width + 2).saturating_sub(v).min(width));
                for s in first..last {
                    y[s] += w * x[s + v - 2];
                }
            }
        }
    });
}
