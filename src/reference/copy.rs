//! Rows copied, the first `skip` of every `rows` left out.

use super::ViewMut;

/// `x` `(B, rows, C)`, `y` a window of `B*(rows - skip)` rows.
pub fn copy(y: ViewMut, x: &[f32], skip: usize, rows: usize) {
    let kept = x.chunks_exact(y.width).enumerate().filter(|(n, _)| n % rows >= skip);
    for (y_row, (_, x)) in y.data.chunks_exact_mut(y.stride).zip(kept) {
        y_row[y.col..y.col + y.width].copy_from_slice(x);
    }
}
