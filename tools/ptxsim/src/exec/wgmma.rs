//! `wgmma` (PTX ISA "Asynchronous Warpgroup Level Matrix Instructions").
//!
//! An instruction only takes note of its operands; the product is made when `wgmma.wait_group` (or the end) says that it must be,
//! so that registers and shared memory touched too early show wrong values as well as reports. Each of the four warps makes its
//! own 16 rows.

use super::moves::SINK;
use super::{Cx, Exec, Flow, Row, U32, U64, View};
use crate::check::ASYNC;
use crate::program::Op;
use crate::report::{FaultKind, ReportKind};
use crate::tensor::wgmma::{Scale, Wgmma};

/// A `wgmma.mma_async`'s static part; its slots are in `extra` from `y`: d, then a (4 registers or a descriptor), then b.
#[derive(Clone, Debug)]
pub(crate) struct WgmmaOp {
    pub form: Wgmma,
    pub a_in_registers: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    pub transpose_a: bool,
    pub transpose_b: bool,
}

#[derive(Clone)]
struct Pending {
    op: u32,
    slots: u32,
    pc: u32,
    a: u64,
    b: u64,
    accumulate: bool,
    group: Option<u32>,
}

/// What a warp has started.
#[derive(Default)]
pub(crate) struct WarpWgmma {
    pending: Vec<Pending>,
    commits: u32,
    /// Rows that instructions in flight use: 1 read, 2 written.
    busy: Vec<u8>,
    /// Rows written since the last `wgmma.fence`.
    dirty: Vec<bool>,
}

impl WarpWgmma {
    pub fn reset(&mut self, rows: usize) {
        self.pending.clear();
        self.commits = 0;
        self.busy.clear();
        self.busy.resize(rows + 2, 0);
        self.dirty.clear();
        self.dirty.resize(rows + 2, true);
    }
}

/// Notes the registers of instruction `pc`, which is about to run.
#[inline(never)]
pub(crate) fn watch(cx: &mut Cx, pc: u32, mask: u32) {
    let prog = cx.prog();
    let name = &prog.names[prog.info[pc as usize].name as usize];
    if name.starts_with("wgmma.") || mask == 0 {
        return;
    }
    let flight = !cx.warp().wgmma.pending.is_empty();
    let w = &mut cx.warp().wgmma;
    let mut bad = false;
    for &r in &prog.writes[pc as usize] {
        bad |= flight && w.busy[r as usize] != 0;
        w.dirty[r as usize] = true;
    }
    if flight {
        bad |= prog.reads[pc as usize].iter().any(|&r| w.busy[r as usize] & 2 != 0);
    }
    if bad && cx.check(ASYNC) {
        let m = "touches a register of a wgmma.mma_async that has not been waited for".into();
        cx.report_at(pc, mask, ReportKind::WgmmaRegister, m, None, None);
    }
}

/// `wgmma.fence`: `imm` 0; `wgmma.commit_group`: 1; `wgmma.wait_group`: 2 (`y` groups).
pub(crate) struct WgmmaSync;
impl Exec for WgmmaSync {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        super::matrix::whole_warp(cx, mask);
        match op.imm {
            0 => cx.warp().wgmma.dirty.fill(false),
            1 => {
                let w = &mut cx.warp().wgmma;
                let group = w.commits;
                w.commits += 1;
                w.pending.iter_mut().filter(|p| p.group.is_none()).for_each(|p| p.group = Some(group));
            }
            _ => {
                let n = op.y;
                // SAFETY: the pending instructions are this program's, and the warp is the running one.
                if unsafe { !finish(cx, |p, commits| p.group.is_some_and(|g| g + n < commits)) } {
                    return Flow::Stop;
                }
            }
        }
        Flow::Next
    }
}

/// `wgmma.mma_async`: `x` the form, `y` the slots; slot 0 the `scale-d` predicate, `imm` bit 0: negated, bit 1: none given.
pub(crate) struct WgmmaIssue;
impl Exec for WgmmaIssue {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { issue(cx, op, mask) }
    }
}

unsafe fn issue(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    super::matrix::whole_warp(cx, mask);
    let prog = cx.prog();
    let w = &prog.wgmma[op.x as usize];
    let lane = mask.trailing_zeros();
    let nd = w.form.regs_d();
    let na = if w.a_in_registers { 4 } else { 1 };
    let slots = &prog.extra[op.y as usize..op.y as usize + nd + na + 1];
    // SAFETY: the decoder gave descriptors 64-bit slots and `scale-d` a predicate.
    let (a, b, accumulate) = unsafe {
        let p = cx.pred(op.s[0]) ^ if op.imm & 1 != 0 { u32::MAX } else { 0 };
        let a = if w.a_in_registers { 0 } else { U64::get(cx, slots[nd])[lane as usize] };
        (a, U64::get(cx, slots[nd + na])[lane as usize], p >> lane & 1 != 0)
    };
    let pc = cx.here();
    let state = &mut cx.warp().wgmma;
    let uses = &slots[..nd + if w.a_in_registers { 4 } else { 0 }];
    let dirty = uses.iter().any(|&s| s & 0x8000 == 0 && s != SINK && state.dirty[s as usize]);
    for (i, &s) in uses.iter().enumerate() {
        if s & 0x8000 == 0 {
            state.busy[s as usize] |= if i < nd { 2 } else { 1 };
        }
    }
    state.pending.push(Pending { op: op.x, slots: op.y, pc, a, b, accumulate, group: None });
    if dirty && cx.watch_registers && cx.check(ASYNC) {
        let m = "its registers were written since the last wgmma.fence".into();
        cx.report_at(pc, mask, ReportKind::WgmmaRegister, m, None, None);
        cx.warp().wgmma.dirty.fill(false);
    }
    Flow::Next
}

/// Makes the pending products that `which` names, in order; false after a fault.
unsafe fn finish(cx: &mut Cx, which: impl Fn(&Pending, u32) -> bool) -> bool {
    let commits = cx.warp().wgmma.commits;
    let mut pending = std::mem::take(&mut cx.warp().wgmma.pending);
    let mut ok = true;
    pending.retain(|p| {
        if !ok || !which(p, commits) {
            return true;
        }
        // SAFETY: the caller's promise.
        ok = unsafe { product(cx, p) };
        false
    });
    let prog = cx.prog();
    let state = &mut cx.warp().wgmma;
    state.busy.fill(0);
    for p in &pending {
        let w = &prog.wgmma[p.op as usize];
        let nd = w.form.regs_d();
        let n = nd + if w.a_in_registers { 4 } else { 0 };
        for (i, &s) in prog.extra[p.slots as usize..p.slots as usize + n].iter().enumerate() {
            if s & 0x8000 == 0 {
                state.busy[s as usize] |= if i < nd { 2 } else { 1 };
            }
        }
    }
    state.pending = pending;
    ok
}

unsafe fn product(cx: &mut Cx, p: &Pending) -> bool {
    let prog = cx.prog();
    let w = &prog.wgmma[p.op as usize];
    let nd = w.form.regs_d();
    let slots = &prog.extra[p.slots as usize..];
    let index = cx.warp().index;
    let (base, limit) = (cx.shared, cx.shared_bytes);
    // One warp of the four stands for all in the checks of shared memory.
    let checked = cx.track_shared && index.is_multiple_of(4);
    let mut outside = None;
    let mut bad = None;
    let block = cx.block;
    let mut read = |at: u32, out: &mut [u8; 16]| -> Result<(), ()> {
        if u64::from(at) + 16 > u64::from(limit) {
            outside = Some(at);
            return Err(());
        }
        if checked && bad.is_none() {
            // SAFETY: the block is the running one; nothing else refers to its shadow now.
            bad = unsafe { (*block).shadow.async_read(index as usize, at, 16, p.pc) };
        }
        // SAFETY: the chunk is inside the block's shared memory.
        *out = unsafe { base.add(at as usize).cast::<[u8; 16]>().read_unaligned() };
        Ok(())
    };
    let a: Result<[Row; 4], ()> = if w.a_in_registers {
        // SAFETY: the decoder allocated the slots.
        Ok(std::array::from_fn(|i| unsafe { U32::get(cx, slots[nd + i]) }))
    } else {
        w.form.load_a(p.a, w.transpose_a, index % 4, &mut read)
    };
    let b = w.form.load_b(p.b, w.transpose_b, &mut read);
    let (Ok(a), Ok(b)) = (a, b) else {
        let at = outside.unwrap_or(0);
        let m = format!(
            "wgmma: 16 bytes at shared address {at:#x} are outside the block's {limit} bytes of shared memory"
        );
        let pc = std::mem::replace(&mut cx.pc, p.pc + 1);
        cx.fault(0, FaultKind::IllegalAddress, m, Some(at.into()));
        cx.pc = pc;
        return false;
    };
    if let Some(bad) = bad {
        crate::check::shared::tell(cx, p.pc, 0, bad, crate::check::shared::Touch::AsyncRead);
    }
    let scale = Scale { accumulate: p.accumulate, negate_a: w.negate_a, negate_b: w.negate_b };
    // SAFETY: the decoder allocated the slots.
    let mut d: Vec<Row> = slots[..nd].iter().map(|&s| unsafe { U32::get(cx, s) }).collect();
    w.form.run(&mut d, [&a[0], &a[1], &a[2], &a[3]], &b, scale);
    for (s, row) in slots.iter().zip(&d) {
        // SAFETY: as above.
        unsafe { U32::put(cx, *s, *row, u32::MAX) };
    }
    true
}
