//! `y = 1 / (1 + exp(-x))`.

use super::math;
use rayon::prelude::*;

/// Elementwise.
pub fn sigmoid(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(4096).zip(x.par_chunks(4096)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        math::sigmoid(y);
    });
}
