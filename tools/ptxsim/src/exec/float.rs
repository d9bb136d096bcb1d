//! f32 and f64 arithmetic (PTX ISA "Floating Point Instructions").
//!
//! A NaN result is `0x7fffffff` (f32); f64 NaNs keep the payload that the host gives. `.ftz` flushes subnormal inputs and
//! results to zeros of the same sign; `.sat` clamps to [0, 1] and turns NaN into +0. Nearest rounding is the
//! host's own; in the other modes f32 goes through an f64 that is rounded to odd, f64 through integers.

use super::alu::{compare, store_setp};
use super::{Cx, Exec, F32, F64, Flow, LANES, S32, U32, View, bits, lanes, lanewise};
use crate::program::Op;
use crate::tensor::formats::canonical;

/// Rounding modes as `op.imm` holds them.
pub(crate) const RN: u64 = 0;
pub(crate) const RZ: u64 = 1;
pub(crate) const RM: u64 = 2;
pub(crate) const RP: u64 = 3;

#[inline(always)]
pub(crate) fn ftz<const FTZ: bool>(x: f32) -> f32 {
    if FTZ && x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}
/// Result with `.ftz`, `.sat` and the canonical NaN.
#[inline(always)]
fn done<const FTZ: bool, const SAT: bool>(x: f32) -> f32 {
    if SAT { sat(ftz::<FTZ>(x)) } else { ftz::<FTZ>(canonical(x)) }
}
#[inline(always)]
fn sat(x: f32) -> f32 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

lanewise! {
    AddF32<const FTZ: bool, const SAT: bool>: F32 = |a: F32, b: F32| done::<FTZ, SAT>(ftz::<FTZ>(a) + ftz::<FTZ>(b));
    SubF32<const FTZ: bool, const SAT: bool>: F32 = |a: F32, b: F32| done::<FTZ, SAT>(ftz::<FTZ>(a) - ftz::<FTZ>(b));
    MulF32<const FTZ: bool, const SAT: bool>: F32 = |a: F32, b: F32| done::<FTZ, SAT>(ftz::<FTZ>(a) * ftz::<FTZ>(b));
    FmaF32<const FTZ: bool, const SAT: bool>: F32 = |a: F32, b: F32, c: F32| done::<FTZ, SAT>(ftz::<FTZ>(a).mul_add(ftz::<FTZ>(b), ftz::<FTZ>(c)));
    DivF32<const FTZ: bool>: F32 = |a: F32, b: F32| done::<FTZ, false>(ftz::<FTZ>(a) / ftz::<FTZ>(b));
    /// `div.approx`: as the division, but 0 for |b| above 2^126 (NaN if a is infinite too).
    DivApprox<const FTZ: bool>: F32 = |a: F32, b: F32| done::<FTZ, false>({
        let (a, b) = (ftz::<FTZ>(a), ftz::<FTZ>(b));
        let big = b.abs() > f32::from_bits(0x7e80_0000) && b.abs() < f32::INFINITY;
        a * if big { 0.0f32.copysign(b) } else { 1.0 } / if big { 1.0 } else { b }
    });
    RcpF32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(1.0 / ftz::<FTZ>(a));
    SqrtF32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(ftz::<FTZ>(a).sqrt());
    RsqrtF32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(1.0 / ftz::<FTZ>(a).sqrt());
    Ex2F32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(exp2(ftz::<FTZ>(a)));
    Lg2F32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(f64::from(ftz::<FTZ>(a)).log2() as f32);
    SinF32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(f64::from(ftz::<FTZ>(a)).sin() as f32);
    CosF32<const FTZ: bool>: F32 = |a: F32| done::<FTZ, false>(f64::from(ftz::<FTZ>(a)).cos() as f32);
    TanhF32: F32 = |a: F32| canonical(f64::from(a).tanh() as f32);
    AbsF32<const FTZ: bool>: F32 = |a: F32| ftz::<FTZ>(f32::from_bits(a.to_bits() & 0x7fff_ffff));
    NegF32<const FTZ: bool>: F32 = |a: F32| ftz::<FTZ>(f32::from_bits(a.to_bits() ^ 0x8000_0000));
    MinF32<const FTZ: bool, const NAN: bool, const XOR: bool>: F32 = |a: F32, b: F32| min::<NAN, XOR>(ftz::<FTZ>(a), ftz::<FTZ>(b), false);
    MaxF32<const FTZ: bool, const NAN: bool, const XOR: bool>: F32 = |a: F32, b: F32| min::<NAN, XOR>(ftz::<FTZ>(a), ftz::<FTZ>(b), true);
    CopysignF32: F32 = |a: F32, b: F32| f32::from_bits(a.to_bits() & 0x8000_0000 | b.to_bits() & 0x7fff_ffff);
    AddF64: F64 = |a: F64, b: F64| a + b;
    SubF64: F64 = |a: F64, b: F64| a - b;
    MulF64: F64 = |a: F64, b: F64| a * b;
    FmaF64: F64 = |a: F64, b: F64, c: F64| a.mul_add(b, c);
    DivF64: F64 = |a: F64, b: F64| a / b;
    RcpF64: F64 = |a: F64| 1.0 / a;
    SqrtF64: F64 = |a: F64| a.sqrt();
    /// The upper word of the result; the lower is 0 (`rcp.approx.ftz.f64`).
    RcpApproxF64: F64 = |a: F64| upper(1.0 / flush64(upper(a)));
    RsqrtApproxF64: F64 = |a: F64| upper(1.0 / flush64(upper(a)).sqrt());
    AbsF64: F64 = |a: F64| a.abs();
    NegF64: F64 = |a: F64| -a;
    MinF64: F64 = |a: F64, b: F64| min64(a, b, false);
    MaxF64: F64 = |a: F64, b: F64| min64(a, b, true);
    CopysignF64: F64 = |a: F64, b: F64| b.copysign(a);
    SlctS32: U32 = |a: U32, b: U32, c: S32| if c >= 0 { a } else { b };
}

#[inline(always)]
fn upper(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000)
}
#[inline(always)]
fn flush64(x: f64) -> f64 {
    if x.is_subnormal() { 0.0f64.copysign(x) } else { x }
}

/// `2^x`, within 2 ulp: `x = n + f`, `|f| <= 1/2`, a polynomial for `2^f` (coefficients of Cephes `exp2f`).
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let c = x.clamp(-160.0, 160.0);
    let n = c.round_ties_even();
    let f = c - n;
    let p = 1.535_336_2e-4f32
        .mul_add(f, 1.339_887_4e-3)
        .mul_add(f, 9.618_437e-3)
        .mul_add(f, 5.550_332_5e-2)
        .mul_add(f, 2.402_264_8e-1)
        .mul_add(f, 6.931_472e-1)
        .mul_add(f, 1.0);
    // SAFETY: n is an integer in -160..=160, or a NaN where x was one; the conversion saturates nowhere in between.
    let n = if x.is_nan() { 0 } else { unsafe { n.to_int_unchecked::<i32>() } };
    let (lo, hi) = (n >> 1, n - (n >> 1));
    let scale = |k: i32| f32::from_bits(((k + 127) as u32) << 23);
    if x.is_nan() { x } else { p * scale(lo) * scale(hi) }
}

/// The smaller (`max`: larger) value; `NAN`: a NaN wins, else it loses. -0 is below +0. `XOR`: of absolute values, with the
/// exclusive or of the signs (`.xorsign.abs`).
#[inline(always)]
pub(crate) fn min<const NAN: bool, const XOR: bool>(a: f32, b: f32, max: bool) -> f32 {
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    let (a, b) = if XOR { (a.abs(), b.abs()) } else { (a, b) };
    let equal = f32::from_bits(if max { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() });
    let ordered = match (a < b, a > b) {
        (true, _) => {
            if max {
                b
            } else {
                a
            }
        }
        (_, true) => {
            if max {
                a
            } else {
                b
            }
        }
        _ => equal,
    };
    let r = match (a.is_nan(), b.is_nan()) {
        (false, false) => ordered,
        (true, false) if !NAN => b,
        (false, true) if !NAN => a,
        _ => return canonical(f32::NAN),
    };
    if XOR { f32::from_bits(r.to_bits() & 0x7fff_ffff | sign) } else { r }
}
#[inline(always)]
fn min64(a: f64, b: f64, max: bool) -> f64 {
    let equal = f64::from_bits(if max { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() });
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => equal,
        _ if (a < b) != max => a,
        _ => b,
    }
}

/// `x` moved one unit towards the sign of `towards`.
fn nudge64(x: f64, towards: f64) -> f64 {
    if towards > 0.0 { x.next_up() } else { x.next_down() }
}

/// The exact error of `a + b` (Knuth).
fn sum_error(a: f64, b: f64, s: f64) -> f64 {
    let bb = s - a;
    (a - (s - bb)) + (b - bb)
}

/// Sign, significand and exponent of a finite value that is not 0: `m * 2^e`, the top bit of `m` at 124.
fn parts(x: f64) -> (bool, u128, i32) {
    let (field, fraction) = ((x.to_bits() >> 52 & 0x7ff) as i32, x.to_bits() & ((1 << 52) - 1));
    let (m, e) = if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    let (m, e) = raise(m.into(), e);
    (x.is_sign_negative(), m, e)
}
/// `m * 2^e` with the top bit of `m` at 124.
fn raise(m: u128, e: i32) -> (u128, i32) {
    let up = m.leading_zeros() as i32 - 3;
    (if up < 0 { jam(m, -up as u32) } else { m << up }, e - up)
}
/// `m >> by`; the last bit is set if bits that are not 0 fall out.
fn jam(m: u128, by: u32) -> u128 {
    if by > 127 { u128::from(m != 0) } else { m >> by | u128::from(m & ((1 << by) - 1) != 0) }
}

/// `m * 2^e`, rounded once. `m` is not 0 and has its top bit at 125 at most; its last bit may stand for any that follow.
fn round64(negative: bool, m: u128, e: i32, mode: u64) -> f64 {
    let top = e + 127 - m.leading_zeros() as i32;
    // Exponent of the last bit that the result has.
    let last = (top - 52).max(-1074);
    let drop = last - e;
    let (k, rest, half) = match drop {
        ..=0 => (m << -drop, 0, 1),
        1..=126 => (m >> drop, m & ((1 << drop) - 1), 1 << (drop - 1)),
        _ => (0, 1, 2),
    };
    let up = match mode {
        RZ => false,
        RM => negative && rest != 0,
        RP => !negative && rest != 0,
        _ => rest > half || rest == half && k & 1 != 0,
    };
    let k = k as u64 + u64::from(up);
    // A significand that rounding makes 2^53 carries into the exponent.
    let bits = if k >> 52 == 0 { k } else { (((last + 1075) as u64) << 52) + (k - (1 << 52)) };
    let v = if top > 1023 || bits >= f64::INFINITY.to_bits() {
        let away = match mode {
            RZ => false,
            RM => negative,
            RP => !negative,
            _ => true,
        };
        if away { f64::INFINITY } else { f64::MAX }
    } else {
        f64::from_bits(bits)
    };
    if negative { -v } else { v }
}

fn add_mode(a: f64, b: f64, mode: u64) -> f64 {
    fma_mode(a, 1.0, b, mode)
}
fn mul_mode(a: f64, b: f64, mode: u64) -> f64 {
    let p = a * b;
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return p;
    }
    let ((na, ma, ea), (nb, mb, eb)) = (parts(a), parts(b));
    round64(na != nb, (ma >> 72) * (mb >> 72), ea + eb + 144, mode)
}
fn fma_mode(a: f64, b: f64, c: f64, mode: u64) -> f64 {
    let (p, zero) = (a * b, if mode == RM { -0.0 } else { 0.0 });
    if !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return a.mul_add(b, c);
    }
    if a == 0.0 || b == 0.0 {
        return match c == 0.0 {
            true if p.is_sign_negative() == c.is_sign_negative() => p,
            true => zero,
            false => c,
        };
    }
    if c == 0.0 {
        return mul_mode(a, b, mode);
    }
    let ((na, ma, ea), (nb, mb, eb), (nc, mc, ec)) = (parts(a), parts(b), parts(c));
    let np = na != nb;
    let (mp, ep) = raise((ma >> 72) * (mb >> 72), ea + eb + 144);
    // The larger of product and addend, and the other on its scale.
    let (n, m, e, other) = if (ep, mp) >= (ec, mc) {
        (np, mp, ep, jam(mc, (ep - ec) as u32))
    } else {
        (nc, mc, ec, jam(mp, (ec - ep) as u32))
    };
    match if np == nc { m + other } else { m - other } {
        0 => zero,
        m => round64(n, m, e, mode),
    }
}
fn div_mode(a: f64, b: f64, mode: u64) -> f64 {
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let ((na, ma, ea), (nb, mb, eb)) = (parts(a), parts(b));
    let mb = mb >> 72;
    round64(na != nb, (ma / mb) | u128::from(ma % mb != 0), ea - eb - 72, mode)
}
fn sqrt_mode(a: f64, mode: u64) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        return a.sqrt();
    }
    let (_, m, e) = parts(a);
    let (m, e) = if e % 2 == 0 { (m, e) } else { (m << 1, e - 1) };
    let s = m.isqrt();
    // Two bits more, the last of them for what is left.
    round64(false, s << 2 | u128::from(s * s != m), e / 2 - 2, mode)
}

/// The sum of two values as an f64 rounded to odd, from which any rounding to fewer than 51 bits is right.
pub(crate) fn odd_sum(a: f64, b: f64) -> f64 {
    let s = a + b;
    let e = sum_error(a, b, s);
    if e != 0.0 && e.is_finite() && s.to_bits() & 1 == 0 { nudge64(s, e) } else { s }
}
/// `x` made odd if the exact value lies `error` away.
fn odd(x: f64, error: f64) -> f64 {
    if error != 0.0 && error.is_finite() && x.to_bits() & 1 == 0 { nudge64(x, error) } else { x }
}

/// An f64 to f32 in `mode`.
#[inline(always)]
pub(crate) fn narrow(x: f64, mode: u64) -> f32 {
    let r = x as f32;
    let back = f64::from(r);
    if mode == RN || back == x || x.is_nan() {
        return r;
    }
    match mode {
        RZ if (back > x) == (x > 0.0) => {
            if x > 0.0 {
                r.next_down()
            } else {
                r.next_up()
            }
        }
        RM if back > x => r.next_down(),
        RP if back < x => r.next_up(),
        _ => r,
    }
}

/// f32 arithmetic in a mode other than nearest. `imm`: bits 0-1 mode, bit 2 ftz, bit 3 sat, bits 4-6 operation: 0 add, 1 sub,
/// 2 mul, 3 fma, 4 div, 5 rcp, 6 sqrt.
pub(crate) struct DirectedF32;
impl Exec for DirectedF32 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; unused slots name row 0, which exists.
        unsafe {
            let (a, b, c) = (F32::get(cx, op.s[1]), F32::get(cx, op.s[2]), F32::get(cx, op.s[3]));
            let (mode, flush, saturate) = (op.imm & 3, op.imm & 4 != 0, op.imm & 8 != 0);
            let f = |x: f32| f64::from(if flush { ftz::<true>(x) } else { x });
            let mut out = [0f32; LANES];
            for i in 0..LANES {
                let (x, y, z) = (f(a[i]), f(b[i]), f(c[i]));
                // Signed zeros of exact results follow the mode, so sums that cancel go through `add_mode`.
                let exact = match op.imm >> 4 & 7 {
                    k @ (0 | 1) => {
                        let y = if k == 1 { -y } else { y };
                        if x + y == 0.0 { add_mode(x, y, mode) } else { odd_sum(x, y) }
                    }
                    2 => x * y,
                    3 => {
                        if (x * y) + z == 0.0 {
                            add_mode(x * y, z, mode)
                        } else {
                            odd_sum(x * y, z)
                        }
                    }
                    4 => {
                        let q = x / y;
                        let rest = (-q).mul_add(y, x);
                        odd(q, if y < 0.0 { -rest } else { rest })
                    }
                    5 => {
                        let q = 1.0 / x;
                        let rest = (-q).mul_add(x, 1.0);
                        odd(q, if x < 0.0 { -rest } else { rest })
                    }
                    _ => {
                        let s = x.sqrt();
                        odd(s, (-s).mul_add(s, x))
                    }
                };
                let r = canonical(narrow(exact, mode));
                let r = if flush { ftz::<true>(r) } else { r };
                out[i] = if saturate { sat(r) } else { r };
            }
            F32::put(cx, op.s[0], out, mask);
        }
        Flow::Next
    }
}

/// f64 arithmetic in a mode other than nearest; `imm` as for [`DirectedF32`].
pub(crate) struct DirectedF64;
impl Exec for DirectedF64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; the decoder names 64-bit slots only.
        unsafe {
            let (a, b, c) = (F64::get(cx, op.s[1]), F64::get(cx, op.s[2]), F64::get(cx, op.s[3]));
            let mode = op.imm & 3;
            let out = lanes(|i| match op.imm >> 4 & 7 {
                0 => add_mode(a[i], b[i], mode),
                1 => add_mode(a[i], -b[i], mode),
                2 => mul_mode(a[i], b[i], mode),
                3 => fma_mode(a[i], b[i], c[i], mode),
                4 => div_mode(a[i], b[i], mode),
                5 => div_mode(1.0, a[i], mode),
                _ => sqrt_mode(a[i], mode),
            });
            F64::put(cx, op.s[0], out, mask);
        }
        Flow::Next
    }
}

macro_rules! setp_float {
    ($name:ident, $view:ident, |$x:ident| $prep:expr, $($g:ident),*) => {
        pub(crate) struct $name<const CMP: u8 $(, const $g: bool)*>;
        impl<const CMP: u8 $(, const $g: bool)*> Exec for $name<CMP $(, $g)*> {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
                // SAFETY: the caller's promise.
                unsafe {
                    let (a, b) = ($view::get(cx, op.s[1]), $view::get(cx, op.s[2]));
                    let r = bits(
                        #[inline(always)]
                        |i| {
                            let x = { let $x = a[i]; $prep };
                            let y = { let $x = b[i]; $prep };
                            compare::<_, CMP>(x, y)
                        },
                    );
                    store_setp(cx, op, r, mask)
                }
            }
        }
    };
}
setp_float!(SetpF32, F32, |x| ftz::<FTZ>(x), FTZ);
setp_float!(SetpF64, F64, |x| x,);
setp_float!(SetpF16, F16View, |x| super::half::flush16::<FTZ>(x), FTZ);
setp_float!(SetpBf16, Bf16View, |x| x,);
use super::{Bf16 as Bf16View, F16 as F16View};

/// `testp`: `imm` 0 finite, 1 infinite, 2 number, 3 notanumber, 4 normal, 5 subnormal.
pub(crate) struct TestpF32;
/// As [`TestpF32`].
pub(crate) struct TestpF64;
macro_rules! testp {
    ($name:ident, $view:ident) => {
        impl Exec for $name {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
                // SAFETY: the caller's promise.
                unsafe {
                    let a = $view::get(cx, op.s[1]);
                    let r = bits(|i| match op.imm {
                        0 => a[i].is_finite(),
                        1 => a[i].is_infinite(),
                        2 => !a[i].is_nan(),
                        3 => a[i].is_nan(),
                        // The ISA counts both zeros among the normal numbers.
                        4 => a[i].is_normal() || a[i] == 0.0,
                        _ => a[i].is_subnormal(),
                    });
                    cx.set_pred(op.s[0], r, mask);
                }
                Flow::Next
            }
        }
    };
}
testp!(TestpF32, F32);
testp!(TestpF64, F64);

/// `slct.T.f32 d, a, b, c`: `a` where `c >= 0`, else `b` (NaN picks `b`). `imm`: 0 32-bit, 1 64-bit values; bit 1: `.ftz`.
pub(crate) struct SlctF32;
impl Exec for SlctF32 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let c = F32::get(cx, op.s[3]);
            let flush = op.imm & 2 != 0;
            let take = bits(|i| (if flush { ftz::<true>(c[i]) } else { c[i] }) >= 0.0);
            select(cx, op, take, op.imm & 1 != 0, mask);
        }
        Flow::Next
    }
}
/// `slct.b64.s32`.
pub(crate) struct SlctS64;
impl Exec for SlctS64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let c = S32::get(cx, op.s[3]);
            let take = bits(|i| c[i] >= 0);
            select(cx, op, take, true, mask);
        }
        Flow::Next
    }
}

/// `d = take ? a : b`.
#[inline(always)]
pub(crate) unsafe fn select(cx: &mut Cx, op: &Op, take: u32, wide: bool, mask: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if wide {
            let (a, b) = (super::U64::get(cx, op.s[1]), super::U64::get(cx, op.s[2]));
            super::U64::put(cx, op.s[0], lanes(|i| if take >> i & 1 != 0 { a[i] } else { b[i] }), mask);
        } else {
            let (a, b) = (U32::get(cx, op.s[1]), U32::get(cx, op.s[2]));
            U32::put(cx, op.s[0], lanes(|i| if take >> i & 1 != 0 { a[i] } else { b[i] }), mask);
        }
    }
}

/// `set.CMP.D.S`: all ones or 1.0 where true. `imm`: value written; the comparison is that of a `setp` into slot 3.
pub(crate) struct SetFromPred;
impl Exec for SetFromPred {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let p = cx.pred(op.s[1]);
            U32::put(cx, op.s[0], lanes(|i| if p >> i & 1 != 0 { op.imm as u32 } else { 0 }), mask);
        }
        Flow::Next
    }
}

/// `set` of pairs: as [`SetFromPred`] with a value of 16 bits for each half; slots d, predicates of the low and the high one.
pub(crate) struct SetFromPreds;
impl Exec for SetFromPreds {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let (p, q, one) = (cx.pred(op.s[1]), cx.pred(op.s[2]), op.imm as u32);
            U32::put(cx, op.s[0], lanes(|i| ((p >> i & 1) * one) | ((q >> i & 1) * (one << 16))), mask);
        }
        Flow::Next
    }
}
