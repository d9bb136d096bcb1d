//! Loads, stores, atomics, asynchronous copies, prefetches and fences.

use super::{Decoder, ListAt, Mods, Slot};
use crate::Result;
use crate::ast::{Base, Inst, Operand, Space, Ty};
use crate::counters::Class;
use crate::exec::atomics::{Atom, AtomOp};
use crate::exec::memory::{Fence, Ld, St, space};
use crate::exec::{cold as cf, copy, handler as hf, moves as mv};
use crate::program::MemOp;

/// Cache hints and the like, which change no result.
fn hints(m: &mut Mods) {
    const HINTS: [&str; 24] = [
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "wb",
        "wt",
        "nc",
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
        "L2::evict_normal",
        "L2::evict_first",
        "L2::evict_last",
        "L2::cache_hint",
        "L2::64B",
        "L2::128B",
        "L2::256B",
        "unified",
        "L2::evict_unchanged",
        "level::eviction_priority",
        "level::prefetch_size",
    ];
    for h in HINTS {
        m.has(h);
    }
}

/// Ordering and scope: (strong, acquire, release).
fn order(m: &mut Mods) -> (bool, bool, bool) {
    let volatile = m.has("volatile");
    let relaxed = m.has("relaxed");
    let (acquire, release, both) = (m.has("acquire"), m.has("release"), m.has("acq_rel"));
    let mmio = m.has("mmio");
    m.has("weak");
    for s in ["cta", "cluster", "gpu", "sys"] {
        m.has(s);
    }
    (volatile || relaxed || acquire || release || both || mmio, acquire || both, release || both)
}

fn space_of(m: &mut Mods) -> Option<Space> {
    let list = [
        ("global", Space::Global),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Cluster),
        ("shared", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
        ("param", Space::Param),
    ];
    list.into_iter().find(|(n, _)| m.has(n)).map(|s| s.1)
}

/// The number of a space in `imm` of a load or store.
fn number(space: Space) -> u64 {
    u64::from(match space {
        Space::Global | Space::Const => space::GLOBAL,
        Space::Shared | Space::Cluster => space::SHARED,
        Space::Local => space::LOCAL,
        Space::Param => space::PARAM,
        Space::Generic => space::GENERIC,
    })
}

macro_rules! by_size {
    ($t:ident, $bytes:expr) => {
        match $bytes {
            1 => hf::<$t<1>>(),
            2 => hf::<$t<2>>(),
            4 => hf::<$t<4>>(),
            _ => hf::<$t<8>>(),
        }
    };
}

impl Decoder<'_> {
    pub(super) fn loads(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<bool> {
        match base {
            "ld" | "ldu" => self.load(m, inst)?,
            "st" => self.store(m, inst)?,
            "atom" | "red" if m.rest().first() != Some(&"async") => self.atomic(base, m, inst)?,
            "cp" if m.rest().first() == Some(&"async") && m.rest().get(1) != Some(&"bulk") => {
                self.copy(m, inst)?
            }
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                if base == "discard" {
                    return Err(m.unknown("discard leaves bytes undefined"));
                }
                self.emit(cf::<mv::Nop>(), Class::Other, &[]);
            }
            "createpolicy" => {
                // A policy changes no result; 0 is one like any other.
                let Some(d) = inst.operands.first() else { return self.bad("has no destination") };
                let slots = [self.dst(d, Ty::B64)?, self.constant(0, true)?];
                self.emit(cf::<mv::Mov64>(), Class::Move, &slots);
            }
            "membar" | "fence" => self.fence(m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The registers of a load or store: one operand, or a vector.
    fn registers(&mut self, op: &Operand, ty: Ty, vec: usize, load: bool) -> Result<(Vec<Slot>, bool)> {
        let parts = match op {
            Operand::Vector(v) => v.clone(),
            other => vec![other.clone()],
        };
        if parts.len() != vec {
            return self.bad(format!("{vec} registers are expected, there are {}", parts.len()));
        }
        // Registers may be wider than the elements; all of them alike.
        let wide_reg = parts.iter().any(|p| matches!(p, Operand::Reg(r) if self.reg_ty(*r).bytes() == 8));
        let reg = if wide_reg || ty.bytes() == 8 { Ty::B64 } else { Ty::B32 };
        let mut slots = Vec::new();
        for p in &parts {
            let s = match (load, p) {
                (true, Operand::Sink) => Slot::Raw(mv::SINK),
                (true, p) => self.dst(p, reg)?,
                (false, p) => {
                    let value_ty = match p {
                        Operand::Reg(_) => reg,
                        _ if ty.is_float() => ty,
                        _ => reg,
                    };
                    self.src(p, value_ty)?
                }
            };
            slots.push(s);
        }
        Ok((slots, wide_reg && ty.bytes() < 8))
    }

    /// Loads a register from a cell of local memory, or stores it there.
    pub(super) fn local_cell(&mut self, at: u64, reg: Slot, wide: bool, load: bool) -> Result<()> {
        let bytes = if wide { 8 } else { 4 };
        let address = self.constant(at, true)?;
        let x = self.mem(MemOp { bytes, vec: 1, wide: true, ..MemOp::default() });
        let f = if load { by_size!(Ld, bytes) } else { by_size!(St, bytes) };
        let mut p = self.pre(f, if load { Class::Load } else { Class::Store });
        p.s[1] = address;
        p.list = vec![reg];
        p.list_at = ListAt::Mem;
        p.x = x;
        p.imm = number(Space::Local);
        self.push(p);
        Ok(())
    }

    fn vector(m: &mut Mods) -> usize {
        match m.one_of(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        }
    }

    fn load(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        let named = space_of(m);
        let (strong, acquire, release) = order(m);
        hints(m);
        let vec = Self::vector(m);
        let ty = m.ty()?;
        m.done()?;
        let bytes = ty.bytes();
        if bytes > 8 || ty == Ty::Pred || bytes as usize * vec > 32 {
            return Err(m.unknown("no such type"));
        }
        // A last operand may be a cache policy.
        let [d, a] = match &inst.operands[..] {
            [d, a] | [d, a, _] => [d.clone(), a.clone()],
            _ => return self.bad("takes 2 operands"),
        };
        let (slots, reg_wide) = self.registers(&d, ty, vec, true)?;
        let (address, offset, wide, implied) = self.address(&a)?;
        let space = match (named, implied) {
            (Some(Space::Param), Some(s)) => s,
            (Some(s), _) => s,
            (None, Some(s)) if matches!(a, Operand::Addr { base: Base::Var(_), .. }) => s,
            (None, _) => Space::Generic,
        };
        self.t.has_fences |= acquire;
        let mo = MemOp {
            offset,
            bytes: bytes as u8,
            vec: vec as u8,
            signed: ty.is_signed(),
            wide,
            strong,
            acquire,
            release,
            reg_wide,
            regs: 0,
        };
        let x = self.mem(mo);
        if space == Space::Param
            && let Operand::Addr { base: Base::Var(v), offset, .. } = &a
        {
            // The usual case: a kernel parameter at a known place.
            let (at, _) = self.place(*v)?;
            let at = at.wrapping_add(*offset as u64);
            if at.saturating_add(u64::from(bytes) * vec as u64) > u64::from(self.param_bytes) {
                return self.bad("reads outside the parameters");
            }
            let mut p = self.pre(hf::<mv::LdKernelParam>(), Class::Load);
            p.list = slots;
            p.list_at = ListAt::Mem;
            p.x = x;
            p.y = u32::from(reg_wide || bytes == 8);
            p.imm = at;
            self.push(p);
            return Ok(());
        }
        let mut p = self.pre(by_size!(Ld, bytes), Class::Load);
        p.imm = number(space);
        p.s[1] = address;
        p.list = slots;
        p.list_at = ListAt::Mem;
        p.x = x;
        self.push(p);
        Ok(())
    }

    fn store(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        if m.has("async") || m.has("bulk") {
            return Err(m.unknown("asynchronous stores"));
        }
        let named = space_of(m);
        let (strong, acquire, release) = order(m);
        hints(m);
        let vec = Self::vector(m);
        let ty = m.ty()?;
        m.done()?;
        let bytes = ty.bytes();
        if bytes > 8 || ty == Ty::Pred || bytes as usize * vec > 32 {
            return Err(m.unknown("no such type"));
        }
        let [a, b] = match &inst.operands[..] {
            [a, b] | [a, b, _] => [a.clone(), b.clone()],
            _ => return self.bad("takes 2 operands"),
        };
        let (slots, reg_wide) = self.registers(&b, ty, vec, false)?;
        let (address, offset, wide, implied) = self.address(&a)?;
        let space = match (named, implied) {
            (Some(Space::Param), Some(s)) => s,
            (Some(s), _) => s,
            (None, Some(s)) if matches!(a, Operand::Addr { base: Base::Var(_), .. }) => s,
            (None, _) => Space::Generic,
        };
        if matches!(space, Space::Param | Space::Const) {
            return self.bad("stores to read-only memory");
        }
        self.t.has_fences |= release;
        let mo = MemOp {
            offset,
            bytes: bytes as u8,
            vec: vec as u8,
            signed: false,
            wide,
            strong,
            acquire,
            release,
            reg_wide,
            regs: 0,
        };
        let x = self.mem(mo);
        let mut p = self.pre(by_size!(St, bytes), Class::Store);
        p.imm = number(space);
        p.s[1] = address;
        p.list = slots;
        p.list_at = ListAt::Mem;
        p.x = x;
        self.push(p);
        Ok(())
    }

    fn atomic(&mut self, base: &str, m: &mut Mods, inst: &Inst) -> Result<()> {
        let named = space_of(m);
        let (_, acquire, release) = order(m);
        hints(m);
        m.has("noftz");
        let vec = Self::vector(m);
        let names = ["add", "and", "or", "xor", "exch", "cas", "inc", "dec", "min", "max"];
        let Some(op) = m.one_of(&names) else { return Err(m.unknown("unknown operation")) };
        let ty = m.ty()?;
        m.done()?;
        use AtomOp::*;
        let kind = match (op, ty) {
            ("add", Ty::F32) => AddF32,
            ("add", Ty::F64) => AddF64,
            ("add", Ty::F16) => AddF16,
            ("add", Ty::Bf16) => AddBf16,
            ("add", Ty::F16x2) => AddF16x2,
            ("add", Ty::Bf16x2) => AddBf16x2,
            ("add", Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) => Add,
            ("and", Ty::B32 | Ty::B64) => And,
            ("or", Ty::B32 | Ty::B64) => Or,
            ("xor", Ty::B32 | Ty::B64) => Xor,
            ("exch", Ty::B32 | Ty::B64) => Exch,
            ("cas", Ty::B16 | Ty::B32 | Ty::B64) => Cas,
            ("inc", Ty::U32) => Inc,
            ("dec", Ty::U32) => Dec,
            ("min", Ty::U32 | Ty::U64) => MinU,
            ("max", Ty::U32 | Ty::U64) => MaxU,
            ("min", Ty::S32 | Ty::S64) => MinS,
            ("max", Ty::S32 | Ty::S64) => MaxS,
            ("min", Ty::F16x2) => MinF16x2,
            ("max", Ty::F16x2) => MaxF16x2,
            ("min", Ty::Bf16x2) => MinBf16x2,
            ("max", Ty::Bf16x2) => MaxBf16x2,
            _ => return Err(m.unknown("no such operation on this type")),
        };
        self.t.has_fences |= acquire || release;
        let space = match named {
            None => space::GENERIC,
            Some(Space::Global) => space::GLOBAL,
            Some(Space::Shared | Space::Cluster) => space::SHARED,
            _ => return Err(m.unknown("no such state space")),
        };
        if vec > 1 {
            // Vectors of 32 bits at least, in global memory.
            let exists = match ty {
                Ty::F32 => kind == AddF32,
                Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => true,
                _ => false,
            };
            if !exists || space == space::SHARED {
                return Err(m.unknown("no such vector"));
            }
        }
        let atom = base == "atom";
        let mut ops = inst.operands.iter();
        let d = if atom { ops.next() } else { None };
        let Some(a) = ops.next() else { return self.bad("has no address") };
        let (address, offset, wide, _) = self.address(a)?;
        let Some(b) = ops.next() else { return self.bad("has no operand") };
        let x = self.mem(MemOp {
            offset,
            bytes: ty.bytes() as u8,
            vec: vec as u8,
            wide,
            strong: true,
            acquire,
            release,
            ..MemOp::default()
        });
        let mut list = Vec::new();
        let mut s = [Slot::Raw(mv::SINK), address, Slot::Raw(mv::SINK), Slot::None, Slot::None];
        if vec > 1 {
            list = self.registers(b, ty, vec, false)?.0;
            match d {
                Some(d) => list.extend(self.registers(d, ty, vec, true)?.0),
                None => list.extend(std::iter::repeat_n(Slot::Raw(mv::SINK), vec)),
            }
        } else {
            s[2] = self.src(b, ty)?;
            if let Some(d) = d
                && *d != Operand::Sink
            {
                s[0] = self.dst(d, ty)?;
            }
        }
        if kind == Cas {
            let Some(c) = ops.next() else { return self.bad("cas takes two values") };
            s[3] = self.src(c, ty)?;
        }
        let mut p = self.pre(cf::<Atom>(), Class::Atomic);
        p.s = s;
        p.list = list;
        p.list_at = ListAt::Mem;
        p.x = x;
        p.imm = kind as u64 | u64::from(space) << 8;
        self.push(p);
        Ok(())
    }

    /// `cp.async` and its groups.
    fn copy(&mut self, m: &mut Mods, inst: &Inst) -> Result<()> {
        m.has("async");
        if m.has("commit_group") {
            m.done()?;
            self.emit(hf::<copy::Commit>(), Class::Async, &[]);
            return Ok(());
        }
        let all = m.has("wait_all");
        if all || m.has("wait_group") {
            m.done()?;
            let n = match inst.operands.first() {
                Some(Operand::Int(n)) => *n,
                None if all => 0,
                _ => return self.bad("takes an immediate"),
            };
            let p = self.emit(hf::<copy::WaitGroup>(), Class::Async, &[]);
            p.imm = n;
            p.y = u32::from(all);
            return Ok(());
        }
        if m.has("mbarrier") {
            return self.copy_arrive(m, inst);
        }
        hints(m);
        if !(m.has("shared::cta") || m.has("shared")) || !m.has("global") {
            return Err(m.unknown("copies go from global to shared memory"));
        }
        m.done()?;
        let n = inst.operands.len();
        if !(3..=5).contains(&n) {
            return self.bad("takes 3 to 5 operands");
        }
        let Operand::Int(bytes @ (4 | 8 | 16)) = inst.operands[2] else {
            return self.bad("the size is 4, 8 or 16");
        };
        let (to, to_offset, to_wide, _) = self.address(&inst.operands[0])?;
        let (from, from_offset, from_wide, _) = self.address(&inst.operands[1])?;
        let y = self.mem(MemOp {
            offset: to_offset,
            wide: to_wide,
            bytes: bytes as u8,
            vec: 1,
            ..MemOp::default()
        });
        let x = self.mem(MemOp {
            offset: from_offset,
            wide: from_wide,
            bytes: bytes as u8,
            vec: 1,
            ..MemOp::default()
        });
        let mut s = [to, from, Slot::None, Slot::None, Slot::None];
        let mut imm = bytes;
        match inst.operands.get(3) {
            Some(Operand::Reg(r)) if self.reg_ty(*r) == Ty::Pred => {
                s[3] = Slot::Use(*r);
                imm |= 1 << 9;
            }
            // A cache policy has 64 bits, a size 32.
            Some(Operand::Reg(r)) if self.reg_ty(*r).bytes() == 8 => {}
            Some(o) => {
                s[2] = self.src(o, Ty::B32)?;
                imm |= 1 << 8;
            }
            None => {}
        }
        let p = self.emit(hf::<copy::CpAsync>(), Class::Async, &s);
        p.imm = imm;
        p.x = x;
        p.y = y;
        Ok(())
    }

    fn fence(&mut self, m: &mut Mods) -> Result<()> {
        if m.has("proxy") {
            return self.proxy_fence(m);
        }
        if m.has("mbarrier_init") {
            m.has("release");
            m.has("cluster");
            m.done()?;
            self.emit(cf::<Fence>(), Class::Barrier, &[]);
            return Ok(());
        }
        let scope = m.one_of(&["cta", "gl", "sys", "gpu", "cluster"]);
        for o in ["sc", "acq_rel", "acquire", "release"] {
            m.has(o);
        }
        for o in ["sync_restrict::shared::cta", "sync_restrict::shared::cluster"] {
            m.has(o);
        }
        m.done()?;
        if scope.is_none() {
            return Err(m.unknown("it has no scope"));
        }
        self.t.has_fences = true;
        self.emit(cf::<Fence>(), Class::Barrier, &[]).imm = u64::from(scope != Some("cta"));
        Ok(())
    }
}
