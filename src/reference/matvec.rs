//! The product of few rows of `x`: decoding reads every weight for one row, or some. What counts is that the weights stream.
//!
//! `gemm.rs` has a vector of rows of `x` and broadcasts weights; here a vector holds sums of 16 runs of weights instead. Their words (two bf16
//! each) are transposed in registers, 16 by 16, so that each sum runs over k in order, in the same instructions. `gemm.rs` sums up parts of k,
//! [`WORDS`] words each, and adds their sums in order; so does this, and the bits are the same, however many rows there are.
//!
//! For several rows of `x` the 16 runs are 16 weight rows. For one they are 16 parts of a row, or the parts of two or four rows that lie behind
//! one another: 8 or 16 KB of memory are then summed up while the next are fetched in the order of their addresses, which is what memory is
//! fastest at: of the rate of a plain sum this reaches 0.8 to 0.95, 16 rows side by side 0.6 to 0.85 (benches/records/, decode).

use super::gemm::{Buffer, WORDS, pack};
use super::{Precision, Weights};
use std::ops::Range;

/// Rows of `x`, at most.
pub(super) const ROWS: usize = 8;

/// Few rows of `x`, ready to be multiplied.
pub(super) struct Few<'a> {
    m: usize,
    k: usize,
    /// Values of k in a word: two bf16, or one f32.
    per_word: usize,
    /// What of k is summed up part beside part, from its start.
    columns: Vec<Column<'a>>,
    /// `x[s*m + i]` = word s, of those of k behind the columns, of row i.
    x: &'a [u32],
}

/// Parts of k beside one another.
struct Column<'a> {
    /// Elements of k before it.
    first: usize,
    /// Parts: 16, or 8 or 4 of each of two or four weight rows.
    parts: usize,
    /// `x[s*16 + lane]` = word s of the part in that lane.
    x: &'a [u32],
}

impl<'a> Few<'a> {
    /// Whether this multiplies `m` rows of `k` by such weights, or `gemm.rs` must: more rows, weights that are not bf16, a k that is no multiple
    /// of 32, another CPU.
    pub fn fits(m: usize, k: usize, weights: &[Weights]) -> bool {
        m <= ROWS
            && k > 0
            && k.is_multiple_of(32)
            && weights.iter().all(|w| matches!(w, Weights::Bf16(_)))
            && has_avx512()
    }

    /// `x` `(m, k)`, which [`Few::fits`], packed into `buffer`.
    pub fn new(buffer: &'a mut Buffer, x: &[f32], m: usize, k: usize, precision: Precision) -> Self {
        let per_word = if precision == Precision::Bf16 && super::has_bf16() { 2 } else { 1 };
        let len = WORDS * per_word;
        let (mut columns, mut at) = (Vec::new(), 0);
        // A row's parts are there as often as 16 lanes hold them.
        let mut free = buffer.words((k * m).max(4 * k) / per_word);
        while m == 1
            && let Some(parts) = [16, 8, 4].into_iter().find(|parts| at + parts * len <= k)
        {
            let (to, rest) = free.split_at_mut(16 * WORDS);
            pack(to, 16, per_word, |lane| &x[at + lane % parts * len..][..len]);
            columns.push(Column { first: at, parts, x: to });
            (at, free) = (at + parts * len, rest);
        }
        let to = &mut free[..(k - at) / per_word * m];
        pack(to, m, per_word, |lane| &x[lane * k + at..(lane + 1) * k]);
        Self { m, k, per_word, columns, x: to }
    }

    /// Weight rows of one task, for `n` in all: whole vectors, and tasks enough that every thread is busy to the end (with 96 rows, 1 % less
    /// of the memory's bandwidth was used).
    pub fn task_rows(&self, n: usize) -> usize {
        n.div_ceil(6 * rayon::current_num_threads()).next_multiple_of(16).min(32)
    }

    /// `yt[n, m] = Σ_k w[n, k] * x[m, k]` for the weight rows `n`; returns the distance of its rows, which is m. The weights from row `next.1` of
    /// `next.0` on are fetched last.
    pub fn product(&self, yt: &mut Buffer, w: Weights, n: Range<usize>, next: (Weights, usize)) -> usize {
        let (Weights::Bf16(w), Weights::Bf16(next_w)) = (w, next.0) else {
            unreachable!("`fits` saw the weights")
        };
        let yt = yt.floats(n.len().next_multiple_of(16) * self.m);
        let w = &w[n.start * self.k..n.end * self.k];
        let next = next_w.as_ptr().wrapping_add(next.1 * self.k);
        #[cfg(target_arch = "x86_64")]
        for (i, (rows, y)) in w.chunks(16 * self.k).zip(yt.chunks_mut(16 * self.m)).enumerate() {
            let next = if 16 * (i + 1) < n.len() { rows.as_ptr_range().end } else { next };
            let run = if self.per_word == 2 { x86::bf16 } else { x86::f32 };
            // SAFETY: `fits` found the instructions; `rows` are one to 16 rows of k, and `y` has room for 16 of m.
            unsafe { run(self, y, rows, next) };
        }
        let _ = (w, next);
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
    use super::{Column, Few, WORDS};
    use half::bf16;
    use std::arch::x86_64::*;

    /// How far ahead of the sums of 16 rows weights are fetched, in elements: 8 lines of each. Past a row's end the next 16 rows begin. Farther,
    /// or into L2 alone (Zen 5 drops most fetches that name it), is slower where memory is fast; two or four groups of rows beside one another
    /// came at two thirds of this speed or less: too many streams (2026-11-26).
    const AHEAD: usize = 256;

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

    /// `$name`: `y[r, i] = Σ_k w[r, k] * x[i, k]` for one to 16 weight rows r, with `$step` a word of 16 runs into their sums. A word of x is `$per`
    /// values of k; `$splat` reads what belongs to a word of weights for a row of x, `$lanes` for 16 parts.
    macro_rules! kernel {
        ($name:ident, $rows:ident, $parts:ident, $features:literal, $per:literal, $splat:expr, $lanes:expr, $step:expr) => {
            /// # Safety
            /// The CPU has the features; `y` holds 16 times m, `w` one to 16 rows of k. `next` are the 16 rows of weights that will be read next;
            /// they need not be there.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(few: &Few, y: &mut [f32], w: &[bf16], next: *const bf16) {
                // What -0 is added to stays as it is, its sign too.
                let none = _mm512_set1_ps(-0.0);
                // SAFETY: the caller's promise.
                unsafe {
                    match few.m {
                        1 => {
                            let mut sums = none;
                            for (i, column) in few.columns.iter().enumerate() {
                                let next = few.columns.get(i + 1).map_or(next, |c| w[c.first..].as_ptr());
                                sums = match column.parts {
                                    16 => $parts::<1>(sums, w, few.k, column, next),
                                    8 => $parts::<2>(sums, w, few.k, column, next),
                                    _ => $parts::<4>(sums, w, few.k, column, next),
                                };
                            }
                            $rows::<1>([sums], few, y, w, next)
                        }
                        2 => $rows::<2>([none; 2], few, y, w, next),
                        3 => $rows::<3>([none; 3], few, y, w, next),
                        4 => $rows::<4>([none; 4], few, y, w, next),
                        5 => $rows::<5>([none; 5], few, y, w, next),
                        6 => $rows::<6>([none; 6], few, y, w, next),
                        7 => $rows::<7>([none; 7], few, y, w, next),
                        _ => $rows::<8>([none; 8], few, y, w, next),
                    }
                }
            }

            /// Adds a column: one row of x, `R` weight rows at a time. What will be read `next` is fetched last.
            #[target_feature(enable = $features)]
            unsafe fn $parts<const R: usize>(
                sums: __m512,
                w: &[bf16],
                k: usize,
                column: &Column,
                next: *const bf16,
            ) -> __m512 {
                const LEN: usize = $per * WORDS;
                let (parts, n) = (16 / R, w.len() / k);
                assert!(column.first + parts * LEN <= k && column.x.len() == 16 * WORDS);
                // Of row r, part p: r * parts + p.
                let mut of_parts = [0.0f32; 256];
                for (i, of_parts) in of_parts.as_chunks_mut::<16>().0[..parts].iter_mut().enumerate() {
                    // Missing rows repeat the last one; their sums are not read.
                    let row: [*const bf16; R] =
                        std::array::from_fn(|r| w[(i * R + r).min(n - 1) * k + column.first..].as_ptr());
                    let next = if i + 1 < parts { row[0].wrapping_add(R * k) } else { next };
                    let mut sums = _mm512_setzero_ps();
                    for line in 0..LEN / 32 {
                        // SAFETY: `parts * LEN` elements of each row are inside `w`, `16 * WORDS` words inside `column.x`, by the
                        // assertion; a prefetch may be anywhere.
                        unsafe {
                            let words = std::array::from_fn(|lane| {
                                let ahead = (line * 16 + lane) * 32;
                                let ahead = ahead / (parts * LEN) * k + ahead % (parts * LEN);
                                _mm_prefetch::<_MM_HINT_NTA>(next.wrapping_add(ahead).cast());
                                _mm512_loadu_si512(
                                    row[lane / parts].add(lane % parts * LEN + line * 32).cast(),
                                )
                            });
                            for (j, word) in transpose(words).into_iter().enumerate() {
                                let x = column.x.as_ptr().add((line * 32 + j * 2) / $per * 16);
                                sums = $step(sums, word, $lanes(x));
                            }
                        }
                    }
                    // SAFETY: 16 values.
                    unsafe { _mm512_storeu_ps(of_parts.as_mut_ptr(), sums) };
                }
                let row = _mm512_mullo_epi32(
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                    _mm512_set1_epi32(parts as i32),
                );
                (0..parts).fold(sums, |sums, part| {
                    // SAFETY: `row * parts + part` is below 256.
                    let of_part = unsafe { _mm512_i32gather_ps::<4>(row, of_parts[part..].as_ptr()) };
                    _mm512_add_ps(sums, of_part)
                })
            }

            /// Adds what of k is behind the columns, 16 weight rows at a time.
            #[target_feature(enable = $features)]
            unsafe fn $rows<const M: usize>(
                mut sums: [__m512; M],
                few: &Few,
                y: &mut [f32],
                w: &[bf16],
                next: *const bf16,
            ) {
                const LEN: usize = $per * WORDS;
                let (k, n) = (few.k, w.len() / few.k);
                let first = k - few.x.len() * $per / M;
                assert!(y.len() >= 16 * M && few.x.len() * $per == (k - first) * M && (k - first) % 32 == 0);
                // Missing rows repeat the last one; their sums are not read.
                let row: [*const bf16; 16] = std::array::from_fn(|r| w[r.min(n - 1) * k..].as_ptr());
                for from in (first..k).step_by(LEN) {
                    let mut of_part = [_mm512_setzero_ps(); M];
                    for at in (from..k.min(from + LEN)).step_by(32) {
                        let (ahead, by) =
                            if at + AHEAD < k { (w.as_ptr(), at + AHEAD) } else { (next, at + AHEAD - k) };
                        // SAFETY: `at + 32 <= k` elements of each row are inside `w`, and M times the words behind `first` in `x` by the
                        // assertion; a prefetch may be anywhere.
                        unsafe {
                            let words = std::array::from_fn(|r| {
                                _mm_prefetch::<_MM_HINT_NTA>(ahead.wrapping_add(r * k + by).cast());
                                _mm512_loadu_si512(row[r].add(at).cast())
                            });
                            for (j, word) in transpose(words).into_iter().enumerate() {
                                for (i, sum) in of_part.iter_mut().enumerate() {
                                    let x = few.x.as_ptr().add(((at - first + j * 2) / $per) * M + i);
                                    *sum = $step(*sum, word, $splat(x, M));
                                }
                            }
                        }
                    }
                    sums.iter_mut()
                        .zip(of_part)
                        .for_each(|(sum, of_part)| *sum = _mm512_add_ps(*sum, of_part));
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
    fn widened(sum: __m512, word: __m512i, x: [__m512; 2]) -> __m512 {
        let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(word));
        let odd =
            _mm512_castsi512_ps(_mm512_and_si512(word, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())));
        _mm512_fmadd_ps(odd, x[1], _mm512_fmadd_ps(even, x[0], sum))
    }

    /// The word's two products in one instruction, as the CPU has it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn paired(sum: __m512, word: __m512i, x: __m512i) -> __m512 {
        // SAFETY: the types are 512 bits of plain data.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(word),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }

    kernel!(
        f32,
        f32_rows,
        f32_parts,
        "avx512f",
        1,
        |x: *const u32, m| [x, x.add(m)].map(|x| _mm512_set1_ps(f32::from_bits(*x))),
        |x: *const u32| [_mm512_loadu_ps(x.cast()), _mm512_loadu_ps(x.add(16).cast())],
        widened
    );
    kernel!(
        bf16,
        bf16_rows,
        bf16_parts,
        "avx512f,avx512bf16",
        2,
        |x: *const u32, _| _mm512_set1_epi32((*x).cast_signed()),
        |x: *const u32| _mm512_loadu_si512(x.cast()),
        paired
    );

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
