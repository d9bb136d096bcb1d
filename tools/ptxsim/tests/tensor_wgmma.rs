//! `wgmma.mma_async`: matrices of distinct values, laid out in shared memory by the canonical layouts as CUTLASS
//! states them, against a plain triple loop.

// Loops run over lanes, as the ISA's formulas do.
#![allow(clippy::needless_range_loop)]

use ptxsim::tensor::formats::{Format, Narrow, Round};
use ptxsim::tensor::wgmma::{Descriptor, Scale, Swizzle, Wgmma};
use ptxsim::tensor::{Elem, Reg};
use std::convert::Infallible;

const SMEM: usize = 228 << 10;

/// A whole number of the type, from -9 to 9 (0 to 9 if unsigned): sums are exact everywhere but in f16.
fn small(elem: Elem, i: usize) -> i64 {
    let x = (i * 7919 % 19) as i64;
    if elem == Elem::U8 { x % 10 } else { x - 9 }
}

fn encode(elem: Elem, x: i64) -> u32 {
    let rn = Narrow::new(Round::NearestEven);
    match elem {
        Elem::F16 => Format::F16.from_int(x.into(), rn),
        Elem::Bf16 => Format::Bf16.from_int(x.into(), rn),
        Elem::Tf32 => (x as f32).to_bits(),
        Elem::E4m3 => Format::E4m3.from_int(x.into(), rn),
        Elem::E5m2 => Format::E5m2.from_int(x.into(), rn), // -9..9 is not exact; see `value`
        _ => x as u32 & 0xff,
    }
}

fn value(elem: Elem, x: i64) -> i64 {
    match elem {
        Elem::E5m2 => Format::E5m2.to_f32(encode(elem, x)) as i64,
        _ => x,
    }
}

/// How an operand lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    swizzle: Swizzle,
    transposed: bool,
    start: u32,
    leading: u32,
    stride: u32,
}

impl Layout {
    /// A tile of `rows` (M or N), K 32 bytes, at `start`; offsets with gaps, so that each of them matters.
    fn new(swizzle: Swizzle, transposed: bool, rows: u32, start: u32) -> Self {
        let span = swizzle.span();
        let (leading, stride) = match (swizzle, transposed) {
            (Swizzle::None, false) => (rows / 8 * 144 + 16, 144), // q to q; 8 rows to 8 rows
            (_, false) => (16, 8 * span * 2),
            (Swizzle::None, true) => (rows / 8 * 128 + 256, 128), // 8 k to 8 k; 8 rows to 8 rows
            (_, true) => (8 * span * 2, 8 * span),                // span of rows to span of rows; 8 k to 8 k
        };
        Self { swizzle, transposed, start, leading, stride }
    }

    fn descriptor(&self) -> u64 {
        let code = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3u64,
        };
        let field = |bytes: u32| u64::from(bytes >> 4 & 0x3fff);
        field(self.start) | field(self.leading) << 16 | field(self.stride) << 32 | code << 62
    }

    /// Byte address of element (row, k) of `size` bytes: CUTLASS' canonical layouts,
    ///
    /// K-major, units of 16 bytes: `Swizzle<B,4,3> o ((8,n),2):((W,SBO),(1 or LBO))`;
    /// MN-major: none `((1,n),(8,k)):((X,SBO),(1,LBO))`, swizzled `((W,n),(8,k)):((1,LBO),(W,SBO))`.
    fn address(&self, row: u32, k: u32, size: u32) -> u32 {
        let w = self.swizzle.span() / 16;
        let per = 16 / size;
        let (unit, within) = if self.transposed {
            let (u, within) = (row / per, row % per);
            let offset = match self.swizzle {
                Swizzle::None => u * self.stride + k % 8 * 16 + k / 8 * self.leading,
                _ => u % w * 16 + u / w * self.leading + k % 8 * w * 16 + k / 8 * self.stride,
            };
            (offset, within)
        } else {
            let (q, within) = (k / per, k % per);
            let next = if w == 1 { self.leading } else { 16 };
            (row % 8 * w * 16 + row / 8 * self.stride + q * next, within)
        };
        let linear = self.start + unit;
        // Swizzle<B, 4, 3>: B bits from bit 7 onto B bits from bit 4.
        let b = w.ilog2();
        let mask = (1 << b) - 1;
        (linear ^ ((linear >> 7 & mask) << 4)) + within * size
    }
}

fn write(smem: &mut [u8], at: u32, size: u32, code: u32) {
    smem[at as usize..][..size as usize].copy_from_slice(&code.to_le_bytes()[..size as usize]);
}

fn reader(smem: &[u8]) -> impl FnMut(u32, &mut [u8; 16]) -> Result<(), Infallible> {
    |at, row| {
        assert_eq!(at % 16, 0);
        row.copy_from_slice(&smem[at as usize..][..16]);
        Ok(())
    }
}

struct Case {
    opcode: String,
    a: Layout,
    b: Layout,
    scale: Scale,
}

fn check(case: &Case) {
    let form = Wgmma::parse(&case.opcode).unwrap();
    let size = form.a.bits() as u32 / 8;
    let (n, k) = (form.n, form.k);
    let a: Vec<i64> = (0..64 * k).map(|i| small(form.a, i)).collect();
    let b: Vec<i64> = (0..k * n).map(|i| small(form.b, i * 3 + 1)).collect();
    let mut smem = vec![0xee; SMEM];
    for row in 0..64 {
        for p in 0..k {
            write(
                &mut smem,
                case.a.address(row as u32, p as u32, size),
                size,
                encode(form.a, a[row * k + p]),
            );
        }
    }
    for p in 0..k {
        for column in 0..n {
            write(
                &mut smem,
                case.b.address(column as u32, p as u32, size),
                size,
                encode(form.b, b[p * n + column]),
            );
        }
    }
    let fb = form.load_b(case.b.descriptor(), case.b.transposed, reader(&smem)).unwrap();
    let packed = form.regs_d() / (n / 8) == 2;
    for warp in 0..4 {
        let fa = form.load_a(case.a.descriptor(), case.a.transposed, warp, reader(&smem)).unwrap();
        // PTX ISA, wgmma .m64nNk16, A in registers: row = groupID (+ 8 for odd registers) of the warp's 16,
        // column = threadID_in_group * E + e (+ 4*E for registers 2 and 3).
        let e = form.a.per_reg();
        for (i, reg) in fa.iter().enumerate() {
            for lane in 0..32 {
                for at in 0..e {
                    let row = 16 * warp as usize + lane / 4 + 8 * (i % 2);
                    let p = (lane % 4) * e + at + 4 * e * (i / 2);
                    let got = reg[lane] >> (at * form.a.bits()) & (u32::MAX >> (32 - form.a.bits()));
                    assert_eq!(got, encode(form.a, a[row * k + p]), "A[{row}][{p}] {}", case.opcode);
                }
            }
        }
        let start = |row: usize, column: usize| (row * 3 + column) as i64 % 50 - 20;
        // D: d[4j + i], row = groupID + 8 * (i / 2), column = 8j + 2 * threadID_in_group + i % 2.
        let mut d: Vec<Reg> = vec![[0; 32]; form.regs_d()];
        let rn = Narrow::new(Round::NearestEven);
        let code = |x: i64| match form.acc {
            ptxsim::tensor::mma::Accum::F32 => (x as f32).to_bits(),
            ptxsim::tensor::mma::Accum::F16 => Format::F16.from_int(x.into(), rn),
            _ => x as u32,
        };
        let place = |lane: usize, j: usize, i: usize| {
            (16 * warp as usize + lane / 4 + 8 * (i / 2), 8 * j + 2 * (lane % 4) + i % 2)
        };
        for lane in 0..32 {
            for j in 0..n / 8 {
                for i in 0..4 {
                    let (row, column) = place(lane, j, i);
                    let x = code(start(row, column));
                    match packed {
                        true => d[2 * j + i / 2][lane] |= x << (16 * (i % 2)),
                        false => d[4 * j + i][lane] = x,
                    }
                }
            }
        }
        form.run(&mut d, fa.each_ref(), &fb, case.scale);
        let sign = if case.scale.negate_a != case.scale.negate_b { -1 } else { 1 };
        for lane in 0..32 {
            for j in 0..n / 8 {
                for i in 0..4 {
                    let (row, column) = place(lane, j, i);
                    let sum: i64 = (0..k)
                        .map(|p| value(form.a, a[row * k + p]) * value(form.b, b[p * n + column]))
                        .sum();
                    let c = if case.scale.accumulate { start(row, column) } else { 0 };
                    let got = match packed {
                        true => d[2 * j + i / 2][lane] >> (16 * (i % 2)) & 0xffff,
                        false => d[4 * j + i][lane],
                    };
                    assert_eq!(
                        got,
                        code(c + sign * sum),
                        "D[{row}][{column}] {} {:?} {:?}",
                        case.opcode,
                        case.a,
                        case.b
                    );
                }
            }
        }
    }
}

const ADD: Scale = Scale { accumulate: true, negate_a: false, negate_b: false };
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

#[test]
fn every_layout_of_16_bit_types_matches_a_triple_loop() {
    for (a, b) in SWIZZLES.iter().flat_map(|&a| SWIZZLES.map(|b| (a, b))) {
        for trans in 0..4 {
            let opcode = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16".to_string();
            let (a, b) =
                (Layout::new(a, trans & 1 == 1, 64, 1024), Layout::new(b, trans & 2 == 2, 128, 0x10000));
            check(&Case { opcode, a, b, scale: ADD });
        }
    }
}

#[test]
fn a_step_along_k_inside_a_swizzled_tile_moves_the_start_address() {
    // Kernels step through a 64-wide bf16 tile by adding 32 bytes to the descriptor's start.
    for step in 1..4 {
        let mut a = Layout::new(Swizzle::B128, false, 64, 2048 + 32 * step);
        a.stride = 1024;
        let mut b = Layout::new(Swizzle::B128, false, 256, 0x10000 + 32 * step);
        b.stride = 1024;
        let opcode = "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16".to_string();
        check(&Case { opcode, a, b, scale: ADD });
    }
}

#[test]
fn every_type_matches_a_triple_loop() {
    for (types, k) in [
        ("f32.f16.f16", 16),
        ("f16.f16.f16", 16),
        ("f32.tf32.tf32", 8),
        ("f32.e4m3.e4m3", 32),
        ("f32.e4m3.e5m2", 32),
        ("f32.e5m2.e4m3", 32),
        ("f16.e5m2.e5m2", 32),
        ("s32.s8.s8", 32),
        ("s32.s8.u8", 32),
        ("s32.u8.s8", 32),
        ("s32.u8.u8", 32),
    ] {
        for n in [8, 24, 96, 256] {
            for swizzle in [Swizzle::None, Swizzle::B64] {
                let opcode = format!("wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types}");
                let (a, b) =
                    (Layout::new(swizzle, false, 64, 0x400), Layout::new(swizzle, false, n, 0x10000));
                check(&Case { opcode, a, b, scale: ADD });
            }
        }
    }
}

#[test]
fn scales_negate_and_drop() {
    for bits in 0..8 {
        let scale = Scale { accumulate: bits & 1 == 1, negate_a: bits & 2 == 2, negate_b: bits & 4 == 4 };
        for types in ["f32.bf16.bf16", "f16.f16.f16"] {
            let opcode = format!("wgmma.mma_async.sync.aligned.m64n16k16.{types}");
            let (a, b) =
                (Layout::new(Swizzle::B128, false, 64, 0), Layout::new(Swizzle::B128, true, 16, 0x8000));
            check(&Case { opcode, a, b, scale });
        }
    }
}

#[test]
fn a_base_offset_shifts_the_pattern() {
    // A 128-byte swizzle whose pattern begins 3 rows past a multiple of 1024: (0x1180 >> 7) & 7 = 3.
    let descriptor = 0x1180 >> 4 | (1024u64 >> 4) << 32 | 3 << 49 | 1 << 62;
    let form = Wgmma::parse("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16").unwrap();
    assert_eq!(Descriptor::decode(descriptor).base_offset, 3);
    let mut seen = Vec::new();
    let read = |at: u32, _: &mut [u8; 16]| -> Result<(), Infallible> {
        seen.push(at);
        Ok(())
    };
    form.load_b(descriptor, false, read).unwrap();
    let want: Vec<u32> = (0..2).flat_map(|q| (0..8).map(move |r| 0x1180 + 128 * r + 16 * (q ^ r))).collect();
    assert_eq!(seen, want);
}

#[test]
fn forms_that_do_not_exist_are_named() {
    for op in [
        "wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n264k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n0k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8",
        "wgmma.mma_async.sync.aligned.m64n64k16.f16.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16.satfinite",
        "wgmma.mma_async.sp.sync.aligned.m64n64k32.f32.bf16.bf16",
        "wgmma.fence.sync.aligned",
    ] {
        assert!(Wgmma::parse(op).unwrap_err().contains(op));
    }
}
