//! Floating-point instructions.

use super::{Decoder, Mods, Slot, by_flags};
use crate::Result;
use crate::ast::{Inst, Ty};
use crate::counters::Class;
use crate::exec::{Handler, cold as cf, float as fl, half as ha, handler as hf};

/// Picks `Type<M>` for modifier bits `$m` below 8.
macro_rules! by_bits {
    ($($t:ident)::+, $m:expr) => {
        match $m {
            0 => cf::<$($t)::+<0>>(),
            1 => cf::<$($t)::+<1>>(),
            2 => cf::<$($t)::+<2>>(),
            3 => cf::<$($t)::+<3>>(),
            4 => cf::<$($t)::+<4>>(),
            5 => cf::<$($t)::+<5>>(),
            6 => cf::<$($t)::+<6>>(),
            _ => cf::<$($t)::+<7>>(),
        }
    };
}

fn class(ty: Ty) -> Class {
    match ty {
        Ty::F32 => Class::Float32,
        Ty::F64 => Class::Float64,
        _ => Class::Half,
    }
}

/// Operation numbers of the directed roundings.
fn directed(base: &str) -> Option<u64> {
    Some(match base {
        "add" => 0,
        "sub" => 1,
        "mul" => 2,
        "fma" | "mad" => 3,
        "div" => 4,
        "rcp" => 5,
        "sqrt" => 6,
        _ => return None,
    })
}

impl Decoder<'_> {
    pub(super) fn floating(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "add" | "sub" | "mul" | "fma" | "mad" | "div" | "rcp" | "sqrt" => {
                self.arithmetic(base, m, inst)?
            }
            "abs" | "neg" => {
                let ftz = m.has("ftz");
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty) {
                    ("abs", Ty::F32) => by_flags!(fl::AbsF32, ftz),
                    ("neg", Ty::F32) => by_flags!(fl::NegF32, ftz),
                    ("abs", Ty::F64) => cf::<fl::AbsF64>(),
                    ("neg", Ty::F64) => cf::<fl::NegF64>(),
                    ("abs", Ty::F16 | Ty::Bf16) if !ftz => cf::<ha::Abs16>(),
                    ("neg", Ty::F16 | Ty::Bf16) if !ftz => cf::<ha::Neg16>(),
                    ("abs", Ty::F16x2 | Ty::Bf16x2) if !ftz => cf::<ha::Abs16x2>(),
                    ("neg", Ty::F16x2 | Ty::Bf16x2) if !ftz => cf::<ha::Neg16x2>(),
                    (_, Ty::F16 | Ty::F16x2) => {
                        // Flushed first: the other half of an f16 register is of no account.
                        let [d, a] = self.operands::<2>(inst)?;
                        let (d, a, t) = (self.dst(&d, ty)?, self.src(&a, ty)?, self.temp(Ty::B32));
                        self.emit(cf::<ha::Flush16x2>(), class(ty), &[Slot::Def(t), a]);
                        let f = match (base, ty) {
                            ("abs", Ty::F16) => cf::<ha::Abs16>(),
                            ("abs", _) => cf::<ha::Abs16x2>(),
                            (_, Ty::F16) => cf::<ha::Neg16>(),
                            _ => cf::<ha::Neg16x2>(),
                        };
                        self.emit(f, class(ty), &[d, Slot::Use(t)]);
                        return Ok(true);
                    }
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, class(ty), inst, &[ty; 2])?;
            }
            "min" | "max" => self.extremum(base, m, inst)?,
            "copysign" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match ty {
                    Ty::F32 => cf::<fl::CopysignF32>(),
                    Ty::F64 => cf::<fl::CopysignF64>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, class(ty), inst, &[ty; 3])?;
            }
            "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => self.special_function(base, m, inst)?,
            "testp" => {
                let list = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
                let Some(which) = m.one_of(&list) else { return Err(m.unknown("unknown test")) };
                let ty = m.ty()?;
                m.done()?;
                let [p, a] = self.operands::<2>(inst)?;
                let slots = [self.pred_dst(&p)?, self.src(&a, ty)?];
                let f = if ty == Ty::F64 { cf::<fl::TestpF64>() } else { cf::<fl::TestpF32>() };
                self.emit(f, Class::Predicate, &slots).imm =
                    list.iter().position(|l| *l == which).unwrap_or(0) as u64;
            }
            "set" | "setp" => self.compare(base, m, inst)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn arithmetic(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        let (approx, full) = (m.has("approx"), m.has("full"));
        let mode = match m.one_of(&["rn", "rz", "rm", "rp"]) {
            None | Some("rn") => fl::RN,
            Some("rz") => fl::RZ,
            Some("rm") => fl::RM,
            Some(_) => fl::RP,
        };
        let (ftz, sat, relu) = (m.has("ftz"), m.has("sat"), m.has("relu"));
        let ty = m.ty()?;
        if m.rest().first() == Some(&"f32") || m.rest().first().is_some_and(|t| Ty::parse(t).is_some()) {
            return Err(m.unknown("mixed types"));
        }
        m.done()?;
        let sources = match base {
            "rcp" | "sqrt" => 1,
            "fma" | "mad" => 3,
            _ => 2,
        };
        let types = &[ty; 4][..sources + 1];
        if ty == Ty::F32 || ty == Ty::F64 {
            if relu || (ty == Ty::F64 && (sat || full || (ftz && !approx))) {
                return Err(m.unknown("no such modifier for this type"));
            }
            if mode != fl::RN {
                let Some(op) = directed(base) else { return Err(m.unknown("rounding mode")) };
                let f = if ty == Ty::F32 { cf::<fl::DirectedF32>() } else { cf::<fl::DirectedF64>() };
                self.plain(f, class(ty), inst, types)?;
                // Unused sources repeat the first, so that their slots exist and have the right width.
                if let Some(p) = self.pre.last_mut() {
                    for k in sources + 1..4 {
                        p.s[k] = match p.s[1] {
                            Slot::Use(r) => Slot::Use(r),
                            s => s,
                        };
                    }
                    p.imm = mode | u64::from(ftz) << 2 | u64::from(sat) << 3 | op << 4;
                }
                return Ok(());
            }
            let f: Handler = match (base, ty) {
                ("add", Ty::F32) => by_flags!(fl::AddF32, ftz, sat),
                ("sub", Ty::F32) => by_flags!(fl::SubF32, ftz, sat),
                ("mul", Ty::F32) => by_flags!(fl::MulF32, ftz, sat),
                ("fma" | "mad", Ty::F32) => by_flags!(fl::FmaF32, ftz, sat),
                ("div", Ty::F32) if approx => by_flags!(fl::DivApprox, ftz),
                ("div", Ty::F32) => by_flags!(fl::DivF32, ftz),
                ("rcp", Ty::F32) => by_flags!(fl::RcpF32, ftz),
                ("sqrt", Ty::F32) => by_flags!(fl::SqrtF32, ftz),
                ("add", _) => hf::<fl::AddF64>(),
                ("sub", _) => cf::<fl::SubF64>(),
                ("mul", _) => hf::<fl::MulF64>(),
                ("fma" | "mad", _) => hf::<fl::FmaF64>(),
                ("div", _) => cf::<fl::DivF64>(),
                ("rcp", _) if approx => cf::<fl::RcpApproxF64>(),
                ("rcp", _) => cf::<fl::RcpF64>(),
                _ if !approx => cf::<fl::SqrtF64>(),
                _ => return Err(m.unknown("no such approximation")),
            };
            let class = if approx { Class::Special } else { class(ty) };
            return self.plain(f, class, inst, types);
        }
        if approx || full || mode != fl::RN {
            return Err(m.unknown("no such modifier for this type"));
        }
        let bits = u8::from(ftz) | u8::from(sat) << 1 | u8::from(relu) << 2;
        let bf = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
        if bf && (ftz || sat || (relu && base != "fma")) {
            return Err(m.unknown("no such modifier for this type"));
        }
        let f: Handler = match (base, ty) {
            ("add", Ty::F16) => by_bits!(ha::AddF16, bits),
            ("sub", Ty::F16) => by_bits!(ha::SubF16, bits),
            ("mul", Ty::F16) => by_bits!(ha::MulF16, bits),
            ("fma", Ty::F16) => by_bits!(ha::FmaF16, bits),
            ("add", Ty::F16x2) => by_bits!(ha::AddF16x2, bits),
            ("sub", Ty::F16x2) => by_bits!(ha::SubF16x2, bits),
            ("mul", Ty::F16x2) => by_bits!(ha::MulF16x2, bits),
            ("fma", Ty::F16x2) => by_bits!(ha::FmaF16x2, bits),
            ("add", Ty::Bf16) => hf::<ha::AddBf16>(),
            ("sub", Ty::Bf16) => cf::<ha::SubBf16>(),
            ("mul", Ty::Bf16) => hf::<ha::MulBf16>(),
            ("fma", Ty::Bf16) => by_flags!(ha::FmaBf16, relu),
            ("add", Ty::Bf16x2) => hf::<ha::AddBf16x2>(),
            ("sub", Ty::Bf16x2) => cf::<ha::SubBf16x2>(),
            ("mul", Ty::Bf16x2) => hf::<ha::MulBf16x2>(),
            ("fma", Ty::Bf16x2) => by_flags!(ha::FmaBf16x2, relu),
            _ => return Err(m.unknown("no such type")),
        };
        self.plain(f, Class::Half, inst, types)
    }

    fn extremum(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        let (ftz, nan) = (m.has("ftz"), m.has("NaN"));
        let xorsign = m.has("xorsign");
        let abs = m.has("abs");
        let ty = m.ty()?;
        m.done()?;
        if xorsign != abs {
            return Err(m.unknown("modifier `.abs`"));
        }
        let bits = u8::from(ftz) | u8::from(nan) << 1 | u8::from(xorsign) << 2;
        macro_rules! f32s {
            ($t:ident) => {
                match (ftz, nan, xorsign) {
                    (false, false, false) => cf::<fl::$t<false, false, false>>(),
                    (false, false, true) => cf::<fl::$t<false, false, true>>(),
                    (false, true, false) => cf::<fl::$t<false, true, false>>(),
                    (false, true, true) => cf::<fl::$t<false, true, true>>(),
                    (true, false, false) => cf::<fl::$t<true, false, false>>(),
                    (true, false, true) => cf::<fl::$t<true, false, true>>(),
                    (true, true, false) => cf::<fl::$t<true, true, false>>(),
                    (true, true, true) => cf::<fl::$t<true, true, true>>(),
                }
            };
        }
        let f: Handler = match (base, ty) {
            ("min", Ty::F32) => f32s!(MinF32),
            ("max", Ty::F32) => f32s!(MaxF32),
            ("min", Ty::F64) if bits == 0 => cf::<fl::MinF64>(),
            ("max", Ty::F64) if bits == 0 => cf::<fl::MaxF64>(),
            ("min", Ty::F16) => by_bits!(ha::MinF16, bits),
            ("max", Ty::F16) => by_bits!(ha::MaxF16, bits),
            ("min", Ty::F16x2) => by_bits!(ha::MinF16x2, bits),
            ("max", Ty::F16x2) => by_bits!(ha::MaxF16x2, bits),
            ("min", Ty::Bf16) if !ftz => by_bits!(ha::MinBf16, bits),
            ("max", Ty::Bf16) if !ftz => by_bits!(ha::MaxBf16, bits),
            ("min", Ty::Bf16x2) if !ftz => by_bits!(ha::MinBf16x2, bits),
            ("max", Ty::Bf16x2) if !ftz => by_bits!(ha::MaxBf16x2, bits),
            _ => return Err(m.unknown("no such type")),
        };
        self.plain(f, class(ty), inst, &[ty; 3])
    }

    fn special_function(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        let approx = m.has("approx");
        let ftz = m.has("ftz");
        let ty = m.ty()?;
        m.done()?;
        if !approx {
            return Err(m.unknown("`.approx` is expected"));
        }
        let f: Handler = match (base, ty) {
            ("rsqrt", Ty::F32) => by_flags!(fl::RsqrtF32, ftz),
            ("rsqrt", Ty::F64) => cf::<fl::RsqrtApproxF64>(),
            ("ex2", Ty::F32) => by_flags!(fl::Ex2F32, ftz),
            ("lg2", Ty::F32) => by_flags!(fl::Lg2F32, ftz),
            ("sin", Ty::F32) => by_flags!(fl::SinF32, ftz),
            ("cos", Ty::F32) => by_flags!(fl::CosF32, ftz),
            ("tanh", Ty::F32) => cf::<fl::TanhF32>(),
            ("ex2", Ty::F16) => cf::<ha::Ex2F16>(),
            ("ex2", Ty::F16x2) => cf::<ha::Ex2F16x2>(),
            ("ex2", Ty::Bf16) => cf::<ha::Ex2Bf16>(),
            ("ex2", Ty::Bf16x2) => cf::<ha::Ex2Bf16x2>(),
            ("tanh", Ty::F16) => cf::<ha::TanhF16>(),
            ("tanh", Ty::F16x2) => cf::<ha::TanhF16x2>(),
            ("tanh", Ty::Bf16) => cf::<ha::TanhBf16>(),
            ("tanh", Ty::Bf16x2) => cf::<ha::TanhBf16x2>(),
            _ => return Err(m.unknown("no such type")),
        };
        self.plain(f, Class::Special, inst, &[ty; 2])
    }
}
