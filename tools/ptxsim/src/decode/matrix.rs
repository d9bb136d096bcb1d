//! Matrix instructions.

use super::{Decoder, ListAt, Mods, Slot};
use crate::Result;
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::{cold as cf, handler as hf, matrix as mx, memory as me, wgmma as wg};
use crate::program::MemOp;
use crate::tensor::mma::{Accum, Mma};
use crate::tensor::wgmma::Wgmma;
use crate::tensor::wmma::{Wmma, WmmaMove};

impl Decoder<'_> {
    pub(super) fn matrices(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "mma" => {
                let mma = Mma::parse(&inst.opcode).map_err(|e| m.unknown(&e))?;
                let regs = mma.regs();
                let [d, a, b, c] = self.operands::<4>(inst)?;
                let double = mma.acc == Accum::F64;
                let (ty, words) = if double { (Ty::B64, 2) } else { (Ty::B32, 1) };
                let mut list = Vec::new();
                for (op, n, write) in
                    [(d, regs.d, true), (a, regs.a, false), (b, regs.b, false), (c, regs.c, false)]
                {
                    self.fragment(&op, n / words, ty, write, &mut list)?;
                }
                let mut p = self.pre(hf::<mx::MmaOp>(), Class::Tensor);
                p.list = list;
                p.list_at = ListAt::Y;
                self.t.mma.push(mma);
                p.x = (self.t.mma.len() - 1) as u32;
                self.push(p);
            }
            "ldmatrix" | "stmatrix" => {
                for w in ["sync", "aligned"] {
                    if !m.has(w) {
                        return Err(m.unknown("`.sync.aligned` is expected"));
                    }
                }
                let trans = m.has("trans");
                let n = match m.one_of(&["x1", "x2", "x4"]) {
                    Some("x1") => 1,
                    Some("x2") => 2,
                    Some(_) => 4,
                    None => return Err(m.unknown("x1, x2 or x4")),
                };
                if !m.has("m8n8") || !m.has("b16") {
                    return Err(m.unknown("m8n8 and b16 are expected"));
                }
                let generic = !(m.has("shared") || m.has("shared::cta") || m.has("shared::cluster"));
                m.done()?;
                let [x, y] = self.operands::<2>(inst)?;
                let load = base == "ldmatrix";
                let (regs, address) = if load { (x, y) } else { (y, x) };
                let (address, offset, wide, _) = self.address(&address)?;
                if generic && !wide {
                    return self.bad("a generic address has 64 bits");
                }
                let mut list = Vec::new();
                self.fragment(&regs, n as usize, Ty::B32, load, &mut list)?;
                let at = self.mem(MemOp { offset, wide, bytes: 16, vec: 1, ..MemOp::default() });
                let f = if load { hf::<mx::LdMatrix>() } else { hf::<mx::StMatrix>() };
                let mut p = self.pre(f, Class::Tensor);
                p.s[1] = address;
                p.list = list;
                p.list_at = ListAt::Mem;
                p.x = at;
                p.imm = n | u64::from(trans) << 8;
                self.push(p);
            }
            "wgmma" => self.wgmma(m, inst)?,
            "wmma" => self.wmma(m, inst)?,
            "movmatrix" => {
                for w in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    if !m.has(w) {
                        return Err(m.unknown("only .sync.aligned.m8n8.trans.b16"));
                    }
                }
                m.done()?;
                self.plain(cf::<mx::MovMatrix>(), Class::Tensor, inst, &[Ty::B32; 2])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn wgmma(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let sync = match m.rest().first().copied() {
            Some("fence") => Some(0),
            Some("commit_group") => Some(1),
            Some("wait_group") => Some(2),
            _ => None,
        };
        if let Some(kind) = sync {
            m.take();
            for w in ["sync", "aligned"] {
                m.has(w);
            }
            m.done()?;
            let n = match inst.operands.first() {
                Some(Operand::Int(n)) if kind == 2 => *n as u32,
                None if kind < 2 => 0,
                _ => return self.bad("wrong operands"),
            };
            let p = self.emit(cf::<wg::WgmmaSync>(), Class::Tensor, &[]);
            p.imm = kind;
            p.y = n;
            return Ok(());
        }
        let form = Wgmma::parse(&inst.opcode).map_err(|e| m.unknown(&e))?;
        let ops = &inst.operands;
        // Integers have no scales.
        let integer = form.acc == Accum::S32;
        if ops.len() < if integer { 4 } else { 6 } {
            return self.bad("too few operands");
        }
        let mut list = Vec::new();
        // D is read as well as written, when the wait comes.
        self.fragment(&ops[0], form.regs_d(), Ty::B32, true, &mut list)?;
        for s in &mut list {
            if let Slot::Def(r) = *s {
                *s = Slot::Both(r);
            }
        }
        let a_in_registers = matches!(ops[1], Operand::Vector(_));
        if a_in_registers {
            self.fragment(&ops[1], 4, Ty::B32, false, &mut list)?;
        } else {
            let a = self.src(&ops[1], Ty::B64)?;
            list.push(a);
        }
        let b = self.src(&ops[2], Ty::B64)?;
        list.push(b);
        let (scale, negated) = self.pred(&ops[3])?;
        let mut imms = Vec::new();
        for o in &ops[4..] {
            match o {
                Operand::Int(v) => imms.push(*v as i64),
                _ => return self.bad("scales and transpositions are immediates"),
            }
        }
        let (sa, sb) = match imms[..] {
            [] if integer => (1, 1),
            [a, b, ..] if !integer && (a == 1 || a == -1) && (b == 1 || b == -1) => (a, b),
            _ => return self.bad("scales are 1 or -1"),
        };
        let (ta, tb) = match (imms.get(2..).unwrap_or_default(), a_in_registers) {
            ([], _) => (false, false),
            ([t], true) => (false, *t != 0),
            ([a, b], false) => (*a != 0, *b != 0),
            _ => return self.bad("wrong operands"),
        };
        if (ta || tb) && !form.transposes() {
            return self.bad("only 16-bit types can be transposed");
        }
        let op = wg::WgmmaOp {
            form,
            a_in_registers,
            negate_a: sa < 0,
            negate_b: sb < 0,
            transpose_a: ta,
            transpose_b: tb,
        };
        self.t.wgmma.push(op);
        let mut p = self.pre(cf::<wg::WgmmaIssue>(), Class::Tensor);
        p.s[0] = scale;
        p.imm = u64::from(negated);
        p.list = list;
        p.list_at = ListAt::Y;
        p.x = (self.t.wgmma.len() - 1) as u32;
        self.push(p);
        Ok(())
    }

    fn wmma(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        if m.rest().first() == Some(&"mma") {
            let form = Wmma::parse(&inst.opcode).map_err(|e| m.unknown(&e))?;
            let (d, a, b, c) = form.regs();
            let double = inst.opcode.contains(".f64");
            let (ty, words) = if double { (Ty::B64, 2) } else { (Ty::B32, 1) };
            let ops = self.operands::<4>(inst)?;
            let mut list = Vec::new();
            for (op, (n, write)) in ops.iter().zip([(d, true), (a, false), (b, false), (c, false)]) {
                self.fragment(op, n / words, ty, write, &mut list)?;
            }
            self.t.wmma.push(form);
            let mut p = self.pre(cf::<mx::WmmaOp>(), Class::Tensor);
            p.list = list;
            p.list_at = ListAt::Y;
            p.x = (self.t.wmma.len() - 1) as u32;
            p.imm = u64::from(double);
            self.push(p);
            return Ok(());
        }
        let space = ["global", "shared::cta", "shared", "shared::cluster"]
            .iter()
            .find(|s| m.rest().contains(s))
            .copied();
        let form = WmmaMove::parse(&inst.opcode).map_err(|e| m.unknown(&e))?;
        let (regs, address, stride) = match (&inst.operands[..], form.store) {
            ([r, a], false) | ([a, r], true) => (r, a, None),
            ([r, a, s], false) | ([a, r, s], true) => (r, a, Some(s)),
            _ => return self.bad("takes 2 or 3 operands"),
        };
        let double = inst.opcode.contains(".f64");
        let (ty, words) = if double { (Ty::B64, 2) } else { (Ty::B32, 1) };
        let (slot, offset, wide, _) = self.address(address)?;
        let stride = match stride {
            Some(s) => self.src(s, Ty::B32)?,
            None => self.constant(form.default_stride(), false)?,
        };
        let mut list = Vec::new();
        self.fragment(regs, form.regs() / words, ty, !form.store, &mut list)?;
        let at = self.mem(MemOp { offset, wide, bytes: 4, vec: 1, ..MemOp::default() });
        self.t.moves.push(form);
        let mut p = self.pre(cf::<mx::WmmaMoveOp>(), Class::Tensor);
        p.s[1] = slot;
        p.s[2] = stride;
        p.list = list;
        p.list_at = ListAt::Mem;
        p.x = at;
        p.y = (self.t.moves.len() - 1) as u32;
        p.imm = u64::from(double) << 8
            | u64::from(match space {
                Some("global") => me::space::GLOBAL,
                Some(_) => me::space::SHARED,
                None => me::space::GENERIC,
            });
        self.push(p);
        Ok(())
    }

    /// The registers of a fragment: `{a, b, ...}`, or one register.
    pub(super) fn fragment(
        &mut self,
        op: &Operand,
        n: usize,
        ty: Ty,
        write: bool,
        out: &mut Vec<Slot>,
    ) -> Result<()> {
        let one = std::slice::from_ref(op);
        let parts = match op {
            Operand::Vector(v) => v,
            _ => one,
        };
        if parts.len() != n {
            return self.bad(format!("a fragment of {n} registers is expected, this has {}", parts.len()));
        }
        for p in parts {
            let s = if write { self.dst(p, ty)? } else { self.src(p, ty)? };
            out.push(s);
        }
        Ok(())
    }
}
