//! Matrix instructions.

use super::{Decoder, ListAt, Mods, Slot};
use crate::Result;
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::{handler as hf, matrix as mx};
use crate::program::MemOp;
use crate::tensor::mma::{Accum, Mma};

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
            "movmatrix" => {
                for w in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    if !m.has(w) {
                        return Err(m.unknown("only .sync.aligned.m8n8.trans.b16"));
                    }
                }
                m.done()?;
                self.plain(hf::<mx::MovMatrix>(), Class::Tensor, inst, &[Ty::B32; 2])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
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
