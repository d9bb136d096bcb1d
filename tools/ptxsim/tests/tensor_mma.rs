//! `mma.sync`, every form, against a plain triple loop over matrices.
//!
//! The fragment layouts here are the formulas that the PTX ISA gives element by element for each shape, not
//! the one rule of the implementation; the matrices hold distinct values wherever the type has enough.

// Loops run over lanes, as the ISA's formulas do.
#![allow(clippy::needless_range_loop)]

use ptxsim::tensor::formats::{Format, Narrow, Round};
use ptxsim::tensor::mma::Mma;
use ptxsim::tensor::{Elem, Reg};

/// xorshift32.
struct Rng(u32);

impl Rng {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

/// Bits of an element and its value.
fn bits_of(elem: Elem) -> u32 {
    (32 / elem.per_reg()) as u32
}

fn value(elem: Elem, bits: u32) -> f64 {
    match elem {
        Elem::F16 => f64::from(Format::F16.to_f32(bits)),
        Elem::Bf16 => f64::from(Format::Bf16.to_f32(bits)),
        Elem::Tf32 => f64::from(Format::Tf32.to_f32(bits)),
        Elem::E4m3 => f64::from(Format::E4m3.to_f32(bits)),
        Elem::E5m2 => f64::from(Format::E5m2.to_f32(bits)),
        Elem::S8 => f64::from(bits as u8 as i8),
        Elem::U8 => f64::from(bits as u8),
        Elem::S4 => f64::from((bits as i32) << 28 >> 28),
        Elem::U4 => f64::from(bits & 15),
    }
}

/// A matrix of random finite elements of moderate size.
fn matrix(rng: &mut Rng, elem: Elem, len: usize) -> Vec<u32> {
    (0..len)
        .map(|_| {
            let x = rng.next();
            let small = ((x % 4096) as f32 - 2047.5) / 512.0; // 4096 distinct values
            match elem {
                Elem::F16 => Format::F16.from_f32(small, Narrow::new(Round::NearestEven)),
                Elem::Bf16 => Format::Bf16.from_f32(small, Narrow::new(Round::NearestEven)),
                Elem::Tf32 => small.to_bits() | x >> 19, // low bits set: they must not count
                Elem::E4m3 | Elem::E5m2 => loop {
                    let bits = rng.next() & 0xbf; // below 2: no NaN, no overflow of f16 sums
                    if value(elem, bits).is_finite() {
                        break bits;
                    }
                },
                _ => x >> 8 & ((1 << bits_of(elem)) - 1),
            }
        })
        .collect()
}

/// (row, column) of element `i` of the A fragment in `lane`; `i` counts elements over all registers.
///
/// PTX ISA, "row = groupID for ai where ..., groupID + 8 otherwise; col = threadID_in_group * E + (i & (E-1)) ...".
fn a_at(m: usize, e: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let reg = i / e;
    if m == 8 {
        return (group, thread * e + i);
    }
    let row = group + 8 * (reg % 2);
    let column = thread * e + i % e + if reg >= 2 { 4 * e } else { 0 };
    (row, column)
}

fn b_at(e: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (thread * e + i % e + if i >= e { 4 * e } else { 0 }, group)
}

fn c_at(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

/// Packs a matrix of `width` columns into fragment registers.
fn pack(
    x: &[u32],
    width: usize,
    e: usize,
    regs: usize,
    at: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<Reg> {
    let mut out = vec![[0; 32]; regs];
    for lane in 0..32 {
        for i in 0..regs * e {
            let (row, column) = at(lane, i);
            let mask = if e == 1 { !0 } else { (1 << (32 / e)) - 1 };
            out[i / e][lane] |= (x[row * width + column] & mask) << (i % e * (32 / e));
        }
    }
    out
}

fn run(mma: &Mma, a: &[Reg], b: &[Reg], c: &[Reg]) -> Vec<Reg> {
    let refs = |x: &'_ [Reg]| -> Vec<Reg> { x.to_vec() };
    let (a, b, c) = (refs(a), refs(b), refs(c));
    let mut d = vec![[0xdead_beef; 32]; mma.regs().d];
    mma.run(
        &mut d,
        &a.iter().collect::<Vec<_>>(),
        &b.iter().collect::<Vec<_>>(),
        &c.iter().collect::<Vec<_>>(),
    );
    d
}

fn check(opcode: &str, m: usize, k: usize, ea: Elem, eb: Elem, acc: &str) {
    let mma = Mma::parse(opcode).unwrap();
    let mut rng = Rng(0x1234_5677 ^ k as u32 ^ (m as u32) << 16);
    let e = ea.per_reg();
    for round in 0..20 {
        let (a, b) = (matrix(&mut rng, ea, m * k), matrix(&mut rng, eb, k * 8));
        let c: Vec<u32> = (0..m * 8)
            .map(|i| match acc {
                "f32" => (rng.next() as i32 as f32 / 1e9).to_bits(),
                "f16" => Format::F16.from_f32(i as f32 / 64.0, Narrow::new(Round::NearestEven)),
                _ if round % 2 == 0 => (i as i32 - 60).cast_unsigned(),
                _ => [i32::MAX - 100, i32::MIN + 100][i % 2].cast_unsigned(),
            })
            .collect();
        let regs = mma.regs();
        let (fa, fb) =
            (pack(&a, k, e, regs.a, |l, i| a_at(m, e, l, i)), pack(&b, 8, e, regs.b, |l, i| b_at(e, l, i)));
        let per_c = if acc == "f16" { 2 } else { 1 };
        let d = run(&mma, &fa, &fb, &pack(&c, 8, per_c, regs.c, c_at));
        for lane in 0..32 {
            for i in 0..regs.d * per_c {
                let (row, column) = c_at(lane, i);
                let got = d[i / per_c][lane] >> (i % per_c * 16) & if per_c == 2 { 0xffff } else { !0 };
                let c = c[row * 8 + column];
                let terms = (0..k).map(|p| (value(ea, a[row * k + p]), value(eb, b[p * 8 + column])));
                let want = match acc {
                    "f32" => {
                        terms.fold(f32::from_bits(c), |s, (a, b)| (a as f32).mul_add(b as f32, s)).to_bits()
                    }
                    "f16" => {
                        let c = Format::F16.to_f32(c);
                        let sum = terms.fold(c, |s, (a, b)| (a as f32).mul_add(b as f32, s));
                        Format::F16.from_f32(sum, Narrow::new(Round::NearestEven))
                    }
                    _ => {
                        let sum = i64::from(c as i32) + terms.map(|(a, b)| (a * b) as i64).sum::<i64>();
                        let clamped = sum.clamp(i32::MIN.into(), i32::MAX.into());
                        (if mma.satfinite { clamped } else { sum }) as u32
                    }
                };
                assert_eq!(got, want, "{opcode}: D[{row}][{column}], round {round}");
            }
        }
    }
}

#[test]
fn floating_point_forms_match_a_triple_loop() {
    for (k, e) in
        [(8, Elem::F16), (16, Elem::F16), (8, Elem::Bf16), (16, Elem::Bf16), (4, Elem::Tf32), (8, Elem::Tf32)]
    {
        let t = format!("{e:?}").to_lowercase();
        check(&format!("mma.sync.aligned.m16n8k{k}.row.col.f32.{t}.{t}.f32"), 16, k, e, e, "f32");
        if e == Elem::F16 {
            check(&format!("mma.sync.aligned.m16n8k{k}.row.col.f16.f16.f16.f16"), 16, k, e, e, "f16");
        }
    }
    for k in [16, 32] {
        for (a, b) in [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")] {
            let (ea, eb) = (Elem::parse(a).unwrap(), Elem::parse(b).unwrap());
            for acc in ["f32", "f16"] {
                check(&format!("mma.sync.aligned.m16n8k{k}.row.col.{acc}.{a}.{b}.{acc}"), 16, k, ea, eb, acc);
            }
        }
    }
}

#[test]
fn integer_forms_match_a_triple_loop() {
    for (types, shapes) in
        [(["s8", "u8"], [(8, 16), (16, 16), (16, 32)]), (["s4", "u4"], [(8, 32), (16, 32), (16, 64)])]
    {
        for (m, k) in shapes {
            for a in types {
                for b in types {
                    for sat in ["", ".satfinite"] {
                        let (ea, eb) = (Elem::parse(a).unwrap(), Elem::parse(b).unwrap());
                        let op = format!("mma.sync.aligned.m{m}n8k{k}.row.col{sat}.s32.{a}.{b}.s32");
                        check(&op, m, k, ea, eb, "s32");
                    }
                }
            }
        }
    }
}

#[test]
fn bit_forms_match_a_triple_loop() {
    let mut rng = Rng(99);
    for (m, k) in [(8, 128), (16, 128), (16, 256)] {
        for (op, f) in [("xor", (|a, b| a ^ b) as fn(u32, u32) -> u32), ("and", |a, b| a & b)] {
            let mma =
                Mma::parse(&format!("mma.sync.aligned.m{m}n8k{k}.row.col.s32.b1.b1.s32.{op}.popc")).unwrap();
            let mut bits = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.next() >> 7 & 1).collect() };
            let (a, b) = (bits(m * k), bits(k * 8));
            let c: Vec<u32> = (0..m as u32 * 8).collect();
            let regs = mma.regs();
            let fa = pack(&a, k, 32, regs.a, |l, i| a_at(m, 32, l, i));
            let fb = pack(&b, 8, 32, regs.b, |l, i| b_at(32, l, i));
            let d = run(&mma, &fa, &fb, &pack(&c, 8, 1, regs.c, c_at));
            for lane in 0..32 {
                for (i, d) in d.iter().enumerate() {
                    let (row, column) = c_at(lane, i);
                    let sum: u32 = (0..k).map(|p| f(a[row * k + p], b[p * 8 + column])).sum();
                    assert_eq!(d[lane], c[row * 8 + column] + sum, "{mma:?} D[{row}][{column}]");
                }
            }
        }
    }
}

#[test]
fn f64_forms_match_a_triple_loop() {
    let mut rng = Rng(5);
    for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        let mma = Mma::parse(&format!("mma.sync.aligned.m{m}n8k{k}.row.col.f64.f64.f64.f64")).unwrap();
        let mut doubles = |n: usize| -> Vec<f64> {
            (0..n).map(|_| f64::from(rng.next() as i32) / 3e8 + f64::from(rng.next()) * 1e-18).collect()
        };
        let (a, b, c) = (doubles(m * k), doubles(k * 8), doubles(m * 8));
        // PTX ISA: a0, a1, ... : row groupID (even i) or groupID + 8 (odd i), column threadID_in_group + 4*(i/2).
        let split =
            |regs: usize, x: &[f64], width: usize, at: &dyn Fn(usize, usize) -> (usize, usize)| -> Vec<Reg> {
                let mut out = vec![[0; 32]; regs];
                for lane in 0..32 {
                    for i in 0..regs / 2 {
                        let (row, column) = at(lane, i);
                        let bits = x[row * width + column].to_bits();
                        (out[2 * i][lane], out[2 * i + 1][lane]) = (bits as u32, (bits >> 32) as u32);
                    }
                }
                out
            };
        let regs = mma.regs();
        let fa = split(regs.a, &a, k, &|l, i| match m {
            8 => (l >> 2, l % 4),
            _ => ((l >> 2) + 8 * (i % 2), l % 4 + 4 * (i / 2)),
        });
        let fb = split(regs.b, &b, 8, &|l, i| (l % 4 + 4 * i, l >> 2));
        let d = run(&mma, &fa, &fb, &split(regs.c, &c, 8, &c_at));
        for lane in 0..32 {
            for i in 0..regs.d / 2 {
                let (row, column) = c_at(lane, i);
                let want =
                    (0..k).fold(c[row * 8 + column], |s, p| a[row * k + p].mul_add(b[p * 8 + column], s));
                let got = u64::from(d[2 * i][lane]) | u64::from(d[2 * i + 1][lane]) << 32;
                assert_eq!(got, want.to_bits(), "{mma:?} D[{row}][{column}]");
            }
        }
    }
}

#[test]
fn special_values_follow_ieee() {
    let mma = Mma::parse("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32").unwrap();
    let one = |x: f32, y: f32, c: f32| {
        // A[0][0] = x, B[0][0] = y, C[0][0] = c; all else zero.
        let mut a = vec![[0; 32]; 4];
        let mut b = vec![[0; 32]; 2];
        let mut cc = vec![[0; 32]; 4];
        (a[0][0], b[0][0], cc[0][0]) = (x.to_bits() >> 16, y.to_bits() >> 16, c.to_bits());
        run(&mma, &a, &b, &cc)[0][0]
    };
    let inf = f32::INFINITY;
    assert_eq!(one(inf, 0.0, 1.0), 0x7fff_ffff);
    assert_eq!(one(inf, 1.0, -inf), 0x7fff_ffff);
    assert_eq!(one(1.0, 1.0, f32::from_bits(0xffc0_1234)), 0x7fff_ffff, "NaN results are canonical");
    assert_eq!(one(inf, -2.0, 1e30), (-inf).to_bits());
    assert_eq!(one(2f32.powi(127), 2f32.powi(10), 0.0), inf.to_bits());
    assert_eq!(
        one(2f32.powi(-100), 2f32.powi(-40), 0.0),
        2f32.powi(-140).to_bits(),
        "subnormal results stay"
    );
    assert_eq!(one(0.0, 0.0, -0.0), 0.0f32.to_bits(), "-0 + 0 = +0");
}

#[test]
fn forms_that_do_not_exist_are_named() {
    for op in [
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k16.row.col.bf16.bf16.bf16.bf16",
        "mma.sync.aligned.m16n8k16.col.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k24.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.xor.popc",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma",
        "",
    ] {
        let error = Mma::parse(op).unwrap_err();
        assert!(error.contains(op), "{error}");
    }
}
