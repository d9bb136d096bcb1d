//! Asynchronous copies: `cp.async` and its groups (PTX ISA "Data Movement: Asynchronous copy").
//!
//! The bytes of a copy arrive when the wait for them is over, no sooner; until then the checks hold them to be in flight.

use super::memory::{Hosts, addresses, global_hosts, shared_hosts};
use super::{Cx, Exec, Flow, LANES, U32, View, bits, lanes};
use crate::check::{global, shared};
use crate::program::Op;

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
    let mut source: Hosts = [0; LANES];
    let full = bits(
        #[inline(always)]
        |i| u32::from(used[i]) == bytes,
    ) & reads;
    if full != 0 && !global_hosts(cx, &from, full, bytes, global::Touch::Read, &mut source) {
        return Flow::Stop;
    }
    if reads != full && !partial_hosts(cx, &from, reads & !full, &used, &mut source) {
        return Flow::Stop;
    }
    if !shared_hosts(cx, &to, mask, bytes, shared::Touch::Issue, &mut [0; LANES]) {
        return Flow::Stop;
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

/// Sources of copies that read less than they write; their addresses are aligned to what they read.
#[inline(never)]
fn partial_hosts(
    cx: &mut Cx,
    from: &[u64; LANES],
    mask: u32,
    used: &[u8; LANES],
    source: &mut Hosts,
) -> bool {
    let mut part = mask;
    while part != 0 {
        let n = used[part.trailing_zeros() as usize];
        let group = bits(|i| used[i] == n) & part;
        part &= !group;
        // Byte by byte: the size need be no power of two.
        for k in 0..n {
            let at = lanes(|i| from[i] + u64::from(k));
            let mut hosts = *source;
            let counting = cx.counting;
            cx.counting &= k == 0;
            let found = global_hosts(cx, &at, group, 1, global::Touch::Read, &mut hosts);
            cx.counting = counting;
            if !found {
                return false;
            }
            if k == 0 {
                *source = hosts;
            }
        }
    }
    true
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
        land(
            cx,
            #[inline(always)]
            |p| {
                p.mask
                    & mask
                    & if all {
                        u32::MAX
                    } else {
                        match p.group {
                            Some(g) => bits(
                                #[inline(always)]
                                |i| g.wrapping_add(n) < commits[i],
                            ),
                            None => 0,
                        }
                    }
            },
        );
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
    let near = bits(
        #[inline(always)]
        |i| p.at[i] < super::memory::CLUSTER,
    ) & now;
    let whole = bits(
        #[inline(always)]
        |i| p.used[i] == 16,
    ) & near;
    // SAFETY: sources and destinations were checked when the copy was issued; the launch keeps allocations alive, and
    // shared memory does not change its size while a block runs.
    unsafe {
        if whole == u32::MAX {
            for i in 0..LANES {
                let to = cx.shared.add(p.at[i] as usize).cast::<[u8; 16]>();
                to.write(*(p.source[i] as *const [u8; 16]));
            }
        } else {
            for i in (0..LANES).filter(|i| now >> i & 1 != 0) {
                let to = if near >> i & 1 != 0 {
                    cx.shared.add(p.at[i] as usize)
                } else {
                    let (rank, at) = super::memory::shared_place(cx, u64::from(p.at[i]));
                    let Some((base, _)) = cx.peer_shared(rank) else { continue };
                    base.add(at as usize)
                };
                let used = usize::from(p.used[i]);
                std::ptr::copy_nonoverlapping(p.source[i] as *const u8, to, used);
                std::ptr::write_bytes(to.add(used), 0, n - used);
            }
        }
    }
    let b = cx.block();
    b.in_flight = b.in_flight.saturating_sub(n as u64 * u64::from(now.count_ones()));
    if cx.track_shared {
        let rank = cx.block().rank;
        shared::access_at(cx, p.pc, rank, &p.at, near, n as u32, shared::Touch::Land);
    }
}
