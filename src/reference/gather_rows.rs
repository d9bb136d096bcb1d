//! `y[r] = x[rows[r]]`.

use rayon::prelude::*;

/// `y` `(R, C)`, `x` `(N, C)`.
pub fn gather_rows(y: &mut [f32], x: &[f32], rows: &[i32]) {
    let c = y.len() / rows.len().max(1);
    y.par_chunks_exact_mut(c.max(1))
        .zip(rows)
        .for_each(|(y, &row)| y.copy_from_slice(&x[row as usize * c..][..c]));
}
