//! Pillow's BICUBIC, bit for bit as Pillow up to 12 computes it.

use super::Rgb;
use crate::{Error, Result};
use pulp::Arch;
use rayon::prelude::*;

/// Fixed-point bits of a coefficient (Pillow's `PRECISION_BITS`): sums of products with u8 stay below 2^31.
const BITS: u32 = 22;

/// Resizes with the antialiased cubic kernel (a = -0.5): across first, then down, each pass rounded and clipped to
/// 8 bits; a pass that changes nothing is left out.
///
/// A pass is `y[i] = clip((2^21 + sum_j k[i,j] * x[first[i] + j]) >> 22, 0, 255)` with the [`Kernel`]'s integers.
///
/// # Errors
/// [`Error::Shape`] if a side is 0 or the result would have more than 2^28 pixels.
///
/// Source: `ImagingResample`, Pillow 11.3.0 (13.0 goes down first where the height shrinks more).
pub fn resize_bicubic(src: &Rgb, width: usize, height: usize) -> Result<Rgb> {
    if width == 0 || height == 0 || width.saturating_mul(height) > 1 << 28 {
        let found = format!("{width}x{height}");
        return Err(Error::shape("size to resize to", "sides of 1 and more, at most 2^28 pixels", found));
    }
    let across = if width == src.width { src.clone() } else { resize_across(src, width) };
    Ok(if height == src.height { across } else { resize_down(&across, height) })
}

/// Where each output sample reads and with which integer weights.
struct Kernel {
    first: Vec<usize>,
    /// One list an output sample; they sum to about `2^BITS`.
    weights: Vec<Vec<i32>>,
}

impl Kernel {
    /// For `n` samples resized to `m`, all in f64 and in Pillow's order of operations.
    fn new(n: usize, m: usize) -> Kernel {
        let scale = n as f64 / m as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let (mut first, mut weights) = (Vec::with_capacity(m), Vec::with_capacity(m));
        for i in 0..m {
            let center = (i as f64 + 0.5) * scale;
            let low = (center - support + 0.5).max(0.0) as usize;
            let high = ((center + support + 0.5) as usize).min(n);
            let w: Vec<f64> =
                (low..high).map(|x| cubic((x as f64 - center + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = w.iter().sum();
            first.push(low);
            weights.push(w.iter().map(|w| fixed(w / sum)).collect());
        }
        Kernel { first, weights }
    }
}

/// The integers of a pass from `n` samples to `m`, as kernels/preprocess.cu reads them, and the most quads of a result; a quad is four
/// neighbouring samples from a multiple of 4 on. The first quad of each result; then each result's quads, three words each: the low, middle
/// and high bytes of four weights, which have 24 bits; zero where a result reads nothing.
pub fn resize_table(n: usize, m: usize) -> (Vec<i32>, usize) {
    let kernel = Kernel::new(n, m);
    let results = || kernel.first.iter().zip(&kernel.weights);
    let quads = results().map(|(first, w)| (first % 4 + w.len()).div_ceil(4)).max().unwrap_or(0);
    let mut table: Vec<i32> = kernel.first.iter().map(|&first| (first / 4) as i32).collect();
    table.resize(m + 3 * quads * m, 0);
    for ((first, weights), words) in results().zip(table[m..].chunks_exact_mut((3 * quads).max(1))) {
        for (at, weight) in (first % 4..).zip(weights) {
            for (level, byte) in weight.to_le_bytes()[..3].iter().enumerate() {
                words[at / 4 * 3 + level] |= i32::from(*byte) << (at % 4 * 8);
            }
        }
    }
    (table, quads)
}

/// The cubic convolution kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// `w * 2^BITS`, rounded half away from zero.
fn fixed(w: f64) -> i32 {
    let scaled = w * f64::from(1 << BITS);
    (if w < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// A sum of products that started at [`HALF`], as a pixel.
fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// One half, so that the shift of [`clip`] rounds.
const HALF: i32 = 1 << (BITS - 1);

/// `(H, W, 3)` to `(H, width, 3)`.
fn resize_across(src: &Rgb, width: usize) -> Rgb {
    let kernel = Kernel::new(src.width, width);
    let simd = Arch::new();
    let mut data = vec![0; src.height * width * 3];
    let rows = data.par_chunks_exact_mut(3 * width).zip(src.data.par_chunks_exact(3 * src.width));
    rows.for_each_init(
        || vec![0i32; 3 * src.width],
        |planes, (y, x)| simd.dispatch(|| across(y, x, planes, &kernel)),
    );
    Rgb { width, height: src.height, data }
}

/// One row `x` to one row `y`; `planes` is room for `x`. Inlined into `dispatch`, which compiles it for the processor's
/// instruction set (under `multiversion` its closures stay scalar: three times slower, 2026-11-22).
#[inline(always)]
fn across(y: &mut [u8], x: &[u8], planes: &mut [i32], kernel: &Kernel) {
    // Each colour by itself, so that the products run over neighbours.
    let (red, rest) = planes.split_at_mut(x.len() / 3);
    let (green, blue) = rest.split_at_mut(x.len() / 3);
    for (((r, g), b), p) in red.iter_mut().zip(&mut *green).zip(&mut *blue).zip(x.as_chunks::<3>().0) {
        (*r, *g, *b) = (p[0].into(), p[1].into(), p[2].into());
    }
    let dot = |x: &[i32], w: &[i32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<i32>();
    for ((y, &first), w) in y.as_chunks_mut::<3>().0.iter_mut().zip(&kernel.first).zip(&kernel.weights) {
        *y = [&*red, green, blue].map(|plane| clip(HALF + dot(&plane[first..first + w.len()], w)));
    }
}

/// `(H, W, 3)` to `(height, W, 3)`.
fn resize_down(src: &Rgb, height: usize) -> Rgb {
    let kernel = Kernel::new(src.height, height);
    let simd = Arch::new();
    let line = 3 * src.width;
    let mut data = vec![0; height * line];
    let rows = data.par_chunks_exact_mut(line).zip(&kernel.first).zip(&kernel.weights);
    rows.for_each_init(
        || vec![0i32; line],
        |sums, ((y, &first), weights)| simd.dispatch(|| down(y, &src.data[first * line..], sums, weights)),
    );
    Rgb { width: src.width, height, data }
}

/// The rows at the beginning of `x`, as many as there are `weights`, to one row `y`; `sums` is room for a row.
#[inline(always)]
fn down(y: &mut [u8], x: &[u8], sums: &mut [i32], weights: &[i32]) {
    sums.fill(HALF);
    for (x, &w) in x.chunks_exact(sums.len()).zip(weights) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += i32::from(x) * w;
        }
    }
    for (y, &sum) in y.iter_mut().zip(&*sums) {
        *y = clip(sum);
    }
}
