//! DySample ("lp" style). Source: `DySample.forward`, mllmseg; `grid_sample` bilinear, border, `align_corners=False`.

use super::ViewMut;
use rayon::prelude::*;

/// `y[n,k] = 0.25 * x[n,k] + init_pos[k]`.
pub fn dysample_offset(y: &mut [f32], x: &[f32], init_pos: &[f32]) {
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        *y = 0.25 * x + init_pos[i % init_pos.len()];
    }
}

/// `y` a window of `(B*2G*2G, D)`, `x` `(B*G*G, D)`, `offset` `(B*G*G, 8*groups)` ordered (x|y), group, i, j.
pub fn dysample(y: ViewMut, x: &[f32], offset: &[f32], side: usize, groups: usize) {
    let (d, out) = (y.width, 2 * side);
    let per_group = d / groups;
    let (col, last) = (y.col, (side - 1) as f32);
    y.data.par_chunks_mut(y.stride).enumerate().for_each(|(n, y)| {
        let (b, row, column) = (n / (out * out), n / out % out, n % out);
        let (r, s, i, j) = (row / 2, column / 2, row % 2, column % 2);
        let moves = &offset[((b * side + r) * side + s) * 8 * groups..][..8 * groups];
        for g in 0..groups {
            let channel = (g * 2 + i) * 2 + j;
            let px = (s as f32 + moves[channel]).clamp(0.0, last);
            let py = (r as f32 + moves[4 * groups + channel]).clamp(0.0, last);
            let (x0, y0) = (px.floor(), py.floor());
            let (fx, fy) = (px - x0, py - y0);
            let at = |row: f32, col: f32| {
                let (row, col) = (row.min(last) as usize, col.min(last) as usize);
                &x[((b * side + row) * side + col) * d + g * per_group..][..per_group]
            };
            let corners = [at(y0, x0), at(y0, x0 + 1.0), at(y0 + 1.0, x0), at(y0 + 1.0, x0 + 1.0)];
            let weights = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
            for (c, y) in y[col + g * per_group..][..per_group].iter_mut().enumerate() {
                *y = (0..4).map(|k| corners[k][c] * weights[k]).sum();
            }
        }
    });
}
