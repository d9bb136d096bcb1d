//! The first index of the largest value of each row.

/// `y` `(N)`, `x` `(N, C)`.
pub fn argmax(y: &mut [i32], x: &[f32]) {
    let c = x.len() / y.len().max(1);
    for (y, x) in y.iter_mut().zip(x.chunks_exact(c.max(1))) {
        let best =
            x.iter().enumerate().fold((0, f32::NEG_INFINITY), |a, (i, &v)| if v > a.1 { (i, v) } else { a });
        *y = best.0 as i32;
    }
}
