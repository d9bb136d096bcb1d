//! Pillow's BICUBIC, bit for bit as Pillow up to 12 computes it.

use super::Rgb;
use crate::{Error, Result};
use pulp::Arch;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;

/// Fixed-point bits of a coefficient (Pillow's `PRECISION_BITS`): sums of products with u8 stay below 2^31.
const BITS: u32 = 22;

/// Resizes with the antialiased cubic kernel (a = -0.5): across first, then down, each pass rounded and clipped to
/// 8 bits; a pass that changes nothing is left out. A band of lines goes across, then into the sums of what it is part of: a picture of
/// millions of lines needs no memory for all of them at their new width.
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
    let across = (width != src.width).then(|| Across::new(src.width, width));
    let data = match across {
        Some(across) if height == src.height => across.lines(&src.data),
        None if height == src.height => src.data.clone(),
        across => resize_down(src, across.as_ref(), width, height),
    };
    Ok(Rgb { width, height, data })
}

/// Bytes of the lines of a band.
const BAND: usize = 4 << 20;
/// Lines of more pixels go across column by column: the weights of all columns would take more memory than the picture.
const WIDE: usize = 1 << 20;

/// Where each output sample reads and with which integer weights, all in f64 and in Pillow's order of operations.
struct Kernel {
    n: usize,
    /// Input samples an output sample.
    scale: f64,
    stretch: f64,
}

impl Kernel {
    /// For `n` samples resized to `m`.
    fn new(n: usize, m: usize) -> Kernel {
        let scale = n as f64 / m as f64;
        Kernel { n, scale, stretch: scale.max(1.0) }
    }

    fn center(&self, i: usize) -> f64 {
        (i as f64 + 0.5) * self.scale
    }

    /// The samples that output sample `i` reads; both ends grow with `i`.
    fn range(&self, i: usize) -> Range<usize> {
        let (center, support) = (self.center(i), 2.0 * self.stretch);
        let low = (center - support + 0.5).max(0.0) as usize;
        low..((center + support + 0.5) as usize).min(self.n)
    }

    /// Their weights, which sum to about `2^BITS`.
    fn weights(&self, i: usize) -> Vec<i32> {
        let center = self.center(i);
        let at = |x: usize| cubic((x as f64 - center + 0.5) * (1.0 / self.stretch));
        let sum: f64 = self.range(i).map(at).sum();
        self.range(i).map(|x| fixed(at(x) / sum)).collect()
    }
}

/// The integers of a pass from `n` samples to `m`, as kernels/preprocess.cu reads them, and the most quads of a result; a quad is four
/// neighbouring samples from a multiple of 4 on. The first quad of each result; then each result's quads, three words each: the low, middle
/// and high bytes of four weights, which have 24 bits; zero where a result reads nothing.
pub fn resize_table(n: usize, m: usize) -> (Vec<i32>, usize) {
    let kernel = Kernel::new(n, m);
    let first = |i: usize| kernel.range(i).start;
    let quads = (0..m).map(|i| (first(i) % 4 + kernel.range(i).len()).div_ceil(4)).max().unwrap_or(0);
    let mut table: Vec<i32> = (0..m).map(|i| (first(i) / 4) as i32).collect();
    table.resize(m + 3 * quads * m, 0);
    for (i, words) in table[m..].chunks_exact_mut((3 * quads).max(1)).enumerate() {
        for (at, weight) in (first(i) % 4..).zip(kernel.weights(i)) {
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

/// The pass across, from lines of `from` pixels to lines of `to`.
struct Across {
    from: usize,
    to: usize,
    kernel: Kernel,
    /// Of each column the first sample and the weights; none where lines are [`WIDE`].
    columns: Vec<(usize, Vec<i32>)>,
}

impl Across {
    fn new(from: usize, to: usize) -> Self {
        let kernel = Kernel::new(from, to);
        let column = |i| (kernel.range(i).start, kernel.weights(i));
        let columns = if from > WIDE { Vec::new() } else { (0..to).map(column).collect() };
        Self { from, to, kernel, columns }
    }

    /// `(H, from, 3)` to `(H, to, 3)`.
    fn lines(&self, x: &[u8]) -> Vec<u8> {
        let simd = Arch::new();
        let rows = x.par_chunks_exact(3 * self.from);
        let mut data = vec![0; rows.len() * 3 * self.to];
        if self.columns.is_empty() {
            let columns: Vec<_> = (0..self.to).into_par_iter().map(|i| self.column(x, i)).collect();
            for (r, y) in data.chunks_exact_mut(3 * self.to).enumerate() {
                y.as_chunks_mut::<3>().0.iter_mut().zip(&columns).for_each(|(y, column)| *y = column[r]);
            }
            return data;
        }
        data.par_chunks_exact_mut(3 * self.to).zip(rows).for_each_init(
            || vec![0i32; 3 * self.from],
            |planes, (y, x)| simd.dispatch(|| across(y, x, planes, &self.columns)),
        );
        data
    }

    /// Column `i` of the result, by lines.
    fn column(&self, x: &[u8], i: usize) -> Vec<[u8; 3]> {
        let (first, weights) = (self.kernel.range(i).start, self.kernel.weights(i));
        let pixel = |x: &[u8]| {
            let mut sums = [HALF; 3];
            for (p, w) in x[3 * first..].as_chunks::<3>().0.iter().zip(&weights) {
                sums.iter_mut().zip(p).for_each(|(sum, &x)| *sum += i32::from(x) * w);
            }
            sums.map(clip)
        };
        x.chunks_exact(3 * self.from).map(pixel).collect()
    }
}

/// One row `x` to one row `y`; `planes` is room for `x`. Inlined into `dispatch`, which compiles it for the processor's
/// instruction set (under `multiversion` its closures stay scalar: three times slower, 2026-11-22).
#[inline(always)]
fn across(y: &mut [u8], x: &[u8], planes: &mut [i32], columns: &[(usize, Vec<i32>)]) {
    // Each colour by itself, so that the products run over neighbours.
    let (red, rest) = planes.split_at_mut(x.len() / 3);
    let (green, blue) = rest.split_at_mut(x.len() / 3);
    for (((r, g), b), p) in red.iter_mut().zip(&mut *green).zip(&mut *blue).zip(x.as_chunks::<3>().0) {
        (*r, *g, *b) = (p[0].into(), p[1].into(), p[2].into());
    }
    let dot = |x: &[i32], w: &[i32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<i32>();
    for (y, (first, w)) in y.as_chunks_mut::<3>().0.iter_mut().zip(columns) {
        *y = [&*red, green, blue].map(|plane| clip(HALF + dot(&plane[*first..first + w.len()], w)));
    }
}

/// A line of the result that reads more than one band.
struct Open {
    reads: Range<usize>,
    weights: Vec<i32>,
    sums: Vec<i32>,
}

impl Open {
    /// Adds what it reads of a band, whose lines are `lines` of the source.
    fn add(&mut self, band: &[u8], lines: &Range<usize>, simd: Arch) {
        let (from, to) = (self.reads.start.max(lines.start), self.reads.end.min(lines.end));
        let weights = &self.weights[from - self.reads.start..to - self.reads.start];
        let x = &band[(from - lines.start) * self.sums.len()..];
        simd.dispatch(|| add(&mut self.sums, x, weights));
    }
}

/// `(H, W, 3)`, its lines gone `across`, if they do, to `(height, width, 3)`.
fn resize_down(src: &Rgb, across: Option<&Across>, width: usize, height: usize) -> Vec<u8> {
    let (kernel, simd, line) = (Kernel::new(src.height, height), Arch::new(), 3 * width);
    let mut data = vec![0; height * line];
    let (mut open, mut next) = (VecDeque::<Open>::new(), 0);
    // What goes nowhere first is one band.
    let most = across.map_or(src.height, |_| (BAND / line).max(1));
    for from in (0..src.height).step_by(most) {
        let lines = from..(from + most).min(src.height);
        let x = &src.data[3 * src.width * lines.start..3 * src.width * lines.end];
        let made = across.map(|across| across.lines(x));
        let band = made.as_deref().unwrap_or(x);

        open.par_iter_mut().for_each(|o| o.add(band, &lines, simd));
        let ended = open.iter().take_while(|o| o.reads.end <= lines.end).count();
        let first = next - open.len();
        for (o, y) in open.drain(..ended).zip(data[first * line..].chunks_exact_mut(line)) {
            finish(y, &o.sums);
        }
        // Those that read no other band, then those that read the next one too.
        let whole = (next..height).take_while(|&i| kernel.range(i).end <= lines.end).count();
        data[next * line..][..whole * line].par_chunks_exact_mut(line).enumerate().for_each_init(
            || vec![0i32; line],
            |sums, (i, y)| {
                let (first, weights) = (kernel.range(next + i).start, kernel.weights(next + i));
                sums.fill(HALF);
                simd.dispatch(|| add(sums, &band[(first - lines.start) * line..], &weights));
                finish(y, sums);
            },
        );
        next += whole;
        while next < height && kernel.range(next).start < lines.end {
            let (reads, weights) = (kernel.range(next), kernel.weights(next));
            let mut o = Open { reads, weights, sums: vec![HALF; line] };
            o.add(band, &lines, simd);
            open.push_back(o);
            next += 1;
        }
    }
    data
}

/// Adds the rows at the beginning of `x`, as many as there are `weights`, to the sums of a row.
#[inline(always)]
fn add(sums: &mut [i32], x: &[u8], weights: &[i32]) {
    for (x, &w) in x.chunks_exact(sums.len()).zip(weights) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += i32::from(x) * w;
        }
    }
}

fn finish(y: &mut [u8], sums: &[i32]) {
    for (y, &sum) in y.iter_mut().zip(sums) {
        *y = clip(sum);
    }
}
