//! The mask decoder's last convolution, sigmoid, and the masks at their sources' sizes. Source: `RESDecoder.forward`'s end, then
//! `F.interpolate(mode="bilinear", align_corners=False)`: source coordinate `max((i + 0.5) * in/out - 0.5, 0)`, all in f32; then `>= 0.5`.

use super::{conv5x5, math};
use crate::ops::{DESCRIPTOR, STATS};
use multiversion::multiversion;
use rayon::prelude::*;

/// Lines that a thread makes at a time.
const LINES: usize = 32;
/// The sigmoid of this is 0.4875: no value between two that are not above it reaches one half, however it is rounded.
const BELOW_HALF: f32 = -0.05;

/// Per output index: lower index, upper index, weight of the upper.
type Tap = (usize, usize, f32);

fn taps(input: usize, output: usize) -> Vec<Tap> {
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
    y.par_chunks_mut(LINES * w).zip(rows.par_chunks(LINES)).for_each(|(y, rows)| {
        resample(x, size, rows, &cols, |i, line| y[i * w..][..w].copy_from_slice(line));
    });
}

/// Calls `each` with the lines `rows` of `x` `(S, S)` at its new size.
fn resample(x: &[f32], size: usize, rows: &[Tap], cols: &[Tap], mut each: impl FnMut(usize, &[f32])) {
    let mut line = vec![0.0; cols.len()];
    // The newest even and odd row of `x`, already as wide as a line: the next line mostly needs them again.
    let mut wide = [0, 1].map(|_| (usize::MAX, vec![0.0; cols.len()]));
    for (i, &(y0, y1, fy)) in rows.iter().enumerate() {
        for y in [y0, y1] {
            let (row, values) = &mut wide[y % 2];
            if *row != y {
                *row = y;
                across(values, &x[y * size..][..size], cols);
            }
        }
        blend(&mut line, &wide[y0 % 2].1, &wide[y1 % 2].1, fy);
        each(i, &line);
    }
}

fn across(y: &mut [f32], x: &[f32], cols: &[Tap]) {
    for (y, &(x0, x1, fx)) in y.iter_mut().zip(cols) {
        *y = x[x0] * (1.0 - fx) + x[x1] * fx;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn blend(y: &mut [f32], top: &[f32], bottom: &[f32], fy: f32) {
    for ((y, t), b) in y.iter_mut().zip(top).zip(bottom) {
        *y = t * (1.0 - fy) + b * fy;
    }
}

/// Pixels of a mask that are set, their box, and the sum of their values in units of 2^-30.
#[derive(Clone, Copy)]
struct Set {
    area: i32,
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
    sum: u64,
}

impl Set {
    const EMPTY: Self = Self { area: 0, left: i32::MAX, top: i32::MAX, right: -1, bottom: -1, sum: 0 };

    fn and(self, other: Self) -> Self {
        Self {
            area: self.area + other.area,
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
            sum: self.sum + other.sum,
        }
    }
}

/// Line `row` of a mask as bits, 32 columns a word, the first the lowest.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn pack(words: &mut [i32], values: &[f32], row: i32) -> Set {
    let mut set = Set::EMPTY;
    for (w, (word, values)) in words.iter_mut().zip(values.chunks(32)).enumerate() {
        let bits = values.iter().enumerate().fold(0u32, |bits, (i, &v)| bits | u32::from(v >= 0.5) << i);
        *word = bits as i32;
        if bits != 0 {
            set.area += bits.count_ones() as i32;
            set.left = set.left.min(w as i32 * 32 + bits.trailing_zeros() as i32);
            set.right = w as i32 * 32 + bits.ilog2() as i32;
            (set.top, set.bottom) = (row, row);
            // Probabilities are at most 1, so that each fits a word.
            let fixed = |v: &f32| if *v >= 0.5 { (v * 1073741824.0) as u32 } else { 0 };
            set.sum += values.iter().map(|v| u64::from(fixed(v))).sum::<u64>();
        }
    }
    set
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
    let mut own = vec![0.0; size * size];
    for (q, (m, stats)) in masks.chunks_exact(DESCRIPTOR).zip(stats.chunks_exact_mut(STATS)).enumerate() {
        let place = q * size * size..(q + 1) * size * size;
        let kept = probability.is_some();
        let p = match &mut probability {
            Some(p) => &mut p[place.clone()],
            None => &mut own[..],
        };
        conv5x5(p, &x[place], w, b, [size, size]);
        let nan = p.iter().fold(false, |any, v| any | v.is_nan());
        // Lines outside those that the first and the last row with such a value take part in have no pixel.
        let high = |y: &usize| p[y * size..][..size].iter().fold(false, |any, v| any | (*v > BELOW_HALF));
        let mut high = (0..size).filter(high);
        let (top, end) = high.next().map_or((0, 0), |top| (top, high.next_back().unwrap_or(top) + 1));
        let near = if kept { 0..size } else { top.saturating_sub(1)..(end + 1).min(size) };
        p[near.start * size..near.end * size].par_chunks_mut(LINES * size).for_each(math::sigmoid);
        let [at, h, width] = [m[0] as usize, m[1] as usize, m[2] as usize];
        let (rows, cols, words, p) = (taps(size, h), taps(size, width), width.div_ceil(32), &*p);
        let seen = rows.partition_point(|&(_, y1, _)| y1 < top)..rows.partition_point(|&(y0, ..)| y0 < end);
        let bits = &mut bits[at..at + h * words];
        bits.fill(0);
        let lines = &mut bits[seen.start * words..seen.end * words];
        let parts = lines.par_chunks_mut(LINES * words).zip(rows[seen.clone()].par_chunks(LINES));
        let part = |(part, (bits, rows)): (usize, (&mut [i32], &[Tap]))| {
            let (mut set, first) = (Set::EMPTY, seen.start + part * LINES);
            resample(p, size, rows, &cols, |i, line| {
                set = set.and(pack(&mut bits[i * words..][..words], line, (first + i) as i32));
            });
            set
        };
        let set = parts.enumerate().map(part).reduce(|| Set::EMPTY, Set::and);
        stats.copy_from_slice(&[
            set.area,
            set.left,
            set.top,
            set.right,
            set.bottom,
            i32::from(nan),
            set.sum as u32 as i32,
            (set.sum >> 32) as i32,
        ]);
    }
}
