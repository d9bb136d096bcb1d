//! Branches, calls, returns and ends (PTX ISA "Control Flow Instructions").

use super::block::{FUEL, Frag, Frame, NONE, Node, Saved, State};
use super::{Cx, Exec, Flow, LANES, Stop, U32, U64, View};
use crate::program::{Layout, Op, System, Target};
use crate::report::FaultKind;

/// Calls that may be open at once in one thread.
const MAX_DEPTH: u32 = 4096;

/// Jumps of the lanes of `mask` to `target`; the others go on at `cx.pc`. They meet at `join`.
#[inline(always)]
fn jump(cx: &mut Cx, target: u32, mask: u32, join: u32) -> Flow {
    if target < cx.pc {
        cx.fuel -= 1;
    }
    if mask == cx.mask {
        cx.pc = target;
        if cx.fuel <= 0 {
            cx.stop = Stop::Yield;
            return Flow::Stop;
        }
        return Flow::Next;
    }
    diverge(cx, target, mask, join)
}

#[inline(never)]
fn diverge(cx: &mut Cx, target: u32, mask: u32, join: u32) -> Flow {
    let rest = cx.mask & !mask;
    let (node, frame) = (cx.node, cx.frame);
    let same = node != NONE && {
        let n = &cx.warp().nodes[node as usize];
        n.rpc == join && n.frame == frame
    };
    let at = if same {
        node
    } else if join == NONE {
        // The lanes never meet before they end.
        node
    } else {
        let n = Node { rpc: join, arrived: 0, pending: 1, parent: node, frame, callee: NONE };
        cx.warp().new_node(n)
    };
    // One more fragment below the node (or below the root of the warp, which counts none).
    let here = cx.pc;
    let warp = cx.warp();
    let meet = at != NONE && warp.nodes[at as usize].rpc == join;
    if meet && target == join {
        warp.nodes[at as usize].arrived |= mask;
        cx.mask = rest;
    } else if meet && here == join {
        warp.nodes[at as usize].arrived |= rest;
        cx.mask = mask;
        cx.pc = target;
    } else {
        if at != NONE {
            warp.nodes[at as usize].pending += 1;
        }
        // The lanes that stay run first; those that jump wait their turn.
        warp.frags.push(Frag { pc: target, mask, node: at, frame, state: State::Ready });
        cx.mask = rest;
    }
    cx.node = at;
    cx.rpc = if at == NONE { NONE } else { cx.warp().nodes[at as usize].rpc };
    if cx.fuel <= 0 {
        cx.stop = Stop::Yield;
        return Flow::Stop;
    }
    Flow::Next
}

/// `bra`: `x` the target, `y` where diverging lanes meet. Its guard chose the lanes.
pub(crate) struct Bra;
impl Exec for Bra {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        jump(cx, op.x, mask, op.y)
    }
}

/// `brx.idx`: slot 1 the index, `x` the table, `y` where lanes meet.
pub(crate) struct Brx;
impl Exec for Brx {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        let index = unsafe { U32::get(cx, op.s[1]) };
        let table = &cx.prog().tables[op.x as usize].targets;
        let mut left = mask;
        let at = cx.pc - 1;
        while left != 0 {
            let lane = left.trailing_zeros();
            let i = index[lane as usize];
            let Some(&target) = table.get(i as usize) else {
                return cx.fault(
                    lane,
                    FaultKind::InvalidPc,
                    format!("brx.idx: index {i} of a table of {} targets", table.len()),
                    None,
                );
            };
            let group = super::bits(|l| left >> l & 1 != 0 && index[l] == i);
            left &= !group;
            if left == 0 && cx.mask == group {
                return jump(cx, target, group, op.y);
            }
            // Lanes not yet sent stay at this instruction, as if they had not come to it.
            cx.pc = at;
            if diverge_to(cx, target, group, op.y) == Flow::Stop {
                return Flow::Stop;
            }
            if left != 0 {
                continue;
            }
            // Lanes that the guard left out go on after it.
            cx.pc = at + 1;
        }
        Flow::Next
    }
}
fn diverge_to(cx: &mut Cx, target: u32, group: u32, join: u32) -> Flow {
    cx.fuel -= i32::from(target < cx.pc);
    let fuel = std::mem::replace(&mut cx.fuel, FUEL);
    let flow = diverge(cx, target, group, join);
    cx.fuel = fuel.max(1);
    flow
}

/// `exit`, and `ret` of a kernel: the lanes end.
pub(crate) struct Exit;
impl Exec for Exit {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, _: &Op, mask: u32) -> Flow {
        cx.block().any_exit = true;
        cx.warp().exited |= mask;
        let rest = cx.mask & !mask;
        let flow = if rest == 0 {
            let node = cx.node;
            cx.warp().leave(node, 0);
            cx.stop = Stop::Gone;
            Flow::Stop
        } else {
            cx.mask = rest;
            Flow::Next
        };
        super::barrier::after_exit(cx);
        flow
    }
}

/// `ret` of a function: the lanes meet at the call, with its results.
pub(crate) struct Ret;
impl Exec for Ret {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, _: &Op, mask: u32) -> Flow {
        let (node, frame) = (cx.node, cx.frame);
        let rest = cx.mask & !mask;
        let prog = cx.prog();
        let warp = cx.warp();
        let Some(f) = warp.frames.get(frame as usize) else {
            return cx.fault(mask.trailing_zeros(), FaultKind::InvalidPc, "ret without a call".into(), None);
        };
        let (at, layout) = (f.node, &prog.functions[f.function as usize]);
        let cells: Vec<u32> = copy_out(&warp.local, &layout.results);
        let call = &prog.calls[f.call as usize];
        if let Some(saved) = warp.frames[frame as usize].saved.take() {
            restore(warp, layout, &saved, mask);
            warp.frames[frame as usize].saved = Some(saved);
        }
        copy_in(&mut warp.local, &mut warp.local_init, &call.results, &cells, mask);
        warp.nodes[at as usize].arrived |= mask;
        if rest != 0 {
            cx.mask = rest;
            return Flow::Next;
        }
        warp.leave(node, 0);
        cx.stop = Stop::Gone;
        Flow::Stop
    }
}

/// The words of cells (address, bytes) of local memory, all lanes.
fn copy_out(local: &[u32], cells: &[(u32, u32)]) -> Vec<u32> {
    let words =
        |&(at, bytes): &(u32, u32)| at as usize / 4 * LANES..(at + bytes).div_ceil(4) as usize * LANES;
    cells.iter().flat_map(|c| local[words(c)].iter().copied()).collect()
}
/// Writes words that [`copy_out`] read into cells, lanes of the mask only; cells past the end of the words are left alone.
fn copy_in(local: &mut [u32], init: &mut [u8], cells: &[(u32, u32)], words: &[u32], mask: u32) {
    let mut from = words.chunks_exact(LANES);
    for &(at, bytes) in cells {
        for w in at / 4..(at + bytes).div_ceil(4) {
            let Some(row) = from.next() else { return };
            for l in 0..LANES {
                if mask >> l & 1 != 0 {
                    local[w as usize * LANES + l] = row[l];
                    init[w as usize * LANES + l] = 0xf;
                }
            }
        }
    }
}

fn save(warp: &super::block::Warp, f: &Layout) -> Box<Saved> {
    Box::new(Saved {
        rows: warp.rows[f.rows.0 as usize..f.rows.1 as usize].iter().flat_map(|r| r.0).collect(),
        preds: warp.preds[f.preds.0 as usize..f.preds.1 as usize].to_vec(),
        local: warp.local[f.local.0 as usize * LANES..f.local.1 as usize * LANES].to_vec(),
    })
}
fn restore(warp: &mut super::block::Warp, f: &Layout, s: &Saved, mask: u32) {
    for (i, v) in s.rows.iter().enumerate() {
        let row = f.rows.0 as usize + i / LANES;
        // A 64-bit register is two rows of which each lane has two neighbouring words.
        let lane = if (row as u32) < f.wide { i / 2 % LANES } else { i % LANES };
        if mask >> lane & 1 != 0 {
            warp.rows[row].0[i % LANES] = *v;
        }
    }
    for (p, v) in warp.preds[f.preds.0 as usize..].iter_mut().zip(&s.preds) {
        *p = *p & !mask | v & mask;
    }
    for (i, v) in s.local.iter().enumerate() {
        if mask >> (i % LANES) & 1 != 0 {
            warp.local[f.local.0 as usize * LANES + i] = *v;
        }
    }
}

/// `call`: `x` the call's description.
pub(crate) struct CallOp;
impl Exec for CallOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { call(cx, op, mask) }
    }
}

#[inline(never)]
unsafe fn call(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let c = &cx.prog().calls[op.x as usize];
    let function = match c.target {
        Target::Entry(f) => f,
        Target::System(s) => return system(cx, s, c, mask),
        Target::Register(slot) => {
            // SAFETY: the caller's promise.
            let to = unsafe { U64::get(cx, slot) };
            let first = to[mask.trailing_zeros() as usize];
            let group = super::bits(|i| mask >> i & 1 != 0 && to[i] == first);
            let Some(e) = cx.prog().functions.iter().position(|f| f.address == first && first != 0) else {
                return cx.fault(
                    mask.trailing_zeros(),
                    FaultKind::InvalidPc,
                    format!("call to {first:#x}, which is no function of this module"),
                    None,
                );
            };
            if group != cx.mask {
                // One callee at a time: the others come back to this instruction.
                let back = cx.pc;
                let rest = cx.mask & !group;
                let (node, frame, left_out) = (cx.node, cx.frame, cx.mask & !mask);
                let warp = cx.warp();
                let n = warp.new_node(Node {
                    rpc: back,
                    arrived: left_out,
                    pending: 2,
                    parent: node,
                    frame,
                    callee: NONE,
                });
                let warp = cx.warp();
                if rest & mask != 0 {
                    warp.frags.push(Frag {
                        pc: back - 1,
                        mask: rest & mask,
                        node: n,
                        frame,
                        state: State::Ready,
                    });
                } else {
                    warp.nodes[n as usize].pending = 1;
                }
                cx.node = n;
                cx.mask = group;
                return enter(cx, op.x, e as u32, group);
            }
            e as u32
        }
    };
    enter(cx, op.x, function, mask)
}

fn enter(cx: &mut Cx, call: u32, function: u32, mask: u32) -> Flow {
    let (node, frame, rest) = (cx.node, cx.frame, cx.mask & !mask);
    let back = cx.pc;
    let prog = cx.prog();
    let layout = &prog.functions[function as usize];
    let warp = cx.warp();
    let depth = warp.frames.get(frame as usize).map_or(0, |f| f.depth) + 1;
    if depth > MAX_DEPTH {
        return cx.fault(
            mask.trailing_zeros(),
            FaultKind::StackOverflow,
            format!("more than {MAX_DEPTH} calls deep"),
            None,
        );
    }
    let mut open = frame;
    let mut again = false;
    while !again && open != NONE {
        again = warp.frames[open as usize].function == function;
        open = warp.frames[open as usize].parent;
    }
    let args = copy_out(&warp.local, &prog.calls[call as usize].args);
    let saved = again.then(|| save(warp, layout));
    copy_in(&mut warp.local, &mut warp.local_init, &layout.params, &args, mask);
    let new = warp.free_frames.pop().unwrap_or(warp.frames.len() as u32);
    // Lanes that do not call wait at the return.
    let at = warp.new_node(Node { rpc: back, arrived: rest, pending: 1, parent: node, frame, callee: new });
    let f = Frame { node: at, parent: frame, depth, function, call, saved };
    match warp.frames.get_mut(new as usize) {
        Some(old) => *old = f,
        None => warp.frames.push(f),
    }
    cx.frame = new;
    cx.node = at;
    cx.rpc = back;
    cx.mask = mask;
    cx.pc = layout.entry;
    // Calls can be as many as the backward branches of a loop.
    cx.fuel -= 1;
    if cx.fuel <= 0 {
        cx.stop = Stop::Yield;
        return Flow::Stop;
    }
    Flow::Next
}

fn system(cx: &mut Cx, s: System, c: &crate::program::Call, mask: u32) -> Flow {
    match s {
        System::Printf => super::memory::printf(cx, c, mask),
        System::Assert => super::memory::assert_fail(cx, c, mask),
        System::Malloc | System::Free => cx.fault(
            mask.trailing_zeros(),
            FaultKind::IllegalInstruction,
            "malloc and free in a kernel are not supported".into(),
            None,
        ),
    }
}

/// `trap` and `brkpt`.
pub(crate) struct Trap;
impl Exec for Trap {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        let what = if op.imm == 0 { "trap" } else { "brkpt" };
        cx.fault(mask.trailing_zeros(), FaultKind::Trap, format!("{what} reached"), None)
    }
}

/// `nanosleep`: others run.
pub(crate) struct Sleep;
impl Exec for Sleep {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, _: &Op, _: u32) -> Flow {
        cx.block().clock += 100;
        cx.stop = Stop::Yield;
        Flow::Stop
    }
}
