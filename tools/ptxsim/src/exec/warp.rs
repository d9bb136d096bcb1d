//! Instructions across the lanes of a warp: `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`, `bar.warp.sync`
//! (PTX ISA "Data Movement" and "Parallel Synchronization and Communication Instructions").

use super::block::{Frag, NONE, Node, State, Warp};
use super::{Cx, Exec, Flow, LANES, Stop, U32, U64, View, Wait, bits, lanes};
use crate::check::SYNC;
use crate::program::Op;
use crate::report::ReportKind;

/// Does a `.sync` instruction: `serve(cx, lanes, members)` for the lanes that name the mask `members`, once for each mask that is
/// named, when all its lanes are here. Slot `slot` holds the mask that each lane names.
#[inline(always)]
fn each_group(cx: &mut Cx, mask: u32, slot: u16, serve: impl Fn(&mut Cx, u32, u32)) -> Flow {
    // SAFETY: the decoder gave the mask operand a 32-bit slot.
    let names = unsafe { U32::get(cx, slot) };
    let members = names[mask.trailing_zeros() as usize];
    let same = bits(|i| names[i] == members) & mask;
    if same != mask {
        return several_groups(cx, mask, &names, &serve);
    }
    if members & cx.warp().live() & !mask != 0 {
        // Others of the mask are still on their way: wait for them at this instruction.
        cx.again(mask);
        let pc = cx.pc;
        return cx.wait(Wait::Lanes { mask: members, pc, warp_barrier: false });
    }
    check_members(cx, mask, members);
    serve(cx, mask, members);
    Flow::Next
}

/// Reports lanes that the mask they name leaves out, and lanes of it that have ended.
#[inline(always)]
fn check_members(cx: &mut Cx, lanes: u32, members: u32) {
    let (live, valid) = (cx.warp().live(), cx.warp().valid);
    if lanes & !members != 0 && cx.check(SYNC) {
        let lane = (lanes & !members).trailing_zeros();
        let m = format!("lane {lane} executes it, but the mask {members:#010x} does not name that lane");
        cx.report(lane, ReportKind::WrongMask, m, None, None);
    }
    if members & !valid == 0 && members & !live != 0 && cx.check(SYNC) {
        let m = format!("the mask {members:#010x} names lanes {:#010x}, which have ended", members & !live);
        cx.report(lanes.trailing_zeros(), ReportKind::WrongMask, m, None, None);
    }
}

/// As [`each_group`] where lanes name different masks: groups that are complete are served; the others wait here for the rest
/// of their lanes, and meet those at the next instruction.
#[inline(never)]
fn several_groups(cx: &mut Cx, mask: u32, names: &[u32; LANES], serve: &dyn Fn(&mut Cx, u32, u32)) -> Flow {
    let live = cx.warp().live();
    let (mut left, mut waiting) = (mask, Vec::new());
    while left != 0 {
        let members = names[left.trailing_zeros() as usize];
        let lanes = bits(|i| names[i] == members) & left;
        left &= !lanes;
        let missing = members & live & !lanes;
        if missing & mask != 0 && cx.check(SYNC) {
            cx.report(
                (missing & mask).trailing_zeros(),
                ReportKind::WrongMask,
                "lanes that execute it together name different masks".into(),
                None,
                None,
            );
        } else if missing & mask == 0 && missing != 0 {
            waiting.push((lanes, members));
            continue;
        }
        check_members(cx, lanes, members);
        serve(cx, lanes, members);
    }
    if waiting.is_empty() {
        return Flow::Next;
    }
    let late = waiting.iter().fold(0, |all, (lanes, _)| all | lanes);
    let back = cx.pc;
    cx.again(late);
    if cx.counting && late != mask {
        // SAFETY: the instruction that runs has counters. Some of its lanes have executed it.
        unsafe { (*cx.counts.add(cx.pc as usize))[0] += 1 };
    }
    let (pc, parent, frame, arrived) = (cx.pc, cx.node, cx.frame, cx.mask & !late);
    let warp = cx.warp();
    let pending = waiting.len() as u32;
    let node = warp.new_node(Node { rpc: back, arrived, pending, parent, frame, callee: NONE });
    for (lanes, members) in waiting {
        let state = State::Waiting(Wait::Lanes { mask: members, pc, warp_barrier: false });
        cx.warp().frags.push(Frag { pc, mask: lanes, node, frame, state });
    }
    cx.stop = Stop::Gone;
    Flow::Stop
}

/// Lets fragments go on that waited for lanes which are here now, or have ended.
pub(crate) fn release_lanes(warp: &mut Warp) {
    let live = warp.live();
    let mut i = 0;
    while i < warp.frags.len() {
        let State::Waiting(Wait::Lanes { mask, pc, warp_barrier }) = warp.frags[i].state else {
            i += 1;
            continue;
        };
        let same = |s: &State| match *s {
            State::Waiting(Wait::Lanes { mask: m, pc: p, warp_barrier: b }) => {
                m == mask && b == warp_barrier && (b || p == pc)
            }
            _ => false,
        };
        let here = warp.frags.iter().filter(|f| same(&f.state)).fold(0, |m, f| m | f.mask);
        if mask & live & !here != 0 {
            warp.part(i, mask & live & !here);
            i += 1;
            continue;
        }
        if warp_barrier {
            for f in &mut warp.frags {
                if same(&f.state) {
                    f.state = State::Ready;
                }
            }
        } else {
            // They run the instruction as one fragment, in the node of the first; the nodes of the others lose them.
            let first = warp.frags[i];
            let mut merged = first.mask;
            let mut k = i + 1;
            while k < warp.frags.len() {
                let f = warp.frags[k];
                if same(&f.state) {
                    merged |= f.mask;
                    warp.frags.remove(k);
                    if f.node != first.node {
                        join_nodes(warp, first.node, f.node);
                    } else if f.node != super::block::NONE {
                        warp.nodes[f.node as usize].pending -= 1;
                    }
                } else {
                    k += 1;
                }
            }
            warp.frags[i].mask = merged;
            warp.frags[i].state = State::Ready;
        }
        i += 1;
    }
}

/// A fragment of `other` went on with one of `node`: `other` no longer waits for it.
fn join_nodes(warp: &mut Warp, _node: u32, other: u32) {
    warp.leave(other, 0);
}

/// `shfl.sync`: slots d, a, b, c, mask; `imm` 0 up, 1 down, 2 bfly, 3 idx; `y` the predicate slot.
pub(crate) struct Shfl;
impl Exec for Shfl {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        each_group(cx, mask, op.s[4], |cx, mask, members| {
            // SAFETY: the caller's promise.
            unsafe {
                let (a, b, c) = (U32::get(cx, op.s[1]), U32::get(cx, op.s[2]), U32::get(cx, op.s[3]));
                let source: [(u32, bool); LANES] = lanes(
                    #[inline(always)]
                    |i| {
                        let lane = i as u32;
                        let (bval, clamp, seg) = (b[i] & 31, c[i] & 31, c[i] >> 8 & 31);
                        let max = lane & seg | clamp & !seg;
                        let min = lane & seg;
                        let (j, ok) = match op.imm {
                            0 => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= max as i32),
                            1 => (lane + bval, lane + bval <= max),
                            2 => (lane ^ bval, lane ^ bval <= max),
                            _ => {
                                let j = min | bval & !seg;
                                (j, j <= max)
                            }
                        };
                        (if ok { j & 31 } else { lane }, ok)
                    },
                );
                let out = lanes(|i| a[source[i].0 as usize]);
                if cx.check(SYNC) {
                    let bad = bits(|i| mask >> i & 1 != 0 && mask >> source[i].0 & 1 == 0);
                    if bad != 0 {
                        let lane = bad.trailing_zeros();
                        let m = format!(
                            "lane {lane} reads lane {}, which does not take part (mask {members:#010x})",
                            source[lane as usize].0
                        );
                        cx.report(lane, ReportKind::WrongMask, m, None, None);
                    }
                }
                U32::put(cx, op.s[0], out, mask);
                if op.y != 0 {
                    let p = bits(|i| source[i].1);
                    cx.set_pred(op.y as u16, p, mask);
                }
            }
        })
    }
}

/// `vote.sync`: slots d (row or predicate), source predicate, mask; `imm` bits 0-1: 0 all, 1 any, 2 uni, 3 ballot; bit 2: source
/// negated.
pub(crate) struct Vote;
impl Exec for Vote {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        each_group(cx, mask, op.s[2], |cx, mask, members| {
            // SAFETY: the caller's promise.
            unsafe {
                let who = mask & members;
                let p = (cx.pred(op.s[1]) ^ if op.imm & 4 != 0 { u32::MAX } else { 0 }) & who;
                let all = |b: bool| if b { u32::MAX } else { 0 };
                match op.imm & 3 {
                    0 => cx.set_pred(op.s[0], all(p == who), mask),
                    1 => cx.set_pred(op.s[0], all(p != 0), mask),
                    2 => cx.set_pred(op.s[0], all(p == 0 || p == who), mask),
                    _ => U32::put(cx, op.s[0], [p; LANES], mask),
                }
            }
        })
    }
}

/// `match.sync`: slots d, a, mask; `imm` bit 0: all (else any), bit 1: 64 bits; `y` the predicate slot of `all`.
pub(crate) struct Match;
impl Exec for Match {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        each_group(cx, mask, op.s[2], |cx, mask, members| {
            // SAFETY: the caller's promise.
            unsafe {
                let a = if op.imm & 2 != 0 {
                    U64::get(cx, op.s[1])
                } else {
                    let a = U32::get(cx, op.s[1]);
                    lanes(|i| u64::from(a[i]))
                };
                let who = mask & members;
                let equal = |i: usize| bits(|j| who >> j & 1 != 0 && a[j] == a[i]);
                if op.imm & 1 != 0 {
                    let all = equal(who.trailing_zeros() as usize & 31) == who;
                    U32::put(cx, op.s[0], [if all { who } else { 0 }; LANES], mask);
                    if op.y != 0 {
                        cx.set_pred(op.y as u16, if all { u32::MAX } else { 0 }, mask);
                    }
                } else {
                    U32::put(cx, op.s[0], lanes(equal), mask);
                }
            }
        })
    }
}

/// `redux.sync`: slots d, a, mask; `imm`: 0 add, 1 min.u, 2 max.u, 3 min.s, 4 max.s, 5 and, 6 or, 7 xor.
pub(crate) struct Redux;
impl Exec for Redux {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        each_group(cx, mask, op.s[2], |cx, mask, members| {
            // SAFETY: the caller's promise.
            unsafe {
                let a = U32::get(cx, op.s[1]);
                let who = mask & members;
                let r = (0..LANES).filter(|i| who >> i & 1 != 0).map(|i| a[i]).reduce(|x, y| match op.imm {
                    0 => x.wrapping_add(y),
                    1 => x.min(y),
                    2 => x.max(y),
                    3 => (x as i32).min(y as i32) as u32,
                    4 => (x as i32).max(y as i32) as u32,
                    5 => x & y,
                    6 => x | y,
                    _ => x ^ y,
                });
                U32::put(cx, op.s[0], [r.unwrap_or(0); LANES], mask);
            }
        })
    }
}

/// `activemask`: the lanes of this fragment.
pub(crate) struct ActiveMask;
impl Exec for ActiveMask {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { U32::put(cx, op.s[0], [mask; LANES], mask) };
        Flow::Next
    }
}

/// `elect.sync d|p, mask`: the lowest lane of the mask is the leader. Slots d (row or sink), p, mask.
pub(crate) struct Elect;
impl Exec for Elect {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        each_group(cx, mask, op.s[2], |cx, mask, members| {
            // SAFETY: the caller's promise.
            unsafe {
                let leader = (members & mask).trailing_zeros();
                if op.s[0] != super::moves::SINK {
                    U32::put(cx, op.s[0], [leader; LANES], mask);
                }
                cx.set_pred(op.s[1], 1u32.checked_shl(leader).unwrap_or(0), mask);
            }
        })
    }
}

/// `bar.warp.sync mask`: slot 0 the mask.
pub(crate) struct WarpBarrier;
impl Exec for WarpBarrier {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the decoder gave the mask operand a 32-bit slot.
        let names = unsafe { U32::get(cx, op.s[0]) };
        let first = names[mask.trailing_zeros() as usize];
        let live = cx.warp().live();
        if mask & !first != 0 && cx.check(SYNC) {
            let lane = (mask & !first).trailing_zeros();
            let m = format!("lane {lane} executes it, but the mask {first:#010x} does not name that lane");
            cx.report(lane, ReportKind::WrongMask, m, None, None);
        }
        if first & live & !mask == 0 {
            return Flow::Next;
        }
        let pc = cx.pc;
        cx.wait(Wait::Lanes { mask: first, pc, warp_barrier: true })
    }
}
