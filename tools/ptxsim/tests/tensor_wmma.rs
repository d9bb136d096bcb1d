//! `wmma`: load, multiply and store of distinct values against a plain triple loop, every shape and layout.

use ptxsim::tensor::Reg;
use ptxsim::tensor::formats::{Format, Narrow, Round};
use ptxsim::tensor::wmma::{Wmma, WmmaMove};

/// Loads a fragment from `memory`, bytes of a matrix with this stride.
fn load(opcode: &str, memory: &[u8], stride: u64) -> Vec<Reg> {
    let form = WmmaMove::parse(opcode).unwrap();
    let mut d = vec![[0; 32]; form.regs()];
    for access in form.accesses(stride) {
        for (lane, &at) in access.offsets.iter().enumerate() {
            assert_eq!(at % access.bytes as u64, 0, "{opcode}: misaligned");
            let mut word = [0; 8];
            word[..access.bytes].copy_from_slice(&memory[at as usize..][..access.bytes]);
            let word = u64::from_le_bytes(word);
            d[access.reg][lane] |= (word as u32) << access.shift;
            if access.bytes == 8 {
                d[access.reg + 1][lane] = (word >> 32) as u32;
            }
        }
    }
    form.repeat(&mut d);
    d
}

fn store(opcode: &str, memory: &mut [u8], stride: u64, s: &[Reg]) {
    let form = WmmaMove::parse(opcode).unwrap();
    assert!(form.store);
    let mut written = vec![0; memory.len()];
    for access in form.accesses(stride) {
        for (lane, &at) in access.offsets.iter().enumerate() {
            let high = if access.bytes == 8 { u64::from(s[access.reg + 1][lane]) << 32 } else { 0 };
            let word = (u64::from(s[access.reg][lane]) | high) >> access.shift;
            memory[at as usize..][..access.bytes].copy_from_slice(&word.to_le_bytes()[..access.bytes]);
            written[at as usize..][..access.bytes].iter_mut().for_each(|n| *n += 1);
        }
    }
    assert!(written.iter().all(|&n| n <= 1), "{opcode}: an element is stored twice");
}

/// A matrix of small whole numbers, exact in every type, at its place in memory.
struct Matrix {
    rows: usize,
    columns: usize,
    row_major: bool,
    elem: &'static str,
    /// Elements from line to line: 16 more than a line, so that the stride matters.
    stride: usize,
    values: Vec<i64>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, row_major: bool, elem: &'static str, seed: usize) -> Self {
        let line = if row_major { columns } else { rows };
        let span = match elem {
            "b1" => 2,
            "s4" | "u4" => 8,
            _ => 101,
        };
        let signed = !matches!(elem, "b1" | "u4" | "u8");
        let values = (0..rows * columns)
            .map(|i| (i * 37 + seed) as i64 % span - if signed { span / 2 } else { 0 })
            .collect();
        let pad = 128 / bits(elem).min(8);
        Self { rows, columns, row_major, elem, stride: line + pad, values }
    }

    fn layout(&self) -> &'static str {
        if self.row_major { "row" } else { "col" }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        if self.row_major { row * self.stride + column } else { column * self.stride + row }
    }

    fn bytes(&self) -> Vec<u8> {
        let lines = if self.row_major { self.rows } else { self.columns };
        let mut out = vec![0; lines * self.stride * bits(self.elem) / 8];
        for row in 0..self.rows {
            for column in 0..self.columns {
                let x = self.values[row * self.columns + column];
                let bit = self.at(row, column) * bits(self.elem);
                let code = encode(self.elem, x).to_le_bytes();
                match bits(self.elem) {
                    n @ (1 | 4) => out[bit / 8] |= (code[0] & ((1 << n) - 1)) << (bit % 8),
                    n => out[bit / 8..][..n / 8].copy_from_slice(&code[..n / 8]),
                }
            }
        }
        out
    }
}

fn bits(elem: &str) -> usize {
    match elem {
        "b1" => 1,
        "s4" | "u4" => 4,
        "s8" | "u8" => 8,
        "f16" | "bf16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

fn encode(elem: &str, x: i64) -> u64 {
    let rn = Narrow::new(Round::NearestEven);
    match elem {
        "f16" => Format::F16.from_int(x.into(), rn).into(),
        "bf16" => Format::Bf16.from_int(x.into(), rn).into(),
        "tf32" | "f32" => (x as f32).to_bits().into(),
        "f64" => (x as f64).to_bits(),
        _ => x as u64,
    }
}

fn check(shape: (usize, usize, usize), elem: &'static str, c_type: &'static str, d_type: &'static str) {
    let (m, n, k) = shape;
    let name = format!("m{m}n{n}k{k}");
    for layouts in 0..16 {
        let [a_row, b_row, c_row, d_row] = [0, 1, 2, 3].map(|bit| layouts >> bit & 1 == 1);
        if bits(elem) < 8 && (!a_row || b_row) {
            continue;
        }
        let a = Matrix::new(m, k, a_row, elem, 3);
        let b = Matrix::new(k, n, b_row, elem, 11);
        let c = Matrix::new(m, n, c_row, c_type, 5);
        let mut d = Matrix::new(m, n, d_row, d_type, 0);
        let fragment = |role: &str, x: &Matrix| {
            let op = format!("wmma.load.{role}.sync.aligned.{}.{name}.global.{}", x.layout(), x.elem);
            load(&op, &x.bytes(), x.stride as u64)
        };
        let (fa, fb, fc) = (fragment("a", &a), fragment("b", &b), fragment("c", &c));
        let (la, lb) = (a.layout(), b.layout());
        let op = match elem {
            "f16" => format!("wmma.mma.sync.aligned.{la}.{lb}.{name}.{d_type}.{c_type}"),
            "b1" => format!("wmma.mma.and.popc.sync.aligned.{la}.{lb}.{name}.s32.b1.b1.s32"),
            "f64" => format!("wmma.mma.sync.aligned.{la}.{lb}.{name}.f64.f64.f64.f64.rn"),
            _ => format!("wmma.mma.sync.aligned.{la}.{lb}.{name}.{d_type}.{elem}.{elem}.{c_type}"),
        };
        let mma = Wmma::parse(&op).unwrap();
        assert_eq!((fa.len(), fb.len(), fc.len()), (mma.regs().1, mma.regs().2, mma.regs().3), "{op}");
        let mut fd = vec![[0; 32]; mma.regs().0];
        let refs = |x: &'_ [Reg]| -> Vec<Reg> { x.to_vec() };
        let (fa, fb, fc) = (refs(&fa), refs(&fb), refs(&fc));
        mma.run(
            &mut fd,
            &fa.iter().collect::<Vec<_>>(),
            &fb.iter().collect::<Vec<_>>(),
            &fc.iter().collect::<Vec<_>>(),
        );
        for row in 0..m {
            for column in 0..n {
                let products = (0..k).map(|p| a.values[row * k + p] * b.values[p * n + column]);
                d.values[row * n + column] = c.values[row * n + column] + products.sum::<i64>();
            }
        }
        let want = d.bytes();
        let mut got = vec![0; want.len()];
        store(
            &format!("wmma.store.d.sync.aligned.{}.{name}.shared.{d_type}", d.layout()),
            &mut got,
            d.stride as u64,
            &fd,
        );
        assert_eq!(got, want, "{op}, layouts {layouts:04b}");
    }
}

#[test]
fn every_shape_and_layout_matches_a_triple_loop() {
    for shape in [(16, 16, 16), (32, 8, 16), (8, 32, 16)] {
        for (c, d) in [("f32", "f32"), ("f16", "f16"), ("f16", "f32"), ("f32", "f16")] {
            check(shape, "f16", c, d);
        }
        check(shape, "bf16", "f32", "f32");
        check(shape, "s8", "s32", "s32");
        check(shape, "u8", "s32", "s32");
    }
    check((16, 16, 8), "tf32", "f32", "f32");
    check((8, 8, 32), "s4", "s32", "s32");
    check((8, 8, 32), "u4", "s32", "s32");
    check((8, 8, 128), "b1", "s32", "s32");
    check((8, 8, 4), "f64", "f64", "f64");
}

#[test]
fn forms_that_do_not_exist_are_named() {
    for op in [
        "wmma.load.a.sync.aligned.row.m16n16k16.global.f32",
        "wmma.load.b.sync.aligned.row.m8n8k32.global.s4",
        "wmma.load.c.sync.aligned.row.m16n16k8.f16",
        "wmma.load.d.sync.aligned.row.m16n16k16.global.f16",
        "wmma.load.a.sync.aligned.row.m16n16k32.global.f16",
        "wmma.load",
    ] {
        assert!(WmmaMove::parse(op).unwrap_err().contains(op));
    }
    for op in [
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.f16.f32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32.satfinite",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f64.f64.f64.f64",
        "wmma.mma.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32",
        "wmma.mma",
    ] {
        assert!(Wmma::parse(op).unwrap_err().contains(op));
    }
}
