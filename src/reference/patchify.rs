//! Pixels as rows of patches, in the order of the patch convolution's weights.

use rayon::prelude::*;

/// `y[b*G*G + i*G + j, (c*P + u)*P + v] = x[b, c, P*i + u, P*j + v]`.
pub fn patchify(y: &mut [f32], x: &[f32], [_, channels, h, w]: [usize; 4], patch: usize) {
    let (rows, cols) = (h / patch, w / patch);
    y.par_chunks_mut(channels * patch * patch).enumerate().for_each(|(n, y)| {
        let (b, i, j) = (n / (rows * cols), n / cols % rows, n % cols);
        for (line, y) in y.chunks_exact_mut(patch).enumerate() {
            let (c, u) = (line / patch, line % patch);
            y.copy_from_slice(&x[((b * channels + c) * h + patch * i + u) * w + patch * j..][..patch]);
        }
    });
}
