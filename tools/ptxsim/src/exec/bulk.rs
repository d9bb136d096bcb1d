//! mbarriers and bulk copies (PTX ISA "mbarrier", "Data Movement: cp.async.bulk", "cp.async.bulk.tensor").
//!
//! A copy into shared memory is made, and its mbarrier told, when the fragment that issued it stops; until then its bytes are in
//! flight. A copy out of shared memory is made when the group it was committed to is waited for, or when the block ends.

use super::memory::{CLUSTER, PARAM_WINDOW, shared_place};
use super::moves::SINK;
use super::{Cx, Exec, Flow, LANES, U32, U64, View, Wait, lanes};
use crate::check::{ASYNC, global, shared};
use crate::exec::block::Mbarrier;
use crate::program::Op;
use crate::report::{FaultKind, ReportKind};
use crate::tensor::tensormap::{BYTES, TensorMap};
use crate::tensor::tma::{self, Reduce, ReduceOp};

/// An address operand: slot index in the list is implied by its role.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    pub offset: i64,
    pub wide: bool,
}

/// Which way a bulk copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Global to shared memory.
    Load,
    /// Shared to global memory.
    Store,
    /// Shared memory to that of another block.
    Across,
}

/// A bulk copy's static part; slots in `extra` from `y`: shared address, global address (or tensor map, or source), size, mbarrier,
/// block mask, coordinates.
#[derive(Clone, Debug)]
pub(crate) struct BulkOp {
    pub way: Way,
    /// Dimensions of a tensor copy.
    pub rank: Option<usize>,
    pub shared: At,
    pub global: At,
    pub mbarrier: At,
    pub multicast: bool,
    pub reduce: Option<Reduce>,
    pub reduce_op: Option<ReduceOp>,
}

/// One lane's copy.
#[derive(Clone, Debug)]
struct Copy {
    pc: u32,
    lane: u32,
    op: u32,
    shared: u32,
    global: u64,
    bytes: u32,
    map: Option<Box<TensorMap>>,
    coords: [i32; 5],
}

/// A copy to shared memory that has been issued.
#[derive(Debug)]
pub(crate) struct PendingLoad {
    copy: Copy,
    warp: u32,
    /// Blocks that get it.
    ranks: u32,
    mbarrier: u32,
    /// Phase of each block's mbarrier when the copy was issued.
    phases: [u64; 16],
    /// Rank of the source, for copies between blocks.
    from: u16,
}

/// Stores of a warp that have been issued.
#[derive(Default)]
pub(crate) struct WarpBulk {
    stores: Vec<(Option<u32>, Copy)>,
    commits: [u32; LANES],
}
impl WarpBulk {
    pub fn reset(&mut self) {
        self.stores.clear();
        self.commits = [0; LANES];
    }
}

/// A slot's value in one lane.
unsafe fn value(cx: &Cx, slot: u16, wide: bool, lane: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { if wide { U64::get(cx, slot)[lane as usize] } else { U32::get(cx, slot)[lane as usize].into() } }
}
unsafe fn address(cx: &Cx, slot: u16, at: At, lane: u32) -> u64 {
    // SAFETY: the caller's promise.
    let v = unsafe { value(cx, slot, at.wide, lane) };
    if at.wide {
        v.wrapping_add(at.offset as u64)
    } else {
        u64::from((v as u32).wrapping_add(at.offset as u32))
    }
}

/// `cp.async.bulk`, `cp.async.bulk.tensor` and their reductions.
pub(crate) struct Bulk;
impl Exec for Bulk {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
            // SAFETY: the caller's promise.
            if unsafe { !issue(cx, op, lane) } {
                return Flow::Stop;
            }
        }
        Flow::Next
    }
}

fn fail(cx: &mut Cx, lane: u32, kind: FaultKind, m: String, at: u64) -> bool {
    cx.fault(lane, kind, m, Some(at));
    false
}

unsafe fn issue(cx: &mut Cx, op: &Op, lane: u32) -> bool {
    let prog = cx.prog();
    let b = &prog.copies[op.x as usize];
    let slots = &prog.extra[op.y as usize..];
    // SAFETY: the decoder gave these slots their widths.
    let (shared_at, global_at, size, mbarrier, ctas) = unsafe {
        (
            address(cx, slots[0], b.shared, lane),
            address(cx, slots[1], b.global, lane),
            if slots[2] == SINK { 0 } else { value(cx, slots[2], false, lane) as u32 },
            if slots[3] == SINK { 0 } else { address(cx, slots[3], b.mbarrier, lane) },
            if slots[4] == SINK { 0 } else { value(cx, slots[4], false, lane) as u32 & 0xffff },
        )
    };
    let pc = cx.here();
    let mut copy = Copy {
        pc,
        lane,
        op: op.x,
        shared: shared_at as u32,
        global: global_at,
        bytes: size,
        map: None,
        coords: [0; 5],
    };
    if let Some(rank) = b.rank {
        let Some(bytes) = read_map(cx, global_at) else {
            return fail(
                cx,
                lane,
                FaultKind::IllegalAddress,
                format!("no tensor map can be read at {global_at:#x}"),
                global_at,
            );
        };
        let map = match TensorMap::from_bytes(&bytes) {
            Ok(m) => m,
            Err(e) => {
                return fail(
                    cx,
                    lane,
                    FaultKind::IllegalInstruction,
                    format!("tensor map at {global_at:#x}: {e}"),
                    global_at,
                );
            }
        };
        if map.rank != rank {
            let m = format!("the tensor map has {} dimensions, the instruction {rank}", map.rank);
            return fail(cx, lane, FaultKind::IllegalInstruction, m, global_at);
        }
        for (k, c) in copy.coords[..rank].iter_mut().enumerate() {
            // SAFETY: coordinates have 32-bit slots.
            *c = unsafe { value(cx, slots[5 + k], false, lane) } as u32 as i32;
        }
        if map.shared_bytes() > 1 << 24 {
            return fail(
                cx,
                lane,
                FaultKind::IllegalInstruction,
                "the box does not fit into shared memory".into(),
                global_at,
            );
        }
        copy.bytes = map.shared_bytes() as u32;
        copy.map = Some(Box::new(map));
    }
    let align = if b.rank.is_some() { 128 } else { 16 };
    if !copy.shared.is_multiple_of(align)
        || (b.rank.is_none() && !(global_at.is_multiple_of(16) && copy.bytes.is_multiple_of(16)))
    {
        let m = format!(
            "bulk copy of {} bytes, shared {:#x}, other side {global_at:#x}: not aligned to {align}",
            copy.bytes, copy.shared
        );
        return fail(cx, lane, FaultKind::MisalignedAddress, m, shared_at);
    }
    let total = u64::from(copy.bytes);
    let w = cx.worker();
    w.async_bytes += total;
    let block = cx.block();
    block.in_flight += total;
    let now = block.in_flight;
    let w = cx.worker();
    w.in_flight_max = w.in_flight_max.max(now);
    let own = cx.block().rank;
    let warp = cx.warp().index as usize;
    if b.way == Way::Store {
        let (rank, at) = shared_place(cx, copy.shared.into());
        copy.shared = at;
        if rank != own || !inside(cx, own, at, copy.bytes) {
            return outside(cx, lane, at, copy.bytes);
        }
        if cx.track_shared
            && let Some(bad) = cx.block().shadow.async_read(warp, at, copy.bytes, pc)
        {
            shared::tell(cx, pc, lane, bad, shared::Touch::AsyncRead);
        }
        cx.warp().bulk.stores.push((None, copy));
        return true;
    }
    let (rank, at) = shared_place(cx, copy.shared.into());
    let (mrank, mat) = shared_place(cx, mbarrier);
    copy.shared = at;
    let ranks = if b.multicast { ctas } else { 1 << rank };
    let mut phases = [0; 16];
    let from = if b.way == Way::Across { own } else { 0 };
    for r in (0..16).filter(|r| ranks >> r & 1 != 0) {
        if !inside(cx, r, at, copy.bytes) {
            return outside(cx, lane, at, copy.bytes);
        }
        let bar = if b.multicast { r } else { mrank };
        phases[r as usize] = cx.peer(bar).mbarriers.get(&mat).map_or(0, |m| m.phase);
        if !cx.peer(bar).mbarriers.contains_key(&mat) {
            let m = format!(
                "bulk copy names the mbarrier at shared {mat:#x} of block {bar}, which is not initialised"
            );
            cx.report(lane, ReportKind::Mbarrier, m, Some(mat.into()), None);
        }
        if r == own
            && cx.track_shared
            && let Some(bad) = cx.block().shadow.issue(warp, at, copy.bytes, pc)
        {
            shared::tell(cx, pc, lane, bad, shared::Touch::Issue);
        }
    }
    // The mbarrier of each block that gets the bytes is told, at the same offset.
    let mbarrier = if b.multicast { mat } else { mat | ((u32::from(mrank) + 1) * CLUSTER) };
    cx.worker().bulk.push(PendingLoad { copy, warp: warp as u32, ranks, mbarrier, phases, from });
    true
}

fn inside(cx: &mut Cx, rank: u16, at: u32, bytes: u32) -> bool {
    cx.peer_shared(rank).is_some_and(|(_, limit)| u64::from(at) + u64::from(bytes) <= u64::from(limit))
}
fn outside(cx: &mut Cx, lane: u32, at: u32, bytes: u32) -> bool {
    let limit = cx.shared_bytes;
    let m = format!(
        "{bytes} bytes at shared address {at:#x} are outside the block's {limit} bytes of shared memory"
    );
    fail(cx, lane, FaultKind::IllegalAddress, m, at.into())
}

/// The tensor map at a generic address.
fn read_map(cx: &mut Cx, at: u64) -> Option<[u8; BYTES]> {
    let p = if at >> 56 == PARAM_WINDOW >> 56 {
        let off = at & 0xffff_ffff;
        (off + BYTES as u64 <= u64::from(cx.prog().param_bytes))
            .then(|| cx.params.wrapping_add(off as usize))?
    } else {
        let r =
            cx.worker().regions.iter().find(|r| at >= r.start && at + BYTES as u64 <= r.start + r.bytes)?;
        at.wrapping_add(r.delta) as *const u8
    };
    // SAFETY: the bytes are inside the parameters or an allocation.
    Some(unsafe { p.cast::<[u8; BYTES]>().read_unaligned() })
}

/// Bytes of global memory on behalf of lane `lane`: their host pointer, or `None` after a fault.
fn range(cx: &mut Cx, lane: u32, at: u64, bytes: u32, writes: bool) -> Option<*mut u8> {
    let found = cx
        .worker()
        .regions
        .iter()
        .find(|r| at >= r.start && at - r.start + u64::from(bytes) <= r.bytes)
        .copied();
    let Some(region) = found.filter(|r| r.writable || !writes) else {
        let why = cx.worker().memory.describe(at, bytes.into());
        let verb = if writes { "writes" } else { "reads" };
        cx.fault(
            lane,
            FaultKind::IllegalAddress,
            format!("bulk copy {verb} outside global memory: {why}"),
            Some(at),
        );
        return None;
    };
    if cx.counting {
        let pc = cx.here() as usize;
        let t = &mut cx.worker().traffic[pc];
        t.requests += 1;
        t.sectors += (at + u64::from(bytes) - 1) / 32 - at / 32 + 1;
        t.bytes += u64::from(bytes);
    }
    if cx.track_global {
        let touch = if writes { global::Touch::Write } else { global::Touch::Read };
        global::access(cx, &region, &[at; LANES], 1 << lane, bytes, touch);
    }
    Some(at.wrapping_add(region.delta) as *mut u8)
}

/// Makes the copies to shared memory that fragments have issued; whether there were any.
pub(crate) fn drain(cx: &mut Cx) -> bool {
    let any = !cx.worker().bulk.is_empty();
    while !cx.worker().bulk.is_empty() {
        let list = std::mem::take(&mut cx.worker().bulk);
        for p in list {
            let pc = std::mem::replace(&mut cx.pc, p.copy.pc + 1);
            let stop = cx.stop.clone();
            if !load(cx, &p) {
                cx.pc = pc;
                return any;
            }
            cx.stop = stop;
            cx.pc = pc;
        }
    }
    any
}

fn load(cx: &mut Cx, p: &PendingLoad) -> bool {
    let op = &cx.prog().copies[p.copy.op as usize];
    let own = cx.block().rank;
    let c = &p.copy;
    for r in (0..16u16).filter(|r| p.ranks >> r & 1 != 0) {
        let Some((base, _)) = cx.peer_shared(r) else { continue };
        let mut moved = u64::from(c.bytes);
        if let Some(map) = &c.map {
            moved = map.box_bytes();
            let done = tma::for_each_piece(map, &c.coords[..map.rank], c.shared, |piece| {
                // SAFETY: the box was found inside the block's shared memory at issue, and the pieces are inside the box.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(base.add(piece.shared as usize), piece.bytes as usize)
                };
                match piece.global {
                    Some(at) => {
                        let Some(from) = range(cx, c.lane, at, piece.bytes, false) else { return Err(()) };
                        // SAFETY: `range` found the bytes inside an allocation.
                        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
                    }
                    None => tma::fill(map, to),
                }
                Ok(())
            });
            if done.is_err() {
                return false;
            }
        } else {
            let from = if op.way == Way::Across {
                let (_, at) = shared_place(cx, c.global);
                match cx.peer_shared(p.from) {
                    Some((b, limit)) if u64::from(at) + u64::from(c.bytes) <= u64::from(limit) => {
                        b.wrapping_add(at as usize)
                    }
                    _ => return outside(cx, c.lane, at, c.bytes),
                }
            } else {
                match range(cx, c.lane, c.global, c.bytes, false) {
                    Some(p) => p,
                    None => return false,
                }
            };
            // SAFETY: both sides were found inside their memories.
            unsafe { std::ptr::copy(from, base.add(c.shared as usize), c.bytes as usize) };
        }
        let (mrank, mat) = if op.multicast { (r, p.mbarrier) } else { shared_place(cx, p.mbarrier.into()) };
        if cx.track_shared {
            if r == own {
                let mut clock = cx
                    .peer(mrank)
                    .mbarriers
                    .get_mut(&mat)
                    .map(|m| std::mem::take(&mut m.arriving))
                    .unwrap_or_default();
                cx.block().shadow.land(p.warp as usize, c.shared, c.bytes, &mut clock.0);
                if let Some(m) = cx.peer(mrank).mbarriers.get_mut(&mat) {
                    m.arriving = clock;
                }
            } else {
                cx.peer(r).shadow.mark(c.shared, c.bytes);
            }
        }
        let over = cx.peer(mrank).mbarriers.get(&mat).is_some_and(|m| m.phase != p.phases[r as usize]);
        if over && cx.check(ASYNC) {
            let m = format!(
                "the mbarrier at shared {mat:#x} ended its phase while this copy was in flight: its expect_tx is missing"
            );
            cx.report(c.lane, ReportKind::InFlight, m, Some(c.shared.into()), None);
        }
        complete_tx(cx, mrank, mat, moved as i64);
    }
    let b = cx.block();
    b.in_flight = b.in_flight.saturating_sub(u64::from(c.bytes));
    true
}

/// One store: shared memory to global, or a reduction onto it.
fn store(cx: &mut Cx, c: &Copy) -> bool {
    let op = &cx.prog().copies[c.op as usize];
    let base = cx.shared;
    let b = cx.block();
    b.in_flight = b.in_flight.saturating_sub(u64::from(c.bytes));
    let pc = std::mem::replace(&mut cx.pc, c.pc + 1);
    let put = |cx: &mut Cx, at: u64, from: u32, bytes: u32, reduce: Option<Reduce>| -> Result<(), ()> {
        let Some(to) = range(cx, c.lane, at, bytes, true) else { return Err(()) };
        // SAFETY: both sides were found inside their memories; they do not overlap.
        unsafe {
            let from = base.add(from as usize);
            match reduce {
                None => std::ptr::copy_nonoverlapping(from, to, bytes as usize),
                Some(r) => {
                    let _guard = REDUCING.lock();
                    r.apply_all(
                        std::slice::from_raw_parts_mut(to, bytes as usize),
                        std::slice::from_raw_parts(from, bytes as usize),
                    );
                }
            }
        }
        Ok(())
    };
    let done = match &c.map {
        Some(map) => {
            let reduce = match op.reduce_op {
                Some(r) => match Reduce::of_tensor(r, map.data_type) {
                    Some(r) => Some(r),
                    None => {
                        cx.pc = pc;
                        return fail(
                            cx,
                            c.lane,
                            FaultKind::IllegalInstruction,
                            "no such reduction on this tensor's type".into(),
                            c.global,
                        );
                    }
                },
                None => None,
            };
            tma::for_each_piece(map, &c.coords[..map.rank], c.shared, |piece| match piece.global {
                Some(at) => put(cx, at, piece.shared, piece.bytes, reduce),
                None => Ok(()),
            })
        }
        None => put(cx, c.global, c.shared, c.bytes, op.reduce),
    };
    cx.pc = pc;
    done.is_ok()
}
/// Bulk reductions of all workers take turns.
static REDUCING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// `cp.async.bulk.commit_group` (`imm` 0), `.wait_group n` (1) and `.wait_group.read n` (2); `y` the number.
pub(crate) struct BulkGroup;
impl Exec for BulkGroup {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        let w = &mut cx.warp().bulk;
        if op.imm == 0 {
            for (group, c) in &mut w.stores {
                if group.is_none() && mask >> c.lane & 1 != 0 {
                    *group = Some(w.commits[c.lane as usize]);
                }
            }
            for l in 0..LANES {
                w.commits[l] += mask >> l & 1;
            }
            return Flow::Next;
        }
        let commits = w.commits;
        let due = |g: &Option<u32>, c: &Copy| {
            mask >> c.lane & 1 != 0 && g.is_some_and(|g| g + op.y < commits[c.lane as usize])
        };
        if stores(cx, due) { Flow::Next } else { Flow::Stop }
    }
}

fn stores(cx: &mut Cx, due: impl Fn(&Option<u32>, &Copy) -> bool) -> bool {
    let mut list = std::mem::take(&mut cx.warp().bulk.stores);
    let mut ok = true;
    list.retain(|(g, c)| {
        if !ok || !due(g, c) {
            return true;
        }
        if cx.track_shared {
            // What was written to the source before now may have been copied instead of what was meant.
            let w = cx.warp().index as usize;
            if let Some(bad @ (shared::Bad::Race { .. } | shared::Bad::Flight { .. })) =
                cx.block().shadow.async_read(w, c.shared, c.bytes, c.pc)
            {
                shared::tell(cx, c.pc, c.lane, bad, shared::Touch::AsyncRead);
            }
        }
        ok = store(cx, c);
        false
    });
    cx.warp().bulk.stores = list;
    ok
}

/// The stores that are left when the block ends.
pub(crate) fn finish(cx: &mut Cx) {
    if let Some((_, c)) = cx.warp().bulk.stores.first() {
        let (pc, lane) = (c.pc, c.lane);
        if cx.check(ASYNC) {
            let m = "the block ended while this bulk copy still read its shared memory: nobody waited for it"
                .into();
            cx.report_at(pc, 1 << lane, ReportKind::Unwaited, m, None, None);
        }
        stores(cx, |_, _| true);
    }
}

/// Operations on mbarriers, as `imm` bits 0-3 of [`MbarrierOp`].
pub(crate) mod mb {
    pub const INIT: u64 = 0;
    pub const INVAL: u64 = 1;
    pub const ARRIVE: u64 = 2;
    pub const EXPECT_TX: u64 = 3;
    pub const COMPLETE_TX: u64 = 4;
    /// Expect, then arrive.
    pub const ARRIVE_EXPECT: u64 = 5;
    pub const ARRIVE_DROP: u64 = 6;
    /// `cp.async.mbarrier.arrive`; `imm` bit 4: `.noinc`.
    pub const COPY_ARRIVE: u64 = 7;
    pub const PENDING_COUNT: u64 = 8;
    pub const DROP_EXPECT: u64 = 9;
}

/// mbarrier operations: slots d (state, or sink), address, count or bytes (or sink: 1); `x` the memory form.
pub(crate) struct MbarrierOp;
impl Exec for MbarrierOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { mbarrier(cx, op, mask) }
    }
}

unsafe fn mbarrier(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let kind = op.imm & 15;
    // SAFETY: the decoder gave these slots their widths.
    unsafe {
        if kind == mb::PENDING_COUNT {
            let s = U64::get(cx, op.s[1]);
            U32::put(cx, op.s[0], lanes(|i| s[i] as u32 & 0xf_ffff), mask);
            return Flow::Next;
        }
        let mo = cx.prog().mem[op.x as usize];
        let addr = super::memory::addresses(cx, op.s[1], &mo);
        let counts = if op.s[2] == SINK { [1; LANES] } else { U32::get(cx, op.s[2]) };
        if kind == mb::COPY_ARRIVE {
            super::copy::land_all(cx, mask);
        }
        let mut state = [0u64; LANES];
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let (rank, at) = shared_place(cx, addr[lane as usize]);
            if at % 8 != 0 || !inside(cx, rank, at, 8) {
                let m =
                    format!("mbarrier at shared address {at:#x}: outside shared memory or no multiple of 8");
                return cx.fault(lane, FaultKind::IllegalAddress, m, Some(at.into()));
            }
            let n = counts[lane as usize];
            if kind == mb::INIT {
                let old = cx
                    .peer(rank)
                    .mbarriers
                    .insert(at, Mbarrier { expected: n, pending: n, ..Mbarrier::default() });
                if n == 0 || n > (1 << 20) - 1 {
                    return cx.fault(
                        lane,
                        FaultKind::IllegalInstruction,
                        format!("mbarrier.init with a count of {n}"),
                        None,
                    );
                }
                if old.is_some() && cx.check(ASYNC) {
                    let m =
                        format!("the mbarrier at shared {at:#x} is initialised again without mbarrier.inval");
                    cx.report(lane, ReportKind::Mbarrier, m, Some(at.into()), None);
                }
                cx.peer(rank).shadow.mark(at, 8);
                continue;
            }
            if !cx.peer(rank).mbarriers.contains_key(&at) {
                let m = format!("the mbarrier at shared {at:#x} is used before mbarrier.init");
                cx.report(lane, ReportKind::Mbarrier, m.clone(), Some(at.into()), None);
                return cx.fault(lane, FaultKind::IllegalInstruction, m, Some(at.into()));
            }
            match kind {
                mb::INVAL => {
                    cx.peer(rank).mbarriers.remove(&at);
                }
                mb::EXPECT_TX => expect(cx, rank, at, n),
                mb::COMPLETE_TX => complete_tx(cx, rank, at, i64::from(n)),
                mb::ARRIVE_EXPECT | mb::DROP_EXPECT => {
                    expect(cx, rank, at, n);
                    state[lane as usize] = arrive(cx, rank, at, 1, lane, kind == mb::DROP_EXPECT);
                }
                mb::COPY_ARRIVE => {
                    // Without `.noinc` the arrival was added to the pending count, and changes nothing.
                    if op.imm >> 4 & 1 != 0 {
                        arrive(cx, rank, at, 1, lane, false);
                    } else {
                        release(cx, rank, at);
                    }
                }
                _ => state[lane as usize] = arrive(cx, rank, at, n, lane, kind == mb::ARRIVE_DROP),
            }
        }
        if op.s[0] != SINK {
            U64::put(cx, op.s[0], state, mask);
        }
    }
    if matches!(kind, mb::INIT | mb::INVAL | mb::EXPECT_TX) {
        return Flow::Next;
    }
    // Those who wait for the arrival run before this warp goes on, as they may on a GPU.
    cx.stop = super::Stop::Yield;
    Flow::Stop
}

fn expect(cx: &mut Cx, rank: u16, at: u32, bytes: u32) {
    if let Some(m) = cx.peer(rank).mbarriers.get_mut(&at) {
        m.tx += i64::from(bytes);
    }
}

/// What the running warp did so far is part of the phase.
fn release(cx: &mut Cx, rank: u16, at: u32) {
    if !cx.track_shared || rank != cx.block().rank {
        return;
    }
    let w = cx.warp().index as usize;
    let b = cx.block();
    if let Some(mut clock) = b.mbarriers.get_mut(&at).map(|m| std::mem::take(&mut m.arriving)) {
        b.shadow.release(w, &mut clock.0);
        if let Some(m) = b.mbarriers.get_mut(&at) {
            m.arriving = clock;
        }
    }
}

/// `n` arrivals of a lane; answers the state before.
fn arrive(cx: &mut Cx, rank: u16, at: u32, n: u32, lane: u32, drop: bool) -> u64 {
    release(cx, rank, at);
    let Some(m) = cx.peer(rank).mbarriers.get_mut(&at) else { return 0 };
    let state = m.phase << 32 | u64::from(m.pending);
    if drop {
        m.expected = m.expected.saturating_sub(n);
    }
    if m.pending < n {
        let message =
            format!("{n} arrivals at the mbarrier at shared {at:#x}, whose phase misses only {}", m.pending);
        m.pending = 0;
        if cx.check(ASYNC) {
            cx.report(lane, ReportKind::Mbarrier, message, Some(at.into()), None);
        }
    } else {
        m.pending -= n;
    }
    advance(cx, rank, at);
    state
}

fn complete_tx(cx: &mut Cx, rank: u16, at: u32, bytes: i64) {
    if let Some(m) = cx.peer(rank).mbarriers.get_mut(&at) {
        m.tx -= bytes;
        advance(cx, rank, at);
    }
}

/// Ends the phase if nothing is missing, and wakes who waits for that.
fn advance(cx: &mut Cx, rank: u16, at: u32) {
    let Some(m) = cx.peer(rank).mbarriers.get_mut(&at) else { return };
    if m.pending != 0 || m.tx != 0 {
        return;
    }
    m.phase += 1;
    m.pending = m.expected;
    m.done = std::mem::take(&mut m.arriving);
    cx.worker().cluster.timeouts = 0;
    for r in 0..cx.worker().cluster.blocks.len() as u16 {
        cx.peer(r).wake(|w| *w == Wait::Mbarrier { rank, addr: at });
    }
}

/// Polls of an mbarrier in a row after which a warp counts as waiting for it.
const POLLS: u32 = 1000;

/// `mbarrier.test_wait` and `try_wait`: slots p, address, state or parity; `imm` bit 0: parity, bit 1: try (waits).
///
/// Who waits is told that the phase is not over after a time, or when nobody else can run (`Block::time_out`).
pub(crate) struct MbarrierTest;
impl Exec for MbarrierTest {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { test(cx, op, mask) }
    }
}

unsafe fn test(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let (parity, tries) = (op.imm & 1 != 0, op.imm & 2 != 0);
    // SAFETY: the decoder gave these slots their widths.
    unsafe {
        let mo = cx.prog().mem[op.x as usize];
        let addr = super::memory::addresses(cx, op.s[1], &mo);
        let want: [u64; LANES] = if parity {
            let v = U32::get(cx, op.s[2]);
            lanes(|i| u64::from(v[i] & 1))
        } else {
            U64::get(cx, op.s[2])
        };
        let mut done = 0;
        let mut missing = None;
        let own = cx.block().rank;
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let (rank, at) = shared_place(cx, addr[lane as usize]);
            let Some(phase) = cx.peer(rank).mbarriers.get(&at).map(|m| m.phase) else {
                let text = format!("the mbarrier at shared {at:#x} is waited for before mbarrier.init");
                cx.report(lane, ReportKind::Mbarrier, text.clone(), Some(at.into()), None);
                return cx.fault(lane, FaultKind::IllegalInstruction, text, Some(at.into()));
            };
            let over =
                if parity { phase & 1 != want[lane as usize] } else { phase != want[lane as usize] >> 32 };
            if over {
                done |= 1 << lane;
                let again =
                    lane > 0 && mask >> (lane - 1) & 1 != 0 && addr[lane as usize] == addr[lane as usize - 1];
                if cx.track_shared && rank == own && !again {
                    let w = cx.warp().index as usize;
                    let b = cx.block();
                    if let Some(m) = b.mbarriers.get(&at) {
                        b.shadow.acquire(w, &m.done.0);
                    }
                }
            } else {
                missing = Some((rank, at));
            }
        }
        let polls = &mut cx.warp().polls;
        *polls = if done == 0 { *polls + 1 } else { 0 };
        // Polling for long is waiting, too: so a deadlock is seen.
        let tries = tries || *polls > POLLS;
        let timed_out = cx.warp().timed_out & mask != 0;
        cx.warp().timed_out &= !mask;
        if done == 0
            && tries
            && !timed_out
            && let Some((rank, addr)) = missing
        {
            cx.again(mask);
            return cx.wait(Wait::Mbarrier { rank, addr });
        }
        cx.set_pred(op.s[0], done, mask);
        if done != mask {
            cx.stop = super::Stop::Yield;
            return Flow::Stop;
        }
    }
    Flow::Next
}

/// `fence.proxy.async`.
pub(crate) struct ProxyFence;
impl Exec for ProxyFence {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, _: &Op, _: u32) -> Flow {
        let w = cx.warp().index as usize;
        cx.block().shadow.proxy_fence(w);
        Flow::Next
    }
}
