//! `atom` and `red` (PTX ISA "Parallel Synchronization and Communication Instructions").
//!
//! Lanes go one after the other, lowest first. Global memory is shared between worker threads, so its operations are the host's
//! atomics; sums of floats and packed values are compare-and-swap loops.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::memory::{LOCAL_WINDOW, SHARED_WINDOW, addresses, global_hosts, shared_hosts, space, strong_sync};
use super::{Cx, Exec, Flow, LANES, U32, U64, View, bits, lanes};
use crate::check::{global, shared};
use crate::program::Op;
use crate::report::FaultKind;
use crate::tensor::formats as num;

/// Operations, as `imm` of [`Atom`] holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AtomOp {
    Add,
    AddF32,
    AddF64,
    AddF16,
    AddBf16,
    AddF16x2,
    AddBf16x2,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    MinU,
    MaxU,
    MinS,
    MaxS,
    MinF16x2,
    MaxF16x2,
    MinBf16x2,
    MaxBf16x2,
    /// [`AtomOp::AddF32`] on global memory.
    AddF32Ftz,
}
const OPS: [AtomOp; 22] = [
    AtomOp::Add,
    AtomOp::AddF32,
    AtomOp::AddF64,
    AtomOp::AddF16,
    AtomOp::AddBf16,
    AtomOp::AddF16x2,
    AtomOp::AddBf16x2,
    AtomOp::And,
    AtomOp::Or,
    AtomOp::Xor,
    AtomOp::Exch,
    AtomOp::Cas,
    AtomOp::Inc,
    AtomOp::Dec,
    AtomOp::MinU,
    AtomOp::MaxU,
    AtomOp::MinS,
    AtomOp::MaxS,
    AtomOp::MinF16x2,
    AtomOp::MaxF16x2,
    AtomOp::MinBf16x2,
    AtomOp::MaxBf16x2,
];

/// The new value of a cell of `bytes` bytes that holds `old`.
fn apply(op: AtomOp, old: u64, b: u64, c: u64, bytes: u8) -> u64 {
    let (o, x) = (old as u32, b as u32);
    let pair = |f: &dyn Fn(u16, u16) -> u16| {
        u64::from(f(o as u16, x as u16)) | u64::from(f((o >> 16) as u16, (x >> 16) as u16)) << 16
    };
    let h = |a: u16, b: u16| num::f32_to_f16(num::f16_to_f32(a) + num::f16_to_f32(b));
    let bf = |a: u16, b: u16| num::f32_to_bf16(num::bf16_to_f32(a) + num::bf16_to_f32(b));
    let minh = |max: bool| {
        move |a: u16, b: u16| {
            num::f32_to_f16(super::float::min::<false, false>(num::f16_to_f32(a), num::f16_to_f32(b), max))
        }
    };
    let minb = |max: bool| {
        move |a: u16, b: u16| {
            num::f32_to_bf16(super::float::min::<false, false>(num::bf16_to_f32(a), num::bf16_to_f32(b), max))
        }
    };
    let signed = |v: u64| if bytes == 8 { v as i64 } else { i64::from(v as u32 as i32) };
    let r = match op {
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::AddF32 => u64::from(num::canonical(f32::from_bits(o) + f32::from_bits(x)).to_bits()),
        AtomOp::AddF32Ftz => {
            let f = |v: u32| super::float::ftz::<true>(f32::from_bits(v));
            u64::from(super::float::ftz::<true>(num::canonical(f(o) + f(x))).to_bits())
        }
        AtomOp::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomOp::AddF16 => u64::from(h(o as u16, x as u16)),
        AtomOp::AddBf16 => u64::from(bf(o as u16, x as u16)),
        AtomOp::AddF16x2 => pair(&h),
        AtomOp::AddBf16x2 => pair(&bf),
        AtomOp::MinF16x2 => pair(&minh(false)),
        AtomOp::MaxF16x2 => pair(&minh(true)),
        AtomOp::MinBf16x2 => pair(&minb(false)),
        AtomOp::MaxBf16x2 => pair(&minb(true)),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if o >= x {
                0
            } else {
                u64::from(o + 1)
            }
        }
        AtomOp::Dec => {
            if o == 0 || o > x {
                u64::from(x)
            } else {
                u64::from(o - 1)
            }
        }
        AtomOp::MinU => old.min(b),
        AtomOp::MaxU => old.max(b),
        AtomOp::MinS => signed(old).min(signed(b)) as u64,
        AtomOp::MaxS => signed(old).max(signed(b)) as u64,
    };
    match bytes {
        2 => r & 0xffff,
        4 => r & 0xffff_ffff,
        _ => r,
    }
}

/// One lane's operation on a cell; answers what it held.
///
/// # Safety
/// `p` must point to `bytes` readable and writable bytes at a multiple of `bytes`.
unsafe fn update(p: *mut u8, op: AtomOp, b: u64, c: u64, bytes: u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            2 => u64::from(
                AtomicU16::from_ptr(p.cast())
                    .fetch_update(SeqCst, SeqCst, |o| Some(apply(op, o.into(), b, c, 2) as u16))
                    .unwrap_or(0),
            ),
            4 => {
                let cell = AtomicU32::from_ptr(p.cast());
                let x = b as u32;
                u64::from(match op {
                    AtomOp::Add => cell.fetch_add(x, SeqCst),
                    AtomOp::And => cell.fetch_and(x, SeqCst),
                    AtomOp::Or => cell.fetch_or(x, SeqCst),
                    AtomOp::Exch => cell.swap(x, SeqCst),
                    AtomOp::Cas => cell.compare_exchange(x, c as u32, SeqCst, SeqCst).unwrap_or_else(|o| o),
                    _ => cell
                        .fetch_update(SeqCst, SeqCst, |o| Some(apply(op, o.into(), b, c, 4) as u32))
                        .unwrap_or(0),
                })
            }
            _ => {
                let cell = AtomicU64::from_ptr(p.cast());
                match op {
                    AtomOp::Add => cell.fetch_add(b, SeqCst),
                    AtomOp::Exch => cell.swap(b, SeqCst),
                    AtomOp::Cas => cell.compare_exchange(b, c, SeqCst, SeqCst).unwrap_or_else(|o| o),
                    _ => cell.fetch_update(SeqCst, SeqCst, |o| Some(apply(op, o, b, c, 8))).unwrap_or(0),
                }
            }
        }
    }
}

/// `atom` and `red`: slots d (sink for `red`), address, b, c; `imm` bits 0-7 operation, 8-15 space; `x` the memory form. A
/// vector form (`vec` above 1) takes its b and d slots from `extra`: b first.
pub(crate) struct Atom;
impl Exec for Atom {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { atom(cx, op, mask) }
    }
}

unsafe fn atom(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the caller's promise; each access is checked to lie inside its space before it is made.
    unsafe {
        let mo = *cx.prog().mem.get_unchecked(op.x as usize);
        let kind = OPS[(op.imm & 0xff) as usize % OPS.len()];
        let addr = addresses(cx, op.s[1], &mo);
        let size = u32::from(mo.bytes) * u32::from(mo.vec);
        let value = |cx: &Cx, s: u16| -> [u64; LANES] {
            if mo.bytes == 8 {
                U64::get(cx, s)
            } else {
                let v = U32::get(cx, s);
                let keep = if mo.bytes == 2 { 0xffff } else { u32::MAX };
                lanes(|i| u64::from(v[i] & keep))
            }
        };
        let vec = usize::from(mo.vec);
        let extra = &cx.prog().extra[mo.regs as usize..];
        let sources: Vec<[u64; LANES]> =
            if vec == 1 { vec![value(cx, op.s[2])] } else { (0..vec).map(|k| value(cx, extra[k])).collect() };
        let c = if kind == AtomOp::Cas { value(cx, op.s[3]) } else { [0; LANES] };
        let mut old = vec![[0u64; LANES]; vec];
        cx.worker().polled = true;
        cx.worker().atomics += u64::from(mask.count_ones());
        let spaces: [(u8, u64, u32); 2] = match (op.imm >> 8) as u8 {
            space::GLOBAL => [(space::GLOBAL, 0, mask), (0, 0, 0)],
            space::SHARED => [(space::SHARED, 0, mask), (0, 0, 0)],
            _ => {
                let s = bits(|i| addr[i] >> 56 == SHARED_WINDOW >> 56) & mask;
                let l = bits(|i| addr[i] >> 56 == LOCAL_WINDOW >> 56) & mask;
                if l != 0 {
                    return cx.fault(
                        l.trailing_zeros(),
                        FaultKind::InvalidAddressSpace,
                        "atomic operation on local memory".into(),
                        None,
                    );
                }
                [(space::GLOBAL, 0, mask & !s), (space::SHARED, SHARED_WINDOW, s)]
            }
        };
        for (sp, window, lanes_in) in spaces {
            if lanes_in == 0 {
                continue;
            }
            let a: [u64; LANES] = lanes(|i| addr[i].wrapping_sub(window));
            let mut hosts = [0u64; LANES];
            let found = if sp == space::GLOBAL {
                if cx.prog().has_fences {
                    // An update that releases nothing leaves what was released there.
                    let releases = (mo.release || cx.block().fenced).then_some(true);
                    strong_sync(cx, &a, lanes_in, None, releases);
                }
                // An atomic reads what is there: bytes that nobody wrote are reported as for a load.
                uninit_global(cx, &a, lanes_in, size);
                global_hosts(cx, &a, lanes_in, size, global::Touch::Strong { writes: true }, &mut hosts)
            } else {
                if cx.prog().has_fences && cx.track_shared {
                    sync_shared(cx, true, true);
                }
                shared_hosts(cx, &a, lanes_in, size, shared::Touch::Atomic, &mut hosts)
            };
            if !found {
                return Flow::Stop;
            }
            // Sums of f32 lose their subnormals in global memory, not in shared memory (PTX ISA "atom").
            let kind = if sp == space::GLOBAL && kind == AtomOp::AddF32 { AtomOp::AddF32Ftz } else { kind };
            for i in 0..LANES {
                if lanes_in >> i & 1 != 0 {
                    for k in 0..vec {
                        let p = (hosts[i] as *mut u8).add(k * usize::from(mo.bytes));
                        old[k][i] = update(p, kind, sources[k][i], c[i], mo.bytes);
                    }
                }
            }
            if sp == space::GLOBAL && cx.prog().has_fences {
                let acquires = mo.acquire || cx.block().fenced;
                strong_sync(cx, &a, lanes_in, Some(acquires), None);
            }
        }
        for (k, old) in old.iter().enumerate() {
            let d = if vec == 1 { op.s[0] } else { extra[vec + k] };
            if d == super::moves::SINK {
                continue;
            }
            if mo.bytes == 8 {
                U64::put(cx, d, *old, mask);
            } else {
                U32::put(cx, d, lanes(|i| old[i] as u32), mask);
            }
        }
    }
    Flow::Next
}

fn uninit_global(cx: &mut Cx, addr: &[u64; LANES], mask: u32, size: u32) {
    if !cx.track_global || !cx.check(crate::check::UNINIT) {
        return;
    }
    let mut m = mask;
    while m != 0 {
        let l = m.trailing_zeros();
        m &= m - 1;
        let a = addr[l as usize];
        let w = cx.worker();
        let Some(r) = w.regions.iter().find(|r| a >= r.start && a < r.start + r.bytes) else { continue };
        // SAFETY: the launch holds an Arc of every allocation in its table of regions.
        if let Some(bad) = unsafe { (*r.alloc).unwritten(a - r.start, u64::from(size)) } {
            let at = r.start + bad;
            cx.report(
                l,
                crate::ReportKind::UninitGlobal,
                format!("updates global byte {at:#x}, which nobody wrote"),
                Some(at),
                None,
            );
            return;
        }
    }
}

/// Warps that use fences order themselves by the atomics and strong accesses of their block.
pub(crate) fn sync_shared(cx: &mut Cx, acquires: bool, releases: bool) {
    let w = cx.warp().index as usize;
    let b = cx.block();
    let mut clock = std::mem::take(&mut b.atomic_clock);
    if acquires {
        b.shadow.acquire(w, &clock.0);
    }
    if releases {
        b.shadow.release(w, &mut clock.0);
    }
    b.atomic_clock = clock;
}
