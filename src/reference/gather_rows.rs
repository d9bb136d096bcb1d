//! `y[r] = x[rows[r]]`.

/// `y` `(R, C)`, `x` `(N, C)`.
pub fn gather_rows(y: &mut [f32], x: &[f32], rows: &[i32]) {
    let c = y.len() / rows.len().max(1);
    for (y, &row) in y.chunks_exact_mut(c.max(1)).zip(rows) {
        y.copy_from_slice(&x[row as usize * c..][..c]);
    }
}
