//! Loads and stores of every state space, generic addresses, `printf` and `assert` (PTX ISA "Data Movement: ld, st,
//! isspacep"; "State Spaces").
//!
//! Addresses: a global or constant address is that of [`Memory`](crate::Memory). A shared address is an offset into the
//! block's shared memory, or into that of block `rank` of the cluster above `CLUSTER * (rank + 1)`. Local and parameter addresses
//! are offsets too. The windows below are where these spaces lie among generic addresses.

use super::moves::SINK;
use super::{Cx, Exec, Flow, LANES, U32, U64, View, bits, counting, lanes};
use crate::check::{global, shared};
use crate::program::{Call, MemOp, Op};
use crate::report::FaultKind;

pub(crate) const SHARED_WINDOW: u64 = 1 << 56;
pub(crate) const LOCAL_WINDOW: u64 = 2 << 56;
pub(crate) const PARAM_WINDOW: u64 = 3 << 56;
/// Distance of the blocks of a cluster among shared addresses.
pub(crate) const CLUSTER: u32 = 1 << 24;

/// The addresses of the lanes: slot `s` plus the offset of `mo`.
#[inline(always)]
pub(crate) unsafe fn addresses(cx: &Cx, s: u16, mo: &MemOp) -> [u64; LANES] {
    // SAFETY: the caller's promise.
    unsafe {
        if mo.wide {
            let a = U64::get(cx, s);
            lanes(|i| a[i].wrapping_add(mo.offset as u64))
        } else {
            let a = U32::get(cx, s);
            lanes(|i| u64::from(a[i].wrapping_add(mo.offset as u32)))
        }
    }
}

/// Which bytes an access touches: whole vectors of `bytes`.
#[cold]
#[inline(never)]
fn misaligned(cx: &mut Cx, addr: &[u64; LANES], mask: u32, bytes: u32, space: &str) -> bool {
    let lane = (0..32)
        .find(|&l| mask >> l & 1 != 0 && !addr[l as usize].is_multiple_of(u64::from(bytes)))
        .unwrap_or(0);
    let a = addr[lane as usize];
    cx.fault(
        lane,
        FaultKind::MisalignedAddress,
        format!("{space} address {a:#x} is not a multiple of the access size {bytes}"),
        Some(a),
    );
    false
}

#[inline(always)]
pub(crate) fn aligned(addr: &[u64; LANES], mask: u32, bytes: u32) -> bool {
    let low = u64::from(bytes) - 1;
    if mask == u32::MAX {
        let mut any = 0;
        for a in addr {
            any |= a;
        }
        return any & low == 0;
    }
    bits(|i| addr[i] & low != 0) & mask == 0
}

/// Host pointers of the lanes.
pub(crate) type Hosts = [u64; LANES];

super::versions! {
/// Finds the lanes' bytes in global memory, with counters and checks: their host pointers, or false after a fault.
pub(crate) fn global_hosts(
    cx: &mut Cx, addr: &[u64; LANES], mask: u32, bytes: u32, touch: global::Touch, hosts: &mut Hosts,
) -> bool {
    if !aligned(addr, mask, bytes) {
        return misaligned(cx, addr, mask, bytes, "global");
    }
    if cx.counting {
        counting::global(cx, addr, mask, bytes);
    }
    let mut left = mask;
    let hint = (cx.pc & 63) as usize;
    let writes = !matches!(touch, global::Touch::Read | global::Touch::Strong { writes: false });
    while left != 0 {
        let w = cx.worker();
        let mut region = w.regions.get(w.hot[hint] as usize).copied();
        let mut inside = region.map_or(0, #[inline(always)] |r| r.covers(addr, bytes) & left);
        if inside == 0 {
            let first = addr[left.trailing_zeros() as usize];
            let at = w.regions.partition_point(|r| r.start <= first).wrapping_sub(1);
            w.hot[hint] = at as u32;
            region = w.regions.get(at).copied();
            inside = region.map_or(0, #[inline(always)] |r| r.covers(addr, bytes) & left);
        }
        let Some(region) = region.filter(|r| inside != 0 && (r.writable || !writes)) else {
            return no_region(cx, addr, left, bytes, writes, inside != 0);
        };
        if cx.track_global {
            global::access(cx, &region, addr, inside, bytes, touch);
        }
        if inside == u32::MAX {
            *hosts = lanes(#[inline(always)] |i| addr[i].wrapping_add(region.delta));
        } else {
            *hosts = lanes(#[inline(always)] |i| if inside >> i & 1 != 0 { addr[i].wrapping_add(region.delta) } else { hosts[i] });
        }
        left &= !inside;
    }
    true
}

/// Finds the lanes' bytes in the shared memory of the cluster, with counters and checks: their host pointers, or false after
/// a fault.
pub(crate) fn shared_hosts(
    cx: &mut Cx, addr: &[u64; LANES], mask: u32, bytes: u32, touch: shared::Touch, hosts: &mut Hosts,
) -> bool {
    if !aligned(addr, mask, bytes) {
        return misaligned(cx, addr, mask, bytes, "shared");
    }
    let low: [u32; LANES] = lanes(#[inline(always)] |i| addr[i] as u32);
    let limit = cx.shared_bytes;
    if limit >= bytes {
        let room = limit - bytes;
        let inside = bits(#[inline(always)] |i| low[i] <= room) & mask;
        if inside == mask {
            if cx.counting {
                counting::shared(cx, &low, mask, bytes);
            }
            if cx.track_shared {
                let rank = cx.block().rank;
                shared::access(cx, rank, &low, mask, bytes, touch);
            }
            let base = cx.shared as u64;
            *hosts = lanes(#[inline(always)] |i| base.wrapping_add(u64::from(low[i])));
            return true;
        }
    }
    cluster_hosts(cx, &low, mask, bytes, touch, hosts)
}
}

#[cold]
#[inline(never)]
fn no_region(cx: &mut Cx, addr: &[u64; LANES], left: u32, bytes: u32, writes: bool, read_only: bool) -> bool {
    let lane = left.trailing_zeros();
    let a = addr[lane as usize];
    let verb = if writes { "writes" } else { "reads" };
    let why = if read_only {
        format!("{bytes} bytes at {a:#x} are in host memory mapped read-only")
    } else if a >> 56 != 0 {
        format!("{bytes} bytes at {a:#x} are in no allocation")
    } else {
        cx.worker().memory.describe(a, u64::from(bytes))
    };
    cx.fault(lane, FaultKind::IllegalAddress, format!("{verb} outside global memory: {why}"), Some(a));
    false
}

/// The shared memory that `addr` points into: block of the cluster, and offset.
#[inline(always)]
pub(crate) fn shared_place(cx: &mut Cx, addr: u64) -> (u16, u32) {
    let a = addr as u32;
    match (a / CLUSTER).checked_sub(1) {
        None => (cx.block().rank, a),
        Some(rank) => (rank as u16, a % CLUSTER),
    }
}

/// As [`shared_hosts`] where lanes touch other blocks, or nothing.
#[inline(never)]
fn cluster_hosts(
    cx: &mut Cx,
    low: &[u32; LANES],
    mask: u32,
    bytes: u32,
    touch: shared::Touch,
    hosts: &mut Hosts,
) -> bool {
    let mut left = mask;
    while left != 0 {
        let first = low[left.trailing_zeros() as usize];
        let (rank, _) = shared_place(cx, u64::from(first));
        let group = bits(|i| low[i] / CLUSTER == first / CLUSTER) & left;
        left &= !group;
        let offsets: [u32; LANES] = lanes(|i| low[i] % CLUSTER);
        let Some((base, limit)) = cx.peer_shared(rank) else {
            let lane = group.trailing_zeros();
            let m = format!(
                "shared::cluster address {first:#x} names block {rank} of the cluster, which does not exist"
            );
            cx.fault(lane, FaultKind::IllegalAddress, m, Some(u64::from(first)));
            return false;
        };
        let inside = bits(|i| u64::from(offsets[i]) + u64::from(bytes) <= u64::from(limit)) & group;
        if inside != group {
            let lane = (group & !inside).trailing_zeros();
            let a = offsets[lane as usize];
            let m = format!(
                "{bytes} bytes at shared address {a:#x} are outside the block's {limit} bytes of shared memory"
            );
            cx.fault(lane, FaultKind::IllegalAddress, m, Some(u64::from(a)));
            return false;
        }
        if cx.counting {
            counting::shared(cx, &offsets, group, bytes);
        }
        if cx.track_shared {
            shared::access(cx, rank, &offsets, group, bytes, touch);
        }
        for i in 0..LANES {
            if group >> i & 1 != 0 {
                hosts[i] = base as u64 + u64::from(offsets[i]);
            }
        }
    }
    true
}

/// Reads element `k` of each lane of `mask` at `host(lane)` into its register.
#[inline(always)]
unsafe fn load_lanes<const B: usize>(cx: &mut Cx, mo: &MemOp, mask: u32, host: impl Fn(usize) -> *const u8) {
    // SAFETY: the caller checked that the lanes of the mask may read vec*B bytes at their pointer.
    unsafe {
        for k in 0..usize::from(mo.vec) {
            let d = *cx.prog().extra.get_unchecked(mo.regs as usize + k);
            if d == SINK {
                continue;
            }
            let mut out = [0u64; LANES];
            if mask == u32::MAX {
                for i in 0..LANES {
                    out[i] = load_one::<B>(host(i).add(k * B), mo.signed);
                }
            } else {
                for i in 0..LANES {
                    if mask >> i & 1 != 0 {
                        out[i] = load_one::<B>(host(i).add(k * B), mo.signed);
                    }
                }
            }
            if B == 8 || mo.reg_wide {
                U64::put(cx, d, out, mask);
            } else {
                U32::put(cx, d, lanes(|i| out[i] as u32), mask);
            }
        }
    }
}
#[inline(always)]
unsafe fn load_one<const B: usize>(p: *const u8, signed: bool) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match B {
            1 => {
                let v = *p;
                if signed { i64::from(v as i8) as u64 } else { u64::from(v) }
            }
            2 => {
                let v = p.cast::<u16>().read_unaligned();
                if signed { i64::from(v as i16) as u64 } else { u64::from(v) }
            }
            4 => {
                let v = p.cast::<u32>().read_unaligned();
                if signed { i64::from(v as i32) as u64 } else { u64::from(v) }
            }
            _ => p.cast::<u64>().read_unaligned(),
        }
    }
}
/// The value that each lane stores as element `k`.
#[inline(always)]
unsafe fn stored<const B: usize>(cx: &Cx, mo: &MemOp, k: usize) -> [u64; LANES] {
    // SAFETY: the caller's promise.
    unsafe {
        let s = *cx.prog().extra.get_unchecked(mo.regs as usize + k);
        if B == 8 || mo.reg_wide {
            U64::get(cx, s)
        } else {
            let v = U32::get(cx, s);
            lanes(|i| u64::from(v[i]))
        }
    }
}
#[inline(always)]
unsafe fn store_lanes<const B: usize>(cx: &mut Cx, mo: &MemOp, mask: u32, host: impl Fn(usize) -> *mut u8) {
    // SAFETY: the caller checked that the lanes of the mask may write vec*B bytes at their pointer.
    unsafe {
        for k in 0..usize::from(mo.vec) {
            let v = stored::<B>(cx, mo, k);
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    let p = host(i).add(k * B);
                    match B {
                        1 => *p = v[i] as u8,
                        2 => p.cast::<u16>().write_unaligned(v[i] as u16),
                        4 => p.cast::<u32>().write_unaligned(v[i] as u32),
                        _ => p.cast::<u64>().write_unaligned(v[i]),
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn how(mo: &MemOp, writes: bool) -> global::Touch {
    match (mo.strong, writes) {
        (true, _) => global::Touch::Strong { writes },
        (false, true) => global::Touch::Write,
        (false, false) => global::Touch::Read,
    }
}

/// Host pointers for a load or store of a whole warp in one space; false after a fault.
#[inline(always)]
pub(crate) fn hosts_of(
    cx: &mut Cx,
    mo: &MemOp,
    which: u8,
    addr: &[u64; LANES],
    mask: u32,
    writes: bool,
    hosts: &mut Hosts,
) -> bool {
    let size = u32::from(mo.bytes) * u32::from(mo.vec);
    match which {
        space::GLOBAL => {
            if mo.strong {
                cx.worker().polled |= !writes;
                if writes && cx.prog().has_fences {
                    // Relaxed accesses order blocks only together with fences.
                    let releases = mo.release || cx.block().fenced;
                    strong_sync(cx, addr, mask, None, Some(releases));
                }
            }
            global_hosts(cx, addr, mask, size, how(mo, writes), hosts)
        }
        space::SHARED => {
            let touch = match (mo.strong, writes) {
                (true, true) => shared::Touch::StrongWrite,
                (true, false) => shared::Touch::StrongRead,
                (false, true) => shared::Touch::Write,
                (false, false) => shared::Touch::Read,
            };
            if mo.strong && cx.prog().has_fences && cx.track_shared {
                super::atomics::sync_shared(cx, !writes, writes);
            }
            shared_hosts(cx, addr, mask, size, touch, hosts)
        }
        space::PARAM if !writes => param_hosts(cx, addr, mask, size, hosts),
        _ => generic_hosts(cx, mo, addr, mask, writes, hosts),
    }
}

/// Splits generic addresses into their spaces (PTX ISA "Generic Addressing"); local memory is left to the caller.
#[inline(never)]
fn generic_hosts(
    cx: &mut Cx,
    mo: &MemOp,
    addr: &[u64; LANES],
    mask: u32,
    writes: bool,
    hosts: &mut Hosts,
) -> bool {
    let of = |w: u64| bits(|i| addr[i] >> 56 == w >> 56) & mask;
    let (s, p) = (of(SHARED_WINDOW), of(PARAM_WINDOW));
    let global = mask & !(s | p);
    if global != 0 && !hosts_of(cx, mo, space::GLOBAL, addr, global, writes, hosts) {
        return false;
    }
    if s != 0 && !hosts_of(cx, mo, space::SHARED, &lanes(|i| addr[i] & 0xffff_ffff), s, writes, hosts) {
        return false;
    }
    if p == 0 {
        return true;
    }
    if writes {
        let lane = p.trailing_zeros();
        let m = "store to kernel parameters, which are read-only".into();
        cx.fault(lane, FaultKind::IllegalAddress, m, Some(addr[lane as usize]));
        return false;
    }
    param_hosts(cx, &lanes(|i| addr[i] & 0xffff_ffff), p, u32::from(mo.bytes) * u32::from(mo.vec), hosts)
}

/// Kernel parameters read through an address.
#[inline(never)]
fn param_hosts(cx: &mut Cx, addr: &[u64; LANES], mask: u32, bytes: u32, hosts: &mut Hosts) -> bool {
    let limit = u64::from(cx.prog().param_bytes);
    let inside = bits(|i| addr[i] <= limit && addr[i] + u64::from(bytes) <= limit) & mask;
    if inside != mask {
        let lane = (mask & !inside).trailing_zeros();
        let a = addr[lane as usize];
        let m = format!(
            "{bytes} bytes at parameter address {a:#x} are outside the kernel's {limit} bytes of parameters"
        );
        cx.fault(lane, FaultKind::IllegalAddress, m, Some(a));
        return false;
    }
    let base = cx.params as u64;
    for i in 0..LANES {
        if mask >> i & 1 != 0 {
            hosts[i] = base + addr[i];
        }
    }
    true
}

/// Acquire and release of strong accesses to global memory, one for each address.
#[inline(never)]
pub(crate) fn strong_sync(
    cx: &mut Cx,
    addr: &[u64; LANES],
    mask: u32,
    acquires: Option<bool>,
    releases: Option<bool>,
) {
    if !cx.worker().track_distinct {
        return;
    }
    let mut left = mask;
    while left != 0 {
        let a = addr[left.trailing_zeros() as usize];
        left &= !bits(|i| addr[i] == a);
        global::synchronise(cx, a, acquires, releases);
    }
}

/// Local memory interleaves its lanes word by word, so an access goes through a buffer of its bytes.
#[inline(never)]
unsafe fn local_bytes(cx: &mut Cx, addr: &[u64; LANES], mask: u32, size: u32) -> Result<(), Flow> {
    if !aligned(addr, mask, size) {
        misaligned(cx, addr, mask, size, "local");
        return Err(Flow::Stop);
    }
    let limit = u64::from(cx.prog().local_bytes);
    let inside = bits(|i| addr[i] <= limit && addr[i] + u64::from(size) <= limit) & mask;
    if inside != mask {
        let lane = (mask & !inside).trailing_zeros();
        let a = addr[lane as usize];
        let m = format!(
            "{size} bytes at local address {a:#x} are outside the thread's {limit} bytes of local memory"
        );
        return Err(cx.fault(lane, FaultKind::IllegalAddress, m, Some(a)));
    }
    Ok(())
}
#[inline(never)]
unsafe fn load_local<const B: usize>(cx: &mut Cx, mo: &MemOp, addr: &[u64; LANES], mask: u32) -> Flow {
    // SAFETY: `local_bytes` keeps the lanes inside the local memory that the warp was sized for.
    unsafe {
        // Generic addresses carry the window's base.
        let addr = &lanes(|i| addr[i] & 0xffff_ffff);
        if let Err(flow) = local_bytes(cx, addr, mask, B as u32 * u32::from(mo.vec)) {
            return flow;
        }
        let size = B * usize::from(mo.vec);
        if cx.check(crate::check::UNINIT) {
            let init = &cx.warp().local_init;
            let unwritten = |i: usize| {
                (0..size).find(|k| {
                    init[(addr[i] as usize + k) / 4 * LANES + i] >> ((addr[i] as usize + k) % 4) & 1 == 0
                })
            };
            let bad = (0..LANES)
                .filter(|i| mask >> i & 1 != 0)
                .find_map(|i| unwritten(i).map(|k| (i, addr[i] + k as u64)));
            if let Some((lane, at)) = bad {
                let m = format!("reads local byte {at:#x}, which the thread never wrote");
                cx.report(lane as u32, crate::ReportKind::UninitLocal, m, Some(at), None);
            }
        }
        let mut buffer = [[0u32; 8]; LANES];
        let words = (B * usize::from(mo.vec)).div_ceil(4);
        for i in 0..LANES {
            if mask >> i & 1 != 0 {
                for w in 0..words {
                    buffer[i][w] = *cx.local.add((addr[i] as usize / 4 + w) * LANES + i);
                }
            }
        }
        load_lanes::<B>(cx, mo, mask, |i| buffer[i].as_ptr().cast::<u8>().add(addr[i] as usize % 4));
    }
    Flow::Next
}
#[inline(never)]
unsafe fn store_local<const B: usize>(cx: &mut Cx, mo: &MemOp, addr: &[u64; LANES], mask: u32) -> Flow {
    // SAFETY: as `load_local`.
    unsafe {
        // Generic addresses carry the window's base.
        let addr = &lanes(|i| addr[i] & 0xffff_ffff);
        if let Err(flow) = local_bytes(cx, addr, mask, B as u32 * u32::from(mo.vec)) {
            return flow;
        }
        let init = &mut cx.warp().local_init;
        for i in (0..LANES).filter(|i| mask >> i & 1 != 0) {
            for b in addr[i] as usize..addr[i] as usize + B * usize::from(mo.vec) {
                init[b / 4 * LANES + i] |= 1 << (b % 4);
            }
        }
        for k in 0..usize::from(mo.vec) {
            let v = stored::<B>(cx, mo, k);
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    let at = addr[i] as usize + k * B;
                    for w in 0..B.div_ceil(4) {
                        let p = cx.local.add((at / 4 + w) * LANES + i);
                        if B >= 4 {
                            *p = (v[i] >> (32 * w)) as u32;
                        } else {
                            let shift = 8 * (at % 4);
                            let keep = ((1u32 << (8 * B)) - 1) << shift;
                            *p = *p & !keep | ((v[i] as u32) << shift) & keep;
                        }
                    }
                }
            }
        }
    }
    Flow::Next
}

/// Spaces as the `SPACE` of [`Ld`] and [`St`].
pub(crate) mod space {
    pub const GENERIC: u8 = 0;
    pub const GLOBAL: u8 = 1;
    pub const SHARED: u8 = 2;
    pub const LOCAL: u8 = 3;
    pub const PARAM: u8 = 4;
}

/// Lanes whose generic address is in local memory; all of them for the local space.
#[inline(always)]
fn local_lanes(which: u8, addr: &[u64; LANES], mask: u32) -> u32 {
    match which {
        space::LOCAL => mask,
        space::GENERIC => {
            bits(
                #[inline(always)]
                |i| addr[i] >> 56 == LOCAL_WINDOW >> 56,
            ) & mask
        }
        _ => 0,
    }
}

/// `ld`: slot 1 the address, `x` the memory form, `imm` the space.
pub(crate) struct Ld<const B: usize>;
impl<const B: usize> Exec for Ld<B> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; the host pointers were found inside their spaces.
        unsafe {
            let mo = cx.prog().mem.get_unchecked(op.x as usize);
            let addr = addresses(cx, op.s[1], mo);
            let local = local_lanes(op.imm as u8, &addr, mask);
            if local != 0 {
                let flow = load_local::<B>(cx, mo, &addr, local);
                if flow == Flow::Stop || local == mask {
                    return flow;
                }
            }
            let mask = mask & !local;
            let mut hosts: Hosts = [0; LANES];
            if !hosts_of(cx, mo, op.imm as u8, &addr, mask, false, &mut hosts) {
                return Flow::Stop;
            }
            load_lanes::<B>(
                cx,
                mo,
                mask,
                #[inline(always)]
                |i| hosts[i] as *const u8,
            );
            if mo.strong && cx.prog().has_fences && op.imm as u8 != space::SHARED {
                let acquires = mo.acquire || cx.block().fenced;
                strong_sync(cx, &addr, mask, Some(acquires), None);
            }
        }
        Flow::Next
    }
}

/// `st`: slot 1 the address, `x` the memory form, `imm` the space.
pub(crate) struct St<const B: usize>;
impl<const B: usize> Exec for St<B> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; the host pointers were found inside their spaces.
        unsafe {
            let mo = cx.prog().mem.get_unchecked(op.x as usize);
            let addr = addresses(cx, op.s[1], mo);
            let local = local_lanes(op.imm as u8, &addr, mask);
            if local != 0 {
                let flow = store_local::<B>(cx, mo, &addr, local);
                if flow == Flow::Stop || local == mask {
                    return flow;
                }
            }
            let mask = mask & !local;
            // Strong stores may meet: one of them is the last.
            if cx.track_shared && !mo.strong {
                let v = stored::<B>(cx, mo, 0);
                let keep = if B >= 8 { u64::MAX } else { (1 << (8 * B)) - 1 };
                shared::write_conflict(cx, &addr, mask, B as u32 * u32::from(mo.vec), &v, keep);
            }
            let mut hosts: Hosts = [0; LANES];
            if !hosts_of(cx, mo, op.imm as u8, &addr, mask, true, &mut hosts) {
                return Flow::Stop;
            }
            store_lanes::<B>(
                cx,
                mo,
                mask,
                #[inline(always)]
                |i| hosts[i] as *mut u8,
            );
        }
        Flow::Next
    }
}

/// `isspacep`: slots p, a; `imm`: 0 global, 1 shared::cta, 2 shared::cluster, 3 local, 4 const, 5 param.
pub(crate) struct IsSpace;
impl Exec for IsSpace {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let a = U64::get(cx, op.s[1]);
            let own = (u32::from(cx.block().rank) + 1) * CLUSTER;
            let r = bits(|i| match op.imm {
                0 => a[i] >> 56 == 0,
                1 => a[i] >> 56 == 1 && ((a[i] as u32) < CLUSTER || a[i] as u32 & !(CLUSTER - 1) == own),
                2 => a[i] >> 56 == 1,
                3 => a[i] >> 56 == 2,
                4 => false,
                _ => a[i] >> 56 == 3,
            });
            cx.set_pred(op.s[0], r, mask);
        }
        Flow::Next
    }
}

/// `mapa`: slots d, a, b (block of the cluster); `imm`: bit 0: 64 bits generic, else 32-bit shared.
pub(crate) struct Mapa;
impl Exec for Mapa {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let rank = U32::get(cx, op.s[2]);
            let map = |a: u32, r: u32| a % CLUSTER + CLUSTER * r.wrapping_add(1);
            if op.imm & 1 != 0 {
                let a = U64::get(cx, op.s[1]);
                U64::put(
                    cx,
                    op.s[0],
                    lanes(|i| a[i] & !0xffff_ffff | u64::from(map(a[i] as u32, rank[i]))),
                    mask,
                );
            } else {
                let a = U32::get(cx, op.s[1]);
                U32::put(cx, op.s[0], lanes(|i| map(a[i], rank[i])), mask);
            }
        }
        Flow::Next
    }
}

/// `getctarank`: slots d, a; `imm` as [`Mapa`].
pub(crate) struct GetCtaRank;
impl Exec for GetCtaRank {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let own = u32::from(cx.block().rank);
            let a: [u32; LANES] = if op.imm & 1 != 0 {
                let a = U64::get(cx, op.s[1]);
                lanes(|i| a[i] as u32)
            } else {
                U32::get(cx, op.s[1])
            };
            U32::put(cx, op.s[0], lanes(|i| (a[i] / CLUSTER).checked_sub(1).unwrap_or(own)), mask);
        }
        Flow::Next
    }
}

/// A byte of a lane, wherever a generic address points; `None` outside everything.
fn generic_byte(cx: &mut Cx, lane: usize, addr: u64) -> Option<u8> {
    match addr >> 56 {
        1 => {
            let (rank, at) = shared_place(cx, addr);
            let (base, limit) = cx.peer_shared(rank)?;
            // SAFETY: the offset is inside the block's shared memory.
            (at < limit).then(|| unsafe { *base.add(at as usize) })
        }
        2 => {
            let at = addr & 0xffff_ffff;
            // SAFETY: the offset is inside the warp's local memory.
            (at < u64::from(cx.prog().local_bytes))
                .then(|| unsafe { (*cx.local.add(at as usize / 4 * LANES + lane) >> (8 * (at % 4))) as u8 })
        }
        3 => {
            let at = addr & 0xffff_ffff;
            // SAFETY: the offset is inside the parameter buffer.
            (at < u64::from(cx.prog().param_bytes)).then(|| unsafe { *cx.params.add(at as usize) })
        }
        _ => {
            let r = cx.worker().regions.iter().find(|r| addr >= r.start && addr < r.start + r.bytes)?;
            // SAFETY: the address is inside that allocation.
            Some(unsafe { *(addr.wrapping_add(r.delta) as *const u8) })
        }
    }
}
fn c_string(cx: &mut Cx, lane: usize, addr: u64) -> String {
    let mut out = Vec::new();
    while out.len() < 4096 {
        match generic_byte(cx, lane, addr + out.len() as u64) {
            None | Some(0) => break,
            Some(b) => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
fn cell(cx: &Cx, lane: usize, cell: (u32, u32)) -> u64 {
    let word = |w: u32| {
        if 4 * w + 4 > cx.prog().local_bytes.next_multiple_of(4) {
            return 0;
        }
        // SAFETY: the word is inside the warp's local memory.
        u64::from(unsafe { *cx.local.add(w as usize * LANES + lane) })
    };
    let at = cell.0 / 4;
    if cell.1 > 4 { word(at) | word(at + 1) << 32 } else { word(at) }
}

/// `vprintf(format, arguments)`: the text is kept in the order of the blocks.
pub(crate) fn printf(cx: &mut Cx, call: &Call, mask: u32) -> Flow {
    let [format, args] = call.args[..] else {
        return cx.fault(
            mask.trailing_zeros(),
            FaultKind::IllegalInstruction,
            "vprintf takes two arguments".into(),
            None,
        );
    };
    for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let (f, a) = (cell(cx, lane, format), cell(cx, lane, args));
        let f = c_string(cx, lane, f);
        let mut at = a;
        let mut next = |cx: &mut Cx, wide: bool| {
            let n = if wide { 8 } else { 4 };
            at = at.next_multiple_of(n);
            let v = (0..n)
                .fold(0u64, |v, i| v | u64::from(generic_byte(cx, lane, at + i).unwrap_or(0)) << (8 * i));
            at += n;
            v
        };
        let mut text = String::new();
        let mut count = 0;
        let mut chars = f.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut spec = crate::printf::Spec::default();
            let Some(kind) = spec.read(&mut chars, |wide| next(cx, wide)) else { break };
            if kind == '%' {
                text.push('%');
                continue;
            }
            count += 1;
            let wide = matches!(kind, 'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' | 's' | 'p') || spec.long;
            let v = next(cx, wide);
            let s = if kind == 's' { Some(c_string(cx, lane, v)) } else { None };
            spec.write(&mut text, kind, v, s.as_deref());
        }
        let index = cx.block().index;
        cx.worker().output.push((index, text));
        if let Some(&result) = call.results.first() {
            // SAFETY: the cell is inside the warp's local memory.
            unsafe { *cx.local.add(result.0 as usize / 4 * LANES + lane) = count };
            cx.warp().local_init[result.0 as usize / 4 * LANES + lane] = 0xf;
        }
    }
    Flow::Next
}

/// `__assertfail(message, file, line, function, char size)`.
pub(crate) fn assert_fail(cx: &mut Cx, call: &Call, mask: u32) -> Flow {
    let lane = mask.trailing_zeros() as usize;
    let string = |cx: &mut Cx, k: usize| match call.args.get(k) {
        Some(&c) => {
            let p = cell(cx, lane, c);
            c_string(cx, lane, p)
        }
        None => String::new(),
    };
    let (message, file, function) = (string(cx, 0), string(cx, 1), string(cx, 3));
    let line = call.args.get(2).map_or(0, |&c| cell(cx, lane, c));
    cx.fault(
        lane as u32,
        FaultKind::Assert,
        format!("{file}:{line}: {function}: assertion `{message}` failed"),
        None,
    )
}

/// A fence: `imm` bit 0: a scope above the block.
pub(crate) struct Fence;
impl Exec for Fence {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, _: u32) -> Flow {
        cx.block().fenced |= op.imm & 1 != 0;
        if op.imm & 1 != 0 {
            global::fence(cx);
        }
        Flow::Next
    }
}
