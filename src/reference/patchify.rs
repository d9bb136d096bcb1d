//! Pixels as rows of patches, in the order of the patch convolution's weights.

use rayon::prelude::*;

/// `y[b*G*G + i*G + j, (c*P + u)*P + v] = x[b, c, P*i + u, P*j + v]`, and zeros behind a row's `3*P*P`.
pub fn patchify(y: &mut [f32], x: &[f32], [_, channels, h, w]: [usize; 4], patch: usize) {
    let (rows, cols) = (h / patch, w / patch);
    let (k, items) = (channels * patch * patch, x.len() / (channels * h * w).max(1));
    let padded = y.len() / (items * rows * cols).max(1);
    y.par_chunks_mut(padded.max(1)).enumerate().for_each(|(n, y)| {
        let (b, i, j) = (n / (rows * cols), n / cols % rows, n % cols);
        let (y, padding) = y.split_at_mut(k);
        padding.fill(0.0);
        for (line, y) in y.chunks_exact_mut(patch).enumerate() {
            let (c, u) = (line / patch, line % patch);
            y.copy_from_slice(&x[((b * channels + c) * h + patch * i + u) * w + patch * j..][..patch]);
        }
    });
}
