//! f16, bf16 and packed arithmetic (PTX ISA "Half Precision Floating Point Instructions").
//!
//! Sums, products and quotients of 11-bit significands are right after one rounding of the f32 result; fused
//! multiply-add goes through an f64 rounded to odd, from which one rounding is exact.

use super::float::{exp2, min, odd_sum};
use super::{Bf16, Bf16x2, F16, F16x2, U32, lanewise};
use crate::tensor::formats as num;

/// `a*b + c` of 16-bit values as an f32 that rounds to their formats correctly.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    let exact = odd_sum(f64::from(a) * f64::from(b), f64::from(c));
    // To f32, again to odd.
    let r = exact as f32;
    let back = f64::from(r);
    if back == exact || !exact.is_finite() || r.to_bits() & 1 != 0 {
        return r;
    }
    if r.is_infinite() {
        return f32::MAX.copysign(r);
    }
    if back < exact { r.next_up() } else { r.next_down() }
}
#[inline(always)]
fn sat(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}
/// `.relu`: negative results become +0, NaN stays.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 || x.to_bits() == 0x8000_0000 { 0.0 } else { x }
}
/// Flushes subnormals of f16 (`.ftz`).
#[inline(always)]
pub(crate) fn flush16<const FTZ: bool>(x: f32) -> f32 {
    if FTZ && x.abs() < 6.103_515_6e-5 { 0.0f32.copysign(x) } else { x }
}

macro_rules! half_ops {
    ($($name:ident $packed:ident ($($v:ident),*) $([$g:ident])? = $e:expr;)*) => { lanewise! { $(
        $name $(<const $g: u8>)?: F16 = |$($v: F16),*| $e;
    )* } $( half_ops!(@packed $packed ($($v),*) $([$g])? = $e); )* };
    (@packed $packed:ident ($a:ident) $([$g:ident])? = $e:expr) => { lanewise! {
        $packed $(<const $g: u8>)?: F16x2 = |$a: F16x2| [{ let $a = $a[0]; $e }, { let $a = $a[1]; $e }];
    } };
    (@packed $packed:ident ($a:ident, $b:ident) $([$g:ident])? = $e:expr) => { lanewise! {
        $packed $(<const $g: u8>)?: F16x2 = |$a: F16x2, $b: F16x2| [{ let ($a, $b) = ($a[0], $b[0]); $e }, { let ($a, $b) = ($a[1], $b[1]); $e }];
    } };
    (@packed $packed:ident ($a:ident, $b:ident, $c:ident) $([$g:ident])? = $e:expr) => { lanewise! {
        $packed $(<const $g: u8>)?: F16x2 = |$a: F16x2, $b: F16x2, $c: F16x2| [{ let ($a, $b, $c) = ($a[0], $b[0], $c[0]); $e }, { let ($a, $b, $c) = ($a[1], $b[1], $c[1]); $e }];
    } };
}

/// Result modifiers of the types below: bit 0 `.ftz`, bit 1 `.sat`, bit 2 `.relu`.
#[inline(always)]
fn finish<const M: u8>(x: f32) -> f32 {
    let x = if M & 2 != 0 { sat(x) } else { x };
    let x = if M & 4 != 0 { relu(x) } else { x };
    if M & 1 != 0 { flush16::<true>(num::f16_to_f32(num::f32_to_f16(x))) } else { x }
}
#[inline(always)]
fn input<const M: u8>(x: f32) -> f32 {
    if M & 1 != 0 { flush16::<true>(x) } else { x }
}

half_ops! {
    AddF16 AddF16x2 (a, b) [M] = finish::<M>(input::<M>(a) + input::<M>(b));
    SubF16 SubF16x2 (a, b) [M] = finish::<M>(input::<M>(a) - input::<M>(b));
    MulF16 MulF16x2 (a, b) [M] = finish::<M>(input::<M>(a) * input::<M>(b));
    FmaF16 FmaF16x2 (a, b, c) [M] = finish::<M>(fma(input::<M>(a), input::<M>(b), input::<M>(c)));
    MinF16 MinF16x2 (a, b) [M] = finish16::<M>(minmax::<M>(input::<M>(a), input::<M>(b), false));
    MaxF16 MaxF16x2 (a, b) [M] = finish16::<M>(minmax::<M>(input::<M>(a), input::<M>(b), true));
    Ex2F16 Ex2F16x2 (a) = exp2(a);
    TanhF16 TanhF16x2 (a) = a.tanh();
}
#[inline(always)]
fn finish16<const M: u8>(x: f32) -> f32 {
    x
}
/// `min`/`max` with bit 1 `.NaN` and bit 2 `.xorsign.abs` of `M`.
#[inline(always)]
fn minmax<const M: u8>(a: f32, b: f32, max: bool) -> f32 {
    match M & 6 {
        0 => min::<false, false>(a, b, max),
        2 => min::<true, false>(a, b, max),
        4 => min::<false, true>(a, b, max),
        _ => min::<true, true>(a, b, max),
    }
}
#[inline(always)]
fn relu_bf<const RELU: bool>(x: f32) -> f32 {
    if RELU { relu(x) } else { x }
}

lanewise! {
    AddBf16: Bf16 = |a: Bf16, b: Bf16| a + b;
    SubBf16: Bf16 = |a: Bf16, b: Bf16| a - b;
    MulBf16: Bf16 = |a: Bf16, b: Bf16| a * b;
    FmaBf16<const RELU: bool>: Bf16 = |a: Bf16, b: Bf16, c: Bf16| relu_bf::<RELU>(fma(a, b, c));
    MinBf16<const M: u8>: Bf16 = |a: Bf16, b: Bf16| minmax::<M>(a, b, false);
    MaxBf16<const M: u8>: Bf16 = |a: Bf16, b: Bf16| minmax::<M>(a, b, true);
    Ex2Bf16: Bf16 = |a: Bf16| exp2(a);
    TanhBf16: Bf16 = |a: Bf16| a.tanh();
    AddBf16x2: Bf16x2 = |a: Bf16x2, b: Bf16x2| [a[0] + b[0], a[1] + b[1]];
    SubBf16x2: Bf16x2 = |a: Bf16x2, b: Bf16x2| [a[0] - b[0], a[1] - b[1]];
    MulBf16x2: Bf16x2 = |a: Bf16x2, b: Bf16x2| [a[0] * b[0], a[1] * b[1]];
    FmaBf16x2<const RELU: bool>: Bf16x2 = |a: Bf16x2, b: Bf16x2, c: Bf16x2| [relu_bf::<RELU>(fma(a[0], b[0], c[0])), relu_bf::<RELU>(fma(a[1], b[1], c[1]))];
    MinBf16x2<const M: u8>: Bf16x2 = |a: Bf16x2, b: Bf16x2| [minmax::<M>(a[0], b[0], false), minmax::<M>(a[1], b[1], false)];
    MaxBf16x2<const M: u8>: Bf16x2 = |a: Bf16x2, b: Bf16x2| [minmax::<M>(a[0], b[0], true), minmax::<M>(a[1], b[1], true)];
    Ex2Bf16x2: Bf16x2 = |a: Bf16x2| [exp2(a[0]), exp2(a[1])];
    TanhBf16x2: Bf16x2 = |a: Bf16x2| [a[0].tanh(), a[1].tanh()];
    Abs16: U32 = |a: U32| a & 0x7fff;
    Abs16x2: U32 = |a: U32| a & 0x7fff_7fff;
    Neg16: U32 = |a: U32| (a ^ 0x8000) & 0xffff;
    Neg16x2: U32 = |a: U32| a ^ 0x8000_8000;
    /// Without the fractions of f16 halves that are subnormal (`.ftz`).
    Flush16x2: U32 = |a: U32| {
        let half = |m: u32| if a & 0x7c00 & m == 0 && a & 0x7c00_0000 & m == 0 { a & 0x8000_8000 & m } else { a & m };
        half(0xffff) | half(0xffff_0000)
    };
}

/// `setp` of f16x2 (`imm` bit 4: `.ftz`) or bf16x2 (bit 3): `p` for the low halves, `q` for the high ones, each combined with
/// the third predicate as in [`store_setp`](super::alu::store_setp).
pub(crate) struct SetpX2<const CMP: u8>;
impl<const CMP: u8> super::Exec for SetpX2<CMP> {
    #[inline(always)]
    unsafe fn run(cx: &mut super::Cx, op: &crate::program::Op, mask: u32) -> super::Flow {
        use super::View;
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = if op.imm & 8 != 0 {
                (Bf16x2::get(cx, op.s[1]), Bf16x2::get(cx, op.s[2]))
            } else if op.imm & 16 != 0 {
                let flush = |v: [[f32; 2]; 32]| v.map(|x| x.map(flush16::<true>));
                (flush(F16x2::get(cx, op.s[1])), flush(F16x2::get(cx, op.s[2])))
            } else {
                (F16x2::get(cx, op.s[1]), F16x2::get(cx, op.s[2]))
            };
            let flip = if op.imm & 4 != 0 { u32::MAX } else { 0 };
            let c = cx.pred(op.s[4]) ^ flip;
            for (k, p) in [(0, op.s[0]), (1, op.s[3])] {
                if p == 0 {
                    continue;
                }
                let r = super::bits(|i| super::alu::compare::<f32, CMP>(a[i][k], b[i][k]));
                let r = match op.imm & 3 {
                    1 => r & c,
                    2 => r | c,
                    3 => r ^ c,
                    _ => r,
                };
                cx.set_pred(p, r, mask);
            }
        }
        super::Flow::Next
    }
}
