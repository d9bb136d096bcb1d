//! Integer, logic and comparison instructions.

use super::{Decoder, Mods, Slot, by_cmp};
use crate::Result;
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::alu::{self, cmp};
use crate::exec::{Handler, cold as cf, float, half, handler as hf, moves as mv};

/// The comparison of a `set`/`setp`; for unsigned integers `lo ls hi hs` are `lt le gt ge`.
pub(super) fn comparison(m: &mut Mods) -> Option<u8> {
    let list = [
        ("eq", cmp::EQ),
        ("ne", cmp::NE),
        ("lt", cmp::LT),
        ("le", cmp::LE),
        ("gt", cmp::GT),
        ("ge", cmp::GE),
        ("lo", cmp::LT),
        ("ls", cmp::LE),
        ("hi", cmp::GT),
        ("hs", cmp::GE),
        ("equ", cmp::EQU),
        ("neu", cmp::NEU),
        ("ltu", cmp::LTU),
        ("leu", cmp::LEU),
        ("gtu", cmp::GTU),
        ("geu", cmp::GEU),
        ("num", cmp::NUM),
        ("nan", cmp::NAN),
    ];
    list.into_iter().find(|(n, _)| m.has(n)).map(|c| c.1)
}

impl Decoder<'_> {
    /// Emits `f` with a destination and sources of the given types, one for each operand.
    pub(super) fn plain(&mut self, f: Handler, class: Class, inst: &Inst, types: &[Ty]) -> Result<()> {
        if inst.operands.len() != types.len() {
            return self.bad(format!("takes {} operands, has {}", types.len(), inst.operands.len()));
        }
        let mut slots = vec![self.dst(&inst.operands[0], types[0])?];
        for (o, &t) in inst.operands[1..].iter().zip(&types[1..]) {
            slots.push(self.src(o, t)?);
        }
        self.emit(f, class, &slots);
        Ok(())
    }

    pub(super) fn integer(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        use Ty::*;
        if matches!(
            base,
            "add" | "sub" | "mul" | "mad" | "min" | "max" | "abs" | "neg" | "div" | "set" | "setp"
        ) && m.rest().iter().any(|p| Ty::parse(p).is_some_and(Ty::is_float))
        {
            return Ok(false);
        }
        // Packed 16-bit integers have type names of their own.
        let x2 = m.one_of(&["u16x2", "s16x2"]);
        if let Some(x2) = x2 {
            let signed = x2 == "s16x2";
            let relu = m.has("relu");
            let f = match (base, signed, relu) {
                ("add", _, false) => cf::<alu::Add16x2>(),
                ("min", false, false) => cf::<alu::MinU16x2>(),
                ("min", true, false) => cf::<alu::MinS16x2>(),
                ("min", true, true) => cf::<alu::MinReluS16x2>(),
                ("max", false, false) => cf::<alu::MaxU16x2>(),
                ("max", true, false) => cf::<alu::MaxS16x2>(),
                ("max", true, true) => cf::<alu::MaxReluS16x2>(),
                _ => return Err(m.unknown("no such packed instruction")),
            };
            m.done()?;
            self.plain(f, Class::Integer, inst, &[B32, B32, B32])?;
            return Ok(true);
        }
        match base {
            "add" | "sub" => {
                let (cc, sat) = (m.has("cc"), m.has("sat"));
                let ty = m.ty()?;
                m.done()?;
                let sub = base == "sub";
                if cc {
                    self.carry(inst, ty, sub, false, true)?;
                    return Ok(true);
                }
                let f = match (ty.bytes(), sub, sat) {
                    (4, false, true) if ty == S32 => cf::<alu::AddSat>(),
                    (4, true, true) if ty == S32 => cf::<alu::SubSat>(),
                    (4, false, false) => hf::<alu::Add32>(),
                    (8, false, false) => hf::<alu::Add64>(),
                    (2, false, false) => cf::<alu::Add16>(),
                    (4, true, false) => hf::<alu::Sub32>(),
                    (8, true, false) => hf::<alu::Sub64>(),
                    (2, true, false) => cf::<alu::Sub16>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty; 3])?;
            }
            "addc" | "subc" => {
                let cc = m.has("cc");
                let ty = m.ty()?;
                m.done()?;
                self.carry(inst, ty, base == "subc", true, cc)?;
            }
            "mul" | "mad" | "madc" | "mul24" | "mad24" => self.multiply(base, m, inst)?,
            "div" | "rem" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty) {
                    ("div", U32) => cf::<alu::DivU32>(),
                    ("div", S32) => cf::<alu::DivS32>(),
                    ("div", U64) => cf::<alu::DivU64>(),
                    ("div", S64) => cf::<alu::DivS64>(),
                    ("div", U16) => cf::<alu::DivU16>(),
                    ("div", S16) => cf::<alu::DivS16>(),
                    ("rem", U32) => cf::<alu::RemU32>(),
                    ("rem", S32) => cf::<alu::RemS32>(),
                    ("rem", U64) => cf::<alu::RemU64>(),
                    ("rem", S64) => cf::<alu::RemS64>(),
                    ("rem", U16) => cf::<alu::RemU16>(),
                    ("rem", S16) => cf::<alu::RemS16>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty; 3])?;
            }
            "abs" | "neg" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty) {
                    ("abs", S32) => hf::<alu::Abs32>(),
                    ("abs", S64) => cf::<alu::Abs64>(),
                    ("abs", S16) => cf::<alu::Abs16>(),
                    ("neg", S32) => hf::<alu::Neg32>(),
                    ("neg", S64) => cf::<alu::Neg64>(),
                    ("neg", S16) => cf::<alu::Neg16>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty; 2])?;
            }
            "min" | "max" => {
                let relu = m.has("relu");
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty, relu) {
                    ("min", U32, false) => hf::<alu::MinU32>(),
                    ("min", S32, false) => hf::<alu::MinS32>(),
                    ("min", U64, false) => cf::<alu::MinU64>(),
                    ("min", S64, false) => cf::<alu::MinS64>(),
                    ("min", U16, false) => cf::<alu::MinU16>(),
                    ("min", S16, false) => cf::<alu::MinS16>(),
                    ("max", U32, false) => hf::<alu::MaxU32>(),
                    ("max", S32, false) => hf::<alu::MaxS32>(),
                    ("max", U64, false) => hf::<alu::MaxU64>(),
                    ("max", S64, false) => cf::<alu::MaxS64>(),
                    ("max", U16, false) => cf::<alu::MaxU16>(),
                    ("max", S16, false) => cf::<alu::MaxS16>(),
                    ("min", S32, true) => cf::<alu::MinReluS32>(),
                    ("max", S32, true) => cf::<alu::MaxReluS32>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty; 3])?;
            }
            "sad" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match ty {
                    U32 => cf::<alu::SadU32>(),
                    S32 => cf::<alu::SadS32>(),
                    U64 => cf::<alu::SadU64>(),
                    S64 => cf::<alu::SadS64>(),
                    U16 => cf::<alu::SadU16>(),
                    S16 => cf::<alu::SadS16>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty; 4])?;
            }
            "popc" | "clz" | "brev" | "bfind" => {
                let shift = m.has("shiftamt");
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty, shift) {
                    ("popc", B32, false) => cf::<alu::Popc32>(),
                    ("popc", B64, false) => cf::<alu::Popc64>(),
                    ("clz", B32, false) => cf::<alu::Clz32>(),
                    ("clz", B64, false) => cf::<alu::Clz64>(),
                    ("brev", B32, false) => cf::<alu::Brev32>(),
                    ("brev", B64, false) => cf::<alu::Brev64>(),
                    ("bfind", U32, false) => cf::<alu::BfindU32>(),
                    ("bfind", S32, false) => cf::<alu::BfindS32>(),
                    ("bfind", U64, false) => cf::<alu::BfindU64>(),
                    ("bfind", S64, false) => cf::<alu::BfindS64>(),
                    ("bfind", U32, true) => cf::<alu::BfindShiftU32>(),
                    ("bfind", S32, true) => cf::<alu::BfindShiftS32>(),
                    ("bfind", U64, true) => cf::<alu::BfindShiftU64>(),
                    ("bfind", S64, true) => cf::<alu::BfindShiftS64>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[if base == "brev" { ty } else { B32 }, ty])?;
            }
            "fns" => {
                m.has("b32");
                m.done()?;
                self.plain(cf::<alu::FnsB32>(), Class::Integer, inst, &[B32, B32, B32, S32])?;
            }
            "bfe" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match ty {
                    U32 => hf::<alu::BfeU32>(),
                    S32 => cf::<alu::BfeS32>(),
                    U64 => cf::<alu::BfeU64>(),
                    S64 => cf::<alu::BfeS64>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty, ty, B32, B32])?;
            }
            "bfi" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match ty {
                    B32 => hf::<alu::Bfi32>(),
                    B64 => hf::<alu::Bfi64>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty, ty, ty, B32, B32])?;
            }
            "bmsk" => {
                let wrap = m.has("wrap");
                m.has("clamp");
                m.has("b32");
                m.done()?;
                let f = if wrap { cf::<alu::BmskWrap>() } else { cf::<alu::BmskClamp>() };
                self.plain(f, Class::Integer, inst, &[B32; 3])?;
            }
            "szext" => {
                let wrap = m.has("wrap");
                m.has("clamp");
                let ty = m.ty()?;
                m.done()?;
                let f = match (wrap, ty) {
                    (false, U32) => cf::<alu::SzextClampU>(),
                    (false, S32) => cf::<alu::SzextClampS>(),
                    (true, U32) => cf::<alu::SzextWrapU>(),
                    (true, S32) => cf::<alu::SzextWrapS>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[B32; 3])?;
            }
            "dp4a" | "dp2a" => {
                let hi = m.has("hi");
                m.has("lo");
                let (a, b) = (m.ty()?, m.ty()?);
                m.done()?;
                let f = match (base, a, b, hi) {
                    ("dp4a", U32, U32, false) => cf::<alu::Dp4aUU>(),
                    ("dp4a", U32, S32, false) => cf::<alu::Dp4aUS>(),
                    ("dp4a", S32, U32, false) => cf::<alu::Dp4aSU>(),
                    ("dp4a", S32, S32, false) => cf::<alu::Dp4aSS>(),
                    ("dp2a", U32, U32, false) => cf::<alu::Dp2aUU<0>>(),
                    ("dp2a", U32, S32, false) => cf::<alu::Dp2aUS<0>>(),
                    ("dp2a", S32, U32, false) => cf::<alu::Dp2aSU<0>>(),
                    ("dp2a", S32, S32, false) => cf::<alu::Dp2aSS<0>>(),
                    ("dp2a", U32, U32, true) => cf::<alu::Dp2aUU<2>>(),
                    ("dp2a", U32, S32, true) => cf::<alu::Dp2aUS<2>>(),
                    ("dp2a", S32, U32, true) => cf::<alu::Dp2aSU<2>>(),
                    ("dp2a", S32, S32, true) => cf::<alu::Dp2aSS<2>>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[B32; 4])?;
            }
            "and" | "or" | "xor" | "not" | "cnot" => self.logic(base, m, inst)?,
            "lop3" => {
                let combine = m.one_of(&["or", "and"]);
                m.has("b32");
                m.done()?;
                let (mut inst, mut second) = (inst.clone(), None);
                if combine.is_some() {
                    // The predicate is (d != 0) or/and q.
                    let Some(q) = inst.operands.pop() else { return self.bad("takes 6 operands") };
                    let Some(Operand::Pair(d, p)) = inst.operands.first().cloned() else {
                        return self.bad("gives a register and a predicate");
                    };
                    let d = if *d == Operand::Sink { Operand::Reg(self.temp(B32)) } else { *d };
                    inst.operands[0] = d.clone();
                    second = Some((d, *p, q));
                }
                let [d, a, b, c, table] = self.operands::<5>(&inst)?;
                let Operand::Int(table) = table else { return self.bad("the table is an immediate") };
                let slots = [self.dst(&d, B32)?, self.src(&a, B32)?, self.src(&b, B32)?, self.src(&c, B32)?];
                self.emit(hf::<alu::Lop3>(), Class::Integer, &slots).imm = table & 0xff;
                if let Some((d, p, q)) = second {
                    let (q, negated) = self.pred(&q)?;
                    let (d, zero) = (self.src(&d, B32)?, self.constant(0, false)?);
                    let slots = [self.pred_dst(&p)?, d, zero, Slot::Raw(0), q];
                    let imm = if combine == Some("and") { 1 } else { 2 } | u64::from(negated) << 2;
                    self.emit(hf::<alu::SetpU32<{ cmp::NE }>>(), Class::Predicate, &slots).imm = imm;
                }
            }
            "shl" | "shr" => {
                let ty = m.ty()?;
                m.done()?;
                let f = match (base, ty.bytes(), ty.is_signed()) {
                    ("shl", 4, _) => hf::<alu::Shl32>(),
                    ("shl", 8, _) => hf::<alu::Shl64>(),
                    ("shl", 2, _) => cf::<alu::Shl16>(),
                    ("shr", 4, false) => hf::<alu::ShrU32>(),
                    ("shr", 8, false) => hf::<alu::ShrU64>(),
                    ("shr", 2, false) => cf::<alu::ShrU16>(),
                    ("shr", 4, true) => hf::<alu::ShrS32>(),
                    ("shr", 8, true) => hf::<alu::ShrS64>(),
                    ("shr", 2, true) => cf::<alu::ShrS16>(),
                    _ => return Err(m.unknown("no such type")),
                };
                self.plain(f, Class::Integer, inst, &[ty, ty, B32])?;
            }
            "shf" => {
                let (left, right) = (m.has("l"), m.has("r"));
                let (clamp, wrap) = (m.has("clamp"), m.has("wrap"));
                m.has("b32");
                m.done()?;
                let f = match (left, right, clamp, wrap) {
                    (true, false, true, false) => cf::<alu::ShfLClamp>(),
                    (true, false, false, true) => hf::<alu::ShfLWrap>(),
                    (false, true, true, false) => cf::<alu::ShfRClamp>(),
                    (false, true, false, true) => cf::<alu::ShfRWrap>(),
                    _ => return Err(m.unknown("direction and mode")),
                };
                self.plain(f, Class::Integer, inst, &[B32; 4])?;
            }
            "setp" | "set" => self.compare(base, m, inst)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The function's carry flag.
    fn carry_flag(&mut self) -> u32 {
        match self.carry {
            Some(r) => r,
            None => {
                let r = self.temp(Ty::Pred);
                self.carry = Some(r);
                r
            }
        }
    }

    fn carry(&mut self, inst: &Inst, ty: Ty, sub: bool, takes: bool, gives: bool) -> Result<()> {
        let [d, a, b] = self.operands::<3>(inst)?;
        let flag = self.carry_flag();
        let slot = match (takes, gives) {
            (true, true) => Slot::Both(flag),
            (true, false) => Slot::Use(flag),
            _ => Slot::Def(flag),
        };
        let slots = [self.dst(&d, ty)?, self.src(&a, ty)?, self.src(&b, ty)?, slot];
        let f = match ty.bytes() {
            4 => cf::<alu::Carry32>(),
            8 => cf::<alu::Carry64>(),
            _ => return self.bad("carry of 16 bits"),
        };
        self.emit(f, Class::Integer, &slots).imm =
            u64::from(sub) | u64::from(takes) << 1 | u64::from(gives) << 2;
        Ok(())
    }

    fn multiply(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        use Ty::*;
        let (lo, hi, wide, cc, sat) = (m.has("lo"), m.has("hi"), m.has("wide"), m.has("cc"), m.has("sat"));
        let ty = m.ty()?;
        m.done()?;
        let half = match (lo, hi, wide) {
            (true, false, false) => "lo",
            (false, true, false) => "hi",
            (false, false, true) => "wide",
            _ => return Err(m.unknown("one of .lo .hi .wide")),
        };
        let double = match ty {
            U16 => U32,
            S16 => S32,
            U32 => U64,
            S32 => S64,
            t => t,
        };
        if cc || base == "madc" {
            if half == "wide" || !base.starts_with("mad") {
                return Err(m.unknown("no such carry"));
            }
            let [d, a, b, c] = self.operands::<4>(inst)?;
            let flag = self.carry_flag();
            let takes = base == "madc";
            let slot = match (takes, cc) {
                (true, true) => Slot::Both(flag),
                (true, false) => Slot::Use(flag),
                _ => Slot::Def(flag),
            };
            let slots = [self.dst(&d, ty)?, self.src(&a, ty)?, self.src(&b, ty)?, self.src(&c, ty)?, slot];
            let f = match ty.bytes() {
                4 => cf::<alu::MadCarry32>(),
                8 => cf::<alu::MadCarry64>(),
                _ => return Err(m.unknown("carry of 16 bits")),
            };
            let imm = u64::from(takes) << 1
                | u64::from(cc) << 2
                | u64::from(half == "hi") << 3
                | u64::from(ty.is_signed()) << 4;
            self.emit(f, Class::Integer, &slots).imm = imm;
            return Ok(());
        }
        let f = match (base, half, ty, sat) {
            ("mul", "lo", U32 | S32, false) => hf::<alu::MulLo32>(),
            ("mul", "lo", U64 | S64, false) => cf::<alu::MulLo64>(),
            ("mul", "lo", U16 | S16, false) => cf::<alu::MulLo16>(),
            ("mul", "hi", U32, false) => hf::<alu::MulHiU32>(),
            ("mul", "hi", S32, false) => cf::<alu::MulHiS32>(),
            ("mul", "hi", U64, false) => cf::<alu::MulHiU64>(),
            ("mul", "hi", S64, false) => cf::<alu::MulHiS64>(),
            ("mul", "hi", U16, false) => cf::<alu::MulHiU16>(),
            ("mul", "hi", S16, false) => cf::<alu::MulHiS16>(),
            ("mul", "wide", U32, false) => hf::<alu::MulWideU32>(),
            ("mul", "wide", S32, false) => hf::<alu::MulWideS32>(),
            ("mul", "wide", U16, false) => cf::<alu::MulWideU16>(),
            ("mul", "wide", S16, false) => cf::<alu::MulWideS16>(),
            ("mad", "lo", U32 | S32, false) => hf::<alu::MadLo32>(),
            ("mad", "lo", U64 | S64, false) => cf::<alu::MadLo64>(),
            ("mad", "lo", U16 | S16, false) => cf::<alu::MadLo16>(),
            ("mad", "hi", U32, false) => cf::<alu::MadHiU32>(),
            ("mad", "hi", S32, false) => cf::<alu::MadHiS32>(),
            ("mad", "hi", S32, true) => cf::<alu::MadHiSatS32>(),
            ("mad", "hi", U64, false) => cf::<alu::MadHiU64>(),
            ("mad", "hi", S64, false) => cf::<alu::MadHiS64>(),
            ("mad", "hi", U16, false) => cf::<alu::MadHiU16>(),
            ("mad", "hi", S16, false) => cf::<alu::MadHiS16>(),
            ("mad", "wide", U32, false) => hf::<alu::MadWideU32>(),
            ("mad", "wide", S32, false) => hf::<alu::MadWideS32>(),
            ("mad", "wide", U16, false) => cf::<alu::MadWideU16>(),
            ("mad", "wide", S16, false) => cf::<alu::MadWideS16>(),
            ("mul24", "lo", U32, false) => cf::<alu::Mul24LoU>(),
            ("mul24", "lo", S32, false) => cf::<alu::Mul24LoS>(),
            ("mul24", "hi", U32, false) => cf::<alu::Mul24HiU>(),
            ("mul24", "hi", S32, false) => cf::<alu::Mul24HiS>(),
            ("mad24", "lo", U32, false) => cf::<alu::Mad24LoU>(),
            ("mad24", "lo", S32, false) => cf::<alu::Mad24LoS>(),
            ("mad24", "hi", U32, false) => cf::<alu::Mad24HiU>(),
            ("mad24", "hi", S32, false) => cf::<alu::Mad24HiS>(),
            _ => return Err(m.unknown("no such type")),
        };
        let d = if half == "wide" { double } else { ty };
        if base.starts_with("mul") {
            self.plain(f, Class::Integer, inst, &[d, ty, ty])
        } else {
            self.plain(f, Class::Integer, inst, &[d, ty, ty, d])
        }
    }

    fn logic(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        let ty = m.ty()?;
        m.done()?;
        if ty == Ty::Pred {
            if inst.operands.len() != if base == "not" { 2 } else { 3 } {
                return self.bad("wrong number of operands");
            }
            let d = self.pred_dst(&inst.operands[0])?;
            let (a, na) = self.pred(&inst.operands[1])?;
            let (b, nb) = match inst.operands.get(2) {
                Some(b) => self.pred(b)?,
                None => (Slot::Raw(0), false),
            };
            let kind = match base {
                "not" => 1,
                "and" => 2,
                "or" => 3,
                "xor" => 4,
                _ => return Err(m.unknown("no such type")),
            };
            self.emit(cf::<mv::PredOp>(), Class::Predicate, &[d, a, b]).imm =
                kind | u64::from(na) << 4 | u64::from(nb) << 5;
            return Ok(());
        }
        let wide = ty.bytes() == 8;
        let f = match (base, wide, ty.bytes()) {
            ("and", false, _) => hf::<alu::And32>(),
            ("and", true, _) => hf::<alu::And64>(),
            ("or", false, _) => hf::<alu::Or32>(),
            ("or", true, _) => hf::<alu::Or64>(),
            ("xor", false, _) => hf::<alu::Xor32>(),
            ("xor", true, _) => cf::<alu::Xor64>(),
            ("not", false, 2) => cf::<alu::Not16>(),
            ("not", false, _) => hf::<alu::Not32>(),
            ("not", true, _) => cf::<alu::Not64>(),
            ("cnot", false, 2) => cf::<alu::Cnot16>(),
            ("cnot", false, _) => cf::<alu::Cnot32>(),
            _ => cf::<alu::Cnot64>(),
        };
        let n = if matches!(base, "not" | "cnot") { 2 } else { 3 };
        self.plain(f, Class::Integer, inst, &[ty; 3][..n])
    }

    /// `setp` and `set`, of integers and floats.
    pub(super) fn compare(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        use Ty::*;
        let ftz = m.has("ftz");
        let Some(c) = comparison(m) else { return Err(m.unknown("unknown comparison")) };
        let combine = match m.one_of(&["and", "or", "xor"]) {
            None => 0u64,
            Some("and") => 1,
            Some("or") => 2,
            Some(_) => 3,
        };
        let to = if base == "set" { Some(m.ty()?) } else { None };
        let ty = m.ty()?;
        m.done()?;
        if c > cmp::GE && !ty.is_float() {
            return Err(m.unknown("this comparison is for floats"));
        }
        if ftz && !matches!(ty, F32 | F16 | F16x2) {
            return Err(m.unknown("`.ftz` is for f32, f16 and f16x2"));
        }
        let f = match ty {
            B32 | U32 => by_cmp!(int handler, alu::SetpU32, c),
            S32 => by_cmp!(int handler, alu::SetpS32, c),
            B64 | U64 => by_cmp!(int handler, alu::SetpU64, c),
            S64 => by_cmp!(int handler, alu::SetpS64, c),
            B16 | U16 => by_cmp!(int cold, alu::SetpU16, c),
            S16 => by_cmp!(int cold, alu::SetpS16, c),
            F32 if ftz => by_cmp!(handler, float::SetpF32, c, true),
            F32 => by_cmp!(handler, float::SetpF32, c, false),
            F64 => by_cmp!(cold, float::SetpF64, c),
            F16 if ftz => by_cmp!(cold, float::SetpF16, c, true),
            F16 => by_cmp!(cold, float::SetpF16, c, false),
            Bf16 => by_cmp!(cold, float::SetpBf16, c),
            F16x2 | Bf16x2 => by_cmp!(cold, half::SetpX2, c),
            _ => return Err(m.unknown("no such type")),
        };
        let n = if combine == 0 { 3 } else { 4 };
        if inst.operands.len() != n {
            return self.bad(format!("takes {n} operands, has {}", inst.operands.len()));
        }
        let (a, b) = (self.src(&inst.operands[1], ty)?, self.src(&inst.operands[2], ty)?);
        let (p2, negated) = match inst.operands.get(3) {
            Some(o) => self.pred(o)?,
            None => (Slot::Raw(0), false),
        };
        let imm = combine | u64::from(negated) << 2 | u64::from(ty == Bf16x2) << 3 | u64::from(ftz) << 4;
        if let Some(to) = to {
            let p = self.temp(Pred);
            if matches!(ty, F16x2 | Bf16x2) {
                let one = match to {
                    U32 | S32 => 0xffff,
                    F16x2 if ty == F16x2 => 0x3c00,
                    Bf16x2 if ty == Bf16x2 => 0x3f80,
                    _ => return Err(m.unknown("no such type")),
                };
                let q = self.temp(Pred);
                self.emit(f, Class::Predicate, &[Slot::Def(p), a, b, Slot::Def(q), p2]).imm = imm;
                let d = self.dst(&inst.operands[0], to)?;
                let slots = [d, Slot::Use(p), Slot::Use(q)];
                self.emit(cf::<float::SetFromPreds>(), Class::Predicate, &slots).imm = one;
                return Ok(());
            }
            self.emit(f, Class::Predicate, &[Slot::Def(p), a, b, Slot::Raw(0), p2]).imm = imm;
            let one = match to {
                U32 | S32 | B32 => 0xffff_ffff,
                F32 => u64::from(1f32.to_bits()),
                U16 | S16 => 0xffff,
                F16 => 0x3c00,
                Bf16 => 0x3f80,
                _ => return Err(m.unknown("no such type")),
            };
            let d = self.dst(&inst.operands[0], to)?;
            self.emit(cf::<float::SetFromPred>(), Class::Predicate, &[d, Slot::Use(p)]).imm = one;
            return Ok(());
        }
        let (p, q) = match &inst.operands[0] {
            Operand::Pair(p, q) => (self.pred_dst(p)?, self.pred_dst(q)?),
            p => (self.pred_dst(p)?, Slot::Raw(0)),
        };
        self.emit(f, Class::Predicate, &[p, a, b, q, p2]).imm = imm;
        Ok(())
    }
}
