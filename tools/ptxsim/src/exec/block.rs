//! A block while it runs: its warps, their fragments, its shared memory and barriers; and the order in which they run.
//!
//! A warp is a set of fragments: lanes that share a program counter. A branch that diverges splits a fragment in two,
//! which meet again at the branch's immediate post-dominator. Every fragment can be run at any time, so lanes that wait
//! for other lanes of their warp make progress.

use std::collections::HashMap;

use super::copy::WarpCopies;
use super::moves::Sreg;
use super::{Cx, Flow, LANES, Row, Stop, Wait};
use crate::check::shared::SharedShadow;
use crate::program::Program;
use crate::report::{FaultKind, ReportKind};

/// Backward branches and calls after which a warp lets others run.
pub(crate) const FUEL: i32 = 2000;
/// No node, no frame.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Ready,
    Waiting(Wait),
}

/// Lanes that run together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frag {
    pub pc: u32,
    pub mask: u32,
    pub node: u32,
    pub frame: u32,
    pub state: State,
}

/// A meeting point: fragments and nodes below it that have not arrived yet, and the lanes that have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub rpc: u32,
    pub arrived: u32,
    pub pending: u32,
    pub parent: u32,
    /// Frame of the fragment that goes on from here.
    pub frame: u32,
    /// Frame that ends here, if this is where a call returns to.
    pub callee: u32,
}

/// A call in progress.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Node where the lanes that return meet.
    pub node: u32,
    pub parent: u32,
    pub depth: u32,
    /// Index of the callee's layout, and of the call.
    pub function: u32,
    pub call: u32,
    /// Registers, predicates and local words of the callee's caller, if that is the callee itself further up.
    pub saved: Option<Box<Saved>>,
}

/// A function's state while it is called again from below.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub rows: Vec<u32>,
    pub preds: Vec<u32>,
    pub local: Vec<u32>,
}

pub(crate) struct Warp {
    pub index: u32,
    pub rows: Vec<AlignedRow>,
    pub preds: Vec<u32>,
    /// Local memory, word `w` of lane `l` at `32*w + l`.
    pub local: Vec<u32>,
    /// Bytes of each local word that were written, where that is checked.
    pub local_init: Vec<u8>,
    pub tid: [Row; 3],
    /// Lanes that exist.
    pub valid: u32,
    pub exited: u32,
    pub frags: Vec<Frag>,
    pub nodes: Vec<Node>,
    pub free_nodes: Vec<u32>,
    pub frames: Vec<Frame>,
    pub free_frames: Vec<u32>,
    pub copies: WarpCopies,
    /// Lanes that arrived at the cluster barrier and have not waited, and the phase they arrived in.
    pub cluster_arrived: u32,
    pub cluster_phase: u64,
    /// Polls of an mbarrier in a row that found it not ready.
    pub polls: u32,
    /// Lanes that have waited for an mbarrier for as long as they may: they are told that it is not ready.
    pub timed_out: u32,
    pub bulk: super::bulk::WarpBulk,
    pub wgmma: super::wgmma::WarpWgmma,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct AlignedRow(pub Row);

impl Warp {
    fn new() -> Warp {
        Warp {
            index: 0,
            rows: Vec::new(),
            preds: Vec::new(),
            local: Vec::new(),
            local_init: Vec::new(),
            tid: [[0; LANES]; 3],
            valid: 0,
            exited: 0,
            frags: Vec::new(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            frames: Vec::new(),
            free_frames: Vec::new(),
            copies: WarpCopies::default(),
            cluster_arrived: 0,
            cluster_phase: 0,
            polls: 0,
            timed_out: 0,
            bulk: super::bulk::WarpBulk::default(),
            wgmma: super::wgmma::WarpWgmma::default(),
        }
    }

    fn reset(&mut self, index: u32, block: [u32; 3], prog: &Program, entry: u32) {
        let threads = block[0] * block[1] * block[2];
        self.index = index;
        self.rows.clear();
        self.rows.resize(prog.rows, AlignedRow([0; LANES]));
        self.preds.clear();
        self.preds.resize(prog.preds, 0);
        self.preds[0] = u32::MAX;
        self.local.clear();
        self.local.resize(prog.local_bytes.div_ceil(4) as usize * LANES, 0);
        self.local_init.clear();
        self.local_init.resize(self.local.len(), 0);
        self.valid = 0;
        for l in 0..LANES as u32 {
            let t = index * 32 + l;
            if t < threads {
                self.valid |= 1 << l;
            }
            self.tid[0][l as usize] = t % block[0];
            self.tid[1][l as usize] = t / block[0] % block[1];
            self.tid[2][l as usize] = t / block[0] / block[1];
        }
        self.exited = 0;
        self.frags.clear();
        self.frags.push(Frag { pc: entry, mask: self.valid, node: NONE, frame: NONE, state: State::Ready });
        self.nodes.clear();
        self.free_nodes.clear();
        self.frames.clear();
        self.free_frames.clear();
        self.copies.reset();
        self.cluster_arrived = 0;
        self.polls = 0;
        self.timed_out = 0;
        self.bulk.reset();
        self.wgmma.reset(prog.rows);
    }

    /// Lanes that have not ended.
    #[inline(always)]
    pub fn live(&self) -> u32 {
        self.valid & !self.exited
    }

    pub fn new_node(&mut self, node: Node) -> u32 {
        if let Some(i) = self.free_nodes.pop() {
            self.nodes[i as usize] = node;
            return i;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    /// Takes `node` out of use, with the frame that ends there.
    fn retire(&mut self, node: u32) {
        let callee = self.nodes[node as usize].callee;
        if callee != NONE {
            self.frames[callee as usize].saved = None;
            self.free_frames.push(callee);
        }
        self.free_nodes.push(node);
    }

    /// A fragment or node below `node` is gone, leaving `arrived` lanes there. Where that was the last, the lanes
    /// that met there go on as a fragment, or the loss is passed on to the node above.
    pub fn leave(&mut self, node: u32, arrived: u32) {
        let mut at = node;
        let mut arrived = arrived;
        while at != NONE {
            let n = &mut self.nodes[at as usize];
            n.arrived |= arrived;
            n.pending -= 1;
            if n.pending > 0 {
                return;
            }
            let n = *n;
            self.retire(at);
            if n.arrived != 0 {
                self.frags.push(Frag {
                    pc: n.rpc,
                    mask: n.arrived,
                    node: n.parent,
                    frame: n.frame,
                    state: State::Ready,
                });
                // The node that the fragment is in may end right where it starts.
                self.settle();
                return;
            }
            at = n.parent;
            arrived = 0;
        }
    }

    /// A new fragment that starts at its own meeting point arrives there at once.
    fn settle(&mut self) {
        let Some(&f) = self.frags.last() else { return };
        if f.node != NONE
            && self.nodes[f.node as usize].rpc == f.pc
            && self.nodes[f.node as usize].frame == f.frame
        {
            self.frags.pop();
            self.leave(f.node, f.mask);
        }
    }

    /// The fragment `f` waits for lanes of its own warp. Those that have arrived above it, where they would wait for this very
    /// fragment, go on without it; answers whether there were any.
    pub fn part(&mut self, f: usize, wanted: u32) -> bool {
        let mut parted = false;
        let mut at = self.frags[f].node;
        while at != NONE {
            let n = self.nodes[at as usize];
            if n.arrived & wanted != 0 {
                self.nodes[at as usize].arrived = 0;
                if n.parent != NONE {
                    self.nodes[n.parent as usize].pending += 1;
                }
                let state = State::Ready;
                self.frags.push(Frag { pc: n.rpc, mask: n.arrived, node: n.parent, frame: n.frame, state });
                self.settle();
                parted = true;
            }
            at = n.parent;
        }
        parted
    }

    /// Index of a fragment that can run.
    fn ready(&self) -> Option<usize> {
        self.frags.iter().rposition(|f| f.state == State::Ready)
    }
}

/// One barrier of a block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barrier {
    /// Warps counted.
    pub arrivals: u32,
    /// Warps it waits for; 0 for all.
    pub expected: u32,
    /// Lanes of each warp that came without the rest of their warp.
    pub partial: HashMap<u32, u32>,
    /// Warps that wait, and all that took part.
    pub waiting: u32,
    pub members: u32,
    /// `bar.red`: lanes with a true predicate, lanes, by warp.
    pub trues: u32,
    pub lanes: u32,
    /// Instruction of the first that came.
    pub pc: u32,
}

/// State of an mbarrier (PTX ISA "Parallel Synchronization and Communication Instructions: mbarrier").
#[derive(Clone, Debug, Default)]
pub(crate) struct Mbarrier {
    /// Arrivals a phase waits for, and how many are still missing.
    pub expected: u32,
    pub pending: u32,
    /// Bytes expected and not yet there.
    pub tx: i64,
    pub phase: u64,
    /// What happened before the arrivals of the current phase, and before the completion of the last.
    pub arriving: Released,
    pub done: Released,
}

/// A clock that warps release into.
#[derive(Clone, Debug, Default)]
pub(crate) struct Released(pub crate::check::shared::Clock);

/// A block on its way.
pub(crate) struct Block {
    pub index: u64,
    pub ctaid: [u32; 3],
    pub rank: u16,
    pub warps: Vec<Warp>,
    pub nwarps: usize,
    pub shared: Vec<u64>,
    pub shared_bytes: u32,
    pub barriers: Vec<Barrier>,
    pub mbarriers: HashMap<u32, Mbarrier>,
    /// Results of `bar.red`: true predicates and lanes.
    pub reductions: [(u32, u32); 16],
    /// What was released at `bar.arrive`, and by atomics.
    pub barrier_clocks: Vec<Released>,
    pub atomic_clock: Released,
    pub shadow: SharedShadow,
    pub sregs: [u64; Sreg::COUNT],
    pub clock: u64,
    pub done: bool,
    /// Threads that ended.
    pub any_exit: bool,
    /// A fence of a scope above the block has run.
    pub fenced: bool,
    pub order: Vec<u32>,
    /// Bytes of asynchronous copies not waited for.
    pub in_flight: u64,
}

/// What a pass over a block's warps did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Done,
    /// Some warp ran.
    Ran,
    /// Nobody could run.
    Stuck,
    Fault,
}

impl Block {
    pub fn new() -> Block {
        Block {
            index: 0,
            ctaid: [0; 3],
            rank: 0,
            warps: Vec::new(),
            nwarps: 0,
            shared: Vec::new(),
            shared_bytes: 0,
            barriers: vec![Barrier::default(); 16],
            mbarriers: HashMap::new(),
            reductions: [(0, 0); 16],
            barrier_clocks: vec![Released::default(); 16],
            atomic_clock: Released::default(),
            shadow: SharedShadow::default(),
            sregs: [0; Sreg::COUNT],
            clock: 0,
            done: false,
            any_exit: false,
            fenced: false,
            order: Vec::new(),
            in_flight: 0,
        }
    }

    /// Makes this block number `index` of a launch.
    #[expect(clippy::too_many_arguments, reason = "what a launch fixes, passed once")]
    pub fn reset(
        &mut self,
        index: u64,
        block: [u32; 3],
        prog: &Program,
        entry: u32,
        shared_bytes: u32,
        seed: u64,
        check: bool,
    ) {
        let threads = block[0] * block[1] * block[2];
        self.index = index;
        self.nwarps = threads.div_ceil(32) as usize;
        while self.warps.len() < self.nwarps {
            self.warps.push(Warp::new());
        }
        for (i, w) in self.warps[..self.nwarps].iter_mut().enumerate() {
            w.reset(i as u32, block, prog, entry);
        }
        self.shared_bytes = shared_bytes;
        self.shared.clear();
        self.shared.resize(shared_bytes.div_ceil(8) as usize + 8, 0);
        self.barriers.fill(Barrier::default());
        self.mbarriers.clear();
        self.barrier_clocks.fill(Released::default());
        self.atomic_clock = Released::default();
        self.shadow.reset(if check { shared_bytes } else { 0 }, self.nwarps);
        self.clock = 1000;
        self.done = false;
        self.any_exit = false;
        self.fenced = false;
        self.in_flight = 0;
        self.order.clear();
        self.order.extend(0..self.nwarps as u32);
        // Fisher-Yates with a generator of its own for each block, so that the order does not depend on threads.
        let mut x = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for i in (1..self.nwarps).rev() {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            self.order.swap(i, (x % (i as u64 + 1)) as usize);
        }
    }

    /// Warps with a lane that has not ended.
    pub fn live_warps(&self) -> u32 {
        self.warps[..self.nwarps].iter().filter(|w| w.live() != 0).count() as u32
    }

    /// Lets every warp that can run do so once.
    pub fn pass(&mut self, cx: &mut Cx) -> Pass {
        if self.done {
            return Pass::Done;
        }
        let mut ran = false;
        for k in 0..self.nwarps {
            let w = self.order[k] as usize;
            let mut turns = 0;
            cx.fuel = FUEL;
            while let Some(f) = self.warps[w].ready() {
                ran = true;
                turns += 1;
                match self.run(cx, w, f) {
                    Stop::Fault => return Pass::Fault,
                    Stop::Yield => {
                        cx.fuel = FUEL;
                        // The fragment goes to the back, so that its sisters run first.
                        let frags = &mut self.warps[w].frags;
                        frags.rotate_right(1);
                        if turns >= frags.len() {
                            break;
                        }
                    }
                    // Fragments that end and make others are a way to go on for ever, too.
                    _ if cx.fuel <= 1 => break,
                    _ => cx.fuel -= 1,
                }
            }
        }
        if self.warps[..self.nwarps].iter().all(|w| w.frags.is_empty()) {
            self.done = true;
            return Pass::Done;
        }
        if ran { Pass::Ran } else { Pass::Stuck }
    }

    /// Runs fragment `f` of warp `w` until it stops.
    fn run(&mut self, cx: &mut Cx, w: usize, f: usize) -> Stop {
        let warp = &mut self.warps[w];
        let frag = warp.frags[f];
        cx.banks[0] = warp.rows.as_mut_ptr().cast();
        cx.preds = warp.preds.as_mut_ptr();
        cx.local = warp.local.as_mut_ptr();
        cx.pc = frag.pc;
        cx.mask = frag.mask;
        cx.node = frag.node;
        cx.frame = frag.frame;
        cx.rpc = if frag.node == NONE { NONE } else { warp.nodes[frag.node as usize].rpc };
        cx.watch_registers = cx.prog().has_wgmma && cx.track_shared;
        cx.warp = warp;
        // The fragment is out of the list while it runs.
        warp.frags.swap_remove(f);
        cx.block = self;
        // `cx` now describes this warp, whose register file was sized for the program; the program's slots were
        // allocated inside it by the decoder, and `pc` stays inside the program because every path ends in `exit`.
        interpret(cx);
        let landed = super::bulk::drain(cx);
        let warp = &mut self.warps[w];
        let frag = Frag { pc: cx.pc, mask: cx.mask, node: cx.node, frame: cx.frame, state: State::Ready };
        match std::mem::replace(&mut cx.stop, Stop::Gone) {
            Stop::Wait(wait) => {
                // What just landed may be what it waits for: then it looks again.
                let again = landed && matches!(wait, Wait::Mbarrier { .. });
                let state = if again { State::Ready } else { State::Waiting(wait) };
                warp.frags.push(Frag { state, ..frag });
                if let Wait::Lanes { .. } = wait {
                    super::warp::release_lanes(warp);
                }
                Stop::Wait(wait)
            }
            Stop::Gone => {
                // Lanes that ended may have been the last that others waited for.
                if warp.frags.iter().any(|f| matches!(f.state, State::Waiting(Wait::Lanes { .. }))) {
                    super::warp::release_lanes(warp);
                }
                Stop::Gone
            }
            stop => {
                warp.frags.push(frag);
                stop
            }
        }
    }

    /// Makes the fragments that wait for `which` ready.
    pub fn wake(&mut self, which: impl Fn(&Wait) -> bool) {
        for w in &mut self.warps[..self.nwarps] {
            for f in &mut w.frags {
                if let State::Waiting(wait) = f.state
                    && which(&wait)
                {
                    f.state = State::Ready;
                }
            }
        }
    }

    /// Nobody can run: lets lanes go on that wait for lanes of their warp which wait at a barrier for them. Answers
    /// whether there are any.
    pub fn part(&mut self) -> bool {
        let mut parted = false;
        for w in &mut self.warps[..self.nwarps] {
            for f in 0..w.frags.len() {
                if matches!(w.frags[f].state, State::Waiting(Wait::Barrier(_))) {
                    parted |= w.part(f, u32::MAX);
                }
            }
        }
        parted
    }

    /// Lets lanes go on that wait for an mbarrier, with the answer that it is not ready. Answers whether there are any.
    pub fn time_out(&mut self) -> bool {
        let mut any = false;
        for w in &mut self.warps[..self.nwarps] {
            for f in &mut w.frags {
                if matches!(f.state, State::Waiting(Wait::Mbarrier { .. })) {
                    f.state = State::Ready;
                    w.timed_out |= f.mask;
                    any = true;
                }
            }
        }
        any
    }

    /// Nobody can run: who waits for what.
    pub fn deadlock(&mut self, cx: &mut Cx) {
        let mut lines = Vec::new();
        let mut first = None;
        for w in &self.warps[..self.nwarps] {
            for f in &w.frags {
                if let State::Waiting(wait) = f.state {
                    // A fragment waits at the instruction before its program counter, except where it tries again.
                    let pc = match wait {
                        Wait::Mbarrier { .. } | Wait::Lanes { .. } => f.pc,
                        _ => f.pc.saturating_sub(1),
                    };
                    let what = match wait {
                        Wait::Barrier(id) => format!("barrier {id}"),
                        Wait::Lanes { mask, .. } => format!("lanes {mask:#010x}"),
                        Wait::Mbarrier { addr, .. } => format!("the mbarrier at shared {addr:#x}"),
                        Wait::Cluster => "the cluster barrier".into(),
                    };
                    if first.is_none() {
                        first = Some((pc, w.index, f.mask));
                    }
                    if lines.len() < 8 {
                        lines.push(format!(
                            "warp {} lanes {:#010x} wait for {what} at PTX line {}",
                            w.index,
                            f.mask,
                            cx.prog().info[pc as usize].line
                        ));
                    }
                }
            }
        }
        let barrier = self.warps[..self.nwarps].iter().find_map(|w| {
            let f = w.frags.iter().find(|f| matches!(f.state, State::Waiting(Wait::Barrier(_))))?;
            Some((w.index, f.pc.saturating_sub(1), f.mask))
        });
        if let Some((warp, pc, mask)) = barrier {
            cx.block = self;
            cx.warp = &mut self.warps[warp as usize];
            let m = "only a part of the threads that this barrier waits for ever reaches it".into();
            cx.report_at(pc, mask, ReportKind::PartialBarrier, m, None, None);
        }
        let mut unbalanced = Vec::new();
        for w in &self.warps[..self.nwarps] {
            for f in &w.frags {
                if let State::Waiting(Wait::Mbarrier { rank, addr }) = f.state {
                    unbalanced.push((w.index, f.pc, f.mask, rank, addr));
                }
            }
        }
        for (warp, pc, mask, rank, addr) in unbalanced {
            cx.block = self;
            cx.warp = &mut self.warps[warp as usize];
            let tx = cx.peer(rank).mbarriers.get(&addr).map_or(0, |m| m.tx);
            if tx != 0 {
                let (n, what) = (tx.abs(), if tx < 0 { "more" } else { "fewer" });
                let m = format!(
                    "the mbarrier at shared {addr:#x} never ends its phase: {n} bytes {what} than expect_tx said have come"
                );
                cx.report_at(pc, mask, ReportKind::Mbarrier, m, Some(addr.into()), None);
            }
        }
        let mut elsewhere = Vec::new();
        for w in &self.warps[..self.nwarps] {
            for f in &w.frags {
                if let State::Waiting(Wait::Lanes { mask, pc, .. }) = f.state {
                    elsewhere.push((w.index, pc.min(f.pc), f.mask, mask & w.live() & !f.mask));
                }
            }
        }
        for (warp, pc, mask, missing) in elsewhere {
            cx.block = self;
            cx.warp = &mut self.warps[warp as usize];
            let m =
                format!("lanes {mask:#010x} wait for lanes {missing:#010x} of their mask, which never come");
            cx.report_at(pc, mask, ReportKind::WrongMask, m, None, None);
        }
        if let Some((pc, warp, mask)) = first {
            cx.block = self;
            cx.warp = &mut self.warps[warp as usize];
            cx.fault_at(pc, mask, FaultKind::Deadlock, format!("deadlock: {}", lines.join("; ")), None);
        }
    }

    /// Copies that nobody waited for, at the end of the block.
    pub fn finish(&mut self, cx: &mut Cx) {
        for i in 0..self.nwarps {
            cx.block = self;
            cx.warp = &mut self.warps[i];
            super::bulk::finish(cx);
            if let Some(pc) = self.warps[i].copies.first_unwaited() {
                cx.block = self;
                cx.warp = &mut self.warps[i];
                cx.report_at(
                    pc,
                    1,
                    ReportKind::Unwaited,
                    "the block ended while this asynchronous copy was in flight: nobody waited for it".into(),
                    None,
                    None,
                );
            }
        }
    }
}

super::versions! {
/// Runs the fragment in `cx` until it stops. The caller promises that `cx` describes a fragment of the program it names.
fn interpret(cx: &mut Cx) -> () {
    let prog = cx.prog();
    let ops = prog.ops.as_ptr();
    // SAFETY: `pc` is inside the program: the decoder checked every target and put an `exit` at every end. The
    // handlers get slots that the decoder allocated.
    unsafe {
        loop {
            let pc = cx.pc;
            if pc == cx.rpc {
                // The lanes arrive where they meet the others of their node.
                let (node, mask, frame) = (cx.node, cx.mask, cx.frame);
                let warp = cx.warp();
                let n = &mut warp.nodes[node as usize];
                if n.frame == frame {
                    if n.pending == 1 {
                        // The last to come goes on with all of them.
                        let (arrived, parent) = (n.arrived, n.parent);
                        warp.retire(node);
                        let rpc = if parent == NONE { NONE } else { warp.nodes[parent as usize].rpc };
                        cx.mask = mask | arrived;
                        cx.node = parent;
                        cx.rpc = rpc;
                        continue;
                    }
                    n.pending -= 1;
                    n.arrived |= mask;
                    cx.stop = Stop::Gone;
                    return;
                }
            }
            let op = &*ops.add(pc as usize);
            let guard = cx.pred(op.guard >> 1) ^ 0u32.wrapping_sub(u32::from(op.guard & 1));
            let mask = cx.mask & guard;
            if cx.counting {
                let c = &mut *cx.counts.add(pc as usize);
                c[0] += 1;
                c[1] += u64::from(mask.count_ones());
            }
            cx.pc = pc + 1;
            if cx.watch_registers {
                super::wgmma::watch(cx, pc, mask);
            }
            if mask != 0 && (op.f)(cx, op, mask) == Flow::Stop {
                return;
            }
        }
    }
}
}
