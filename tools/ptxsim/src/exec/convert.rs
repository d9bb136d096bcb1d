//! `cvt` (PTX ISA "Data Movement and Conversion Instructions: cvt").
//!
//! The conversions that kernels are full of have types of their own; [`Convert`] does all others, one lane at a time, through
//! an exact intermediate value.

use super::float::{ftz, narrow};
use super::{
    Bf16, Bf16x2, Cx, Exec, F16, F32, F64, Flow, LANES, S8, S16, S32, S64, U8, U16, U32, U64, View, lanes,
    lanewise,
};
use crate::ast::Ty;
use crate::program::Op;
use crate::tensor::formats::{self as num, Format, Narrow, Round};

lanewise! {
    ZextU32: U64 = |a: U32| u64::from(a);
    SextS32: S64 = |a: S32| i64::from(a);
    Trunc64: U32 = |a: U64| a as u32;
    F32FromS32: F32 = |a: S32| a as f32;
    F32FromU32: F32 = |a: U32| a as f32;
    F32FromU16: F32 = |a: U16| f32::from(a);
    S32FromF32Rz<const FTZ: bool>: S32 = |a: F32| to_s32(ftz::<FTZ>(a));
    S32FromF32Rn<const FTZ: bool>: S32 = |a: F32| to_s32(ftz::<FTZ>(a).round_ties_even());
    Bf16FromF32: Bf16 = |a: F32| a;
    F16FromF32: F16 = |a: F32| a;
    F32FromF16: F32 = |a: F16| num::canonical(a);
    F32FromBf16: F32 = |a: Bf16| num::canonical(a);
    /// The first source goes to the upper half.
    Bf16x2FromF32: Bf16x2 = |a: F32, b: F32| [b, a];
    F16x2FromF32: U32 = |a: F32, b: F32| u32::from(num::f32_to_f16(b)) | u32::from(num::f32_to_f16(a)) << 16;
    F64FromF32: F64 = |a: F32| f64::from(a);
    F32FromF64: F32 = |a: F64| num::canonical(a as f32);
    RoundF32<const MODE: u8, const FTZ: bool>: F32 = |a: F32| ftz::<FTZ>(num::canonical(match MODE {
        0 => ftz::<FTZ>(a).round_ties_even(),
        1 => ftz::<FTZ>(a).trunc(),
        2 => ftz::<FTZ>(a).floor(),
        _ => ftz::<FTZ>(a).ceil(),
    }));
}

/// Saturating, NaN to 0, as vectors convert best: clamp, convert, then mend the upper end.
#[inline(always)]
fn to_s32(x: f32) -> i32 {
    x as i32
}

/// Source and destination kinds of [`Convert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
    Tf32,
    E4m3x2,
    E5m2x2,
    F16x2,
    Bf16x2,
}
const KINDS: [Kind; 17] = [
    Kind::U8,
    Kind::S8,
    Kind::U16,
    Kind::S16,
    Kind::U32,
    Kind::S32,
    Kind::U64,
    Kind::S64,
    Kind::F16,
    Kind::Bf16,
    Kind::F32,
    Kind::F64,
    Kind::Tf32,
    Kind::E4m3x2,
    Kind::E5m2x2,
    Kind::F16x2,
    Kind::Bf16x2,
];

impl Kind {
    pub fn of(word: &str) -> Option<Kind> {
        Some(match word {
            "tf32" => Kind::Tf32,
            "e4m3x2" => Kind::E4m3x2,
            "e5m2x2" => Kind::E5m2x2,
            _ => match Ty::parse(word)? {
                Ty::U8 => Kind::U8,
                Ty::S8 => Kind::S8,
                Ty::U16 => Kind::U16,
                Ty::S16 => Kind::S16,
                Ty::U32 => Kind::U32,
                Ty::S32 => Kind::S32,
                Ty::U64 => Kind::U64,
                Ty::S64 => Kind::S64,
                Ty::F16 => Kind::F16,
                Ty::Bf16 => Kind::Bf16,
                Ty::F32 => Kind::F32,
                Ty::F64 => Kind::F64,
                Ty::F16x2 => Kind::F16x2,
                Ty::Bf16x2 => Kind::Bf16x2,
                _ => return None,
            },
        })
    }
    pub fn is_int(self) -> bool {
        (self as u8) < 8
    }
    pub fn is_packed(self) -> bool {
        self as u8 >= Kind::E4m3x2 as u8
    }
    /// Whether a register of it takes two rows.
    pub fn is_wide(self) -> bool {
        matches!(self, Kind::U64 | Kind::S64 | Kind::F64)
    }
}

/// Modes in `imm` of [`Convert`].
pub(crate) const MODE_NONE: u8 = 0;
pub(crate) const MODE_RN: u8 = 1;
pub(crate) const MODE_RZ: u8 = 2;
pub(crate) const MODE_RM: u8 = 3;
pub(crate) const MODE_RP: u8 = 4;
pub(crate) const MODE_RNA: u8 = 5;
pub(crate) const MODE_RNI: u8 = 6;
pub(crate) const MODE_RZI: u8 = 7;
pub(crate) const MODE_RMI: u8 = 8;
pub(crate) const MODE_RPI: u8 = 9;

/// `imm` of a [`Convert`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub dst: Kind,
    pub src: Kind,
    pub mode: u8,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub satfinite: bool,
    /// The destination register has two rows.
    pub wide: bool,
}
impl How {
    pub fn pack(self) -> u64 {
        self.dst as u64
            | (self.src as u64) << 8
            | u64::from(self.mode) << 16
            | u64::from(self.ftz) << 24
            | u64::from(self.sat) << 25
            | u64::from(self.relu) << 26
            | u64::from(self.satfinite) << 27
            | u64::from(self.wide) << 28
    }
    fn unpack(x: u64) -> How {
        How {
            dst: KINDS[(x & 0xff) as usize % 17],
            src: KINDS[(x >> 8 & 0xff) as usize % 17],
            mode: (x >> 16 & 0xff) as u8,
            ftz: x >> 24 & 1 != 0,
            sat: x >> 25 & 1 != 0,
            relu: x >> 26 & 1 != 0,
            satfinite: x >> 27 & 1 != 0,
            wide: x >> 28 & 1 != 0,
        }
    }
    fn round(self) -> Narrow {
        let round = match self.mode {
            MODE_RZ => Round::Zero,
            MODE_RM => Round::Down,
            MODE_RP => Round::Up,
            MODE_RNA => Round::NearestAway,
            _ => Round::NearestEven,
        };
        Narrow { round, satfinite: self.satfinite, relu: self.relu }
    }
}

/// Any conversion. Slots: d, a, b (the second source of packed results).
pub(crate) struct Convert;
impl Exec for Convert {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        let how = How::unpack(op.imm);
        // SAFETY: the caller's promise; the decoder gave wide kinds two rows.
        unsafe {
            if how.src.is_int() && how.dst.is_int() {
                let a = read_int(cx, op.s[1], how.src);
                let out = lanes(|i| resize(a[i], how.src == Kind::U64, how));
                put_int(cx, op.s[0], out, how.wide, mask);
                return Flow::Next;
            }
            convert_slow(cx, op, how, mask);
        }
        Flow::Next
    }
}

/// Each lane as a 64-bit integer, sign-extended for signed kinds.
#[inline(always)]
unsafe fn read_int(cx: &Cx, s: u16, kind: Kind) -> [i64; LANES] {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            Kind::U8 => U8::get(cx, s).map(i64::from),
            Kind::S8 => S8::get(cx, s).map(i64::from),
            Kind::U16 => U16::get(cx, s).map(i64::from),
            Kind::S16 => S16::get(cx, s).map(i64::from),
            Kind::U32 => U32::get(cx, s).map(i64::from),
            Kind::S32 => S32::get(cx, s).map(i64::from),
            _ => S64::get(cx, s),
        }
    }
}
#[inline(always)]
unsafe fn put_int(cx: &mut Cx, s: u16, v: [i64; LANES], wide: bool, mask: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if wide {
            S64::put(cx, s, v, mask);
        } else {
            S32::put(cx, s, lanes(|i| v[i] as i32), mask);
        }
    }
}
/// Integer to integer: saturated or truncated, then extended to the register by the destination's sign.
#[inline(always)]
fn resize(v: i64, unsigned64: bool, how: How) -> i64 {
    let v = if how.sat {
        let wide = if unsigned64 { i128::from(v as u64) } else { i128::from(v) };
        let (lo, hi) = int_range(how.dst);
        wide.clamp(lo, hi) as i64
    } else {
        v
    };
    extend(v, how.dst)
}
#[inline(always)]
fn extend(v: i64, kind: Kind) -> i64 {
    match kind {
        Kind::U8 => i64::from(v as u8),
        Kind::S8 => i64::from(v as i8),
        Kind::U16 => i64::from(v as u16),
        Kind::S16 => i64::from(v as i16),
        Kind::U32 => i64::from(v as u32),
        Kind::S32 => i64::from(v as i32),
        _ => v,
    }
}
fn int_range(kind: Kind) -> (i128, i128) {
    match kind {
        Kind::U8 => (0, 0xff),
        Kind::S8 => (-0x80, 0x7f),
        Kind::U16 => (0, 0xffff),
        Kind::S16 => (-0x8000, 0x7fff),
        Kind::U32 => (0, u32::MAX.into()),
        Kind::S32 => (i32::MIN.into(), i32::MAX.into()),
        Kind::U64 => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

#[inline(never)]
unsafe fn convert_slow(cx: &mut Cx, op: &Op, how: How, mask: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if how.dst.is_packed() || how.src.is_packed() {
            let (a, b) = (U32::get(cx, op.s[1]), U32::get(cx, op.s[2]));
            let out = lanes(|i| packed(a[i], b[i], how));
            U32::put(cx, op.s[0], out, mask);
            return;
        }
        if how.src.is_int() {
            let a = read_int(cx, op.s[1], how.src);
            let exact = |v: i64| {
                let v = if how.src == Kind::U64 { i128::from(v as u64) } else { i128::from(v) };
                if how.sat { v.clamp(0, 1) } else { v }
            };
            if how.dst == Kind::F64 {
                U64::put(cx, op.s[0], lanes(|i| int_to_f64(exact(a[i]), how.mode).to_bits()), mask);
            } else {
                U32::put(cx, op.s[0], lanes(|i| int_to_narrow(exact(a[i]), how)), mask);
            }
            return;
        }
        let a: [f64; LANES] = match how.src {
            Kind::F64 => F64::get(cx, op.s[1]),
            Kind::F16 => F16::get(cx, op.s[1]).map(f64::from),
            Kind::Bf16 => Bf16::get(cx, op.s[1]).map(f64::from),
            _ => {
                let v = F32::get(cx, op.s[1]);
                lanes(|i| f64::from(if how.ftz { ftz::<true>(v[i]) } else { v[i] }))
            }
        };
        if how.dst.is_int() {
            let long = how.src == Kind::F64 || how.dst.is_wide();
            put_int(cx, op.s[0], lanes(|i| float_to_int(a[i], how, long)), how.wide, mask);
        } else if how.dst == Kind::F64 {
            let out = lanes(|i| {
                let r = integral(a[i], how.mode);
                if how.sat { clamp01(r) } else { r }
            });
            F64::put(cx, op.s[0], out, mask);
        } else {
            U32::put(cx, op.s[0], lanes(|i| float_to_float(a[i], how)), mask);
        }
    }
}

fn clamp01(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}
fn integral(x: f64, mode: u8) -> f64 {
    match mode {
        MODE_RNI => x.round_ties_even(),
        MODE_RZI => x.trunc(),
        MODE_RMI => x.floor(),
        MODE_RPI => x.ceil(),
        _ => x,
    }
}
fn float_to_int(x: f64, how: How, long: bool) -> i64 {
    if x.is_nan() {
        // ISA: 0, or the top bit alone if the source is f64 or the destination has 64 bits.
        let bits = match how.dst {
            Kind::U8 | Kind::S8 => 8,
            Kind::U16 | Kind::S16 => 16,
            Kind::U32 | Kind::S32 => 32,
            _ => 64,
        };
        return if long { extend((1u64 << (bits - 1)) as i64, how.dst) } else { 0 };
    }
    let (lo, hi) = int_range(how.dst);
    let v = (integral(x, how.mode) as i128).clamp(lo, hi);
    extend(v as i64, how.dst)
}
fn int_to_f64(v: i128, mode: u8) -> f64 {
    let r = v as f64;
    let back = r as i128;
    match mode {
        MODE_RZ if back.abs() > v.abs() => {
            if v > 0 {
                r.next_down()
            } else {
                r.next_up()
            }
        }
        MODE_RM if back > v => r.next_down(),
        MODE_RP if back < v => r.next_up(),
        _ => r,
    }
}
fn int_to_narrow(v: i128, how: How) -> u32 {
    match how.dst {
        Kind::F16 => Format::F16.from_int(v, how.round()),
        Kind::Bf16 => Format::Bf16.from_int(v, how.round()),
        _ => {
            let r = v as f32;
            let back = r as i128;
            match how.mode {
                MODE_RZ if back.abs() > v.abs() && v > 0 => r.next_down(),
                MODE_RZ if back.abs() > v.abs() => r.next_up(),
                MODE_RM if back > v => r.next_down(),
                MODE_RP if back < v => r.next_up(),
                _ => r,
            }
            .to_bits()
        }
    }
}
fn float_to_float(x: f64, how: How) -> u32 {
    let x = integral(x, how.mode);
    let x = if how.sat { clamp01(x) } else { x };
    match how.dst {
        Kind::F16 => Format::F16.from_f64(x, how.round()),
        Kind::Bf16 => Format::Bf16.from_f64(x, how.round()),
        Kind::Tf32 => Format::Tf32.from_f64(x, how.round()),
        _ => {
            let mode = match how.mode {
                MODE_RZ => super::float::RZ,
                MODE_RM => super::float::RM,
                MODE_RP => super::float::RP,
                _ => super::float::RN,
            };
            let r = num::canonical(narrow(x, mode));
            let r = if how.ftz { ftz::<true>(r) } else { r };
            if how.relu && r < 0.0 { 0 } else { r.to_bits() }
        }
    }
}
/// Two results or two sources in one register.
fn packed(a: u32, b: u32, how: How) -> u32 {
    let r = how.round();
    let put =
        |format: Format, bits: u32, hi: f32, lo: f32| format.from_f32(lo, r) | format.from_f32(hi, r) << bits;
    let flush = |x: f32| if how.ftz { ftz::<true>(x) } else { x };
    // Sources: two f32 registers (the first is the upper element) or one packed register.
    let (hi, lo) = match how.src {
        Kind::F16x2 => (num::f16_to_f32((a >> 16) as u16), num::f16_to_f32(a as u16)),
        Kind::Bf16x2 => (num::bf16_to_f32((a >> 16) as u16), num::bf16_to_f32(a as u16)),
        Kind::E4m3x2 => (num::e4m3_to_f32((a >> 8) as u8), num::e4m3_to_f32(a as u8)),
        Kind::E5m2x2 => (num::e5m2_to_f32((a >> 8) as u8), num::e5m2_to_f32(a as u8)),
        _ => (flush(f32::from_bits(a)), flush(f32::from_bits(b))),
    };
    match how.dst {
        Kind::F16x2 => put(Format::F16, 16, hi, lo),
        Kind::Bf16x2 => put(Format::Bf16, 16, hi, lo),
        Kind::E4m3x2 => put(Format::E4m3, 8, hi, lo),
        _ => put(Format::E5m2, 8, hi, lo),
    }
}
