//! Asynchronous copies: `cp.async` and its groups (PTX ISA "Data Movement: Asynchronous copy").
//!
//! The bytes of a copy arrive when the wait for them is over, no sooner; until then the checks hold them to be in flight.

use super::memory::{addresses, aligned, for_blocks, for_regions};
use super::{Cx, Exec, Flow, LANES, U32, View, bits, counting, lanes};
use crate::check::{global, shared};
use crate::program::Op;
use crate::report::FaultKind;

/// Copies of one instruction that have not landed.
#[derive(Clone)]
struct Pending {
    pc: u32,
    mask: u32,
    /// Number of the group, once committed.
    group: Option<u32>,
    at: [u32; LANES],
    source: [u64; LANES],
    /// Bytes that are read; the rest of `bytes` is zero.
    used: [u8; LANES],
    bytes: u8,
}

/// The asynchronous copies of a warp.
#[derive(Default)]
pub(crate) struct WarpCopies {
    pending: Vec<Pending>,
    /// Groups that each lane has committed.
    commits: [u32; LANES],
}

impl WarpCopies {
    pub fn reset(&mut self) {
        self.pending.clear();
        self.commits = [0; LANES];
    }
    /// The instruction of a copy that is still in flight.
    pub fn first_unwaited(&self) -> Option<u32> {
        self.pending.first().map(|p| p.pc)
    }
}

/// `cp.async`: slots: shared address, global address, source bytes (`imm` bit 8), ignore predicate (`imm` bit 9);
/// `imm` bits 0-7 bytes; `x` the memory form of the global side, `y` that of the shared side.
pub(crate) struct CpAsync;
impl Exec for CpAsync {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { cp_async(cx, op, mask) }
    }
}

#[inline(always)]
unsafe fn cp_async(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the caller's promise.
    let (to, from, sizes, ignore) = unsafe {
        let prog = cx.prog();
        let to = addresses(cx, op.s[0], &prog.mem[op.y as usize]);
        let from = addresses(cx, op.s[1], &prog.mem[op.x as usize]);
        let sizes = if op.imm >> 8 & 1 != 0 { U32::get(cx, op.s[2]) } else { [u32::MAX; LANES] };
        let ignore = if op.imm >> 9 & 1 != 0 { cx.pred(op.s[3]) } else { 0 };
        (to, from, sizes, ignore)
    };
    let bytes = (op.imm & 0xff) as u32;
    let used: [u8; LANES] = lanes(|i| if ignore >> i & 1 != 0 { 0 } else { sizes[i].min(bytes) as u8 });
    let reads = bits(|i| used[i] != 0) & mask;
    for (addr, m, what) in [(&to, mask, "shared"), (&from, reads, "global")] {
        if !aligned(addr, m, bytes) {
            let lane =
                (0..32).find(|&l| m >> l & 1 != 0 && addr[l as usize] % u64::from(bytes) != 0).unwrap_or(0);
            let a = addr[lane as usize];
            return cx.fault(
                lane,
                FaultKind::MisalignedAddress,
                format!("cp.async: {what} address {a:#x} is not a multiple of {bytes}"),
                Some(a),
            );
        }
    }
    let mut source = [0u64; LANES];
    if reads != 0 {
        if cx.counting {
            counting::global(cx, &from, reads, bytes);
        }
        let mut read = |cx: &mut Cx, m: u32, n: u32| {
            for_regions(cx, &from, m, n, global::Touch::Read, |_, delta, l| {
                for i in 0..LANES {
                    if l >> i & 1 != 0 {
                        source[i] = from[i].wrapping_add(delta);
                    }
                }
            })
        };
        let full = bits(|i| u32::from(used[i]) == bytes) & reads;
        if full != 0
            && let Err(flow) = read(cx, full, bytes)
        {
            return flow;
        }
        let mut part = reads & !full;
        while part != 0 {
            let l = part.trailing_zeros();
            let n = used[l as usize];
            let group = bits(|i| used[i] == n) & part;
            part &= !group;
            if let Err(flow) = read(cx, group, u32::from(n)) {
                return flow;
            }
        }
    }
    let issued = for_blocks(cx, &to, mask, bytes, shared::Touch::Issue, |_, _, _, _| {});
    if let Err(flow) = issued {
        return flow;
    }
    let pc = cx.here();
    let total = u64::from(bytes) * u64::from(mask.count_ones());
    let w = cx.worker();
    w.async_bytes += total;
    let b = cx.block();
    b.in_flight += total;
    let now = b.in_flight;
    let w = cx.worker();
    w.in_flight_max = w.in_flight_max.max(now);
    cx.warp().copies.pending.push(Pending {
        pc,
        mask,
        group: None,
        at: lanes(|i| to[i] as u32),
        source,
        used,
        bytes: bytes as u8,
    });
    Flow::Next
}

/// `cp.async.commit_group`.
pub(crate) struct Commit;
impl Exec for Commit {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, _: &Op, mask: u32) -> Flow {
        let c = &mut cx.warp().copies;
        let mut k = 0;
        while k < c.pending.len() {
            let p = &mut c.pending[k];
            if p.group.is_none() && p.mask & mask != 0 {
                let number = c.commits[(p.mask & mask).trailing_zeros() as usize];
                let now = bits(|i| c.commits[i] == number) & p.mask & mask;
                if now != p.mask {
                    // Lanes that do not commit now, or are in another group.
                    let rest = Pending { mask: p.mask & !now, ..p.clone() };
                    p.mask = now;
                    p.group = Some(number);
                    c.pending.insert(k + 1, rest);
                } else {
                    p.group = Some(number);
                }
            }
            k += 1;
        }
        for i in 0..LANES {
            c.commits[i] += mask >> i & 1;
        }
        Flow::Next
    }
}

/// `cp.async.wait_group imm`; `y` 1: `wait_all`.
pub(crate) struct WaitGroup;
impl Exec for WaitGroup {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        let (all, n) = (op.y != 0, op.imm as u32);
        let commits = cx.warp().copies.commits;
        land(cx, |p| {
            p.mask
                & mask
                & if all {
                    u32::MAX
                } else {
                    match p.group {
                        Some(g) => bits(|i| g.wrapping_add(n) < commits[i]),
                        None => 0,
                    }
                }
        });
        Flow::Next
    }
}

/// Lands the lanes of each pending copy that `which` names.
#[inline(always)]
pub(super) fn land_all(cx: &mut Cx, mask: u32) {
    land(cx, |p| p.mask & mask);
}

#[inline(always)]
fn land(cx: &mut Cx, which: impl Fn(&Pending) -> u32) {
    let mut pending = std::mem::take(&mut cx.warp().copies.pending);
    let mut kept = 0;
    for k in 0..pending.len() {
        let now = which(&pending[k]);
        if now != 0 {
            land_one(cx, &pending[k], now);
            pending[k].mask &= !now;
        }
        if pending[k].mask != 0 {
            pending.swap(kept, k);
            kept += 1;
        }
    }
    pending.truncate(kept);
    cx.warp().copies.pending = pending;
}

#[inline(always)]
fn land_one(cx: &mut Cx, p: &Pending, now: u32) {
    let n = usize::from(p.bytes);
    for i in 0..LANES {
        if now >> i & 1 != 0 {
            let (rank, at) = super::memory::shared_place(cx, u64::from(p.at[i]));
            let base =
                if rank == cx.block().rank { Some(cx.shared) } else { cx.peer_shared(rank).map(|b| b.0) };
            let Some(base) = base else { continue };
            // SAFETY: source and destination were checked when the copy was issued; the launch keeps allocations alive
            // and shared memory does not change its size while a block runs.
            unsafe {
                let to = base.add(at as usize);
                let from = p.source[i] as *const u8;
                let used = usize::from(p.used[i]);
                if used == n && n == 16 {
                    to.cast::<[u8; 16]>().write(from.cast::<[u8; 16]>().read());
                } else {
                    std::ptr::copy_nonoverlapping(from, to, used);
                    std::ptr::write_bytes(to.add(used), 0, n - used);
                }
            }
        }
    }
    let b = cx.block();
    b.in_flight = b.in_flight.saturating_sub(n as u64 * u64::from(now.count_ones()));
    if cx.track_shared {
        let rank = cx.block().rank;
        shared::access_at(cx, p.pc, rank, &p.at, now, n as u32, shared::Touch::Land);
    }
}
