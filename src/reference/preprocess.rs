//! Pictures to rows of patches, with `image`'s resize and normalisation. Needs no tables: whoever makes them is judged by this.

use super::patchify;
use crate::image::{Rgb, normalize, resize_bicubic};
use crate::ops::PICTURE;

/// `y` the patches of each of `pictures` in `source`, resized to `(size, size)`; a picture's first fields are its first byte / 16, height, width.
pub fn preprocess(y: &mut [f32], source: &[u8], pictures: &[i32], size: usize, patch: usize) {
    let rows = y.len() / (pictures.len() / PICTURE).max(1);
    for (y, p) in y.chunks_exact_mut(rows.max(1)).zip(pictures.chunks_exact(PICTURE)) {
        let [at, height, width] = [p[0] as usize * 16, p[1] as usize, p[2] as usize];
        let data = source[at..][..height * width * 3].to_vec();
        let resized =
            resize_bicubic(&Rgb { width, height, data }, size, size).expect("sizes of a plan are in range");
        patchify(y, &normalize(&resized), [1, 3, size, size], patch);
    }
}
