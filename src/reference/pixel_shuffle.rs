//! Pixel shuffle v2 by one half. Source: `InternVLChatModel.pixel_shuffle`, scale 0.5, tested against the golden.

use rayon::prelude::*;

/// `x` `(B*G*G, C)`, `y` `(B*G*G/4, 4*C)`.
pub fn pixel_shuffle(y: &mut [f32], x: &[f32], side: usize, c: usize) {
    let half = side / 2;
    y.par_chunks_exact_mut(4 * c).enumerate().for_each(|(n, y)| {
        let (b, r, s) = (n / (half * half), n / half % half, n % half);
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let pixel = (b * side + 2 * r + i / 2) * side + 2 * s + i % 2;
            y.copy_from_slice(&x[pixel * c..][..c]);
        }
    });
}
