//! The CPU's matrix multiplication: weights as they lie in the checkpoint, rows of `x` packed once.
//!
//! `x` is packed into panels of `lanes` rows, k outermost, so that one vector holds one k of many rows. The microkernel keeps `rows` weight
//! rows times one panel in registers: per k it loads the panel's vectors and broadcasts each row's weight from where the weights lie, with
//! AVX-512 also bf16; what it will read next comes into L2 meanwhile. So nothing is transposed but `x`, once, and the result, 16 by 16 values in
//! registers. Weights that no kernel reads, and rows that do not fill a block, are copied into a scratch first, a tile at a time.
//!
//! The `gemm` crate, called on widened tiles, transposes and packs every weight tile again; this does not. How it compares with PyTorch's
//! MKL and oneDNN is in benches/records/. Tested against that crate and, exactly, on small integers.

use super::{Precision, Short, Weights};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Weight rows of one tile, at most: a multiple of every kernel's rows.
const TILE_ROWS: usize = 96;
/// Panels of one task, at most: its products stay in L2 beside the scratch.
const TASK_PANELS: usize = 11;
/// 32-bit words of a scratch row that are used: one k (f32) or two (bf16) each. One panel's words are 32 KB. A sum over k is one of parts of so
/// many words, added in order: `matvec.rs` does the same.
pub(super) const WORDS: usize = 256;
/// Distance of scratch rows: a line more, so that rows do not fall on the same L1 sets.
const STRIDE: usize = WORDS + 16;

/// The start of a cache line, so that no vector straddles two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Memory that is kept from use to use: fresh one would cost a page fault every 4 KB. What it holds at first is left from before.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// `n` words.
    pub fn words(&mut self, n: usize) -> &mut [u32] {
        let lines = n.div_ceil(16);
        if self.0.len() < lines {
            Short::resize(&mut self.0, lines);
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..n]
    }

    /// `n` floats.
    pub fn floats(&mut self, n: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.words(n))
    }
}

/// Where a kernel finds its weights: `w(r, s)` is `r*row + s*step` bytes behind `start`, at any alignment.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub start: *const u8,
    pub row: usize,
    pub step: usize,
    /// Weights that are fetched into L2 meanwhile: as many steps of `ahead.1` rows from `ahead.0` on. Nothing need be there.
    pub ahead: (*const u8, usize),
}

/// `y[r*y_step + lane] (+)= Σ_s w(r, s) * x[s*lanes + lane]` for the kernel's rows and lanes: `(steps, w, x, y, y_step, add)`.
pub(super) type Micro = unsafe fn(usize, Rows, *const u32, *mut f32, usize, bool);

/// Microkernels and their shape.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub rows: usize,
    pub lanes: usize,
    /// Values of k in a word.
    pub per_word: usize,
    /// Lanes of the narrow kernel: of the last panel, if that is enough for its rows.
    narrow: usize,
    /// For weights that are words, by the number of lanes: all, and the narrow ones.
    pub words: [Micro; 2],
    /// For weights that are bf16, a word of x being one k or two.
    bf16: Option<[Micro; 2]>,
}

impl Kernel {
    /// The best one that this CPU has for `m` rows of `x`: the narrow ones, whose sums are in the same order, where one vector holds all rows.
    pub fn new(precision: Precision, m: usize, k: usize) -> Self {
        Self::all(precision, m, k).swap_remove(0)
    }

    /// Those that this CPU has, the best first.
    fn all(precision: Precision, m: usize, k: usize) -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use x86::*;
            let mut add = |rows, width, per_word, [wide, narrow]: [Micro; 2], bf16: Option<[Micro; 2]>| {
                let few = m <= width; // the narrow kernel for all
                let choose = |[wide, narrow]: [Micro; 2]| [if few { narrow } else { wide }, narrow];
                all.push(Kernel {
                    rows,
                    lanes: if few { width } else { 2 * width },
                    per_word,
                    narrow: width,
                    words: choose([wide, narrow]),
                    bf16: bf16.map(choose),
                });
            };
            if precision == Precision::Bf16 && k.is_multiple_of(2) && super::has_bf16() {
                let kernels: [Micro; 2] = [bf16_avx512, bf16_avx512_16];
                add(12, 16, 2, kernels, Some(kernels));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                add(12, 16, 1, [f32_avx512, f32_avx512_16], Some([widen_avx512, widen_avx512_16]));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                add(6, 8, 1, [f32_avx2, f32_avx2_8], None);
            }
        }
        let _ = (precision, m, k);
        all.push(Kernel { rows: 4, lanes: 8, per_word: 1, narrow: 8, words: [plain; 2], bf16: None });
        all
    }
}

/// Rows of `x`, packed for a kernel.
pub(super) struct Packed<'a> {
    words: &'a [u32],
    k: usize,
    kernel: Kernel,
}

impl<'a> Packed<'a> {
    /// Packs `m` rows of `parts * len` values; `row(i, part)` has `len` of row `i`, or none for zeros. Rows up to the end of the last panel,
    /// which is a narrow one where that is enough, are zero.
    pub fn new<'x>(
        buffer: &'a mut Buffer,
        m: usize,
        [parts, len]: [usize; 2],
        row: impl Fn(usize, usize) -> &'x [f32] + Sync,
        kernel: Kernel,
    ) -> Self {
        let (lanes, per_word) = (kernel.lanes, kernel.per_word);
        let steps = len / per_word;
        let words = buffer.words(m.next_multiple_of(kernel.narrow) * parts * steps);
        if steps > 0 {
            words.par_chunks_mut(lanes * parts * steps).enumerate().for_each(|(panel, to)| {
                let lanes_here = to.len() / (parts * steps);
                let row =
                    |lane, part| if panel * lanes + lane < m { row(panel * lanes + lane, part) } else { &[] };
                for (part, to) in to.chunks_exact_mut(lanes_here * steps).enumerate() {
                    pack(to, lanes_here, per_word, |lane| row(lane, part));
                }
            });
        }
        Self { words, k: parts * len, kernel }
    }

    /// Weight rows and rows of `x` of one task, for `n` weight rows in all: the split that takes the least time by a rough model, in which each
    /// task also pays for reading its panels what some products of a row and a panel cost.
    pub fn task_shape(&self, n: usize) -> [usize; 2] {
        const READ: usize = 12;
        let Kernel { rows, lanes, .. } = self.kernel;
        let (blocks, panels) =
            (n.div_ceil(rows), self.words.len().div_ceil(lanes * (self.k / self.kernel.per_word).max(1)));
        let threads = rayon::current_num_threads();
        let (fewest, most) = (blocks.div_ceil(TILE_ROWS / rows).max(1), panels.div_ceil(TASK_PANELS).max(1));
        let splits = (fewest..=4 * fewest).flat_map(|t| (most..=4 * most).map(move |c| (t, c)));
        let shape = |(t, c): (usize, usize)| [blocks.div_ceil(t) * rows, panels.div_ceil(c)];
        let time = |split| {
            let [height, width] = shape(split);
            let tasks = n.div_ceil(height) * panels.div_ceil(width);
            tasks.div_ceil(threads) * (height * width + READ * width)
        };
        let [height, width] = shape(splits.min_by_key(|s| time(*s)).expect("at least one split"));
        [height.max(rows), width.max(1) * lanes]
    }

    /// `yt[n, m] = Σ_k w[n, k] * x[m, k]` for the weight rows `n` (at most [`TILE_ROWS`]) and the rows `m` of `x` (a task's): the product
    /// transposed. Returns the distance of its rows.
    pub fn product(
        &self,
        yt: &mut Buffer,
        scratch: &mut Buffer,
        w: Weights,
        n: Range<usize>,
        m: Range<usize>,
    ) -> usize {
        let Kernel { rows: block, lanes, per_word, narrow, words: runs, bf16 } = self.kernel;
        let (first, rows) = (n.start, n.len());
        let (stride, steps) = (m.len().next_multiple_of(narrow), self.k / per_word);
        let panels = &self.words[m.start * steps..(m.start + stride) * steps];
        let yt = yt.floats(TILE_ROWS * stride);
        if steps == 0 {
            yt.fill(0.0);
        }
        // Whole blocks of rows are read where they lie, if there is a kernel for that.
        let of_rows = first * self.k..(first + rows) * self.k;
        let mapped: Option<(&[u8], usize, [Micro; 2])> = match (w, bf16) {
            (Weights::Bf16(w), Some(runs)) => Some((bytemuck::cast_slice(&w[of_rows]), 2, runs)),
            (Weights::F32(w), _) if per_word == 1 => Some((bytemuck::cast_slice(&w[of_rows]), 4, runs)),
            _ => None,
        };
        let lying = if mapped.is_some() { rows / block * block } else { 0 };
        let calls = panels.len().div_ceil((lanes * steps).max(1)) * (lying / block);
        let scratch = scratch.words(TILE_ROWS * STRIDE);
        for word in (0..steps).step_by(WORDS) {
            let len = WORDS.min(steps - word);
            for (r, to) in scratch.chunks_exact_mut(STRIDE).enumerate().take(rows).skip(lying) {
                fill(&mut to[..len], w, (first + r) * self.k + word * per_word, per_word);
            }
            // The next weights: of the same rows, or of the rows after them.
            let next = if word + len < steps { (word + len) * per_word } else { rows * self.k };
            let mut fetched = 0;
            for (p, panel) in panels.chunks(lanes * steps).enumerate() {
                let lanes_here = panel.len() / steps;
                let narrow = usize::from(lanes_here < lanes);
                let x = &panel[word * lanes_here..(word + len) * lanes_here];
                for r in (0..rows).step_by(block) {
                    let y = &mut yt[r * stride + p * lanes..];
                    assert!(y.len() >= (block - 1) * stride + lanes_here);
                    let (run, w) = match mapped {
                        Some((w, size, runs)) if r < lying => {
                            let some = (rows - fetched).min(rows.div_ceil(calls));
                            let ahead = (w.as_ptr().wrapping_add(size * (fetched * self.k + next)), some);
                            fetched += some;
                            let (row, step) = (size * self.k, size * per_word);
                            let w = &w[r * row + word * step..];
                            assert!(w.len() >= (block - 1) * row + len * step);
                            (runs[narrow], Rows { start: w.as_ptr(), row, step, ahead })
                        }
                        _ => {
                            let w = &scratch[r * STRIDE..];
                            assert!(w.len() >= (block - 1) * STRIDE + len);
                            let start = w.as_ptr().cast();
                            (runs[narrow], Rows { start, row: 4 * STRIDE, step: 4, ahead: (start, 0) })
                        }
                    };
                    // SAFETY: by the assertions and the slice of `x`, every element that the kernel touches is inside; `Kernel::new` chose
                    // one whose instructions this CPU has.
                    unsafe { run(len, w, x.as_ptr(), y.as_mut_ptr(), stride, word > 0) };
                }
            }
        }
        stride
    }
}

/// `to[s*lanes + i]` = word `s` of row `i`, which is empty for zeros; as many steps as `to` holds.
pub(super) fn pack<'x>(to: &mut [u32], lanes: usize, per_word: usize, row: impl Fn(usize) -> &'x [f32]) {
    let steps = to.len() / lanes;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && (per_word == 1 || super::has_bf16()) {
        for lane in (0..lanes).step_by(16) {
            let rows: [_; 16] = std::array::from_fn(|i| if lane + i < lanes { row(lane + i) } else { &[] });
            assert!(rows.iter().all(|r| r.is_empty() || r.len() >= steps * per_word));
            // SAFETY: the CPU has the features; by the assertion each row has its words, and `to` has `steps * lanes`.
            unsafe {
                match per_word {
                    1 => x86::pack_f32(&mut to[lane..], lanes, 16.min(lanes - lane), steps, rows),
                    _ => x86::pack_bf16(&mut to[lane..], lanes, 16.min(lanes - lane), steps, rows),
                }
            }
        }
        return;
    }
    for lane in 0..lanes {
        let row = row(lane);
        for (s, to) in to.iter_mut().skip(lane).step_by(lanes).enumerate() {
            *to = match (row.is_empty(), per_word) {
                (true, _) => 0,
                (_, 1) => row[s].to_bits(),
                _ => pair(row[2 * s], row[2 * s + 1]),
            };
        }
    }
}

/// `y[i*y_step + r] = yt[r*stride + i]` for `rows` and `columns` of `yt`; with `add`, `+=`.
///
/// # Safety
/// The elements of `y` are inside its buffer and nobody else touches them.
pub(super) unsafe fn store_transposed(
    y: *mut f32,
    y_step: usize,
    yt: &[f32],
    stride: usize,
    [rows, columns]: [usize; 2],
    add: bool,
) {
    assert!(columns <= stride && rows > 0 && (rows - 1) * stride + columns <= yt.len());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has the feature; the assertion and the caller's promise.
        return unsafe { x86::store_transposed(y, y_step, yt.as_ptr(), stride, [rows, columns], add) };
    }
    for i in 0..columns {
        // SAFETY: the caller's promise.
        let y = unsafe { std::slice::from_raw_parts_mut(y.add(i * y_step), rows) };
        for (y, v) in y.iter_mut().zip(yt[i..].iter().step_by(stride)) {
            *y = if add { *y + v } else { *v };
        }
    }
}

/// Bits of the nearest bf16, ties to even; NaN stays one.
#[inline(always)]
fn narrow(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

/// Two values as bf16 in a word, the first below.
#[inline(always)]
pub(super) fn pair(a: f32, b: f32) -> u32 {
    narrow(a) | narrow(b) << 16
}

/// Words of a scratch row from element `at` of the weights.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn fill(to: &mut [u32], w: Weights, at: usize, per_word: usize) {
    match (w, per_word) {
        (Weights::Bf16(w), 1) => {
            to.iter_mut().zip(&w[at..]).for_each(|(to, w)| *to = u32::from(w.to_bits()) << 16)
        }
        (Weights::F32(w), 1) => to.iter_mut().zip(&w[at..]).for_each(|(to, w)| *to = w.to_bits()),
        (Weights::Bf16(w), _) => {
            let word = |[a, b]: [bf16; 2]| u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
            to.iter_mut().zip(w[at..].as_chunks().0).for_each(|(to, &w)| *to = word(w));
        }
        (Weights::F32(w), _) => {
            to.iter_mut().zip(w[at..].as_chunks().0).for_each(|(to, &[a, b])| *to = pair(a, b));
        }
    }
}

/// Four rows, eight lanes, for CPUs without the kernels below.
///
/// # Safety
/// See [`Micro`]: every element that the formula names must be inside its buffer.
unsafe fn plain(steps: usize, w: Rows, x: *const u32, y: *mut f32, y_step: usize, add: bool) {
    for r in 0..4 {
        let mut sums = [0.0f32; 8];
        for s in 0..steps {
            // SAFETY: the caller's promise.
            let (w, x) = unsafe {
                (
                    w.start.add(r * w.row + s * w.step).cast::<f32>().read_unaligned(),
                    x.add(s * 8).cast::<[f32; 8]>().read_unaligned(),
                )
            };
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += w * x);
        }
        for (lane, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            let y = unsafe { &mut *y.add(r * y_step + lane) };
            *y = if add { *y + sum } else { sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Rows;
    use std::arch::x86_64::*;

    /// A kernel of `$rows` rows and `$vectors` vectors of `$width` lanes: `$load` a vector of x, `$splat` a weight, `$fma` into the sums.
    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident, $features:literal, $rows:literal, $vectors:literal, $width:literal,
         $zero:ident, $load:expr, $splat:expr, $fma:ident, $add:ident, $read:ident, $write:ident) => {
            $(#[$doc])*
            ///
            /// # Safety
            /// The CPU has the features; every element that [`super::Micro`]'s formula names is inside its buffer.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(steps: usize, w: Rows, x: *const u32, y: *mut f32, y_step: usize, add: bool) {
                let mut sums = [[$zero(); $vectors]; $rows];
                // SAFETY: the caller's promise covers every access below; a prefetch may be anywhere.
                unsafe {
                    // Every third row: the registers do not hold the addresses of all.
                    let thirds: [*const u8; $rows / 3] = std::array::from_fn(|i| w.start.add(3 * i * w.row));
                    for s in 0..steps {
                        if s % 16 == 0 {
                            for r in 0..w.ahead.1 {
                                _mm_prefetch::<_MM_HINT_T1>(w.ahead.0.wrapping_add(r * w.row + s * w.step).cast());
                            }
                        }
                        let x: [_; $vectors] = std::array::from_fn(|i| $load(x.add((s * $vectors + i) * $width)));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let weight = $splat(thirds[r / 3].add(r % 3 * w.row + s * w.step));
                            for i in 0..$vectors {
                                sums[i] = $fma(weight, x[i], sums[i]);
                            }
                        }
                    }
                    for (r, sums) in sums.into_iter().enumerate() {
                        for (i, sum) in sums.into_iter().enumerate() {
                            let y = y.add(r * y_step + i * $width);
                            $write(y, if add { $add($read(y), sum) } else { sum });
                        }
                    }
                }
            }
        };
    }

    /// `sums + a * b` over pairs of bf16, the operands in the order of the other kernels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot_pairs(a: __m512bh, b: __m512bh, sums: __m512) -> __m512 {
        _mm512_dpbf16_ps(sums, a, b)
    }

    /// The two bf16 at `w` as every pair of a vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn splat_pair(w: *const u8) -> __m512bh {
        // SAFETY: the caller's word; both types are 512 bits of plain data.
        unsafe { std::mem::transmute(_mm512_set1_epi32(w.cast::<i32>().read_unaligned())) }
    }

    /// The bf16 at `w` as every f32 of a vector: as the upper half of each word, zeros below.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn splat_half(w: *const u8) -> __m512 {
        // SAFETY: the caller's element.
        let half = unsafe { w.cast::<i16>().read_unaligned() };
        _mm512_castsi512_ps(_mm512_maskz_set1_epi16(0xaaaa_aaaa, half))
    }

    /// The families, each wide and narrow.
    macro_rules! kernels {
        ($f32_512:ident, $widen_512:ident, $bf16_512:ident, $f32_256:ident, $vectors:literal) => {
            kernel!(
                /// f32, 12 rows of vectors of 16.
                $f32_512, "avx512f", 12, $vectors, 16, _mm512_setzero_ps, |x: *const u32| _mm512_loadu_ps(x.cast()),
                |w: *const u8| _mm512_set1_ps(w.cast::<f32>().read_unaligned()), _mm512_fmadd_ps, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps
            );
            kernel!(
                /// Weights of bf16, the rest f32, 12 rows of vectors of 16.
                $widen_512, "avx512f,avx512bw", 12, $vectors, 16, _mm512_setzero_ps, |x: *const u32| _mm512_loadu_ps(x.cast()),
                |w: *const u8| splat_half(w), _mm512_fmadd_ps, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps
            );
            kernel!(
                /// Pairs of bf16 into f32 sums, 12 rows of vectors of 16.
                $bf16_512, "avx512f,avx512bf16", 12, $vectors, 16, _mm512_setzero_ps,
                |x: *const u32| x.cast::<__m512bh>().read_unaligned(),
                |w: *const u8| splat_pair(w), dot_pairs, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps
            );
            kernel!(
                /// f32, 6 rows of vectors of 8.
                $f32_256, "avx2,fma", 6, $vectors, 8, _mm256_setzero_ps, |x: *const u32| _mm256_loadu_ps(x.cast()),
                |w: *const u8| _mm256_set1_ps(w.cast::<f32>().read_unaligned()), _mm256_fmadd_ps, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps
            );
        };
    }
    kernels!(f32_avx512, widen_avx512, bf16_avx512, f32_avx2, 2); // 24 of the 32 registers hold sums
    kernels!(f32_avx512_16, widen_avx512_16, bf16_avx512_16, f32_avx2_8, 1);

    /// `y[i][j] = x[j][i]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(x: [__m512; 16]) -> [__m512; 16] {
        let pd = |a: __m512| _mm512_castps_pd(a);
        let (mut t, mut u, mut y) = (x, x, x);
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        // u[4*i + c]: rows 4*i.. of column c of each quarter
        for i in 0..4 {
            for c in 0..2 {
                let (a, b) = (pd(t[4 * i + c]), pd(t[4 * i + 2 + c]));
                u[4 * i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                u[4 * i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        }
        for c in 0..4 {
            // quarters 0 and 2, then 1 and 3, of rows 0..8 and of rows 8..16
            let even0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[c], u[4 + c]);
            let even8 = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[8 + c], u[12 + c]);
            let odd0 = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[c], u[4 + c]);
            let odd8 = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[8 + c], u[12 + c]);
            y[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even0, even8);
            y[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd0, odd8);
            y[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even0, even8);
            y[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd0, odd8);
        }
        y
    }

    /// The first `n` of 16.
    fn first(n: usize) -> __mmask16 {
        (1u32 << n.min(16)).wrapping_sub(1) as __mmask16
    }

    /// Words `from..from + n` (at most 16) of a row of f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn words_f32(row: *const f32, from: usize, n: usize) -> __m512 {
        // SAFETY: the caller's row has the words; the mask hides the others.
        unsafe { _mm512_maskz_loadu_ps(first(n), row.add(from)) }
    }

    /// The same as pairs of bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn words_bf16(row: *const f32, from: usize, n: usize) -> __m512 {
        // SAFETY: as above, the second half only where it has values; the types are 512 bits of plain data.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first(2 * n), row.add(2 * from));
            let high =
                _mm512_maskz_loadu_ps(first((2 * n).saturating_sub(16)), row.wrapping_add(2 * from + 16));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    /// `$name`: `to[s*lanes + i]` = word `s` of row `i` for `count` rows.
    macro_rules! pack {
        ($name:ident, $features:literal, $words:ident) => {
            /// # Safety
            /// The CPU has the features; rows that are not empty have `steps` words.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(
                to: &mut [u32],
                lanes: usize,
                count: usize,
                steps: usize,
                rows: [&[f32]; 16],
            ) {
                for from in (0..steps).step_by(16) {
                    let n = 16.min(steps - from);
                    let mut words = [_mm512_setzero_ps(); 16];
                    for (words, row) in words.iter_mut().zip(rows).filter(|(_, row)| !row.is_empty()) {
                        // SAFETY: the row has the words, by the caller's promise.
                        *words = unsafe { $words(row.as_ptr(), from, n) };
                    }
                    for (i, words) in transpose(words).into_iter().enumerate().take(n) {
                        let to = &mut to[(from + i) * lanes..][..count];
                        // SAFETY: the mask keeps the store inside the slice.
                        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr().cast(), first(count), words) };
                    }
                }
            }
        };
    }
    pack!(pack_f32, "avx512f", words_f32);
    pack!(pack_bf16, "avx512f,avx512bf16", words_bf16);

    /// See [`super::store_transposed`].
    ///
    /// # Safety
    /// The CPU has AVX-512; the elements of `y` and `yt` that the formula names are inside their buffers.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn store_transposed(
        y: *mut f32,
        y_step: usize,
        yt: *const f32,
        stride: usize,
        [rows, columns]: [usize; 2],
        add: bool,
    ) {
        for i in (0..columns).step_by(16) {
            for r in (0..rows).step_by(16) {
                let (height, width) = (16.min(rows - r), 16.min(columns - i));
                let mut block = [_mm512_setzero_ps(); 16];
                for (j, to) in block.iter_mut().enumerate().take(height) {
                    // SAFETY: inside by the caller's promise, the mask hides the rest.
                    *to = unsafe { _mm512_maskz_loadu_ps(first(width), yt.add((r + j) * stride + i)) };
                }
                for (j, mut v) in transpose(block).into_iter().enumerate().take(width) {
                    // SAFETY: the same.
                    unsafe {
                        let y = y.add((i + j) * y_step + r);
                        if add {
                            v = _mm512_add_ps(_mm512_maskz_loadu_ps(first(height), y), v);
                        }
                        _mm512_mask_storeu_ps(y, first(height), v);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, whose sums are exact in any order: every kernel that this CPU has, wide and narrow, not only the one it would choose,
    /// on weights that it copies and on those that it may read where they lie.
    #[test]
    fn every_kernel_is_exact_on_small_integers() {
        let value = |i: usize, by: usize| ((i * by) % 15) as f32 - 7.0;
        let mut found = 0;
        for (m, n, k) in [(1, 13, 10), (8, 5, 34), (9, 30, 516), (16, 12, 6), (17, 49, 700), (70, 95, 30)] {
            let x: Vec<f32> = (0..m * k).map(|i| value(i, 7)).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i, 11)).collect();
            let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
            for kernel in Kernel::all(Precision::Bf16, m, k) {
                for weights in [Weights::F32(&w), Weights::Bf16(&narrow)] {
                    let [mut words, mut yt, mut scratch] = [(); 3].map(|()| Buffer::default());
                    let packed = Packed::new(&mut words, m, [1, k], |i, _| &x[i * k..][..k], kernel);
                    let stride = packed.product(&mut yt, &mut scratch, weights, 0..n, 0..m);
                    let yt = yt.floats(n * stride);
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let exact: f32 = (0..k).map(|s| x[i * k + s] * w[j * k + s]).sum();
                        let (rows, lanes) = (kernel.rows, kernel.lanes);
                        assert_eq!(
                            yt[j * stride + i],
                            exact,
                            "{rows} x {lanes}: ({m}, {n}, {k}) at {i}, {j}"
                        );
                    }
                }
                found += 1;
            }
        }
        assert!(found >= 6);
    }
}
