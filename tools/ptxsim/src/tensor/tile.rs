//! The multiply under every tensor instruction: one 16x8 tile of `D = A*B + C` on the registers of a warp.
//!
//! All `mma.sync` shapes with 32-bit fragments, and each 8 columns of a `wgmma`, hold their matrices alike.
//! With `E` elements to a register (1 tf32, 2 f16 or bf16, 4 of 8 bits, 8 of 4 bits), `H` registers along
//! k, `lane = 4*g + j`, `k = 4*E*r + E*j + e`:
//!
//! | matrix | register | element `e` of it in lane `4*g + j` |
//! | --- | --- | --- |
//! | A (16, K) | `a[2*r + h]` | row `g + 8*h`, column `k` |
//! | B (K, 8)  | `b[r]`       | row `k`, column `g` |
//! | C, D (16, 8), 32-bit | `c[2*h + i]` | row `g + 8*h`, column `2*j + i` |
//! | C, D (16, 8), f16x2  | `c[h]`       | row `g + 8*h`, columns `2*j` (low half) and `2*j + 1` |
//!
//! Source: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k4" to "... mma.m16n8k256", which agree with this
//! one rule. (The 8-row shapes have `h = 0` only.)
//!
//! Arithmetic: products are exact, and each is added with one f32 FMA, in the order of k. Tensor cores align a
//! group of products to the largest exponent, truncate, and round once a group, so their last bits
//! differ, from one generation to the next as well.
//!
//! There are two versions of the inner loops, AVX-512 and plain Rust (itself compiled with and without AVX2
//! and FMA); a test holds them to the same bits.

use super::Reg;
use super::formats::{
    F32_NAN, bf16_to_f32, canonical, e4m3_to_f32, e5m2_to_f32, f16_to_f32, f32_to_f16, tf32_to_f32,
};

use std::mem::MaybeUninit;
use std::sync::LazyLock;

/// One f32 a lane.
pub(super) type Lanes = [f32; 32];

/// The 16x8 accumulators of a warp, as the four 32-bit registers `c[2*h + i]`.
pub(super) type Acc = [Lanes; 4];

/// B decoded and brought to the order in which the tile consumes it: `[r][e][j]` holds row `k` of B, its
/// even columns, then its odd ones.
#[repr(align(64))]
pub(super) struct BTile<const E: usize, const H: usize>([[[[f32; 8]; 4]; E]; H]);

impl<const E: usize, const H: usize> BTile<E, H> {
    /// Changes the sign of every element, and so of every product.
    pub(super) fn negate(&mut self) {
        for x in self.0.as_flattened_mut().as_flattened_mut().as_flattened_mut() {
            *x = -*x;
        }
    }
}

/// An element type of the multiplicands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// tf32 in a 32-bit register, the low 13 bits ignored.
    Tf32,
    /// FP8, 4 exponent bits.
    E4m3,
    /// FP8, 5 exponent bits.
    E5m2,
    /// Signed byte.
    S8,
    /// Unsigned byte.
    U8,
    /// Signed 4 bits.
    S4,
    /// Unsigned 4 bits.
    U4,
}

impl Elem {
    /// The type that PTX calls `name` (`"bf16"`, `"s8"`, ...).
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "tf32" => Self::Tf32,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            _ => return None,
        })
    }

    /// Elements in a 32-bit register.
    pub const fn per_reg(self) -> usize {
        match self {
            Self::Tf32 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 4,
            Self::S4 | Self::U4 => 8,
        }
    }

    /// Bits that an element takes in its register.
    pub const fn bits(self) -> usize {
        32 / self.per_reg()
    }

    /// Whether it is an integer type, whose sums are exact.
    pub const fn is_int(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4)
    }
}

/// An [`Elem`] as a type, so that the loops that decode it are compiled for it alone.
pub(super) trait Kind {
    /// Which one.
    const ELEM: Elem;
}

macro_rules! kinds {
    ($($name:ident)*) => { $(
        #[derive(Clone, Copy)]
        pub(in crate::tensor) struct $name;
        impl Kind for $name {
            const ELEM: Elem = Elem::$name;
        }
    )* };
}

/// One type for each [`Elem`].
pub(super) mod kind {
    use super::{Elem, Kind};
    kinds!(F16 Bf16 Tf32 E4m3 E5m2 S8 U8 S4 U4);
}

/// The inner loops, for one instruction set.
///
/// Loops over lanes stand alone in their functions: unrolled inside a loop over registers, LLVM
/// vectorises that outer loop instead, with scatters, at a tenth of the speed.
pub(super) trait Simd {
    /// `out[l]`: element `e` (a constant after inlining) of lane l of `reg`; f32 holds every type exactly.
    ///
    /// # Safety
    /// `out` may be written; all of it then is.
    unsafe fn decode(out: *mut Lanes, elem: Elem, e: usize, reg: &Reg);

    /// The bits of f32 results: any NaN is `0x7fffffff`.
    fn f32_bits(out: &mut Reg, v: &Lanes);

    /// Pairs of f16, nearest even: `low` in the low half.
    fn f16x2_bits(out: &mut Reg, low: &Lanes, high: &Lanes);

    /// `c + v`, with `v` whole numbers below 2^24 in size: wrapped at 32 bits, or clamped.
    #[inline(always)]
    fn s32_bits(out: &mut Reg, v: &Lanes, c: &Reg, clamp: bool) {
        for l in 0..32 {
            // SAFETY: as promised, `v` is finite and fits.
            let (c, v) = (c[l] as i32, unsafe { v[l].to_int_unchecked::<i32>() });
            out[l] = if clamp { c.saturating_add(v) } else { c.wrapping_add(v) }.cast_unsigned();
        }
    }

    /// `out[j]`: lanes `4*n + j` of `v`, for n = 0, 2, 4, 6, then 1, 3, 5, 7.
    ///
    /// # Safety
    /// `out` may be written; all of it then is.
    unsafe fn spread(out: *mut [[f32; 8]; 4], v: &Lanes);

    /// `acc += A*B`, A of kind `K` in registers `a[r][h]`.
    fn tile<K: Kind, const E: usize, const H: usize>(acc: &mut Acc, a: [[&Reg; 2]; H], b: &BTile<E, H>);
}

/// Decodes the `H` registers of B into `out`.
#[inline(always)]
pub(super) fn b_tile<'a, S: Simd, K: Kind, const E: usize, const H: usize>(
    out: &'a mut MaybeUninit<BTile<E, H>>,
    b: [&Reg; H],
) -> &'a mut BTile<E, H> {
    let rows = out.as_mut_ptr().cast::<[[f32; 8]; 4]>();
    for r in 0..H {
        for e in 0..E {
            let mut lanes = MaybeUninit::<Lanes>::uninit();
            // SAFETY: `decode` writes all of `lanes` before `spread` reads it; `out` is H*E blocks of rows,
            // each written once, none read.
            unsafe {
                S::decode(lanes.as_mut_ptr(), K::ELEM, e, b[r]);
                S::spread(rows.add(r * E + e), lanes.assume_init_ref());
            }
        }
    }
    // SAFETY: all of it is written.
    unsafe { out.assume_init_mut() }
}

/// The loops as Rust that a compiler may vectorise as it can.
mod plain {
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn decode(out: *mut Lanes, elem: Elem, e: usize, reg: &Reg) {
        #[inline(always)]
        fn each(out: *mut Lanes, reg: &Reg, f: impl Fn(u32) -> f32) {
            let mut lanes = [0.0; 32];
            for (x, &word) in lanes.iter_mut().zip(reg) {
                *x = f(word);
            }
            // SAFETY: by this function's contract.
            unsafe { out.write(lanes) };
        }
        let shift = e * elem.bits();
        match elem {
            Elem::F16 => each(out, reg, |w| f16_to_f32((w >> shift) as u16)),
            Elem::Bf16 => each(out, reg, |w| bf16_to_f32((w >> shift) as u16)),
            Elem::Tf32 => each(out, reg, tf32_to_f32),
            Elem::E4m3 => each(out, reg, |w| e4m3_to_f32((w >> shift) as u8)),
            Elem::E5m2 => each(out, reg, |w| e5m2_to_f32((w >> shift) as u8)),
            Elem::S8 => each(out, reg, |w| f32::from((w >> shift) as u8 as i8)),
            Elem::U8 => each(out, reg, |w| f32::from((w >> shift) as u8)),
            Elem::S4 => each(out, reg, |w| ((w >> shift << 28) as i32 >> 28) as f32),
            Elem::U4 => each(out, reg, |w| (w >> shift & 15) as f32),
        }
    }

    #[inline(always)]
    pub(super) fn f32_bits(out: &mut Reg, v: &Lanes) {
        for (bits, &x) in out.iter_mut().zip(v) {
            *bits = canonical(x).to_bits();
        }
    }

    #[inline(always)]
    pub(super) fn f16x2_bits(out: &mut Reg, low: &Lanes, high: &Lanes) {
        for l in 0..32 {
            out[l] = u32::from(f32_to_f16(low[l])) | u32::from(f32_to_f16(high[l])) << 16;
        }
    }

    #[inline(always)]
    pub(super) unsafe fn spread(out: *mut [[f32; 8]; 4], v: &Lanes) {
        let mut rows = [[0.0; 8]; 4];
        for j in 0..4 {
            for i in 0..8 {
                rows[j][i] = v[8 * (i % 4) + 4 * (i / 4) + j];
            }
        }
        // SAFETY: by this function's contract.
        unsafe { out.write(rows) };
    }

    /// `acc += A*B` for element `e`: `rows` of A and the rows of B.
    #[inline(always)]
    pub(super) fn multiply(acc: &mut Acc, rows: &[Lanes; 2], b: &[[f32; 8]; 4], j: usize) {
        // Lane 4*g + j' holds columns 2*j' and 2*j' + 1.
        let column = |i: usize| -> Lanes { std::array::from_fn(|l| b[j][4 * i + l % 4]) };
        for h in 0..2 {
            let row: Lanes = std::array::from_fn(|l| rows[h][l / 4 * 4 + j]);
            for i in 0..2 {
                let (acc, column) = (&mut acc[2 * h + i], column(i));
                for l in 0..32 {
                    acc[l] = row[l].mul_add(column[l], acc[l]);
                }
            }
        }
    }
}

/// [`plain`] compiled once for each of its loops, whatever the element: what is left to instances are calls.
macro_rules! level {
    ($(#[$doc:meta])* $name:ident, $(#[$features:meta])*) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Simd for $name {
            #[inline(always)]
            unsafe fn decode(out: *mut Lanes, elem: Elem, e: usize, reg: &Reg) {
                $(#[$features])*
                #[inline(never)]
                unsafe fn call(out: *mut Lanes, elem: Elem, e: usize, reg: &Reg) {
                    // SAFETY: the caller's promise.
                    unsafe { plain::decode(out, elem, e, reg) }
                }
                // SAFETY: the caller's promise; `Level` stands for the features.
                unsafe { call(out, elem, e, reg) }
            }
            #[inline(always)]
            fn f32_bits(out: &mut Reg, v: &Lanes) {
                $(#[$features])*
                #[inline(never)]
                unsafe fn call(out: &mut Reg, v: &Lanes) {
                    plain::f32_bits(out, v)
                }
                // SAFETY: `Level` stands for the features.
                unsafe { call(out, v) }
            }
            #[inline(always)]
            fn f16x2_bits(out: &mut Reg, low: &Lanes, high: &Lanes) {
                $(#[$features])*
                #[inline(never)]
                unsafe fn call(out: &mut Reg, low: &Lanes, high: &Lanes) {
                    plain::f16x2_bits(out, low, high)
                }
                // SAFETY: `Level` stands for the features.
                unsafe { call(out, low, high) }
            }
            #[inline(always)]
            unsafe fn spread(out: *mut [[f32; 8]; 4], v: &Lanes) {
                $(#[$features])*
                #[inline(never)]
                unsafe fn call(out: *mut [[f32; 8]; 4], v: &Lanes) {
                    // SAFETY: the caller's promise.
                    unsafe { plain::spread(out, v) }
                }
                // SAFETY: the caller's promise; `Level` stands for the features.
                unsafe { call(out, v) }
            }
            fn tile<K: Kind, const E: usize, const H: usize>(
                acc: &mut Acc,
                a: [[&Reg; 2]; H],
                b: &BTile<E, H>,
            ) {
                $(#[$features])*
                #[inline(never)]
                unsafe fn call(acc: &mut Acc, rows: &[Lanes; 2], b: &[[f32; 8]; 4], j: usize) {
                    plain::multiply(acc, rows, b, j)
                }
                for (a, b) in a.iter().zip(&b.0) {
                    let mut decoded = [[[0.0; 32]; 2]; E];
                    for (e, decoded) in decoded.iter_mut().enumerate() {
                        for h in 0..2 {
                            // SAFETY: `decoded` is of this function.
                            unsafe { Self::decode(&mut decoded[h], K::ELEM, e, a[h]) };
                        }
                    }
                    for j in 0..4 {
                        for e in 0..E {
                            // SAFETY: `Level` stands for the features.
                            unsafe { call(acc, &decoded[e], &b[e], j) };
                        }
                    }
                }
            }
        }
    };
}
level!(
    /// Any machine.
    Base,
);
#[cfg(target_arch = "x86_64")]
level!(
    /// AVX2 with FMA.
    Avx2,
    #[target_feature(enable = "avx2,fma")]
);

/// AVX-512: a register of 32 lanes is two vectors; 8 accumulators stay in registers for the whole tile.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    #[inline(always)]
    unsafe fn decode(out: *mut Lanes, elem: Elem, e: usize, reg: &Reg) {
        use std::arch::x86_64::*;
        for q in 0..2 {
            // SAFETY: `Avx512` is named only in functions compiled for AVX-512, called once that is detected;
            // `out` is 32 floats.
            unsafe { _mm512_storeu_ps(out.cast::<f32>().add(16 * q), decode_avx512(elem, e, q, reg)) };
        }
    }

    #[inline(always)]
    fn f32_bits(out: &mut Reg, v: &Lanes) {
        use std::arch::x86_64::*;
        for q in 0..2 {
            // SAFETY: as in `decode`.
            unsafe {
                let x = _mm512_loadu_ps(v.as_ptr().add(16 * q));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                let x = _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(F32_NAN));
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * q).cast(), x);
            }
        }
    }

    #[inline(always)]
    fn f16x2_bits(out: &mut Reg, low: &Lanes, high: &Lanes) {
        use std::arch::x86_64::*;
        let half = |v: &Lanes, q: usize| {
            // SAFETY: as in `decode`.
            unsafe {
                let x = _mm512_loadu_ps(v.as_ptr().add(16 * q));
                let bits = _mm512_cvtepu16_epi32(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fff))
            }
        };
        for q in 0..2 {
            // SAFETY: as in `decode`.
            unsafe {
                let pair = _mm512_or_si512(half(low, q), _mm512_slli_epi32::<16>(half(high, q)));
                _mm512_storeu_si512(out.as_mut_ptr().add(16 * q).cast(), pair);
            }
        }
    }

    #[inline(always)]
    unsafe fn spread(out: *mut [[f32; 8]; 4], v: &Lanes) {
        use std::arch::x86_64::*;
        // SAFETY: as in `decode`; `v` and `out` are 32 floats each.
        unsafe {
            let first = _mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 1, 9, 17, 25, 5, 13, 21, 29);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
            let (low, high) = (_mm512_loadu_ps(v.as_ptr()), _mm512_loadu_ps(v.as_ptr().add(16)));
            let out = out.cast::<f32>();
            _mm512_storeu_ps(out, _mm512_permutex2var_ps(low, first, high));
            _mm512_storeu_ps(out.add(16), _mm512_permutex2var_ps(low, second, high));
        }
    }

    #[inline(always)]
    fn tile<K: Kind, const E: usize, const H: usize>(acc: &mut Acc, a: [[&Reg; 2]; H], b: &BTile<E, H>) {
        // SAFETY: as in `decode`.
        unsafe { tile_avx512::<K, E, H>(acc, a, b) }
    }
}

/// Half `q` of [`Simd::decode`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn decode_avx512(elem: Elem, e: usize, q: usize, reg: &Reg) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    let bits = elem.bits() as u32;
    // SAFETY: 16 of 32 words.
    let word = unsafe { _mm512_loadu_si512(reg.as_ptr().add(16 * q).cast()) };
    // The element at the bottom, anything above it.
    let low = || _mm512_srl_epi32(word, _mm_cvtsi32_si128((bits * e as u32) as i32));
    // The element at the top, anything below it.
    let high = || _mm512_sll_epi32(word, _mm_cvtsi32_si128((32 - bits * (e as u32 + 1)) as i32));
    let halves = |h: __m512i| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(h));
    match elem {
        Elem::F16 => halves(low()),
        Elem::Bf16 => _mm512_castsi512_ps(_mm512_and_si512(high(), _mm512_set1_epi32(!0xffff))),
        Elem::Tf32 => _mm512_castsi512_ps(_mm512_and_si512(word, _mm512_set1_epi32(!0x1fff))),
        Elem::E5m2 => halves(_mm512_slli_epi32::<8>(_mm512_srli_epi32::<24>(high()))), // an f16 cut short
        Elem::E4m3 => {
            // As an f16 of its bits, 2^-8 of the value.
            let sign = _mm512_and_si512(_mm512_srli_epi32::<16>(high()), _mm512_set1_epi32(0x8000));
            let magnitude = _mm512_and_si512(low(), _mm512_set1_epi32(0x7f));
            let half = _mm512_or_si512(sign, _mm512_slli_epi32::<7>(magnitude));
            let value = _mm512_mul_ps(halves(half), _mm512_set1_ps(256.0));
            let nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
            _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(F32_NAN))
        }
        Elem::S8 => _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high())),
        Elem::U8 => _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(high())),
        Elem::S4 => _mm512_cvtepi32_ps(_mm512_srai_epi32::<28>(high())),
        Elem::U4 => _mm512_cvtepi32_ps(_mm512_srli_epi32::<28>(high())),
    }
}

/// [`Simd::tile`]. Not inlined: `b` then lies in memory, from where a load can broadcast four floats
/// for free; told where they come from, LLVM shuffles registers instead, and the shuffle port is
/// the busy one (measured 2026-11-22, Cascade Lake at 2.5 GHz: 74 ns for all of a bf16 m16n8k16; inlined, 80 ns for the loops alone).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn tile_avx512<K: Kind, const E: usize, const H: usize>(acc: &mut Acc, a: [[&Reg; 2]; H], b: &BTile<E, H>) {
    use std::arch::x86_64::*;
    // SAFETY: every pointer is to 16 floats of an array of 32, or to 4 of an array of 8.
    unsafe {
        let at = |c: usize, q: usize| acc[c].as_ptr().add(16 * q);
        let mut sum: [[__m512; 2]; 4] =
            std::array::from_fn(|c| [_mm512_loadu_ps(at(c, 0)), _mm512_loadu_ps(at(c, 1))]);
        for (a, b) in a.iter().zip(&b.0) {
            let mut rows = [[[_mm512_setzero_ps(); 2]; E]; 2];
            for h in 0..2 {
                for e in 0..E {
                    for q in 0..2 {
                        rows[h][e][q] = decode_avx512(K::ELEM, e, q, a[h]);
                    }
                }
            }
            for j in 0..4 {
                let quad = _mm512_set1_epi32(j as i32); // permutevar: lane j of each four
                for e in 0..E {
                    let columns = b[e][j].as_ptr();
                    let even = _mm512_broadcast_f32x4(_mm_loadu_ps(columns));
                    let odd = _mm512_broadcast_f32x4(_mm_loadu_ps(columns.add(4)));
                    for h in 0..2 {
                        for q in 0..2 {
                            let row = _mm512_permutevar_ps(rows[h][e][q], quad);
                            sum[2 * h][q] = _mm512_fmadd_ps(row, even, sum[2 * h][q]);
                            sum[2 * h + 1][q] = _mm512_fmadd_ps(row, odd, sum[2 * h + 1][q]);
                        }
                    }
                }
            }
        }
        for (acc, sum) in acc.iter_mut().zip(sum) {
            _mm512_storeu_ps(acc.as_mut_ptr(), sum[0]);
            _mm512_storeu_ps(acc.as_mut_ptr().add(16), sum[1]);
        }
    }
}

/// What this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX-512 F, BW, DQ and VL, AVX2 and FMA.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Anything.
    Base,
}

/// The best [`Level`], asked once.
pub(super) static LEVEL: LazyLock<Level> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if wide { Level::Avx512 } else { Level::Avx2 };
    }
    Level::Base
});

/// A computation written once over [`Simd`], run by [`dispatch`].
pub(super) trait Kernel {
    /// Does it.
    fn run<S: Simd>(self);
}

/// Runs `kernel` with the best instructions of this CPU.
#[inline]
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512(kernel: impl Kernel) {
            kernel.run::<Avx512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(kernel: impl Kernel) {
            kernel.run::<Avx2>();
        }
        match *LEVEL {
            // SAFETY: the features were found.
            Level::Avx512 => return unsafe { avx512(kernel) },
            // SAFETY: the features were found.
            Level::Avx2 => return unsafe { avx2(kernel) },
            Level::Base => {}
        }
    }
    kernel.run::<Base>();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One multiply of `K` elements, `E` to a register.
    struct Once<'a, K, const E: usize> {
        a: &'a [Reg; 4],
        b: &'a [Reg; 2],
        acc: &'a mut Acc,
        kind: K,
    }

    impl<K: Kind, const E: usize> Kernel for Once<'_, K, E> {
        fn run<S: Simd>(self) {
            let mut b = MaybeUninit::uninit();
            let a = [[&self.a[0], &self.a[1]], [&self.a[2], &self.a[3]]];
            S::tile::<K, E, 2>(self.acc, a, b_tile::<S, K, E, 2>(&mut b, self.b.each_ref()));
            let _ = self.kind;
        }
    }

    fn check<K: Kind + Copy, const E: usize>(kind: K) {
        let mut x = 7u32;
        for _ in 0..50 {
            let mut reg = || -> Reg {
                std::array::from_fn(|_| {
                    x ^= x << 13;
                    x ^= x >> 17;
                    x ^= x << 5;
                    x & 0xbfbf_bfbf // no infinities or NaN
                })
            };
            let (a, b) = (std::array::from_fn(|_| reg()), std::array::from_fn(|_| reg()));
            let start = [[0.1; 32], [-0.2; 32], [3.0; 32], [0.0; 32]];
            let (mut plain, mut best) = (start, start);
            Once::<K, E> { a: &a, b: &b, acc: &mut plain, kind }.run::<Base>();
            #[cfg(target_arch = "x86_64")]
            if *LEVEL != Level::Base {
                let mut acc = start;
                Once::<K, E> { a: &a, b: &b, acc: &mut acc, kind }.run::<Avx2>();
                assert_eq!(plain, acc, "AVX2, {:?}", K::ELEM);
            }
            dispatch(Once::<K, E> { a: &a, b: &b, acc: &mut best, kind });
            assert_eq!(plain, best, "{:?}", K::ELEM);
        }
    }

    #[test]
    fn all_versions_give_the_same_bits() {
        check::<_, 2>(kind::F16);
        check::<_, 2>(kind::Bf16);
        check::<_, 1>(kind::Tf32);
        check::<_, 4>(kind::E4m3);
        check::<_, 4>(kind::E5m2);
        check::<_, 4>(kind::S8);
        check::<_, 4>(kind::U8);
        check::<_, 8>(kind::S4);
        check::<_, 8>(kind::U4);
    }

    #[test]
    fn all_versions_decode_every_element() {
        struct All(Vec<u32>);
        struct Decode<'a, K>(&'a mut All, &'a Reg, usize, K);
        impl<K: Kind> Kernel for Decode<'_, K> {
            fn run<S: Simd>(self) {
                let mut out = [0.0; 32];
                // SAFETY: `out` is of this function.
                unsafe { S::decode(&mut out, K::ELEM, self.2, self.1) };
                let mut bits = [0; 32];
                S::f32_bits(&mut bits, &out);
                self.0.0.extend(bits);
            }
        }
        fn each<K: Kind + Copy>(kind: K) {
            for start in (0..1 << 16).step_by(32) {
                let reg: Reg = std::array::from_fn(|l| (start + l as u32) * 0x0001_0001);
                for e in 0..K::ELEM.per_reg() {
                    let (mut plain, mut best) = (All(Vec::new()), All(Vec::new()));
                    Decode(&mut plain, &reg, e, kind).run::<Base>();
                    dispatch(Decode(&mut best, &reg, e, kind));
                    assert_eq!(plain.0, best.0, "{:?} element {e} from {start:#x}", K::ELEM);
                }
            }
        }
        each(kind::F16);
        each(kind::Bf16);
        each(kind::Tf32);
        each(kind::E4m3);
        each(kind::E5m2);
        each(kind::S8);
        each(kind::U8);
        each(kind::S4);
        each(kind::U4);
    }
}
