//! The mask decoder's last convolution, sigmoid, and the masks at their sources' sizes. Source: `RESDecoder.forward`'s end, then
//! `F.interpolate(mode="bilinear", align_corners=False)`: source coordinate `max((i + 0.5) * in/out - 0.5, 0)`, all in f32; then `>= 0.5`.

use super::{conv5x5, sigmoid};
use crate::ops::{DESCRIPTOR, STATS};
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
    y.par_chunks_mut(w).zip(&rows).for_each(|(y, &row)| line(y, x, size, row, &cols));
}

fn line(
    y: &mut [f32],
    x: &[f32],
    size: usize,
    (y0, y1, fy): (usize, usize, f32),
    cols: &[(usize, usize, f32)],
) {
    let (top, bottom) = (&x[y0 * size..][..size], &x[y1 * size..][..size]);
    for (y, &(x0, x1, fx)) in y.iter_mut().zip(cols) {
        let t = top[x0] * (1.0 - fx) + top[x1] * fx;
        let b = bottom[x0] * (1.0 - fx) + bottom[x1] * fx;
        *y = t * (1.0 - fy) + b * fy;
    }
}

/// Pixels of a line that are set, the first and last of them, and the sum of their values in units of 2^-30.
type Line = (i32, i32, i32, u64);

/// A line of values as bits, 32 columns a word, the first the lowest.
fn pack(words: &mut [i32], values: &[f32]) -> Line {
    let (mut area, mut left, mut right, mut sum) = (0, i32::MAX, -1, 0);
    for (w, (word, values)) in words.iter_mut().zip(values.chunks(32)).enumerate() {
        let bits = values.iter().enumerate().fold(0u32, |bits, (i, &v)| bits | u32::from(v >= 0.5) << i);
        *word = bits as i32;
        if bits != 0 {
            area += bits.count_ones() as i32;
            left = left.min(w as i32 * 32 + bits.trailing_zeros() as i32);
            right = w as i32 * 32 + bits.ilog2() as i32;
            sum += values.iter().filter(|v| **v >= 0.5).map(|v| (v * 1073741824.0) as u64).sum::<u64>();
        }
    }
    (area, left, right, sum)
}

/// See [`crate::ops::mask_head`]; `x` `(Q, S, S)`, the convolution's weights and bias.
pub fn mask_head(
    bits: &mut [i32],
    stats: &mut [i32],
    mut probability: Option<&mut [f32]>,
    x: &[f32],
    (w, b): (&[f32], f32),
    masks: &[i32],
    size: usize,
) {
    let mut pre = vec![0.0; size * size];
    let mut own = vec![0.0; size * size];
    for (q, (m, stats)) in masks.chunks_exact(DESCRIPTOR).zip(stats.chunks_exact_mut(STATS)).enumerate() {
        let place = q * size * size..(q + 1) * size * size;
        conv5x5(&mut pre, &x[place.clone()], w, b, [size, size]);
        let p = match &mut probability {
            Some(p) => &mut p[place],
            None => &mut own[..],
        };
        sigmoid(p, &pre);
        let [at, h, width] = [m[0] as usize, m[1] as usize, m[2] as usize];
        let (rows, cols, words, p) = (taps(size, h), taps(size, width), width.div_ceil(32), &*p);
        let lines: Vec<Line> = bits[at..at + h * words]
            .par_chunks_mut(words)
            .zip(&rows)
            .map_init(
                || vec![0.0; width],
                |values, (words, &row)| {
                    line(values, p, size, row, &cols);
                    pack(words, values)
                },
            )
            .collect();
        let set = |l: &&Line| l.0 > 0;
        let sum: u64 = lines.iter().map(|l| l.3).sum();
        stats.copy_from_slice(&[
            lines.iter().map(|l| l.0).sum(),
            lines.iter().map(|l| l.1).min().unwrap_or(i32::MAX),
            lines.iter().position(|l| l.0 > 0).map_or(i32::MAX, |r| r as i32),
            lines.iter().map(|l| l.2).max().unwrap_or(-1),
            lines.iter().rposition(|l| set(&l)).map_or(-1, |r| r as i32),
            i32::from(p.iter().any(|v| v.is_nan())),
            sum as u32 as i32,
            (sum >> 32) as i32,
        ]);
    }
}
