//! Branches, calls and ends.

use super::{Decoder, Mods, Next, Slot};
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::{cold as cf, control, moves as mv};
use crate::program::{Call, System, Target};
use crate::{Error, Result};

impl Decoder<'_> {
    fn label(&self, op: &Operand) -> Result<u32> {
        match op {
            Operand::Label(l) => match self.f.labels.get(*l as usize) {
                Some(&at) => Ok(at),
                None => self.bad("the label is not declared"),
            },
            _ => self.bad("a label is expected"),
        }
    }

    pub(super) fn control(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "bra" => {
                m.has("uni");
                m.done()?;
                let [l] = self.operands::<1>(inst)?;
                let at = self.label(&l)?;
                self.emit(cf::<control::Bra>(), Class::Control, &[]).next = Next::Jump(at);
            }
            "brx" => {
                m.has("idx");
                m.has("uni");
                m.done()?;
                let [i, t] = self.operands::<2>(inst)?;
                let at = self.label(&t)?;
                let list = match self.f.insts.get(at as usize) {
                    Some(i) if &*i.opcode == ".branchtargets" => {
                        i.operands.iter().map(|o| self.label(o)).collect::<Result<Vec<u32>>>()?
                    }
                    _ => return self.bad("its label names no `.branchtargets`"),
                };
                let i = self.src(&i, Ty::B32)?;
                let p = self.emit(cf::<control::Brx>(), Class::Control, &[Slot::None, i]);
                p.next = Next::Table(list);
            }
            // `.branchtargets`, kept by the parser as an instruction.
            "" => {
                self.emit(cf::<mv::Nop>(), Class::Other, &[]);
            }
            "exit" => {
                m.done()?;
                self.emit(cf::<control::Exit>(), Class::Control, &[]).next = Next::End;
            }
            "ret" => {
                m.has("uni");
                m.done()?;
                for (k, &r) in self.f.result_regs.iter().enumerate() {
                    let at = self.result_cells[k].0;
                    self.local_cell(at.into(), Slot::Use(r), self.reg_ty(r).bytes() == 8, false)?;
                }
                let f = if self.f.kernel { cf::<control::Exit>() } else { cf::<control::Ret>() };
                self.emit(f, Class::Control, &[]).next = Next::End;
            }
            "trap" | "brkpt" => {
                m.done()?;
                self.emit(cf::<control::Trap>(), Class::Control, &[]).imm = u64::from(base == "brkpt");
            }
            "nanosleep" => {
                m.has("u32");
                m.done()?;
                self.emit(cf::<control::Sleep>(), Class::Control, &[]);
            }
            "pmevent" => {
                self.emit(cf::<mv::Nop>(), Class::Other, &[]);
            }
            "call" => self.call(m, inst)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `call (results), callee, (arguments), prototype`
    fn call(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        m.has("uni");
        m.done()?;
        let mut ops = inst.operands.iter().peekable();
        let results = match ops.peek() {
            Some(Operand::List(l)) => {
                ops.next();
                l.clone()
            }
            _ => Vec::new(),
        };
        let Some(callee) = ops.next() else { return self.bad("names no function") };
        let args = match ops.next() {
            Some(Operand::List(l)) => l.clone(),
            _ => Vec::new(),
        };
        let cell = |d: &mut Self, o: &Operand| -> Result<Option<(u32, u32)>> {
            let Operand::Var(v, 0) = o else { return Ok(None) };
            let (at, space) = d.place(*v)?;
            if space != crate::ast::Space::Local {
                return d.bad("arguments are `.param` variables of the caller");
            }
            Ok(Some((at as u32, d.f.vars[*v as usize].bytes as u32)))
        };
        let (mut arg_cells, mut result_cells, mut to_load) = (Vec::new(), Vec::new(), Vec::new());
        for o in &args {
            let c = match cell(self, o)? {
                Some(c) => c,
                None => {
                    // A register or a number: stored to a cell of its own first.
                    let at = self.place_local(8, 8)?;
                    let wide = !matches!(o, Operand::Reg(r) if self.reg_ty(*r).bytes() < 8);
                    let value = self.src(o, if wide { Ty::B64 } else { Ty::B32 })?;
                    self.local_cell(at, value, wide, false)?;
                    (at as u32, 8)
                }
            };
            arg_cells.push(c);
        }
        for o in &results {
            let c = match (cell(self, o)?, o) {
                (Some(c), _) => c,
                (None, Operand::Reg(r)) => {
                    let at = self.place_local(8, 8)?;
                    to_load.push((at, *r));
                    (at as u32, 8)
                }
                _ => return self.bad("results are registers or `.param` variables"),
            };
            result_cells.push(c);
        }
        let (args, results) = (arg_cells, result_cells);
        let (target, name, slot) = match callee {
            Operand::Symbol(name, _) => {
                let system = match name.as_str() {
                    "vprintf" => Some(System::Printf),
                    "__assertfail" => Some(System::Assert),
                    "malloc" => Some(System::Malloc),
                    "free" => Some(System::Free),
                    _ => None,
                };
                match system {
                    Some(s) => (Target::System(s), name.clone(), Slot::None),
                    None => {
                        let body = self.ast.functions.iter().any(|f| f.name == *name && f.has_body);
                        if !body && !self.ast.aliases.iter().any(|a| a.0 == *name) {
                            return Err(Error::unsupported(
                                inst.line,
                                "call",
                                format!("`{name}` has no body in this module"),
                            ));
                        }
                        self.callees.push(name.clone());
                        (Target::Entry(0), name.clone(), Slot::None)
                    }
                }
            }
            Operand::Reg(_) => (Target::Register(0), String::new(), self.src(callee, Ty::B64)?),
            _ => return self.bad("names no function"),
        };
        self.t.calls.push((Call { target, args, results }, name));
        let x = (self.t.calls.len() - 1) as u32;
        self.emit(cf::<control::CallOp>(), Class::Control, &[slot]).x = x;
        for (at, r) in to_load {
            self.local_cell(at, Slot::Def(r), self.reg_ty(r).bytes() == 8, true)?;
        }
        Ok(())
    }
}
