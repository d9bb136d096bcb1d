//! Rows copied, the first `skip` of every `rows` left out.

use super::ViewMut;
use rayon::prelude::*;

/// `x` `(B, rows, C)`, `y` a window of `B*(rows - skip)` rows.
pub fn copy(y: ViewMut, x: &[f32], skip: usize, rows: usize) {
    let (kept, width) = (rows - skip, y.width);
    y.data.par_chunks_exact_mut(y.stride).enumerate().for_each(|(n, row)| {
        let from = n / kept * rows + skip + n % kept;
        row[y.col..y.col + width].copy_from_slice(&x[from * width..][..width]);
    });
}
