//! `mov`, `cvt`, `cvta`, `selp` and other data movement.

use super::{Decoder, ListAt, Mods, Slot, by_flags, window};
use crate::Result;
use crate::ast::{Inst, Operand, Space, Ty};
use crate::counters::Class;
use crate::exec::convert::{self as cv, How, Kind};
use crate::exec::{alu, cold as cf, float, handler as hf, memory as me, moves as mv};

/// Takes a rounding modifier of `cvt`.
fn rounding(m: &mut Mods) -> u8 {
    let list = [
        ("rni", cv::MODE_RNI),
        ("rzi", cv::MODE_RZI),
        ("rmi", cv::MODE_RMI),
        ("rpi", cv::MODE_RPI),
        ("rna", cv::MODE_RNA),
        ("rn", cv::MODE_RN),
        ("rz", cv::MODE_RZ),
        ("rm", cv::MODE_RM),
        ("rp", cv::MODE_RP),
    ];
    list.into_iter().find(|(name, _)| m.has(name)).map_or(cv::MODE_NONE, |r| r.1)
}

impl Decoder<'_> {
    pub(super) fn moves(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "mov" => self.mov(m, inst)?,
            "cvt" => self.cvt(m, inst)?,
            "cvta" => self.cvta(m, inst)?,
            "selp" => {
                let ty = m.ty()?;
                m.done()?;
                let [d, a, b, p] = self.operands::<4>(inst)?;
                let (d, a, b) = (self.dst(&d, ty)?, self.src(&a, ty)?, self.src(&b, ty)?);
                let (p, negated) = self.pred(&p)?;
                let f = if ty.bytes() == 8 { hf::<mv::Selp64>() } else { hf::<mv::Selp32>() };
                self.emit(f, Class::Move, &[d, a, b, p]).imm = u64::from(negated) << 1;
            }
            "slct" => {
                let ftz = m.has("ftz");
                let (ty, by) = (m.ty()?, m.ty()?);
                m.done()?;
                let [d, a, b, c] = self.operands::<4>(inst)?;
                let wide = ty.bytes() == 8;
                let slots = [self.dst(&d, ty)?, self.src(&a, ty)?, self.src(&b, ty)?, self.src(&c, by)?];
                let f = match (by, wide) {
                    (Ty::F32, _) => cf::<float::SlctF32>(),
                    (Ty::S32, false) => cf::<float::SlctS32>(),
                    (Ty::S32, true) => cf::<float::SlctS64>(),
                    _ => return Err(m.unknown("the selector is s32 or f32")),
                };
                self.emit(f, Class::Move, &slots).imm = u64::from(wide) | u64::from(ftz) << 1;
            }
            "prmt" => {
                m.has("b32");
                let f = match m.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
                    None => hf::<alu::Prmt>(),
                    Some("f4e") => cf::<alu::PrmtF4e>(),
                    Some("b4e") => cf::<alu::PrmtB4e>(),
                    Some("rc8") => cf::<alu::PrmtRc8>(),
                    Some("ecl") => cf::<alu::PrmtEcl>(),
                    Some("ecr") => cf::<alu::PrmtEcr>(),
                    Some(_) => cf::<alu::PrmtRc16>(),
                };
                m.done()?;
                let [d, a, b, c] = self.operands::<4>(inst)?;
                let slots = [
                    self.dst(&d, Ty::B32)?,
                    self.src(&a, Ty::B32)?,
                    self.src(&b, Ty::B32)?,
                    self.src(&c, Ty::B32)?,
                ];
                self.emit(f, Class::Integer, &slots);
            }
            "isspacep" => {
                let kind = match m.take() {
                    Some("global") => 0,
                    Some("shared" | "shared::cta") => 1,
                    Some("shared::cluster") => 2,
                    Some("local") => 3,
                    Some("const") => 4,
                    Some("param" | "param::entry") => 5,
                    _ => return Err(m.unknown("unknown state space")),
                };
                m.done()?;
                let [p, a] = self.operands::<2>(inst)?;
                let slots = [self.pred_dst(&p)?, self.src(&a, Ty::B64)?];
                self.emit(cf::<me::IsSpace>(), Class::Predicate, &slots).imm = kind;
            }
            "mapa" | "getctarank" => {
                let shared = m.has("shared::cluster");
                let ty = m.ty()?;
                m.done()?;
                let get = base == "getctarank";
                // `.u64` without a space is a generic address.
                let generic = !shared && (ty.bytes() == 8 || get);
                if shared && ty.bytes() == 8 {
                    return Err(m.unknown("64-bit shared::cluster addresses"));
                }
                let from = if generic { Ty::B64 } else { Ty::B32 };
                if get {
                    let [d, a] = self.operands::<2>(inst)?;
                    let slots = [self.dst(&d, Ty::B32)?, self.src(&a, from)?];
                    self.emit(cf::<me::GetCtaRank>(), Class::Move, &slots).imm = u64::from(generic);
                } else {
                    let [d, a, b] = self.operands::<3>(inst)?;
                    let slots = [self.dst(&d, from)?, self.src(&a, from)?, self.src(&b, Ty::B32)?];
                    self.emit(cf::<me::Mapa>(), Class::Move, &slots).imm = u64::from(generic);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mov(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let ty = m.ty()?;
        m.done()?;
        let [d, a] = self.operands::<2>(inst)?;
        if ty == Ty::Pred {
            let (a, negated) = self.pred(&a)?;
            let d = self.pred_dst(&d)?;
            self.emit(cf::<mv::PredOp>(), Class::Predicate, &[d, a]).imm = u64::from(negated) << 4;
            return Ok(());
        }
        match (&d, &a) {
            (Operand::Vector(parts), _) => {
                let size = ty.bytes() / parts.len().max(1) as u32;
                let piece = self.piece(size, inst)?;
                let a = self.src(&a, ty)?;
                let mut p = self.pre(hf::<mv::Unpack>(), Class::Move);
                for part in parts {
                    let s = if *part == Operand::Sink { Slot::Raw(mv::SINK) } else { self.dst(part, piece)? };
                    p.list.push(s);
                }
                p.s[1] = a;
                p.list_at = ListAt::X;
                p.y = parts.len() as u32;
                p.imm = u64::from(8 * size) | u64::from(ty.bytes() == 8) << 8;
                self.push(p);
            }
            (_, Operand::Vector(parts)) => {
                let size = ty.bytes() / parts.len().max(1) as u32;
                let piece = self.piece(size, inst)?;
                let mut slots = vec![self.dst(&d, ty)?];
                for part in parts {
                    slots.push(self.src(part, piece)?);
                }
                let f = match (size, parts.len()) {
                    (4, 2) => hf::<mv::Pack32>(),
                    (2, 2) => hf::<mv::Pack16>(),
                    (2, 4) => cf::<mv::Pack16x4>(),
                    (1, 4) => cf::<mv::Pack8x4>(),
                    (1, 2) => cf::<mv::Pack8x2>(),
                    _ => return Err(m.unknown("this many elements")),
                };
                self.emit(f, Class::Move, &slots);
            }
            (Operand::Reg(r), Operand::Special(name)) => {
                let wide = self.reg_ty(*r).bytes() == 8;
                self.special(name, *r, wide)?;
            }
            (_, Operand::Reg(r))
                if self.reg_ty(*r).bytes() != ty.bytes() && self.reg_ty(*r).bytes() < 8 && ty.bytes() < 8 =>
            {
                let slots = [self.dst(&d, ty)?, self.src(&a, ty)?];
                self.emit(hf::<mv::Mov16>(), Class::Move, &slots);
            }
            _ => {
                let slots = [self.dst(&d, ty)?, self.src(&a, ty)?];
                let f = match ty.bytes() {
                    8 => hf::<mv::Mov64>(),
                    1 | 2 => hf::<mv::Mov16>(),
                    4 => hf::<mv::Mov32>(),
                    _ => return Err(m.unknown("128-bit registers")),
                };
                self.emit(f, Class::Move, &slots);
            }
        }
        Ok(())
    }

    fn piece(&self, size: u32, _inst: &Inst) -> Result<Ty> {
        match size {
            4 => Ok(Ty::B32),
            2 => Ok(Ty::B16),
            1 => Ok(Ty::B8),
            _ => self.bad("elements of 8, 16 or 32 bits are expected"),
        }
    }

    /// A register operand of `cvt`, which may be wider than its type.
    fn cvt_width(&self, op: &Operand, kind: Kind) -> bool {
        match op {
            Operand::Reg(r) => self.reg_ty(*r).bytes() == 8,
            _ => kind.is_wide(),
        }
    }

    fn cvt(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let mode = rounding(m);
        let (ftz, sat, relu, satfinite) = (m.has("ftz"), m.has("sat"), m.has("relu"), m.has("satfinite"));
        let kinds: Vec<Kind> = m.rest().iter().filter_map(|w| Kind::of(w)).collect();
        let [dst, src] = kinds[..] else { return Err(m.unknown("its types are not known")) };
        while m.rest().first().is_some_and(|w| Kind::of(w).is_some()) {
            m.take();
        }
        m.done()?;
        let packed = dst.is_packed() && src == Kind::F32;
        let (d, a, b) = if packed {
            let [d, a, b] = self.operands::<3>(inst)?;
            (d, a, Some(b))
        } else {
            let [d, a] = self.operands::<2>(inst)?;
            (d, a, None)
        };
        let (dst_wide, src_wide) = (self.cvt_width(&d, dst), self.cvt_width(&a, src));
        if dst_wide != dst.is_wide() && !(dst.is_int() && dst_wide) {
            return self.bad("the destination register does not fit its type");
        }
        let reg = |wide: bool| if wide { Ty::B64 } else { Ty::B32 };
        let d = self.dst(&d, reg(dst_wide))?;
        let imm_ty = match src {
            Kind::F32 => Ty::F32,
            Kind::F64 => Ty::F64,
            _ => reg(src_wide),
        };
        let mut a = self.src(&a, imm_ty)?;
        if src_wide != src.is_wide() {
            if src.is_wide() {
                return self.bad("the source register does not fit its type");
            }
            // The low part of a wider register.
            let low = self.temp(Ty::B32);
            self.emit(hf::<cv::Trunc64>(), Class::Convert, &[Slot::Def(low), a]);
            a = Slot::Use(low);
        }
        let b = match b {
            Some(b) => self.src(&b, Ty::F32)?,
            None => a,
        };
        let plain = !sat && !relu && !satfinite;
        let nearest = mode == cv::MODE_RN;
        use Kind::*;
        let f = match (dst, src) {
            (U64, U32) if !sat => Some(hf::<cv::ZextU32>()),
            (S64, S32) if !sat => Some(hf::<cv::SextS32>()),
            (U64, S32) if !sat => Some(hf::<cv::SextS32>()),
            (S64, U32) if !sat => Some(hf::<cv::ZextU32>()),
            (U32 | S32, U64 | S64) if !sat && !dst_wide => Some(hf::<cv::Trunc64>()),
            (F32, S32) if nearest && plain => Some(hf::<cv::F32FromS32>()),
            (F32, U32) if nearest && plain => Some(hf::<cv::F32FromU32>()),
            (F32, U16) if nearest && plain => Some(hf::<cv::F32FromU16>()),
            (S32, F32) if mode == cv::MODE_RZI && !dst_wide => Some(by_flags!(cv::S32FromF32Rz, ftz)),
            (S32, F32) if mode == cv::MODE_RNI && !dst_wide => Some(by_flags!(cv::S32FromF32Rn, ftz)),
            (Bf16, F32) if nearest && plain => Some(hf::<cv::Bf16FromF32>()),
            (F16, F32) if nearest && plain && !ftz => Some(hf::<cv::F16FromF32>()),
            (F32, F16) if plain && !ftz => Some(hf::<cv::F32FromF16>()),
            (F32, Bf16) if plain && !ftz => Some(hf::<cv::F32FromBf16>()),
            (Bf16x2, F32) if nearest && plain => Some(hf::<cv::Bf16x2FromF32>()),
            (F16x2, F32) if nearest && plain => Some(hf::<cv::F16x2FromF32>()),
            (F64, F32) if plain && !ftz => Some(hf::<cv::F64FromF32>()),
            (F32, F64) if nearest && plain && !ftz => Some(hf::<cv::F32FromF64>()),
            (F32, F32) if plain => match mode {
                cv::MODE_RNI if ftz => Some(hf::<cv::RoundF32<0, true>>()),
                cv::MODE_RNI => Some(hf::<cv::RoundF32<0, false>>()),
                cv::MODE_RZI if ftz => Some(hf::<cv::RoundF32<1, true>>()),
                cv::MODE_RZI => Some(hf::<cv::RoundF32<1, false>>()),
                cv::MODE_RMI if ftz => Some(hf::<cv::RoundF32<2, true>>()),
                cv::MODE_RMI => Some(hf::<cv::RoundF32<2, false>>()),
                cv::MODE_RPI if ftz => Some(hf::<cv::RoundF32<3, true>>()),
                cv::MODE_RPI => Some(hf::<cv::RoundF32<3, false>>()),
                _ => None,
            },
            _ => None,
        };
        // What PTX does not have.
        let packed_source = src.is_packed();
        let known = match (dst, src) {
            (E4m3x2 | E5m2x2, F32 | F16x2) => true,
            (F16x2 | Bf16x2, F32) => true,
            (F16x2, E4m3x2 | E5m2x2) => true,
            (Tf32, F32) => true,
            (d, s) => !d.is_packed() && !packed_source && d != Tf32 && s != Tf32,
        };
        if !known {
            return Err(m.unknown("this pair of types"));
        }
        let how = How { dst, src, mode, ftz, sat, relu, satfinite, wide: dst_wide };
        let p = self.emit(f.unwrap_or(hf::<cv::Convert>()), Class::Convert, &[d, a, b]);
        p.imm = how.pack();
        Ok(())
    }

    fn cvta(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let to = m.has("to");
        let space = match m.take() {
            Some("global") => Space::Global,
            Some("const") => Space::Const,
            Some("shared" | "shared::cta" | "shared::cluster") => Space::Shared,
            Some("local") => Space::Local,
            Some("param" | "param::entry") => Space::Param,
            _ => return Err(m.unknown("unknown state space")),
        };
        let ty = m.ty()?;
        m.done()?;
        if ty.bytes() != 8 {
            return Err(m.unknown("32-bit addresses"));
        }
        let [d, a] = self.operands::<2>(inst)?;
        // The space of a name is the one it has here: parameters of functions are in local memory.
        let space = match &a {
            Operand::Var(v, _) => self.place(*v)?.1,
            _ => space,
        };
        let base = window(space).unwrap_or(0);
        let slots = [self.dst(&d, Ty::B64)?, self.src(&a, Ty::B64)?];
        if base == 0 {
            self.emit(hf::<mv::Mov64>(), Class::Move, &slots);
        } else {
            self.emit(hf::<mv::Offset64>(), Class::Move, &slots).imm =
                if to { base.wrapping_neg() } else { base };
        }
        Ok(())
    }
}
