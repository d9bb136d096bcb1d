//! Barriers and instructions across the lanes of a warp.

use super::{Decoder, Mods, Slot};
use crate::Result;
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::memory::Fence;
use crate::exec::{barrier, handler as hf, moves as mv, warp};

impl Decoder<'_> {
    pub(super) fn synchronise(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "bar" if m.has("warp") => {
                m.has("sync");
                m.done()?;
                let [mask] = self.operands::<1>(inst)?;
                let mask = self.src(&mask, Ty::B32)?;
                self.emit(hf::<warp::WarpBarrier>(), Class::Barrier, &[mask]);
            }
            "barrier" if m.has("cluster") => {
                let wait = m.has("wait");
                if !wait && !m.has("arrive") {
                    return Err(m.unknown("arrive or wait"));
                }
                for w in ["aligned", "relaxed", "release", "acquire"] {
                    m.has(w);
                }
                m.done()?;
                self.emit(hf::<barrier::ClusterBar>(), Class::Barrier, &[]).imm = u64::from(wait);
            }
            "bar" | "barrier" => self.bar(base, m, inst)?,
            "shfl" => {
                if !m.has("sync") {
                    return Err(m.unknown("`.sync` is expected"));
                }
                let Some(mode) = m.one_of(&["up", "down", "bfly", "idx"]) else {
                    return Err(m.unknown("unknown mode"));
                };
                m.has("b32");
                m.done()?;
                let [d, a, b, c, mask] = self.operands::<5>(inst)?;
                let (d, p) = match &d {
                    Operand::Pair(d, p) => (self.dst(d, Ty::B32)?, Some(self.pred_dst(p)?)),
                    d => (self.dst(d, Ty::B32)?, None),
                };
                let slots = [
                    d,
                    self.src(&a, Ty::B32)?,
                    self.src(&b, Ty::B32)?,
                    self.src(&c, Ty::B32)?,
                    self.src(&mask, Ty::B32)?,
                ];
                let q = self.emit(hf::<warp::Shfl>(), Class::Warp, &slots);
                q.imm = ["up", "down", "bfly", "idx"].iter().position(|x| *x == mode).unwrap_or(3) as u64;
                if let Some(Slot::Def(r)) = p {
                    q.y_pred = Some(r);
                }
            }
            "vote" => {
                if !m.has("sync") {
                    return Err(m.unknown("`.sync` is expected"));
                }
                let Some(mode) = m.one_of(&["all", "any", "uni", "ballot"]) else {
                    return Err(m.unknown("unknown mode"));
                };
                m.has("pred");
                m.has("b32");
                m.done()?;
                let [d, p, mask] = self.operands::<3>(inst)?;
                let d = if mode == "ballot" { self.dst(&d, Ty::B32)? } else { self.pred_dst(&d)? };
                let (p, negated) = self.pred(&p)?;
                let mask = self.src(&mask, Ty::B32)?;
                let k = ["all", "any", "uni", "ballot"].iter().position(|x| *x == mode).unwrap_or(3) as u64;
                self.emit(hf::<warp::Vote>(), Class::Warp, &[d, p, mask]).imm = k | u64::from(negated) << 2;
            }
            "match" => {
                let all = m.has("all");
                if !all && !m.has("any") || !m.has("sync") {
                    return Err(m.unknown("unknown mode"));
                }
                let ty = m.ty()?;
                m.done()?;
                let [d, a, mask] = self.operands::<3>(inst)?;
                let (d, p) = match &d {
                    Operand::Pair(d, p) => (self.dst(d, Ty::B32)?, Some(self.pred_dst(p)?)),
                    d => (self.dst(d, Ty::B32)?, None),
                };
                let slots = [d, self.src(&a, ty)?, self.src(&mask, Ty::B32)?];
                let q = self.emit(hf::<warp::Match>(), Class::Warp, &slots);
                q.imm = u64::from(all) | u64::from(ty.bytes() == 8) << 1;
                if let Some(Slot::Def(r)) = p {
                    q.y_pred = Some(r);
                }
            }
            "redux" => {
                m.has("sync");
                let Some(op) = m.one_of(&["add", "min", "max", "and", "or", "xor"]) else {
                    return Err(m.unknown("unknown operation"));
                };
                let ty = m.ty()?;
                m.done()?;
                let k = match (op, ty) {
                    ("add", Ty::U32 | Ty::S32) => 0,
                    ("min", Ty::U32) => 1,
                    ("max", Ty::U32) => 2,
                    ("min", Ty::S32) => 3,
                    ("max", Ty::S32) => 4,
                    ("and", Ty::B32) => 5,
                    ("or", Ty::B32) => 6,
                    ("xor", Ty::B32) => 7,
                    _ => return Err(m.unknown("no such operation on this type")),
                };
                let [d, a, mask] = self.operands::<3>(inst)?;
                let slots = [self.dst(&d, ty)?, self.src(&a, ty)?, self.src(&mask, Ty::B32)?];
                self.emit(hf::<warp::Redux>(), Class::Warp, &slots).imm = k;
            }
            "activemask" => {
                m.has("b32");
                m.done()?;
                let [d] = self.operands::<1>(inst)?;
                let d = self.dst(&d, Ty::B32)?;
                self.emit(hf::<warp::ActiveMask>(), Class::Warp, &[d]);
            }
            "elect" => {
                m.has("sync");
                m.done()?;
                let [d, mask] = self.operands::<2>(inst)?;
                let Operand::Pair(d, p) = &d else { return self.bad("`register|predicate` is expected") };
                let d = match &**d {
                    Operand::Sink => Slot::Raw(mv::SINK),
                    d => self.dst(d, Ty::B32)?,
                };
                let slots = [d, self.pred_dst(p)?, self.src(&mask, Ty::B32)?];
                self.emit(hf::<warp::Elect>(), Class::Warp, &slots);
            }
            "griddepcontrol" => {
                if !m.has("wait") && !m.has("launch_dependents") {
                    return Err(m.unknown("wait or launch_dependents"));
                }
                m.done()?;
                // Launches run one after the other: what a grid depends on has ended.
                self.emit(hf::<mv::Nop>(), Class::Control, &[]);
            }
            "setmaxnreg" => {
                if !m.has("inc") && !m.has("dec") {
                    return Err(m.unknown("inc or dec"));
                }
                m.has("sync");
                m.has("aligned");
                m.has("u32");
                m.done()?;
                self.emit(hf::<mv::Nop>(), Class::Other, &[]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn bar(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        // `bar` is `barrier.aligned`.
        m.has("cta");
        let aligned = m.has("aligned") || base == "bar";
        let Some(kind) = m.one_of(&["sync", "arrive", "red"]) else {
            return Err(m.unknown("sync, arrive or red"));
        };
        let mut imm = u64::from(aligned) << 3;
        let zero = self.constant(0, false)?;
        if kind != "red" {
            m.done()?;
            imm |= u64::from(kind == "arrive");
            let (id, count) = match &inst.operands[..] {
                [id] if kind == "sync" => (self.src(id, Ty::B32)?, zero),
                [id, n] => {
                    imm |= 1 << 4;
                    (self.src(id, Ty::B32)?, self.src(n, Ty::B32)?)
                }
                _ => return self.bad("takes a barrier and a number of threads"),
            };
            self.emit(hf::<barrier::Bar>(), Class::Barrier, &[Slot::Raw(mv::SINK), id, count]).imm = imm;
            return Ok(());
        }
        let Some(op) = m.one_of(&["popc", "and", "or"]) else { return Err(m.unknown("popc, and or or")) };
        m.has("u32");
        m.has("pred");
        m.done()?;
        imm |= match op {
            "popc" => 2,
            "and" => 3,
            _ => 4,
        };
        let (d, id, n, p) = match &inst.operands[..] {
            [d, id, p] => (d, id, None, p),
            [d, id, n, p] => (d, id, Some(n), p),
            _ => return self.bad("takes 3 or 4 operands"),
        };
        let d = if op == "popc" { self.dst(d, Ty::B32)? } else { self.pred_dst(d)? };
        let id = self.src(id, Ty::B32)?;
        let count = match n {
            Some(n) => {
                imm |= 1 << 4;
                self.src(n, Ty::B32)?
            }
            None => zero,
        };
        let (p, negated) = self.pred(p)?;
        imm |= u64::from(negated) << 5;
        self.emit(hf::<barrier::Bar>(), Class::Barrier, &[Slot::None, id, count, p]).imm = imm;
        self.emit(hf::<barrier::BarResult>(), Class::Barrier, &[d, id]).imm = imm;
        Ok(())
    }

    pub(super) fn proxy_fence(&mut self, m: &mut Mods) -> Result<()> {
        let kind = m.one_of(&["async", "alias", "async::generic", "tensormap::generic"]);
        for w in
            ["global", "shared::cta", "shared::cluster", "release", "acquire", "cta", "cluster", "gpu", "sys"]
        {
            m.has(w);
        }
        for w in ["sync_restrict::shared::cta", "sync_restrict::shared::cluster"] {
            m.has(w);
        }
        m.done()?;
        if kind.is_none() {
            return Err(m.unknown("unknown proxy"));
        }
        self.emit(hf::<Fence>(), Class::Barrier, &[]).imm = 2;
        Ok(())
    }

    pub(super) fn copy_arrive(&mut self, m: &mut Mods, _inst: &Inst) -> Result<()> {
        Err(m.unknown("not implemented yet"))
    }
}
