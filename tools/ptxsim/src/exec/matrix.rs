//! Matrix instructions of a warp: `mma`, `ldmatrix`, `stmatrix`, `movmatrix` (PTX ISA "Warp Level Matrix Multiply-Accumulate
//! Instructions").

use super::memory::{Hosts, addresses, shared_hosts};
use super::{Cx, Exec, Flow, LANES, Row, U32, View};
use crate::check::{SYNC, shared};
use crate::program::Op;
use crate::report::ReportKind;
use crate::tensor::mma::Accum;

/// `.aligned` instructions want the whole warp.
#[inline(always)]
pub(super) fn whole_warp(cx: &mut Cx, mask: u32) {
    if mask != u32::MAX && cx.check(SYNC) {
        let m = format!(
            "only lanes {mask:#010x} of the warp reach an instruction that all 32 must execute together"
        );
        cx.report(mask.trailing_zeros(), ReportKind::DivergentAligned, m, None, None);
    }
}

/// `mma`: `x` its form, `y` its slots in `extra`: d, a, b, c.
pub(crate) struct MmaOp;
impl Exec for MmaOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        let prog = cx.prog();
        let mma = &prog.mma[op.x as usize];
        let regs = mma.regs();
        let slots = &prog.extra[op.y as usize..];
        if mma.acc == Accum::F64 {
            // SAFETY: the caller's promise.
            return unsafe { mma_f64(cx, op, mask) };
        }
        // SAFETY: the decoder allocated all slots; nothing writes them while these references live.
        unsafe {
            let row = |k: usize| &*cx.slot(*slots.get_unchecked(k)).cast::<Row>();
            if (regs.d, regs.a, regs.b) == (4, 4, 2) {
                let mut d = [[0u32; LANES]; 4];
                mma.run(
                    &mut d,
                    &[row(4), row(5), row(6), row(7)],
                    &[row(8), row(9)],
                    &[row(10), row(11), row(12), row(13)],
                );
                for (i, r) in d.iter().enumerate() {
                    U32::put(cx, slots[i], *r, mask);
                }
                return Flow::Next;
            }
            let rows = |from: usize, n: usize| -> [&Row; 8] {
                std::array::from_fn(|i| row(from + if i < n { i } else { 0 }))
            };
            let (a, b, c) =
                (rows(regs.d, regs.a), rows(regs.d + regs.a, regs.b), rows(regs.d + regs.a + regs.b, regs.c));
            let mut d = [[0u32; LANES]; 8];
            mma.run(&mut d[..regs.d], &a[..regs.a], &b[..regs.b], &c[..regs.c]);
            for (i, r) in d[..regs.d].iter().enumerate() {
                U32::put(cx, slots[i], *r, mask);
            }
        }
        Flow::Next
    }
}

/// f64 registers hold both words of a lane side by side; the tensor functions want a row for each.
#[inline(never)]
unsafe fn mma_f64(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let prog = cx.prog();
    let mma = &prog.mma[op.x as usize];
    let regs = mma.regs();
    let slots = &prog.extra[op.y as usize..];
    let (nd, na, nb) = (regs.d / 2, regs.a / 2, regs.b / 2);
    // SAFETY: the caller's promise; each slot is a 64-bit register.
    unsafe {
        let split = |cx: &Cx, from: usize, n: usize| -> Vec<Row> {
            (0..n)
                .flat_map(|i| {
                    let v = super::U64::get(cx, slots[from + i]);
                    [v.map(|x| x as u32), v.map(|x| (x >> 32) as u32)]
                })
                .collect()
        };
        let (a, b, c) = (split(cx, nd, na), split(cx, nd + na, nb), split(cx, nd + na + nb, nd));
        let mut d = vec![[0u32; LANES]; regs.d];
        let refs = |v: &'_ [Row]| -> Vec<*const Row> { v.iter().map(|r| r as *const Row).collect() };
        let (a, b, c) = (refs(&a), refs(&b), refs(&c));
        let deref = |v: &[*const Row]| -> Vec<&'static Row> { v.iter().map(|&p| &*p).collect() };
        mma.run(&mut d, &deref(&a), &deref(&b), &deref(&c));
        for i in 0..nd {
            let v = super::lanes(|l| u64::from(d[2 * i][l]) | u64::from(d[2 * i + 1][l]) << 32);
            super::U64::put(cx, slots[i], v, mask);
        }
    }
    Flow::Next
}

/// The lanes that give the row addresses of `n` 8x8 matrices.
fn row_lanes(n: u32) -> u32 {
    if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 }
}

/// `ldmatrix.m8n8.b16`: slot 1 the address, `x` the memory form (its registers the results), `imm` matrices, bit 8: `.trans`.
///
/// Lane `4*r + j` gets elements `2*j, 2*j + 1` of row `r`, or with `.trans` of column `r`.
pub(crate) struct LdMatrix;
impl Exec for LdMatrix {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        let n = (op.imm & 7) as u32;
        let mo = &cx.prog().mem[op.x as usize];
        let rows = row_lanes(n) & mask;
        // SAFETY: the caller's promise; `shared_hosts` keeps the rows inside shared memory.
        unsafe {
            let addr = addresses(cx, op.s[1], mo);
            let mut hosts: Hosts = [0; LANES];
            if !shared_hosts(cx, &addr, rows, 16, shared::Touch::Read, &mut hosts) {
                return Flow::Stop;
            }
            if rows == u32::MAX {
                // Every row of four matrices: straight into registers.
                for k in 0..4 {
                    let m: [[u32; 4]; 8] = super::array(
                        #[inline(always)]
                        |r| (hosts[8 * k + r] as *const [u32; 4]).read_unaligned(),
                    );
                    let d = *cx.prog().extra.get_unchecked(mo.regs as usize + k);
                    let row: Row = if op.imm >> 8 & 1 != 0 {
                        transpose(&m)
                    } else {
                        std::mem::transmute::<[[u32; 4]; 8], Row>(m)
                    };
                    U32::put(cx, d, row, mask);
                }
                return Flow::Next;
            }
            let mut out = [[[0u32; 4]; 8]; 4];
            for l in 0..8 * n as usize {
                if rows >> l & 1 != 0 {
                    out[l / 8][l % 8] = (hosts[l] as *const [u32; 4]).read_unaligned();
                }
            }
            for k in 0..n as usize {
                let d = *cx.prog().extra.get_unchecked(mo.regs as usize + k);
                let row: Row = if op.imm >> 8 & 1 != 0 {
                    transpose(&out[k])
                } else {
                    std::mem::transmute::<[[u32; 4]; 8], Row>(out[k])
                };
                U32::put(cx, d, row, mask);
            }
        }
        Flow::Next
    }
}

/// An 8x8 matrix of 16-bit elements, transposed.
#[inline(always)]
fn transpose(m: &[[u32; 4]; 8]) -> Row {
    let at = |r: usize, c: usize| m[r][c / 2] >> (16 * (c % 2)) & 0xffff;
    super::lanes(|l| at(2 * (l % 4), l / 4) | at(2 * (l % 4) + 1, l / 4) << 16)
}

/// `stmatrix`: as [`LdMatrix`] the other way.
pub(crate) struct StMatrix;
impl Exec for StMatrix {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        let n = (op.imm & 7) as u32;
        let mo = &cx.prog().mem[op.x as usize];
        let rows = row_lanes(n) & mask;
        // SAFETY: the caller's promise; `shared_hosts` keeps the rows inside shared memory.
        unsafe {
            let addr = addresses(cx, op.s[1], mo);
            let mut data = [[[0u32; 4]; 8]; 4];
            for k in 0..n as usize {
                let row = U32::get(cx, *cx.prog().extra.get_unchecked(mo.regs as usize + k));
                let m = std::mem::transmute::<Row, [[u32; 4]; 8]>(row);
                data[k] = if op.imm >> 8 & 1 != 0 {
                    std::mem::transmute::<Row, [[u32; 4]; 8]>(transpose(&m))
                } else {
                    m
                };
            }
            let mut hosts: Hosts = [0; LANES];
            if !shared_hosts(cx, &addr, rows, 16, shared::Touch::Write, &mut hosts) {
                return Flow::Stop;
            }
            for l in 0..8 * n as usize {
                if rows >> l & 1 != 0 {
                    (hosts[l] as *mut [u32; 4]).write_unaligned(data[l / 8][l % 8]);
                }
            }
        }
        Flow::Next
    }
}

/// `movmatrix.m8n8.trans.b16`: slots d, a.
pub(crate) struct MovMatrix;
impl Exec for MovMatrix {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        // SAFETY: the caller's promise.
        unsafe {
            let m = std::mem::transmute::<Row, [[u32; 4]; 8]>(U32::get(cx, op.s[1]));
            U32::put(cx, op.s[0], transpose(&m), mask);
        }
        Flow::Next
    }
}

/// `wmma.mma`: `x` its form, `y` its slots in `extra`, `imm` bit 0: f64.
pub(crate) struct WmmaOp;
impl Exec for WmmaOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        let prog = cx.prog();
        let form = &prog.wmma[op.x as usize];
        let (nd, na, nb, nc) = form.regs();
        let double = op.imm & 1 != 0;
        // SAFETY: the caller's promise.
        unsafe {
            let mut at = op.y as usize;
            let mut take = |cx: &Cx, n: usize| {
                let rows = fragment_rows(cx, &prog.extra[at..], n, double);
                at += if double { n / 2 } else { n };
                rows
            };
            let mut d = take(cx, nd);
            let (a, b, c) = (take(cx, na), take(cx, nb), take(cx, nc));
            let (a, b, c): (Vec<&Row>, Vec<&Row>, Vec<&Row>) =
                (a.iter().collect(), b.iter().collect(), c.iter().collect());
            form.run(&mut d, &a, &b, &c);
            put_rows(cx, &prog.extra[op.y as usize..], &d, double, mask);
        }
        Flow::Next
    }
}

/// The 32-bit rows of a fragment; an f64 register is two of them.
unsafe fn fragment_rows(cx: &Cx, slots: &[u16], n: usize, double: bool) -> Vec<Row> {
    // SAFETY: the caller's promise.
    unsafe {
        if !double {
            return slots[..n].iter().map(|&s| U32::get(cx, s)).collect();
        }
        slots[..n / 2]
            .iter()
            .flat_map(|&s| {
                let v = super::U64::get(cx, s);
                [v.map(|x| x as u32), v.map(|x| (x >> 32) as u32)]
            })
            .collect()
    }
}
unsafe fn put_rows(cx: &mut Cx, slots: &[u16], rows: &[Row], double: bool, mask: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if double {
            for (k, pair) in rows.chunks_exact(2).enumerate() {
                let v = super::lanes(|l| u64::from(pair[0][l]) | u64::from(pair[1][l]) << 32);
                super::U64::put(cx, slots[k], v, mask);
            }
        } else {
            for (k, row) in rows.iter().enumerate() {
                U32::put(cx, slots[k], *row, mask);
            }
        }
    }
}

/// `wmma.load` and `wmma.store`: slot 1 the address, slot 2 the stride, `x` the memory form (its registers the fragment), `y` the
/// form, `imm` the space, bit 8: f64.
pub(crate) struct WmmaMoveOp;
impl Exec for WmmaMoveOp {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        whole_warp(cx, mask);
        let prog = cx.prog();
        let form = &prog.moves[op.y as usize];
        let mo = &prog.mem[op.x as usize];
        let double = op.imm >> 8 & 1 != 0;
        let slots = &prog.extra[mo.regs as usize..];
        // SAFETY: the caller's promise; host pointers were found inside their spaces.
        unsafe {
            let addr = addresses(cx, op.s[1], mo);
            let stride = U32::get(cx, op.s[2])[mask.trailing_zeros() as usize];
            let mut rows = fragment_rows(cx, slots, form.regs(), double);
            for access in form.accesses(stride.into()) {
                let at = super::lanes(|l| addr[l].wrapping_add(access.offsets[l]));
                let shape = crate::program::MemOp {
                    bytes: access.bytes as u8,
                    vec: 1,
                    ..crate::program::MemOp::default()
                };
                let mut hosts: Hosts = [0; LANES];
                if !super::memory::hosts_of(
                    cx,
                    &shape,
                    (op.imm & 0xff) as u8,
                    &at,
                    mask,
                    form.store,
                    &mut hosts,
                ) {
                    return Flow::Stop;
                }
                let bits = 8 * access.bytes as u32;
                let keep = if bits >= 32 { u32::MAX } else { (1 << bits) - 1 };
                for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
                    let p = hosts[l] as *mut u8;
                    if form.store {
                        let low = rows[access.reg][l] >> access.shift;
                        let high = if access.bytes == 8 { rows[access.reg + 1][l] } else { 0 };
                        let v = (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
                        std::ptr::copy_nonoverlapping(v.as_ptr(), p, access.bytes);
                    } else {
                        let mut v = [0u8; 8];
                        std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), access.bytes);
                        let v = u64::from_le_bytes(v);
                        let r = &mut rows[access.reg][l];
                        *r = *r & !(keep << access.shift) | (v as u32 & keep) << access.shift;
                        if access.bytes == 8 {
                            rows[access.reg + 1][l] = (v >> 32) as u32;
                        }
                    }
                }
            }
            if !form.store {
                form.repeat(&mut rows);
                put_rows(cx, slots, &rows, double, mask);
            }
        }
        Flow::Next
    }
}
