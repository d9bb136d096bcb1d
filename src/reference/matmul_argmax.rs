//! The column of each row's largest product.

use super::{Precision, Short, Then, Weights, argmax, matmul};

/// `y[m] = argmax_n (x @ wᵀ)[m,n]`, the first of equal ones; `w` `(N, K)`.
pub fn matmul_argmax(y: &mut [i32], x: &[f32], w: Weights, n: usize, precision: Precision) {
    let mut products = Vec::new();
    Short::resize(&mut products, y.len() * n);
    matmul(&mut products, x, w, n, None, Then::Store, precision);
    argmax(y, &products);
}
