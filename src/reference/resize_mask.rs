//! Bilinear resize of probabilities to the source's size, then `>= 0.5`. Source: `F.interpolate(mode="bilinear",
//! align_corners=False)`: source coordinate `max((i + 0.5) * in/out - 0.5, 0)`, all in f32.

use crate::ops::DESCRIPTOR;
use rayon::prelude::*;

/// Per output index: lower index, upper index, weight of the upper.
fn taps(input: usize, output: usize) -> Vec<(usize, usize, f32)> {
    let scale = input as f32 / output as f32;
    let tap = |i: usize| {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(input - 1);
        (low, (low + 1).min(input - 1), at - low as f32)
    };
    (0..output).map(tap).collect()
}

/// `y` `(h, w)` from `x` `(S, S)`, bilinear.
pub fn resize(y: &mut [f32], x: &[f32], size: usize, h: usize, w: usize) {
    let (rows, cols) = (taps(size, h), taps(size, w));
    y.par_chunks_mut(w).zip(&rows).for_each(|(y, &(y0, y1, fy))| {
        let (top, bottom) = (&x[y0 * size..][..size], &x[y1 * size..][..size]);
        for (y, &(x0, x1, fx)) in y.iter_mut().zip(&cols) {
            let t = top[x0] * (1.0 - fx) + top[x1] * fx;
            let b = bottom[x0] * (1.0 - fx) + bottom[x1] * fx;
            *y = t * (1.0 - fy) + b * fy;
        }
    });
}

/// `y[masks[q].0..]` the `h*w` pixels of mask q, 0 or 1; `score[q]` the mean probability inside, 0 where empty.
pub fn resize_mask(y: &mut [u8], score: &mut [f32], x: &[f32], masks: &[i32], size: usize) {
    // A task a mask: one mask alone is too little work for many threads.
    let resized: Vec<(usize, Vec<u8>)> = masks
        .par_chunks_exact(DESCRIPTOR)
        .zip(score.par_iter_mut())
        .enumerate()
        .map(|(q, (m, score))| {
            let [at, h, w] = [m[0] as usize, m[1] as usize, m[2] as usize];
            let mut values = vec![0.0; h * w];
            resize(&mut values, &x[q * size * size..][..size * size], size, h, w);
            let (mut sum, mut count) = (0.0, 0u64);
            let mask = values.iter().map(|&v| {
                if v >= 0.5 {
                    (sum, count) = (sum + f64::from(v), count + 1);
                }
                u8::from(v >= 0.5)
            });
            let mask = mask.collect();
            *score = if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
            (at, mask)
        })
        .collect();
    for (at, mask) in resized {
        y[at..at + mask.len()].copy_from_slice(&mask);
    }
}
