//! Moves, packing, selection and special registers (PTX ISA "Data Movement": `mov`, `selp`, `cvta`; "Special Registers").

use super::float::select;
use super::{Cx, Exec, Flow, LANES, U32, U64, View, lanes, lanewise};
use crate::program::Op;

lanewise! {
    Mov32: U32 = |a: U32| a;
    Mov64: U64 = |a: U64| a;
    /// 16-bit value: the upper half of the row is cleared.
    Mov16: U32 = |a: U32| a & 0xffff;
    Pack32: U64 = |a: U32, b: U32| u64::from(a) | u64::from(b) << 32;
    Pack16: U32 = |a: U32, b: U32| a & 0xffff | b << 16;
    Pack16x4: U64 = |a: U32, b: U32, c: U32, d: U32| u64::from(a & 0xffff | b << 16) | u64::from(c & 0xffff | d << 16) << 32;
    Pack8x4: U32 = |a: U32, b: U32, c: U32, d: U32| a & 0xff | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
    Pack8x2: U32 = |a: U32, b: U32| a & 0xff | (b & 0xff) << 8;
}

/// `mov.b64 {a, b}, d` and its kin: pieces of `imm` bits. Slots of the pieces are in `extra` (0x7fff for `_`), `y` of them;
/// slot 1 is the source, `imm` bits 8.. say whether it is wide.
pub(crate) struct Unpack;
impl Exec for Unpack {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let size = op.imm as u32 & 0xff;
            let a = if op.imm >> 8 & 1 != 0 {
                U64::get(cx, op.s[1])
            } else {
                let a = U32::get(cx, op.s[1]);
                lanes(|i| u64::from(a[i]))
            };
            let keep = if size == 32 { u32::MAX } else { (1 << size) - 1 };
            for k in 0..op.y {
                let d = *cx.prog().extra.get_unchecked((op.x + k) as usize);
                if d != SINK {
                    U32::put(cx, d, lanes(|i| (a[i] >> (size * k)) as u32 & keep), mask);
                }
            }
        }
        Flow::Next
    }
}
/// The slot that stands for `_`.
pub(crate) const SINK: u16 = 0x7fff;

/// `d = a + imm`, 64 bits: `cvta`.
pub(crate) struct Offset64;
impl Exec for Offset64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let a = U64::get(cx, op.s[1]);
            U64::put(cx, op.s[0], lanes(|i| a[i].wrapping_add(op.imm)), mask);
        }
        Flow::Next
    }
}

/// `selp`: slots d, a, b, p; `imm` bit 0: 64 bits, bit 1: `p` negated.
pub(crate) struct Selp32;
impl Exec for Selp32 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let p = cx.pred(op.s[3]) ^ if op.imm & 2 != 0 { u32::MAX } else { 0 };
            select(cx, op, p, false, mask);
        }
        Flow::Next
    }
}
/// As [`Selp32`] for 64 bits.
pub(crate) struct Selp64;
impl Exec for Selp64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let p = cx.pred(op.s[3]) ^ if op.imm & 2 != 0 { u32::MAX } else { 0 };
            select(cx, op, p, true, mask);
        }
        Flow::Next
    }
}

/// Predicate logic: slots d, a, b. `imm` bits 0-2: 0 mov, 1 not, 2 and, 3 or, 4 xor, 5 a constant (bit 8);
/// bits 4 and 5 negate a and b.
pub(crate) struct PredOp;
impl Exec for PredOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise.
        unsafe {
            let flip = |n: u64| if op.imm >> n & 1 != 0 { u32::MAX } else { 0 };
            let (a, b) = (cx.pred(op.s[1]) ^ flip(4), cx.pred(op.s[2]) ^ flip(5));
            let r = match op.imm & 7 {
                0 => a,
                1 => !a,
                2 => a & b,
                3 => a | b,
                4 => a ^ b,
                _ => flip(8),
            };
            cx.set_pred(op.s[0], r, mask);
        }
        Flow::Next
    }
}

/// Special registers that are one value for the warp, numbered as `imm` of [`Special`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Sreg {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    Clock,
    ClockHi,
    Clock64,
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    ClusteridX,
    ClusteridY,
    ClusteridZ,
    NclusteridX,
    NclusteridY,
    NclusteridZ,
    ClusterCtaidX,
    ClusterCtaidY,
    ClusterCtaidZ,
    ClusterNctaidX,
    ClusterNctaidY,
    ClusterNctaidZ,
    ClusterCtarank,
    ClusterNctarank,
    DynamicSmem,
    TotalSmem,
    /// Upper and lower half of the address of a cooperative launch's workspace.
    Env1,
    Env2,
    /// Registers of the driver that hold nothing here.
    Zero,
}
impl Sreg {
    pub const COUNT: usize = Sreg::Zero as usize + 1;
    /// The register of that name, and whether it has 64 bits.
    pub fn of(name: &str) -> Option<(Sreg, bool)> {
        use Sreg::*;
        let narrow = match name {
            "%tid.x" => TidX,
            "%tid.y" => TidY,
            "%tid.z" => TidZ,
            "%ntid.x" => NtidX,
            "%ntid.y" => NtidY,
            "%ntid.z" => NtidZ,
            "%ctaid.x" => CtaidX,
            "%ctaid.y" => CtaidY,
            "%ctaid.z" => CtaidZ,
            "%nctaid.x" => NctaidX,
            "%nctaid.y" => NctaidY,
            "%nctaid.z" => NctaidZ,
            "%warpid" => WarpId,
            "%nwarpid" => NwarpId,
            "%smid" => SmId,
            "%nsmid" => NsmId,
            "%clock" => Clock,
            "%clock_hi" => ClockHi,
            "%globaltimer_lo" => GlobalTimerLo,
            "%globaltimer_hi" => GlobalTimerHi,
            "%clusterid.x" => ClusteridX,
            "%clusterid.y" => ClusteridY,
            "%clusterid.z" => ClusteridZ,
            "%nclusterid.x" => NclusteridX,
            "%nclusterid.y" => NclusteridY,
            "%nclusterid.z" => NclusteridZ,
            "%cluster_ctaid.x" => ClusterCtaidX,
            "%cluster_ctaid.y" => ClusterCtaidY,
            "%cluster_ctaid.z" => ClusterCtaidZ,
            "%cluster_nctaid.x" => ClusterNctaidX,
            "%cluster_nctaid.y" => ClusterNctaidY,
            "%cluster_nctaid.z" => ClusterNctaidZ,
            "%cluster_ctarank" => ClusterCtarank,
            "%cluster_nctarank" => ClusterNctarank,
            "%dynamic_smem_size" => DynamicSmem,
            "%total_smem_size" => TotalSmem,
            "%envreg1" => Env1,
            "%envreg2" => Env2,
            _ if name.strip_prefix("%envreg").is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n < 32)) => Zero,
            "%clock64" => return Some((Clock64, true)),
            "%globaltimer" => return Some((GlobalTimer, true)),
            "%gridid" => return Some((GridId, true)),
            _ => return None,
        };
        Some((narrow, false))
    }
}

/// Reads special register `imm`; `y`: the destination has 64 bits.
pub(crate) struct Special;
impl Exec for Special {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the caller's promise; the warp and block pointers are live.
        unsafe {
            let k = op.imm as usize;
            if k < 3 {
                let v = cx.warp().tid[k];
                if op.y != 0 {
                    U64::put(cx, op.s[0], lanes(|i| u64::from(v[i])), mask);
                } else {
                    U32::put(cx, op.s[0], v, mask);
                }
                return Flow::Next;
            }
            let v = if k == Sreg::WarpId as usize {
                u64::from(cx.warp().index)
            } else if (Sreg::Clock as usize..=Sreg::GlobalTimerHi as usize).contains(&k) {
                let b = cx.block();
                b.clock += 32;
                let high = k == Sreg::ClockHi as usize || k == Sreg::GlobalTimerHi as usize;
                if high { b.clock >> 32 } else { b.clock }
            } else {
                cx.block().sregs[k]
            };
            if op.y != 0 {
                U64::put(cx, op.s[0], [v; LANES], mask);
            } else {
                U32::put(cx, op.s[0], [v as u32; LANES], mask);
            }
        }
        Flow::Next
    }
}

/// `ld.param` of a kernel: the same bytes for each lane. `imm`: offset; `x`: memory form.
pub(crate) struct LdKernelParam;
impl Exec for LdKernelParam {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the decoder checked that the bytes are inside the parameter buffer, which the launch made long enough.
        unsafe {
            let mo = cx.prog().mem.get_unchecked(op.x as usize);
            for k in 0..usize::from(mo.vec) {
                let p = cx.params.add(op.imm as usize + k * usize::from(mo.bytes));
                let mut v = 0u64;
                std::ptr::copy_nonoverlapping(p, (&raw mut v).cast(), usize::from(mo.bytes));
                if mo.signed {
                    let s = 64 - 8 * u32::from(mo.bytes);
                    v = ((v << s) as i64 >> s) as u64;
                }
                let d = *cx.prog().extra.get_unchecked(mo.regs as usize + k);
                if d == SINK {
                } else if op.y != 0 {
                    U64::put(cx, d, [v; LANES], mask);
                } else {
                    U32::put(cx, d, [v as u32; LANES], mask);
                }
            }
        }
        Flow::Next
    }
}

/// Nothing: `.pragma`-like instructions, prefetches, hints.
pub(crate) struct Nop;
impl Exec for Nop {
    #[inline(always)]
    unsafe fn run(_: &mut Cx, _: &Op, _: u32) -> Flow {
        Flow::Next
    }
}
