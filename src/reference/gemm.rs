//! The CPU's matrix multiplication: weights as they lie in the checkpoint, rows of `x` packed once.
//!
//! `x` is packed into panels of `lanes` rows, k outermost, so that one vector holds one k of many rows. Weight rows are copied, a tile at
//! a time, into a scratch that stays in L2 (widened to f32, or as pairs of bf16). The microkernel keeps `ROWS` weight rows times one
//! panel in registers: per k it loads the panel's vectors and broadcasts each row's weight. So nothing is transposed but `x`, once, and the result.
//!
//! The `gemm` crate, called on widened tiles, transposes and packs every weight tile again; this does not. How it compares with PyTorch's MKL
//! is in benches/records/ (slower on one language model layer, on a busy machine). Tested against that crate and, exactly, on small integers.

use super::{Precision, Weights};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Weight rows of one scratch tile, at most, and the step of smaller ones: a multiple of every kernel's rows. A tile reads its panels of `x`
/// from L3 once, so the more rows the better: with 48 of them the same kernel reached a third of its speed (2026-11-22, Xeon with 1 MB L2).
pub(super) const TILE_ROWS: usize = 192;
/// See [`TILE_ROWS`].
pub(super) const TILE_STEP: usize = 48;
/// Panels of one task: its products stay in L2 beside the scratch.
const TASK_PANELS: usize = 11;
/// 32-bit words of a scratch row that are used: one k (f32) or two (bf16) each. One panel's words are 32 KB.
const WORDS: usize = 256;
/// Distance of scratch rows: a line more, so that rows do not fall on the same L1 sets.
const STRIDE: usize = WORDS + 16;

/// `y[r*stride + lane] (+)= Σ_s w[r*STRIDE + s] * x[s*lanes + lane]` for the kernel's rows and lanes.
type Micro = unsafe fn(steps: usize, w: *const u32, x: *const u32, y: *mut f32, stride: usize, add: bool);

/// A microkernel and its shape.
#[derive(Clone, Copy)]
struct Kernel {
    rows: usize,
    lanes: usize,
    /// Values of k in a word.
    per_word: usize,
    run: Micro,
}

/// The best one that this CPU has for `m` rows of `x`: the narrow ones, whose sums are in the same order, where one vector holds all rows.
fn kernel(precision: Precision, m: usize, k: usize) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if precision == Precision::Bf16 && k.is_multiple_of(2) && super::has_bf16() {
            let (lanes, run): (_, Micro) =
                if m <= 16 { (16, x86::bf16_avx512_16) } else { (32, x86::bf16_avx512) };
            return Kernel { rows: 12, lanes, per_word: 2, run };
        }
        if is_x86_feature_detected!("avx512f") {
            let (lanes, run): (_, Micro) =
                if m <= 16 { (16, x86::f32_avx512_16) } else { (32, x86::f32_avx512) };
            return Kernel { rows: 12, lanes, per_word: 1, run };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let (lanes, run): (_, Micro) = if m <= 8 { (8, x86::f32_avx2_8) } else { (16, x86::f32_avx2) };
            return Kernel { rows: 6, lanes, per_word: 1, run };
        }
    }
    let _ = (precision, m, k);
    Kernel { rows: 4, lanes: 8, per_word: 1, run: plain }
}

/// Rows of `x`, packed for a kernel.
pub(super) struct Packed {
    words: Vec<u32>,
    k: usize,
    kernel: Kernel,
}

impl Packed {
    /// Packs `x` `(m, k)`; rows up to the next full panel are zero.
    pub fn new(x: &[f32], m: usize, k: usize, precision: Precision) -> Self {
        let kernel = kernel(precision, m, k);
        let (lanes, per_word) = (kernel.lanes, kernel.per_word);
        let steps = k / per_word;
        let mut words = vec![0u32; m.next_multiple_of(lanes) * steps];
        words.par_chunks_mut((lanes * steps).max(1)).enumerate().for_each(|(p, panel)| {
            let rows = &x[p * lanes * k..m.min((p + 1) * lanes) * k];
            // blocks of k, so that the words being written stay in L1
            for first in (0..steps).step_by(64) {
                let last = steps.min(first + 64);
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    for s in first..last {
                        panel[s * lanes + lane] = match per_word {
                            1 => row[s].to_bits(),
                            _ => pair(bf16::from_f32(row[2 * s]), bf16::from_f32(row[2 * s + 1])),
                        };
                    }
                }
            }
        });
        Self { words, k, kernel }
    }

    /// Rows of `x` in one task.
    pub fn task_rows(&self) -> usize {
        TASK_PANELS * self.kernel.lanes
    }

    /// `yt[n, m] = Σ_k w[n, k] * x[m, k]` for the weight rows `n` (at most [`TILE_ROWS`]) and the rows `m` of `x` (a task's): the product
    /// transposed. Returns the distance of its rows.
    pub fn product(
        &self,
        yt: &mut Vec<f32>,
        scratch: &mut Vec<u32>,
        w: Weights,
        n: Range<usize>,
        m: Range<usize>,
    ) -> usize {
        let Kernel { rows: block, lanes, per_word, run } = self.kernel;
        let (first, rows) = (n.start, n.len());
        let (stride, steps) = (m.len().next_multiple_of(lanes), self.k / per_word);
        let panels = &self.words[m.start * steps..(m.start + stride) * steps];
        yt.resize(TILE_ROWS * stride, 0.0);
        scratch.resize(TILE_ROWS * STRIDE, 0);
        for word in (0..steps).step_by(WORDS) {
            let len = WORDS.min(steps - word);
            for (r, to) in scratch.chunks_exact_mut(STRIDE).take(rows).enumerate() {
                fill(&mut to[..len], w, (first + r) * self.k + word * per_word, per_word);
            }
            for (p, panel) in panels.chunks_exact(lanes * steps).enumerate() {
                let x = &panel[word * lanes..(word + len) * lanes];
                for r in (0..rows).step_by(block) {
                    let (w, y) = (&scratch[r * STRIDE..], &mut yt[r * stride + p * lanes..]);
                    assert!(w.len() >= (block - 1) * STRIDE + len && y.len() >= (block - 1) * stride + lanes);
                    // SAFETY: by the assertion and the slice of `x`, every element that the kernel touches is inside; `kernel` chose one
                    // whose instructions this CPU has.
                    unsafe { run(len, w.as_ptr(), x.as_ptr(), y.as_mut_ptr(), stride, word > 0) };
                }
            }
        }
        stride
    }
}

/// Two bf16 in a word, the first below.
fn pair(a: bf16, b: bf16) -> u32 {
    u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16
}

/// Values of an even number as words of two.
pub(super) fn pairs(x: &[f32]) -> Vec<u32> {
    x.as_chunks().0.iter().map(|&[a, b]| pair(bf16::from_f32(a), bf16::from_f32(b))).collect()
}

/// Words of a scratch row from element `at` of the weights.
fn fill(to: &mut [u32], w: Weights, at: usize, per_word: usize) {
    match (w, per_word) {
        (Weights::Bf16(w), 1) => {
            to.iter_mut().zip(&w[at..]).for_each(|(to, w)| *to = u32::from(w.to_bits()) << 16)
        }
        (Weights::F32(w), 1) => to.iter_mut().zip(&w[at..]).for_each(|(to, w)| *to = w.to_bits()),
        (Weights::Bf16(w), _) => {
            to.iter_mut().zip(w[at..].as_chunks().0).for_each(|(to, &[a, b])| *to = pair(a, b));
        }
        (Weights::F32(w), _) => {
            let narrow = bf16::from_f32;
            to.iter_mut()
                .zip(w[at..].as_chunks().0)
                .for_each(|(to, &[a, b])| *to = pair(narrow(a), narrow(b)));
        }
    }
}

/// Four rows, eight lanes, for CPUs without the kernels below.
///
/// # Safety
/// See [`Micro`]: every element that the formula names must be inside its buffer.
unsafe fn plain(steps: usize, w: *const u32, x: *const u32, y: *mut f32, stride: usize, add: bool) {
    for r in 0..4 {
        let mut sums = [0.0f32; 8];
        for s in 0..steps {
            // SAFETY: the caller's promise.
            let (w, x) =
                unsafe { (f32::from_bits(*w.add(r * STRIDE + s)), x.add(s * 8).cast::<[u32; 8]>().read()) };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += w * f32::from_bits(x);
            }
        }
        for (lane, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            let y = unsafe { &mut *y.add(r * stride + lane) };
            *y = if add { *y + sum } else { sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::STRIDE;
    use std::arch::x86_64::*;

    /// A kernel of `$rows` rows and `$vectors` vectors of `$width` lanes: `$load` a vector of x, `$splat` a word of w, `$fma` into the sums.
    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident, $features:literal, $rows:literal, $vectors:literal, $width:literal,
         $zero:ident, $load:expr, $splat:expr, $fma:ident, $read:ident, $write:ident) => {
            $(#[$doc])*
            ///
            /// # Safety
            /// The CPU has the features; every element that [`super::Micro`]'s formula names is inside its buffer.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(steps: usize, w: *const u32, x: *const u32, y: *mut f32, stride: usize, add: bool) {
                let mut sums = [[$zero(); $vectors]; $rows];
                // SAFETY: the caller's promise covers every access below.
                unsafe {
                    if add {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            *sums = std::array::from_fn(|i| $read(y.add(r * stride + i * $width)));
                        }
                    }
                    for s in 0..steps {
                        let x: [_; $vectors] = std::array::from_fn(|i| $load(x.add((s * $vectors + i) * $width)));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let weight = $splat(w.add(r * STRIDE + s));
                            for i in 0..$vectors {
                                sums[i] = $fma(weight, x[i], sums[i]);
                            }
                        }
                    }
                    for (r, sums) in sums.into_iter().enumerate() {
                        for (i, sum) in sums.into_iter().enumerate() {
                            $write(y.add(r * stride + i * $width), sum);
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

    /// The word as every pair of a vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn splat_pair(word: u32) -> __m512bh {
        // SAFETY: both types are 512 bits of plain data.
        unsafe { std::mem::transmute(_mm512_set1_epi32(word.cast_signed())) }
    }

    /// The three families, each wide and narrow.
    macro_rules! kernels {
        ($f32_512:ident, $bf16_512:ident, $f32_256:ident, $vectors:literal) => {
            kernel!(
                /// f32, 12 rows of vectors of 16.
                $f32_512, "avx512f", 12, $vectors, 16, _mm512_setzero_ps, |x: *const u32| _mm512_loadu_ps(x.cast()),
                |w: *const u32| _mm512_set1_ps(*w.cast::<f32>()), _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_storeu_ps
            );
            kernel!(
                /// Pairs of bf16 into f32 sums, 12 rows of vectors of 16.
                $bf16_512, "avx512f,avx512bf16", 12, $vectors, 16, _mm512_setzero_ps,
                |x: *const u32| x.cast::<__m512bh>().read_unaligned(),
                |w: *const u32| splat_pair(*w), dot_pairs, _mm512_loadu_ps, _mm512_storeu_ps
            );
            kernel!(
                /// f32, 6 rows of vectors of 8.
                $f32_256, "avx2,fma", 6, $vectors, 8, _mm256_setzero_ps, |x: *const u32| _mm256_loadu_ps(x.cast()),
                |w: *const u32| _mm256_set1_ps(*w.cast::<f32>()), _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps
            );
        };
    }
    kernels!(f32_avx512, bf16_avx512, f32_avx2, 2); // 24 of the 32 registers hold sums
    kernels!(f32_avx512_16, bf16_avx512_16, f32_avx2_8, 1);
}
