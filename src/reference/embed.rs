//! Embedding rows, or image tokens where an id is negative.

use super::Weights;

/// `y` `(T, C)`; `ids[t] >= 0` a row of `table`, else row `-1 - ids[t]` of `images`.
pub fn embed(y: &mut [f32], ids: &[i32], table: Weights, images: Option<&[f32]>, c: usize) {
    for (y, &id) in y.chunks_exact_mut(c).zip(ids) {
        match (images, usize::try_from(id)) {
            (_, Ok(id)) => table.widen(id * c, y),
            (Some(images), Err(_)) => y.copy_from_slice(&images[(-1 - id) as usize * c..][..c]),
            (None, Err(_)) => y.fill(0.0),
        }
    }
}
