//! Barriers and instructions across the lanes of a warp.

use super::{Decoder, ListAt, Mods, Slot};
use crate::Result;
use crate::ast::{Inst, Operand, Ty};
use crate::counters::Class;
use crate::exec::memory::Fence;
use crate::exec::{barrier, bulk, cold as cf, handler as hf, moves as mv, warp};
use crate::program::MemOp;
use crate::tensor::tma::{Reduce, ReduceOp};

impl Decoder<'_> {
    pub(super) fn synchronise(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "bar" if m.has("warp") => {
                m.has("sync");
                m.done()?;
                let [mask] = self.operands::<1>(inst)?;
                let mask = self.src(&mask, Ty::B32)?;
                self.emit(cf::<warp::WarpBarrier>(), Class::Barrier, &[mask]);
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
                self.emit(cf::<barrier::ClusterBar>(), Class::Barrier, &[]).imm = u64::from(wait);
            }
            "bar" | "barrier" => self.bar(base, m, inst)?,
            "mbarrier" => self.mbarrier(m, inst)?,
            "cp" => self.bulk(m, inst)?,
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
                self.emit(cf::<warp::Vote>(), Class::Warp, &[d, p, mask]).imm = k | u64::from(negated) << 2;
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
                let q = self.emit(cf::<warp::Match>(), Class::Warp, &slots);
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
                self.emit(cf::<warp::Redux>(), Class::Warp, &slots).imm = k;
            }
            "activemask" => {
                m.has("b32");
                m.done()?;
                let [d] = self.operands::<1>(inst)?;
                let d = self.dst(&d, Ty::B32)?;
                self.emit(cf::<warp::ActiveMask>(), Class::Warp, &[d]);
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
                self.emit(cf::<warp::Elect>(), Class::Warp, &slots);
            }
            "griddepcontrol" => {
                if !m.has("wait") && !m.has("launch_dependents") {
                    return Err(m.unknown("wait or launch_dependents"));
                }
                m.done()?;
                // Launches run one after the other: what a grid depends on has ended.
                self.emit(cf::<mv::Nop>(), Class::Control, &[]);
            }
            "setmaxnreg" => {
                if !m.has("inc") && !m.has("dec") {
                    return Err(m.unknown("inc or dec"));
                }
                m.has("sync");
                m.has("aligned");
                m.has("u32");
                m.done()?;
                self.emit(cf::<mv::Nop>(), Class::Other, &[]);
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
            self.emit(cf::<barrier::Bar>(), Class::Barrier, &[Slot::Raw(mv::SINK), id, count]).imm = imm;
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
        self.emit(cf::<barrier::Bar>(), Class::Barrier, &[Slot::None, id, count, p]).imm = imm;
        self.emit(cf::<barrier::BarResult>(), Class::Barrier, &[d, id]).imm = imm;
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
        let f = if kind == Some("async") { cf::<bulk::ProxyFence>() } else { cf::<Fence>() };
        self.emit(f, Class::Barrier, &[]);
        Ok(())
    }

    /// `cp.async.mbarrier.arrive{.noinc}.shared.b64 [addr]`
    pub(super) fn copy_arrive(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let noinc = m.has("noinc");
        for w in ["arrive", "shared", "shared::cta", "b64"] {
            m.has(w);
        }
        m.done()?;
        let [a] = self.operands::<1>(inst)?;
        let imm = bulk::mb::COPY_ARRIVE | u64::from(noinc) << 4;
        self.mbarrier_op(&a, Slot::Raw(mv::SINK), Slot::Raw(mv::SINK), imm)
    }

    fn mbarrier_op(&mut self, a: &Operand, d: Slot, count: Slot, imm: u64) -> Result<()> {
        let (address, offset, wide, _) = self.address(a)?;
        let x = self.mem(MemOp { offset, wide, bytes: 8, vec: 1, ..MemOp::default() });
        let p = self.emit(cf::<bulk::MbarrierOp>(), Class::Async, &[d, address, count]);
        p.imm = imm;
        p.x = x;
        Ok(())
    }

    /// `mbarrier.*`
    pub(super) fn mbarrier(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        use bulk::mb;
        for w in [
            "relaxed",
            "release",
            "acquire",
            "cta",
            "cluster",
            "shared",
            "shared::cta",
            "shared::cluster",
            "noComplete",
            "b64",
        ] {
            m.has(w);
        }
        let Some(op) = m.take() else { return Err(m.unknown("unknown operation")) };
        let sink = Slot::Raw(mv::SINK);
        let ops = &inst.operands;
        match op {
            "init" => {
                m.done()?;
                let [a, n] = self.operands::<2>(inst)?;
                let n = self.src(&n, Ty::B32)?;
                self.mbarrier_op(&a, sink, n, mb::INIT)
            }
            "inval" => {
                m.done()?;
                let [a] = self.operands::<1>(inst)?;
                self.mbarrier_op(&a, sink, sink, mb::INVAL)
            }
            "expect_tx" | "complete_tx" => {
                m.done()?;
                let [a, n] = self.operands::<2>(inst)?;
                let n = self.src(&n, Ty::B32)?;
                self.mbarrier_op(&a, sink, n, if op == "expect_tx" { mb::EXPECT_TX } else { mb::COMPLETE_TX })
            }
            "arrive" | "arrive_drop" => {
                let expect = m.has("expect_tx");
                m.done()?;
                // The state result is optional.
                let has_state = !matches!(ops.first(), Some(Operand::Addr { .. }));
                let rest = &ops[usize::from(has_state).min(ops.len())..];
                let d = match ops.first() {
                    Some(Operand::Sink) => sink,
                    Some(o) if has_state => self.dst(o, Ty::B64)?,
                    _ => sink,
                };
                let (a, n) = match rest {
                    [a] if !expect => (a, sink),
                    [a, n] => (a, self.src(n, Ty::B32)?),
                    _ => return self.bad("takes a state, an address and a number"),
                };
                let imm = match (op, expect) {
                    ("arrive", false) => mb::ARRIVE,
                    ("arrive", true) => mb::ARRIVE_EXPECT,
                    (_, false) => mb::ARRIVE_DROP,
                    _ => mb::DROP_EXPECT,
                };
                self.mbarrier_op(a, d, n, imm)
            }
            "pending_count" => {
                m.done()?;
                let [d, s] = self.operands::<2>(inst)?;
                let slots = [self.dst(&d, Ty::B32)?, self.src(&s, Ty::B64)?];
                self.emit(cf::<bulk::MbarrierOp>(), Class::Async, &slots).imm = mb::PENDING_COUNT;
                Ok(())
            }
            "test_wait" | "try_wait" => {
                let parity = m.has("parity");
                m.done()?;
                // A last operand of `try_wait` says how long to wait.
                let (p, a, s) = match &ops[..] {
                    [p, a, s] => (p, a, s),
                    [p, a, s, _] if op == "try_wait" => (p, a, s),
                    _ => return self.bad("takes a predicate, an address and a phase"),
                };
                let (address, offset, wide, _) = self.address(a)?;
                let x = self.mem(MemOp { offset, wide, bytes: 8, vec: 1, ..MemOp::default() });
                let slots =
                    [self.pred_dst(p)?, address, self.src(s, if parity { Ty::B32 } else { Ty::B64 })?];
                let p = self.emit(cf::<bulk::MbarrierTest>(), Class::Async, &slots);
                p.imm = u64::from(parity) | u64::from(op == "try_wait") << 1;
                p.x = x;
                Ok(())
            }
            _ => Err(m.unknown("unknown operation")),
        }
    }

    /// `cp.async.bulk...` and `cp.reduce.async.bulk...`
    pub(super) fn bulk(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let reduce = m.has("reduce");
        m.has("async");
        m.has("bulk");
        if m.has("prefetch") {
            if m.has("tensor") {
                m.one_of(&["1d", "2d", "3d", "4d", "5d"]).ok_or_else(|| m.unknown("1d to 5d"))?;
                m.has("tile");
            }
            if !(m.has("L2") && m.has("global")) {
                return Err(m.unknown("a prefetch that is not .L2.global"));
            }
            m.has("L2::cache_hint");
            m.done()?;
            self.emit(cf::<mv::Nop>(), Class::Async, &[]);
            return Ok(());
        }
        if m.has("commit_group") {
            m.done()?;
            self.emit(cf::<bulk::BulkGroup>(), Class::Async, &[]);
            return Ok(());
        }
        if m.has("wait_group") {
            let read = m.has("read");
            m.done()?;
            let Some(Operand::Int(n)) = inst.operands.first() else { return self.bad("takes an immediate") };
            let p = self.emit(cf::<bulk::BulkGroup>(), Class::Async, &[]);
            p.imm = 1 + u64::from(read);
            p.y = *n as u32;
            return Ok(());
        }
        let tensor = m.has("tensor");
        let rank = if tensor {
            match m.one_of(&["1d", "2d", "3d", "4d", "5d"]) {
                Some(d) => Some(usize::from(d.as_bytes()[0] - b'0')),
                None => return Err(m.unknown("1d to 5d")),
            }
        } else {
            None
        };
        m.has("tile");
        let multicast = m.has("multicast::cluster");
        let hint = m.has("L2::cache_hint");
        let group = m.has("bulk_group");
        let barrier = m.has("mbarrier::complete_tx::bytes");
        let sides: Vec<&str> = m
            .rest()
            .iter()
            .copied()
            .filter(|s| matches!(*s, "global" | "shared::cta" | "shared::cluster"))
            .collect();
        let way = match sides[..] {
            ["shared::cluster" | "shared::cta", "global"] if barrier && !reduce => bulk::Way::Load,
            ["global", "shared::cta"] if group => bulk::Way::Store,
            ["shared::cluster", "shared::cta"] if barrier && !reduce => bulk::Way::Across,
            _ => return Err(m.unknown("source and destination")),
        };
        for s in sides {
            m.has(s);
        }
        let (mut reduction, mut reduce_op) = (None, None);
        if reduce {
            m.has("noftz");
            let Some(op) = m.one_of(&["add", "min", "max", "inc", "dec", "and", "or", "xor"]) else {
                return Err(m.unknown("unknown operation"));
            };
            if tensor {
                reduce_op = ReduceOp::parse(op);
            } else {
                let elem = m.take().unwrap_or("");
                reduction = Reduce::parse(op, elem);
                if reduction.is_none() {
                    return Err(m.unknown("no such reduction"));
                }
            }
        }
        m.done()?;
        let store = way == bulk::Way::Store;
        let mut ops = inst.operands.iter();
        let mut next = |d: &Self| match ops.next() {
            Some(o) => Ok(o.clone()),
            None => d.bad("too few operands"),
        };
        let first = next(self)?;
        let second = next(self)?;
        let (shared, global) = if store { (second, first) } else { (first, second) };
        let sink = Slot::Raw(mv::SINK);
        let mut list = vec![sink; 5];
        let at = |d: &mut Self, o: &Operand, list: &mut Vec<Slot>, k: usize| -> Result<bulk::At> {
            let (slot, offset, wide, _) = d.address(o)?;
            list[k] = slot;
            Ok(bulk::At { offset, wide })
        };
        let shared_at = at(self, &shared, &mut list, 0)?;
        let global_at = at(self, &global, &mut list, 1)?;
        if !tensor {
            let size = next(self)?;
            list[2] = self.src(&size, Ty::B32)?;
        }
        let mut mbarrier = bulk::At::default();
        if !store {
            let b = next(self)?;
            mbarrier = at(self, &b, &mut list, 3)?;
        }
        if multicast {
            let mask = next(self)?;
            list[4] = self.src(&mask, Ty::B16)?;
        }
        if hint {
            next(self)?;
        }
        if ops.next().is_some() {
            return self.bad("too many operands");
        }
        if let (Some(rank), Operand::Addr { coords, .. }) = (rank, &global) {
            if coords.len() != rank {
                return self.bad(format!("{rank} coordinates are expected, there are {}", coords.len()));
            }
            for c in coords {
                let s = self.src(c, Ty::B32)?;
                list.push(s);
            }
        }
        self.t.copies.push(bulk::BulkOp {
            way,
            rank,
            shared: shared_at,
            global: global_at,
            mbarrier,
            multicast,
            reduce: reduction,
            reduce_op,
        });
        let mut p = self.pre(cf::<bulk::Bulk>(), Class::Async);
        p.list = list;
        p.list_at = ListAt::Y;
        p.x = (self.t.copies.len() - 1) as u32;
        self.push(p);
        Ok(())
    }
}
