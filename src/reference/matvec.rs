//! The product of few rows of `x`: decoding reads every weight for one row, or some. What counts is that the weights stream.
//!
//! `gemm.rs` has a vector of rows of `x` and broadcasts weights; here one vector holds 16 weight rows instead. Their words (two bf16
//! each) are transposed in registers, 16 by 16, so that each of the 16 sums still runs over k in order, in the same instructions: the bits are
//! those of `gemm.rs`, and a row's do not depend on how many there are.

use super::gemm::Buffer;
use super::{Precision, Weights};
use std::ops::Range;

/// Rows of `x`, at most.
pub(super) const ROWS: usize = 8;

/// Few rows of `x`, ready to be multiplied.
pub(super) struct Few<'a> {
    x: &'a [f32],
    m: usize,
    k: usize,
    /// `x` as pairs of bf16, if that is what is multiplied.
    pairs: Option<Vec<u32>>,
}

impl<'a> Few<'a> {
    /// `x` `(m, k)`; `None` where `gemm.rs` must do it: more rows, weights that are not bf16, a k that is no multiple of 32, another CPU.
    pub fn new(x: &'a [f32], m: usize, k: usize, weights: &[Weights], precision: Precision) -> Option<Self> {
        let fits = m <= ROWS
            && k > 0
            && k.is_multiple_of(32)
            && weights.iter().all(|w| matches!(w, Weights::Bf16(_)))
            && has_avx512();
        let narrow = fits && precision == Precision::Bf16 && super::has_bf16();
        fits.then(|| Self { x, m, k, pairs: narrow.then(|| super::gemm::pairs(x)) })
    }

    /// Weight rows of one task, for `n` in all: whole vectors, and tasks enough that every thread is busy to the end (with 96 rows, 1 % less
    /// of the memory's bandwidth was used).
    pub fn task_rows(&self, n: usize) -> usize {
        n.div_ceil(6 * rayon::current_num_threads()).next_multiple_of(16).min(32)
    }

    /// `yt[n, m] = Σ_k w[n, k] * x[m, k]` for the weight rows `n`; returns the distance of its rows, which is m.
    pub fn product(&self, yt: &mut Buffer, w: Weights, n: Range<usize>) -> usize {
        let Weights::Bf16(w) = w else { unreachable!("`new` saw the weights") };
        let yt = yt.floats(n.len().next_multiple_of(16) * self.m);
        let w = &w[n.start * self.k..n.end * self.k];
        #[cfg(target_arch = "x86_64")]
        for (rows, y) in w.chunks(16 * self.k).zip(yt.chunks_mut(16 * self.m)) {
            // SAFETY: `new` found the instructions; `x` has m rows of k, `rows` one to 16 rows of k, and `y` room for 16 of m.
            unsafe {
                match &self.pairs {
                    Some(pairs) => x86::bf16(self.m, y, rows, pairs, self.k),
                    None => x86::f32(self.m, y, rows, self.x, self.k),
                }
            }
        }
        let _ = w;
        self.m
    }
}

fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::bf16;
    use std::arch::x86_64::*;

    /// How far ahead of the sums weights are fetched, in elements: 16 lines of each of 16 rows, into L2, as rows a multiple of 4 KB apart
    /// share the 12 ways of one L1 set. Past a row's end the next 16 rows begin. With two or four groups of rows at once, which would
    /// hide the latency of the sums, the weights came at two thirds of this speed or less: too many streams (2026-11-25, Zen 5). Two sums over k
    /// at once, in turns by lines or by blocks, gained nothing either (2026-11-26).
    const AHEAD: usize = 512;

    /// Word `j` of row `i` becomes word `i` of row `j`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
        let mut a = r;
        // Pairs of rows, words interleaved; then pairs of pairs: each 128-bit lane l holds column 4*l + i of four rows.
        for i in (0..16).step_by(2) {
            a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        let mut b = a;
        for i in (0..16).step_by(4) {
            b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
            b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
            b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
            b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
        }
        // Lanes of the four groups of rows, gathered for each column.
        let mut c = b;
        for i in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x88>(b[i], b[i + 4]);
            let high = _mm512_shuffle_i32x4::<0x88>(b[i + 8], b[i + 12]);
            let low_odd = _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 4]);
            let high_odd = _mm512_shuffle_i32x4::<0xdd>(b[i + 8], b[i + 12]);
            c[i] = _mm512_shuffle_i32x4::<0x88>(low, high);
            c[i + 4] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
            c[i + 8] = _mm512_shuffle_i32x4::<0xdd>(low, high);
            c[i + 12] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
        }
        c
    }

    /// `$name`: `y[r, i] = Σ_k w[r, k] * x[i, k]` for one to 16 weight rows r, with `$step` a word of 16 rows into the sum of a row of x.
    macro_rules! kernel {
        ($name:ident, $rows:ident, $features:literal, $x:ty, $per:literal, $step:expr) => {
            /// # Safety
            /// The CPU has the features; `y` holds 16 times `m`, `w` one to 16 rows of `k` (a multiple of 32), `x` `m` rows.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(m: usize, y: &mut [f32], w: &[bf16], x: &[$x], k: usize) {
                // SAFETY: the caller's promise.
                unsafe {
                    match m {
                        1 => $rows::<1>(y, w, x, k),
                        2 => $rows::<2>(y, w, x, k),
                        3 => $rows::<3>(y, w, x, k),
                        4 => $rows::<4>(y, w, x, k),
                        5 => $rows::<5>(y, w, x, k),
                        6 => $rows::<6>(y, w, x, k),
                        7 => $rows::<7>(y, w, x, k),
                        _ => $rows::<8>(y, w, x, k),
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn $rows<const M: usize>(y: &mut [f32], w: &[bf16], x: &[$x], k: usize) {
                assert!(y.len() >= 16 * M && x.len() >= M * k / $per && k % 32 == 0);
                let n = w.len() / k;
                // Missing rows repeat the last one; their sums are not read.
                let row: [*const bf16; 16] = std::array::from_fn(|r| w[r.min(n - 1) * k..].as_ptr());
                let mut sums = [_mm512_setzero_ps(); M];
                for at in (0..k).step_by(32) {
                    let ahead = if at + AHEAD < k { at + AHEAD } else { at + AHEAD + 15 * k };
                    // SAFETY: `at + 32 <= k` elements of each row are inside `w`, and `m * k` of `x` by the assertion; a prefetch may be anywhere.
                    unsafe {
                        let words = std::array::from_fn(|r| {
                            _mm_prefetch::<_MM_HINT_T1>(row[r].wrapping_add(ahead).cast());
                            _mm512_loadu_si512(row[r].add(at).cast())
                        });
                        for (j, word) in transpose(words).into_iter().enumerate() {
                            for (i, sum) in sums.iter_mut().enumerate() {
                                *sum =
                                    $step(*sum, word, x.as_ptr().add((i * k + at) / $per + j * (2 / $per)));
                            }
                        }
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    let mut lanes = [0.0f32; 16];
                    // SAFETY: 16 values.
                    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
                    lanes.into_iter().enumerate().for_each(|(r, v)| y[r * M + i] = v);
                }
            }
        };
    }

    /// Both bf16 of a word, the lower first, each times its element of x.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widened(sum: __m512, word: __m512i, x: *const f32) -> __m512 {
        let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(word));
        let odd =
            _mm512_castsi512_ps(_mm512_and_si512(word, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())));
        // SAFETY: the caller's: two elements.
        let x = unsafe { [_mm512_set1_ps(*x), _mm512_set1_ps(*x.add(1))] };
        _mm512_fmadd_ps(odd, x[1], _mm512_fmadd_ps(even, x[0], sum))
    }

    /// The word's two products in one instruction, as the CPU has it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn paired(sum: __m512, word: __m512i, x: *const u32) -> __m512 {
        // SAFETY: the caller's: one word; both types are 512 bits of plain data.
        unsafe {
            let x = _mm512_set1_epi32((*x).cast_signed());
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(word),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }

    kernel!(f32, f32_rows, "avx512f", f32, 1, widened);
    kernel!(bf16, bf16_rows, "avx512f,avx512bf16", u32, 2, paired);

    #[cfg(test)]
    #[test]
    fn transposed() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        #[target_feature(enable = "avx512f")]
        fn run(m: &[[i32; 16]; 16]) -> [[i32; 16]; 16] {
            // SAFETY: both types are 16 times 512 bits of plain data.
            unsafe { std::mem::transmute(transpose(std::mem::transmute_copy(m))) }
        }
        let m = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as i32));
        // SAFETY: the CPU has the feature.
        let t = unsafe { run(&m) };
        assert!((0..16).all(|i| (0..16).all(|j| t[j][i] == m[i][j])), "{t:?}");
    }
}
