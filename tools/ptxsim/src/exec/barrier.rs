//! `bar`/`barrier` of a block and `barrier.cluster` (PTX ISA "Parallel Synchronization and Communication Instructions").
//!
//! Arrivals count whole warps: a warp has come when all its lanes that have not ended have.

use super::block::Block;
use super::{Cx, Exec, Flow, LANES, U32, View, Wait};
use crate::check::SYNC;
use crate::program::Op;
use crate::report::{FaultKind, ReportKind};

/// Slots: destination (row or predicate, sink if none), barrier, threads, source predicate. `imm`: bits 0-2: 0 sync,
/// 1 arrive, 2 red.popc, 3 red.and, 4 red.or; bit 3: aligned; bit 4: a thread count is given; bit 5: the predicate is negated.
pub(crate) struct Bar;
impl Exec for Bar {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { bar(cx, op, mask) }
    }
}

unsafe fn bar(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let lane = mask.trailing_zeros();
    // SAFETY: the decoder gave these slots 32-bit rows.
    let (id, count) = unsafe { (U32::get(cx, op.s[1])[lane as usize], U32::get(cx, op.s[2])[lane as usize]) };
    let kind = op.imm & 7;
    let given = op.imm >> 4 & 1 != 0;
    if id > 15 {
        return cx.fault(lane, FaultKind::IllegalInstruction, format!("barrier {id}: there are 16"), None);
    }
    if given && (count == 0 || count % 32 != 0) {
        return cx.fault(
            lane,
            FaultKind::IllegalInstruction,
            format!("barrier {id}: {count} threads is not a positive multiple of 32"),
            None,
        );
    }
    let pc = cx.pc;
    cx.worker().barriers += 1;
    let live = cx.warp().live();
    if op.imm >> 3 & 1 != 0 && mask != live && cx.check(SYNC) {
        let m = format!(
            "a part of the warp (lanes {mask:#010x} of {live:#010x}) reaches an aligned barrier that all its lanes must reach together"
        );
        cx.report(lane, ReportKind::DivergentAligned, m, None, None);
    }
    let w = cx.warp().index;
    let p = if kind >= 2 {
        // SAFETY: the decoder gave this slot a predicate.
        let p = unsafe { cx.pred(op.s[3]) };
        (p ^ if op.imm >> 5 & 1 != 0 { u32::MAX } else { 0 }) & mask
    } else {
        0
    };
    let expected = if given { count / 32 } else { 0 };
    let b = &mut cx.block().barriers[id as usize];
    if b.members == 0 && b.partial.is_empty() {
        b.expected = expected;
        b.pc = pc - 1;
    } else if b.expected != expected {
        let before = b.expected * 32;
        return cx.fault(
            lane,
            FaultKind::IllegalInstruction,
            format!("barrier {id}: waits for {before} threads, here for {}", expected * 32),
            None,
        );
    }
    b.trues += p.count_ones();
    b.lanes += mask.count_ones();
    let came = if mask == live {
        live
    } else {
        let part = b.partial.entry(w).or_insert(0);
        *part |= mask;
        *part
    };
    if came & live == live {
        b.partial.remove(&w);
        b.arrivals += 1;
        b.members |= 1 << w;
        if kind != 1 {
            b.waiting |= 1 << w;
        }
    }
    if kind == 1 {
        let on = cx.track_shared;
        let block = cx.block();
        if on {
            let mut clock = std::mem::take(&mut block.barrier_clocks[id as usize]);
            block.shadow.release(w as usize, &mut clock.0);
            block.barrier_clocks[id as usize] = clock;
        }
        complete(cx, id as usize);
        return Flow::Next;
    }
    // The result of a reduction is taken when the barrier opens: the fragment runs `BarResult` next.
    if complete(cx, id as usize) {
        return Flow::Next;
    }
    cx.wait(Wait::Barrier(id as u8))
}

/// After `bar.red`: the result for the fragments that waited. Slots as [`Bar`].
pub(crate) struct BarResult;
impl Exec for BarResult {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let id = U32::get(cx, op.s[1])[mask.trailing_zeros() as usize] as usize & 15;
            let (trues, all) = cx.block().reductions[id];
            let set = |b: bool| if b { u32::MAX } else { 0 };
            match op.imm & 7 {
                2 => U32::put(cx, op.s[0], [trues; LANES], mask),
                3 => cx.set_pred(op.s[0], set(trues == all), mask),
                _ => cx.set_pred(op.s[0], set(trues != 0), mask),
            }
        }
        Flow::Next
    }
}

/// Opens barrier `id` if everybody it waits for has come.
fn complete(cx: &mut Cx, id: usize) -> bool {
    let track = cx.track_shared;
    let block = cx.block();
    let b = &block.barriers[id];
    if b.arrivals == 0 || !b.partial.is_empty() && b.expected == 0 {
        return false;
    }
    let all = b.expected == 0;
    let target = if all { block.live_warps() } else { b.expected };
    if block.barriers[id].arrivals < target {
        return false;
    }
    let b = std::mem::take(&mut block.barriers[id]);
    block.reductions[id] = (b.trues, b.lanes);
    if track {
        let clock = std::mem::take(&mut block.barrier_clocks[id]);
        let everybody = b.waiting.count_ones() == block.live_warps();
        if everybody {
            block.shadow.full_barrier();
        } else {
            block.shadow.partial_barrier(b.members, b.waiting, &clock.0);
        }
    }
    block.wake(|w| *w == Wait::Barrier(id as u8));
    let ended: u32 = block.warps[..block.nwarps].iter().map(|w| w.exited.count_ones()).sum();
    if all && block.any_exit && ended > 0 && cx.check(SYNC) {
        let m = format!("barrier {id} opens without {ended} threads of the block, which have ended");
        cx.report_at(b.pc, 1, ReportKind::PartialBarrier, m, None, None);
    }
    true
}

/// Lanes ended: barriers may have waited for them alone.
pub(crate) fn after_exit(cx: &mut Cx) {
    let (w, live) = (cx.warp().index, cx.warp().live());
    for id in 0..16 {
        let b = &mut cx.block().barriers[id];
        if b.members == 0 && b.partial.is_empty() {
            continue;
        }
        if let Some(&part) = b.partial.get(&w)
            && part & live == live
        {
            b.partial.remove(&w);
            if live != 0 || part != 0 {
                b.arrivals += 1;
                b.members |= 1 << w;
                b.waiting |= 1 << w;
            }
        }
        complete(cx, id);
    }
    super::barrier::cluster_complete(cx);
}

/// `barrier.cluster.arrive` (`imm` bit 0 clear) and `.wait` (set).
pub(crate) struct ClusterBar;
impl Exec for ClusterBar {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        cluster_bar(cx, op, mask)
    }
}

fn cluster_bar(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let lanes = mask.count_ones();
    if op.imm & 1 == 0 {
        cx.worker().barriers += 1;
        cx.warp().cluster_arrived |= mask;
        let phase = cx.worker().cluster.phase;
        cx.warp().cluster_phase = phase;
        cx.worker().cluster.arrived += u64::from(lanes);
        cluster_complete(cx);
        return Flow::Next;
    }
    let (mine, phase) = (cx.warp().cluster_phase, cx.worker().cluster.phase);
    if cx.warp().cluster_arrived & mask != mask {
        return cx.fault(
            mask.trailing_zeros(),
            FaultKind::IllegalInstruction,
            "barrier.cluster.wait without arrive".into(),
            None,
        );
    }
    if phase != mine {
        cx.warp().cluster_arrived &= !mask;
        return Flow::Next;
    }
    cx.again(mask);
    cx.wait(Wait::Cluster)
}

/// Opens the cluster barrier if all threads of the cluster have arrived or ended.
pub(crate) fn cluster_complete(cx: &mut Cx) {
    let w = cx.worker();
    if w.cluster.arrived == 0 {
        return;
    }
    // SAFETY: the worker's blocks live as long as the worker; none is borrowed here.
    let blocks: Vec<&mut Block> = w.cluster.blocks.iter().map(|&b| unsafe { &mut *b }).collect();
    let live: u64 =
        blocks.iter().flat_map(|b| &b.warps[..b.nwarps]).map(|w| u64::from(w.live().count_ones())).sum();
    if w.cluster.arrived < live {
        return;
    }
    w.cluster.arrived = 0;
    w.cluster.phase += 1;
    for b in blocks {
        b.shadow.full_barrier();
        b.wake(|w| *w == Wait::Cluster);
    }
}
