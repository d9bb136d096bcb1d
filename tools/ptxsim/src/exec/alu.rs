//! Integer, logic, shift and bit-field instructions (PTX ISA "Integer Arithmetic", "Extended-Precision Integer
//! Arithmetic", "Logic and Shift", and the comparisons of integers).

use super::{Cx, Exec, Flow, LANES, S16, S32, S64, U16, U32, U64, View, bits, lanes, lanewise};
use crate::program::Op;

lanewise! {
    Add32: U32 = |a: U32, b: U32| a.wrapping_add(b);
    Add64: U64 = |a: U64, b: U64| a.wrapping_add(b);
    Add16: U16 = |a: U16, b: U16| a.wrapping_add(b);
    /// Each half on its own.
    Add16x2: U32 = |a: U32, b: U32| halves(a, b, u16::wrapping_add);
    AddSat: S32 = |a: S32, b: S32| a.saturating_add(b);
    Sub32: U32 = |a: U32, b: U32| a.wrapping_sub(b);
    Sub64: U64 = |a: U64, b: U64| a.wrapping_sub(b);
    Sub16: U16 = |a: U16, b: U16| a.wrapping_sub(b);
    SubSat: S32 = |a: S32, b: S32| a.saturating_sub(b);
    MulLo32: U32 = |a: U32, b: U32| a.wrapping_mul(b);
    MulLo64: U64 = |a: U64, b: U64| a.wrapping_mul(b);
    MulLo16: U16 = |a: U16, b: U16| a.wrapping_mul(b);
    MulHiU32: U32 = |a: U32, b: U32| ((u64::from(a) * u64::from(b)) >> 32) as u32;
    MulHiS32: S32 = |a: S32, b: S32| ((i64::from(a) * i64::from(b)) >> 32) as i32;
    MulHiU64: U64 = |a: U64, b: U64| ((u128::from(a) * u128::from(b)) >> 64) as u64;
    MulHiS64: S64 = |a: S64, b: S64| ((i128::from(a) * i128::from(b)) >> 64) as i64;
    MulHiU16: U16 = |a: U16, b: U16| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    MulHiS16: S16 = |a: S16, b: S16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    MulWideU32: U64 = |a: U32, b: U32| u64::from(a) * u64::from(b);
    MulWideS32: S64 = |a: S32, b: S32| i64::from(a) * i64::from(b);
    MulWideU16: U32 = |a: U16, b: U16| u32::from(a) * u32::from(b);
    MulWideS16: S32 = |a: S16, b: S16| i32::from(a) * i32::from(b);
    MadLo32: U32 = |a: U32, b: U32, c: U32| a.wrapping_mul(b).wrapping_add(c);
    MadLo64: U64 = |a: U64, b: U64, c: U64| a.wrapping_mul(b).wrapping_add(c);
    MadLo16: U16 = |a: U16, b: U16, c: U16| a.wrapping_mul(b).wrapping_add(c);
    MadHiU32: U32 = |a: U32, b: U32, c: U32| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c);
    MadHiS32: S32 = |a: S32, b: S32, c: S32| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c);
    MadHiSatS32: S32 = |a: S32, b: S32, c: S32| (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c);
    MadHiU64: U64 = |a: U64, b: U64, c: U64| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c);
    MadHiS64: S64 = |a: S64, b: S64, c: S64| (((i128::from(a) * i128::from(b)) >> 64) as i64).wrapping_add(c);
    MadHiU16: U16 = |a: U16, b: U16, c: U16| (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c);
    MadHiS16: S16 = |a: S16, b: S16, c: S16| (((i32::from(a) * i32::from(b)) >> 16) as i16).wrapping_add(c);
    MadWideU32: U64 = |a: U32, b: U32, c: U64| (u64::from(a) * u64::from(b)).wrapping_add(c);
    MadWideS32: S64 = |a: S32, b: S32, c: S64| (i64::from(a) * i64::from(b)).wrapping_add(c);
    MadWideU16: U32 = |a: U16, b: U16, c: U32| (u32::from(a) * u32::from(b)).wrapping_add(c);
    MadWideS16: S32 = |a: S16, b: S16, c: S32| (i32::from(a) * i32::from(b)).wrapping_add(c);
    /// The low 24 bits of each source, as 24-bit integers; the low 32 bits of their 48-bit product.
    Mul24LoU: U32 = |a: U32, b: U32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff);
    Mul24LoS: S32 = |a: S32, b: S32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8);
    /// Bits 16..48 of the 48-bit product.
    Mul24HiU: U32 = |a: U32, b: U32| ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32;
    Mul24HiS: S32 = |a: S32, b: S32| ((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)) >> 16) as i32;
    Mad24LoU: U32 = |a: U32, b: U32, c: U32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c);
    Mad24LoS: S32 = |a: S32, b: S32, c: S32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c);
    Mad24HiU: U32 = |a: U32, b: U32, c: U32| (((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32).wrapping_add(c);
    Mad24HiS: S32 = |a: S32, b: S32, c: S32| (((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)) >> 16) as i32).wrapping_add(c);
    // Division by zero is unspecified; like the GPU's own routines, all ones (quotient) and the dividend (remainder).
    DivU32: U32 = |a: U32, b: U32| a.checked_div(b).unwrap_or(u32::MAX);
    DivS32: S32 = |a: S32, b: S32| if b == 0 { -1 } else { a.wrapping_div(b) };
    DivU64: U64 = |a: U64, b: U64| a.checked_div(b).unwrap_or(u64::MAX);
    DivS64: S64 = |a: S64, b: S64| if b == 0 { -1 } else { a.wrapping_div(b) };
    DivU16: U16 = |a: U16, b: U16| a.checked_div(b).unwrap_or(u16::MAX);
    DivS16: S16 = |a: S16, b: S16| if b == 0 { -1 } else { a.wrapping_div(b) };
    RemU32: U32 = |a: U32, b: U32| a.checked_rem(b).unwrap_or(a);
    RemS32: S32 = |a: S32, b: S32| if b == 0 { a } else { a.wrapping_rem(b) };
    RemU64: U64 = |a: U64, b: U64| a.checked_rem(b).unwrap_or(a);
    RemS64: S64 = |a: S64, b: S64| if b == 0 { a } else { a.wrapping_rem(b) };
    RemU16: U16 = |a: U16, b: U16| a.checked_rem(b).unwrap_or(a);
    RemS16: S16 = |a: S16, b: S16| if b == 0 { a } else { a.wrapping_rem(b) };
    Abs32: S32 = |a: S32| a.wrapping_abs();
    Abs64: S64 = |a: S64| a.wrapping_abs();
    Abs16: S16 = |a: S16| a.wrapping_abs();
    Neg32: S32 = |a: S32| a.wrapping_neg();
    Neg64: S64 = |a: S64| a.wrapping_neg();
    Neg16: S16 = |a: S16| a.wrapping_neg();
    MinU32: U32 = |a: U32, b: U32| a.min(b);
    MinS32: S32 = |a: S32, b: S32| a.min(b);
    MinU64: U64 = |a: U64, b: U64| a.min(b);
    MinS64: S64 = |a: S64, b: S64| a.min(b);
    MinU16: U16 = |a: U16, b: U16| a.min(b);
    MinS16: S16 = |a: S16, b: S16| a.min(b);
    MinU16x2: U32 = |a: U32, b: U32| halves(a, b, u16::min);
    MinS16x2: U32 = |a: U32, b: U32| halves(a, b, |x, y| (x as i16).min(y as i16) as u16);
    /// `.relu`: negative results become 0.
    MinReluS32: S32 = |a: S32, b: S32| a.min(b).max(0);
    MinReluS16x2: U32 = |a: U32, b: U32| halves(a, b, |x, y| (x as i16).min(y as i16).max(0) as u16);
    MaxU32: U32 = |a: U32, b: U32| a.max(b);
    MaxS32: S32 = |a: S32, b: S32| a.max(b);
    MaxU64: U64 = |a: U64, b: U64| a.max(b);
    MaxS64: S64 = |a: S64, b: S64| a.max(b);
    MaxU16: U16 = |a: U16, b: U16| a.max(b);
    MaxS16: S16 = |a: S16, b: S16| a.max(b);
    MaxU16x2: U32 = |a: U32, b: U32| halves(a, b, u16::max);
    MaxS16x2: U32 = |a: U32, b: U32| halves(a, b, |x, y| (x as i16).max(y as i16) as u16);
    MaxReluS32: S32 = |a: S32, b: S32| a.max(b).max(0);
    MaxReluS16x2: U32 = |a: U32, b: U32| halves(a, b, |x, y| (x as i16).max(y as i16).max(0) as u16);
    SadU32: U32 = |a: U32, b: U32, c: U32| c.wrapping_add(a.abs_diff(b));
    SadS32: U32 = |a: S32, b: S32, c: U32| c.wrapping_add(a.abs_diff(b));
    SadU64: U64 = |a: U64, b: U64, c: U64| c.wrapping_add(a.abs_diff(b));
    SadS64: U64 = |a: S64, b: S64, c: U64| c.wrapping_add(a.abs_diff(b));
    SadU16: U16 = |a: U16, b: U16, c: U16| c.wrapping_add(a.abs_diff(b));
    SadS16: U16 = |a: S16, b: S16, c: U16| c.wrapping_add(a.abs_diff(b));
    Popc32: U32 = |a: U32| a.count_ones();
    Popc64: U32 = |a: U64| a.count_ones();
    Clz32: U32 = |a: U32| a.leading_zeros();
    Clz64: U32 = |a: U64| a.leading_zeros();
    Brev32: U32 = |a: U32| a.reverse_bits();
    Brev64: U64 = |a: U64| a.reverse_bits();
    BfindU32: U32 = |a: U32| bfind(u64::from(a));
    BfindS32: U32 = |a: S32| bfind(u64::from((a ^ a >> 31) as u32));
    BfindU64: U32 = |a: U64| bfind(a);
    BfindS64: U32 = |a: S64| bfind((a ^ a >> 63) as u64);
    /// `.shiftamt`: the shift that would bring the bit to the top.
    BfindShiftU32: U32 = |a: U32| bfind_shift(bfind(u64::from(a)), 31);
    BfindShiftS32: U32 = |a: S32| bfind_shift(bfind(u64::from((a ^ a >> 31) as u32)), 31);
    BfindShiftU64: U32 = |a: U64| bfind_shift(bfind(a), 63);
    BfindShiftS64: U32 = |a: S64| bfind_shift(bfind((a ^ a >> 63) as u64), 63);
    FnsB32: U32 = |m: U32, base: U32, offset: S32| fns(m, base, offset);
    BfeU32: U32 = |a: U32, b: U32, c: U32| bfe_u(u64::from(a), b, c, 32) as u32;
    BfeS32: U32 = |a: S32, b: U32, c: U32| bfe_s(i64::from(a), b, c, 32) as u32;
    BfeU64: U64 = |a: U64, b: U32, c: U32| bfe_u(a, b, c, 64);
    BfeS64: S64 = |a: S64, b: U32, c: U32| bfe_s(a, b, c, 64);
    Bfi32: U32 = |a: U32, b: U32, c: U32, d: U32| bfi(u64::from(a), u64::from(b), c, d, 32) as u32;
    Bfi64: U64 = |a: U64, b: U64, c: U32, d: U32| bfi(a, b, c, d, 64);
    BmskClamp: U32 = |a: U32, b: U32| bmsk(a, b);
    BmskWrap: U32 = |a: U32, b: U32| bmsk(a & 31, b & 31);
    SzextClampU: U32 = |a: U32, b: U32| if b >= 32 { a } else { a & ((1 << b) - 1) };
    SzextClampS: S32 = |a: S32, b: U32| szext(a, b);
    SzextWrapU: U32 = |a: U32, b: U32| a & ((1 << (b & 31)) - 1);
    SzextWrapS: S32 = |a: S32, b: U32| szext(a, b & 31);
    Dp4aUU: U32 = |a: U32, b: U32, c: U32| (0..4).fold(c, |s, i| s.wrapping_add(byte(a, i) * byte(b, i)));
    Dp4aUS: S32 = |a: U32, b: U32, c: S32| (0..4).fold(c, |s, i| s.wrapping_add(byte(a, i) as i32 * sbyte(b, i)));
    Dp4aSU: S32 = |a: U32, b: U32, c: S32| (0..4).fold(c, |s, i| s.wrapping_add(sbyte(a, i) * byte(b, i) as i32));
    Dp4aSS: S32 = |a: U32, b: U32, c: S32| (0..4).fold(c, |s, i| s.wrapping_add(sbyte(a, i) * sbyte(b, i)));
    /// Halves of `a` with the bytes of `b` from byte `HI` on (0 `.lo`, 2 `.hi`).
    Dp2aUU<const HI: u32>: U32 = |a: U32, b: U32, c: U32| (0..2).fold(c, |s, i| s.wrapping_add((a >> (16 * i) & 0xffff) * byte(b, HI + i)));
    Dp2aUS<const HI: u32>: S32 = |a: U32, b: U32, c: S32| (0..2).fold(c, |s, i| s.wrapping_add((a >> (16 * i) & 0xffff) as i32 * sbyte(b, HI + i)));
    Dp2aSU<const HI: u32>: S32 = |a: U32, b: U32, c: S32| (0..2).fold(c, |s, i| s.wrapping_add(i32::from((a >> (16 * i)) as i16) * byte(b, HI + i) as i32));
    Dp2aSS<const HI: u32>: S32 = |a: U32, b: U32, c: S32| (0..2).fold(c, |s, i| s.wrapping_add(i32::from((a >> (16 * i)) as i16) * sbyte(b, HI + i)));
    And32: U32 = |a: U32, b: U32| a & b;
    And64: U64 = |a: U64, b: U64| a & b;
    Or32: U32 = |a: U32, b: U32| a | b;
    Or64: U64 = |a: U64, b: U64| a | b;
    Xor32: U32 = |a: U32, b: U32| a ^ b;
    Xor64: U64 = |a: U64, b: U64| a ^ b;
    Not32: U32 = |a: U32| !a;
    Not64: U64 = |a: U64| !a;
    Not16: U16 = |a: U16| !a;
    Cnot32: U32 = |a: U32| u32::from(a == 0);
    Cnot64: U64 = |a: U64| u64::from(a == 0);
    Cnot16: U16 = |a: U16| u16::from(a == 0);
    // Shift amounts are unsigned 32-bit and clamped at the width.
    Shl32: U32 = |a: U32, b: U32| if b > 31 { 0 } else { a << b };
    Shl64: U64 = |a: U64, b: U32| if b > 63 { 0 } else { a << b };
    Shl16: U16 = |a: U16, b: U32| if b > 15 { 0 } else { a << b };
    ShrU32: U32 = |a: U32, b: U32| if b > 31 { 0 } else { a >> b };
    ShrU64: U64 = |a: U64, b: U32| if b > 63 { 0 } else { a >> b };
    ShrU16: U16 = |a: U16, b: U32| if b > 15 { 0 } else { a >> b };
    ShrS32: S32 = |a: S32, b: U32| a >> b.min(31);
    ShrS64: S64 = |a: S64, b: U32| a >> b.min(63);
    ShrS16: S16 = |a: S16, b: U32| a >> b.min(15);
    /// `d = (b:a << c)[63:32]`; `.clamp` stops at 32, `.wrap` takes `c` modulo 32.
    ShfLClamp: U32 = |a: U32, b: U32, c: U32| ((u64::from(b) << 32 | u64::from(a)) << c.min(32) >> 32) as u32;
    ShfLWrap: U32 = |a: U32, b: U32, c: U32| ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32;
    ShfRClamp: U32 = |a: U32, b: U32, c: U32| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32;
    ShfRWrap: U32 = |a: U32, b: U32, c: U32| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32;
    Prmt: U32 = |a: U32, b: U32, c: U32| prmt(a, b, c);
    PrmtF4e: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |i| (c & 3) + i);
    PrmtB4e: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |i| (c & 3).wrapping_sub(i) & 7);
    PrmtRc8: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |_| c & 3);
    PrmtEcl: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |i| i.max(c & 3));
    PrmtEcr: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |i| i.min(c & 3));
    PrmtRc16: U32 = |a: U32, b: U32, c: U32| select_bytes(a, b, |i| 2 * (c & 1) + (i & 1));
}

#[inline(always)]
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}
#[inline(always)]
fn byte(a: u32, i: u32) -> u32 {
    a >> (8 * i) & 0xff
}
#[inline(always)]
fn sbyte(a: u32, i: u32) -> i32 {
    i32::from((a >> (8 * i)) as i8)
}
#[inline(always)]
fn bfind(a: u64) -> u32 {
    63u32.wrapping_sub(a.leading_zeros())
}
#[inline(always)]
fn bfind_shift(at: u32, top: u32) -> u32 {
    if at == u32::MAX { at } else { top - at }
}
/// The n-th set bit from `base`, up for positive `offset`, down for negative; all ones if there is none.
#[inline(always)]
fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    if offset == 0 {
        return if mask >> (base & 31) & 1 != 0 { base } else { u32::MAX };
    }
    let (mut left, step) = (offset.unsigned_abs(), if offset > 0 { 1i32 } else { -1 });
    let mut at = (base & 31) as i32;
    while (0..32).contains(&at) {
        if mask >> at & 1 != 0 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += step;
    }
    u32::MAX
}
/// `len` bits of `a` from `pos` (each modulo 256), zero-extended.
#[inline(always)]
fn bfe_u(a: u64, pos: u32, len: u32, _width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let shifted = if pos > 63 { 0 } else { a >> pos };
    if len > 63 { shifted } else { shifted & ((1 << len) - 1) }
}
/// As `bfe_u`, with the sign of the field's top bit, or of `a` where the field passes its end.
#[inline(always)]
fn bfe_s(a: i64, pos: u32, len: u32, width: u32) -> i64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let top = (pos + len - 1).min(width - 1);
    let sign = a >> top & 1;
    let mut out = 0i64;
    for i in 0..width {
        let bit = if i < len && pos + i < width { a >> (pos + i) & 1 } else { sign };
        out |= bit << i;
    }
    if width == 32 { i64::from(out as i32) } else { out }
}
/// `b` with `len` bits from `pos` replaced by the low bits of `a`.
#[inline(always)]
fn bfi(a: u64, b: u64, pos: u32, len: u32, _width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let field = if len > 63 { u64::MAX } else { (1 << len) - 1 };
    if pos > 63 { b } else { b & !(field << pos) | (a & field) << pos }
}
#[inline(always)]
fn bmsk(a: u32, b: u32) -> u32 {
    if a >= 32 {
        return 0;
    }
    let ones = if b >= 32 { u32::MAX } else { (1 << b) - 1 };
    ones << a
}
#[inline(always)]
fn szext(a: i32, n: u32) -> i32 {
    match n {
        0 => 0,
        32.. => a,
        _ => a << (32 - n) >> (32 - n),
    }
}
#[inline(always)]
fn select_bytes(a: u32, b: u32, pick: impl Fn(u32) -> u32) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |r, i| r | ((both >> (8 * pick(i))) as u32 & 0xff) << (8 * i))
}
/// Generic mode: each nibble picks a byte, and its top bit replicates that byte's sign.
#[inline(always)]
fn prmt(a: u32, b: u32, c: u32) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |r, i| {
        let n = c >> (4 * i) & 15;
        let x = (both >> (8 * (n & 7))) as u32 & 0xff;
        let x = if n & 8 != 0 { (x >> 7) * 0xff } else { x };
        r | x << (8 * i)
    })
}

/// `lop3.b32`: bit `i` of each result is bit `a:b:c` of the table `imm`. Slot 4 is not used.
pub(crate) struct Lop3;
impl Exec for Lop3 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; all slots are 32-bit rows.
        unsafe {
            let (a, b, c) = (U32::get(cx, op.s[1]), U32::get(cx, op.s[2]), U32::get(cx, op.s[3]));
            let t: [u32; 8] = std::array::from_fn(|i| if op.imm >> i & 1 != 0 { u32::MAX } else { 0 });
            let out = lanes(
                #[inline(always)]
                |i| {
                    let (a, b, c) = (a[i], b[i], c[i]);
                    t[0] & !a & !b & !c
                        | t[1] & !a & !b & c
                        | t[2] & !a & b & !c
                        | t[3] & !a & b & c
                        | t[4] & a & !b & !c
                        | t[5] & a & !b & c
                        | t[6] & a & b & !c
                        | t[7] & a & b & c
                },
            );
            U32::put(cx, op.s[0], out, mask);
        }
        Flow::Next
    }
}

/// Carry chains: the carry is a predicate slot of the function (PTX ISA: `CC.CF`). Slots: d, a, b, carry-in, carry-out
/// (slot 0 of the predicates when unused); `imm` bit 0: subtract, bit 1: has carry-in, bit 2: writes the carry.
pub(crate) struct Carry32;
/// As [`Carry32`] for 64 bits.
pub(crate) struct Carry64;
macro_rules! carry {
    ($name:ident, $view:ident, $t:ty) => {
        impl Exec for $name {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
                // SAFETY: the caller's promise.
                unsafe {
                    let (a, b) = ($view::get(cx, op.s[1]), $view::get(cx, op.s[2]));
                    let subtract = op.imm & 1 != 0;
                    let carry = if op.imm & 2 != 0 { cx.pred(op.s[3]) } else { 0 };
                    let mut out = [0 as $t; LANES];
                    let mut carry_out = 0;
                    for i in 0..LANES {
                        let c = (carry >> i & 1) as $t;
                        let (x, o1) =
                            if subtract { a[i].overflowing_sub(b[i]) } else { a[i].overflowing_add(b[i]) };
                        let (x, o2) = if subtract { x.overflowing_sub(c) } else { x.overflowing_add(c) };
                        out[i] = x;
                        carry_out |= u32::from(o1 | o2) << i;
                    }
                    $view::put(cx, op.s[0], out, mask);
                    if op.imm & 4 != 0 {
                        cx.set_pred(op.s[3], carry_out, mask);
                    }
                }
                Flow::Next
            }
        }
    };
}
carry!(Carry32, U32, u32);
carry!(Carry64, U64, u64);

/// `mad.cc/madc`: as [`Carry32`] with the product's low (`imm` bit 3 clear) or high half as `a`. Slots: d, a, b, c, carry.
/// Bit 4: signed high half.
pub(crate) struct MadCarry32;
impl Exec for MadCarry32 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b, c) = (U32::get(cx, op.s[1]), U32::get(cx, op.s[2]), U32::get(cx, op.s[3]));
            let carry = if op.imm & 2 != 0 { cx.pred(op.s[4]) } else { 0 };
            let mut out = [0u32; LANES];
            let mut carry_out = 0;
            for i in 0..LANES {
                let product = if op.imm & 16 != 0 {
                    (i64::from(a[i] as i32) * i64::from(b[i] as i32)) as u64
                } else {
                    u64::from(a[i]) * u64::from(b[i])
                };
                let half = if op.imm & 8 != 0 { product >> 32 } else { product } as u32;
                let (x, o1) = half.overflowing_add(c[i]);
                let (x, o2) = x.overflowing_add(carry >> i & 1);
                out[i] = x;
                carry_out |= u32::from(o1 | o2) << i;
            }
            U32::put(cx, op.s[0], out, mask);
            if op.imm & 4 != 0 {
                cx.set_pred(op.s[4], carry_out, mask);
            }
        }
        Flow::Next
    }
}
/// As [`MadCarry32`] for 64 bits.
pub(crate) struct MadCarry64;
impl Exec for MadCarry64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b, c) = (U64::get(cx, op.s[1]), U64::get(cx, op.s[2]), U64::get(cx, op.s[3]));
            let carry = if op.imm & 2 != 0 { cx.pred(op.s[4]) } else { 0 };
            let mut out = [0u64; LANES];
            let mut carry_out = 0;
            for i in 0..LANES {
                let product = if op.imm & 16 != 0 {
                    (i128::from(a[i] as i64) * i128::from(b[i] as i64)) as u128
                } else {
                    u128::from(a[i]) * u128::from(b[i])
                };
                let half = if op.imm & 8 != 0 { product >> 64 } else { product } as u64;
                let (x, o1) = half.overflowing_add(c[i]);
                let (x, o2) = x.overflowing_add(u64::from(carry >> i & 1));
                out[i] = x;
                carry_out |= u32::from(o1 | o2) << i;
            }
            U64::put(cx, op.s[0], out, mask);
            if op.imm & 4 != 0 {
                cx.set_pred(op.s[4], carry_out, mask);
            }
        }
        Flow::Next
    }
}

/// Comparisons, numbered as `CMP` of the `Setp` types.
pub(crate) mod cmp {
    pub const EQ: u8 = 0;
    pub const NE: u8 = 1;
    pub const LT: u8 = 2;
    pub const LE: u8 = 3;
    pub const GT: u8 = 4;
    pub const GE: u8 = 5;
    /// Float only: true if unordered.
    pub const EQU: u8 = 6;
    pub const NEU: u8 = 7;
    pub const LTU: u8 = 8;
    pub const LEU: u8 = 9;
    pub const GTU: u8 = 10;
    pub const GEU: u8 = 11;
    pub const NUM: u8 = 12;
    pub const NAN: u8 = 13;
}

/// `a CMP b` for ordered types and floats alike: the ordered comparisons are false for NaN.
#[inline(always)]
#[allow(clippy::eq_op, reason = "a value that differs from itself is a NaN")]
pub(crate) fn compare<T: PartialOrd + Copy, const CMP: u8>(a: T, b: T) -> bool {
    let nan = a != a || b != b;
    match CMP {
        cmp::EQ => a == b,
        cmp::NE => !nan && a != b,
        cmp::LT => a < b,
        cmp::LE => a <= b,
        cmp::GT => a > b,
        cmp::GE => a >= b,
        cmp::EQU => nan || a == b,
        cmp::NEU => a != b,
        cmp::LTU => nan || a < b,
        cmp::LEU => nan || a <= b,
        cmp::GTU => nan || a > b,
        cmp::GEU => nan || a >= b,
        cmp::NUM => !nan,
        _ => nan,
    }
}

/// The mask of lanes where `a CMP b`.
///
/// # Safety
/// As [`View::get`].
#[inline(always)]
pub(crate) unsafe fn compared<V: View, const CMP: u8>(
    cx: &Cx,
    a: u16,
    b: u16,
    prepare: impl Fn(V::T) -> V::T,
) -> u32
where
    V::T: PartialOrd,
{
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (V::get(cx, a), V::get(cx, b)) };
    bits(
        #[inline(always)]
        |i| compare::<V::T, CMP>(prepare(a[i]), prepare(b[i])),
    )
}

/// Combines a comparison with predicate `c` of `setp.CMP.BOOL` and writes `p` and `q`.
///
/// Slots: p, a, b, q, c (predicates; slot 0 for an absent q or c). `imm`: 0 none, 1 and, 2 or, 3 xor; bit 2: `c` negated.
///
/// # Safety
/// The slots must exist.
#[inline(always)]
pub(crate) unsafe fn store_setp(cx: &mut Cx, op: &Op, r: u32, mask: u32) -> Flow {
    // SAFETY: the caller's promise.
    unsafe {
        if op.imm & 3 == 0 && op.s[3] == 0 {
            cx.set_pred(op.s[0], r, mask);
            return Flow::Next;
        }
        let c = cx.pred(op.s[4]) ^ if op.imm & 4 != 0 { u32::MAX } else { 0 };
        let combine = |r: u32| match op.imm & 3 {
            1 => r & c,
            2 => r | c,
            3 => r ^ c,
            _ => r,
        };
        if op.s[0] != 0 {
            cx.set_pred(op.s[0], combine(r), mask);
        }
        if op.s[3] != 0 {
            cx.set_pred(op.s[3], combine(!r), mask);
        }
    }
    Flow::Next
}

macro_rules! setp {
    ($($name:ident $view:ident;)*) => { $(
        pub(crate) struct $name<const CMP: u8>;
        impl<const CMP: u8> Exec for $name<CMP> {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
                // SAFETY: the caller's promise.
                unsafe {
                    let r = compared::<$view, CMP>(cx, op.s[1], op.s[2], #[inline(always)] |x| x);
                    store_setp(cx, op, r, mask)
                }
            }
        }
    )* };
}
setp! { SetpU32 U32; SetpS32 S32; SetpU64 U64; SetpS64 S64; SetpU16 U16; SetpS16 S16; }
