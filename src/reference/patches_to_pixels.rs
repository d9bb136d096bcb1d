//! `y[q, P*i + u, P*j + v] = x[q, i*G + j, P*u + v]`.

use rayon::prelude::*;

/// `x` `(Q, G*G, P*P)`, `y` `(Q, G*P, G*P)`.
pub fn patches_to_pixels(y: &mut [f32], x: &[f32], side: usize, cell: usize) {
    let size = side * cell;
    y.par_chunks_mut(size).enumerate().for_each(|(line, y)| {
        let (q, i, u) = (line / size, line % size / cell, line % cell);
        for (j, y) in y.chunks_exact_mut(cell).enumerate() {
            y.copy_from_slice(&x[((q * side + i) * side + j) * cell * cell + cell * u..][..cell]);
        }
    });
}
