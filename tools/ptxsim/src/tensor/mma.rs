//! `mma.sync.aligned`: one warp multiplies small matrices, `D = A*B + C`, on the tensor cores.
//!
//! | multiplicands | shapes | accumulators |
//! | --- | --- | --- |
//! | f16 | m16n8k8, m16n8k16 | f16, f32 |
//! | bf16 | m16n8k8, m16n8k16 | f32 |
//! | tf32 | m16n8k4, m16n8k8 | f32 |
//! | e4m3, e5m2 (also mixed) | m16n8k16, m16n8k32 | f16, f32 |
//! | s8, u8 (also mixed) | m8n8k16, m16n8k16, m16n8k32 | s32 |
//! | s4, u4 (also mixed) | m8n8k32, m16n8k32, m16n8k64 | s32 |
//! | b1 (`.xor.popc`, `.and.popc`) | m8n8k128, m16n8k128, m16n8k256 | s32 |
//! | f64 | m8n8k4, m16n8k4, m16n8k8, m16n8k16 | f64 |
//!
//! The 32-bit fragments follow the one rule in `tile.rs`. f64 follows it too, with `E = 1` and each
//! register a pair of 32-bit ones, low word first. (PTX ISA 9.0, "Warp-level matrix instructions: mma".)
//!
//! f16 accumulators are widened, summed in f32 and rounded once, to nearest even. Integer sums are exact and wrap at
//! 32 bits, or clamp with `.satfinite`. A NaN result is `0x7fffffff` (f16: `0x7fff`).

use super::Reg;
use super::formats::{f16_to_f32, f32_to_f16};
use super::tile::{Acc, Base, Elem, Kind, LEVEL, Level, Simd, b_tile, kind};
use std::mem::MaybeUninit;

/// The type of C and D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accum {
    /// Packed in pairs, two columns a register.
    F16,
    /// One a register.
    F32,
    /// One a register.
    S32,
    /// One a pair of registers.
    F64,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiplicands {
    /// Elements of A and of B, several to a register.
    Packed(Elem, Elem),
    /// Single bits; `a ^ b` or `a & b` stands for the product, and populations are summed.
    Bits {
        /// `.xor.popc` rather than `.and.popc`.
        xor: bool,
    },
    /// Doubles.
    F64,
}

/// A decoded `mma.sync`; N is always 8.
#[derive(Clone, Copy, Debug)]
pub struct Mma {
    /// Rows of A and D: 8 or 16.
    pub m: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Types of A and B.
    pub mul: Multiplicands,
    /// Type of C and D.
    pub acc: Accum,
    /// `.satfinite` (integers).
    pub satfinite: bool,
    /// 32-bit registers along k: those of B, and of A for each 8 rows.
    depth: usize,
    /// The code for this form on this CPU.
    code: Code,
}

/// `d = a*b + c` of one form.
///
/// # Safety
/// The CPU must have the instructions that the function was compiled for.
type Code = unsafe fn(&Mma, &mut [Reg], &[&Reg], &[&Reg], &[&Reg]);

/// How many 32-bit registers an instruction's operands take; an f64 takes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regs {
    /// The result.
    pub d: usize,
    /// The left matrix.
    pub a: usize,
    /// The right matrix.
    pub b: usize,
    /// The addend.
    pub c: usize,
}

impl Mma {
    /// Reads the modifiers of an `mma` opcode: `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`.
    ///
    /// # Errors
    /// A sentence that names the form if PTX has none such, or if it is not implemented (m8n8k4 with f16,
    /// `.sp`, block scaling).
    pub fn parse(opcode: &str) -> Result<Self, String> {
        let unknown = || format!("`{opcode}` is not an mma form this simulator implements");
        let mut words: Vec<&str> = opcode.split('.').collect();
        let mut bit_op = None;
        if let [rest @ .., op, "popc"] = &words[..] {
            bit_op = Some(*op);
            words = rest.to_vec();
        }
        let satfinite = words.get(6) == Some(&"satfinite");
        if satfinite {
            words.remove(6);
        }
        let ["mma", "sync", "aligned", shape, "row", "col", d, a, b, c] = words[..] else {
            return Err(unknown());
        };
        let (m, k) = shape
            .strip_prefix('m')
            .and_then(|s| s.split_once("n8k"))
            .and_then(|(m, k)| Some((m.parse().ok()?, k.parse().ok()?)))
            .ok_or_else(unknown)?;
        let mul = match (a, b, bit_op) {
            ("b1", "b1", Some("xor")) => Multiplicands::Bits { xor: true },
            ("b1", "b1", Some("and")) => Multiplicands::Bits { xor: false },
            ("f64", "f64", None) => Multiplicands::F64,
            (a, b, None) => Elem::parse(a)
                .zip(Elem::parse(b))
                .map(|(a, b)| Multiplicands::Packed(a, b))
                .ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        let acc = match d {
            "f16" => Accum::F16,
            "f32" => Accum::F32,
            "s32" => Accum::S32,
            "f64" => Accum::F64,
            _ => return Err(unknown()),
        };
        if c == d && exists(m, k, mul, acc, satfinite) {
            Ok(Self::of_tile(m, k, mul, acc, satfinite))
        } else {
            Err(unknown())
        }
    }

    /// One tile of 8 columns, whether or not `mma.sync` has that shape: 8 or 16 rows, one or two registers along k.
    pub(super) fn of_tile(m: usize, k: usize, mul: Multiplicands, acc: Accum, satfinite: bool) -> Self {
        let depth = match mul {
            Multiplicands::Packed(a, _) => k / (4 * a.per_reg()),
            Multiplicands::Bits { .. } => k / 128,
            Multiplicands::F64 => k / 2, // two words each
        };
        Self { m, k, mul, acc, satfinite, depth, code: code(mul, depth) }
    }

    /// Registers of the operands.
    pub fn regs(&self) -> Regs {
        let halves = self.m / 8;
        let acc = halves
            * match self.acc {
                Accum::F16 => 1,
                Accum::F32 | Accum::S32 => 2,
                Accum::F64 => 4,
            };
        Regs { d: acc, a: halves * self.depth, b: self.depth, c: acc }
    }

    /// Operations that the instruction stands for: a multiply and an add count two.
    pub fn flops(&self) -> u64 {
        2 * (self.m * 8 * self.k) as u64
    }

    /// `d = a*b + c`.
    ///
    /// # Panics
    /// If the operands are not as many registers as [`Mma::regs`] says.
    pub fn run(&self, d: &mut [Reg], a: &[&Reg], b: &[&Reg], c: &[&Reg]) {
        let regs = self.regs();
        assert_eq!((d.len(), a.len(), b.len(), c.len()), (regs.d, regs.a, regs.b, regs.c), "{self:?}");
        // SAFETY: `code` chose the function for this CPU.
        unsafe { (self.code)(self, d, a, b, c) }
    }

    fn run_bits(&self, d: &mut [Reg], a: &[&Reg], b: &[&Reg], c: &[&Reg]) {
        let xor = self.mul == Multiplicands::Bits { xor: true };
        let halves = self.m / 8;
        for (at, d) in d.iter_mut().enumerate() {
            for l in 0..32 {
                let (row, column) = (l / 4, 2 * (l % 4) + at % 2);
                let mut sum = c[at][l];
                for r in 0..b.len() {
                    for j in 0..4 {
                        let (a, b) = (a[halves * r + at / 2][4 * row + j], b[r][4 * column + j]);
                        sum = sum.wrapping_add(if xor { a ^ b } else { a & b }.count_ones());
                    }
                }
                d[l] = sum;
            }
        }
    }

    fn run_f64(&self, d: &mut [Reg], a: &[&Reg], b: &[&Reg], c: &[&Reg]) {
        let get = |regs: &[&Reg], at: usize, l: usize| {
            f64::from_bits(u64::from(regs[2 * at][l]) | u64::from(regs[2 * at + 1][l]) << 32)
        };
        let halves = self.m / 8;
        for at in 0..2 * halves {
            for l in 0..32 {
                let (row, column) = (l / 4, 2 * (l % 4) + at % 2);
                let mut sum = get(c, at, l);
                for k in 0..self.k {
                    let (r, j) = (k / 4, k % 4);
                    sum = get(a, halves * r + at / 2, 4 * row + j).mul_add(get(b, r, 4 * column + j), sum);
                }
                let bits = if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() };
                (d[2 * at][l], d[2 * at + 1][l]) = (bits as u32, (bits >> 32) as u32);
            }
        }
    }
}

/// Whether `mma.sync` has the form.
fn exists(m: usize, k: usize, mul: Multiplicands, acc: Accum, satfinite: bool) -> bool {
    use Elem::*;
    let wide = m == 16;
    let narrow = m == 8;
    let shape = match mul {
        Multiplicands::Packed(F16, F16) => wide && matches!(k, 8 | 16),
        Multiplicands::Packed(Bf16, Bf16) => wide && matches!(k, 8 | 16),
        Multiplicands::Packed(Tf32, Tf32) => wide && matches!(k, 4 | 8),
        Multiplicands::Packed(E4m3 | E5m2, E4m3 | E5m2) => wide && matches!(k, 16 | 32),
        Multiplicands::Packed(S8 | U8, S8 | U8) => wide && matches!(k, 16 | 32) || narrow && k == 16,
        Multiplicands::Packed(S4 | U4, S4 | U4) => wide && matches!(k, 32 | 64) || narrow && k == 32,
        Multiplicands::Packed(..) => false,
        Multiplicands::Bits { .. } => wide && matches!(k, 128 | 256) || narrow && k == 128,
        Multiplicands::F64 => wide && matches!(k, 4 | 8 | 16) || narrow && k == 4,
    };
    let acc = match mul {
        Multiplicands::Packed(F16 | E4m3 | E5m2, _) => matches!(acc, Accum::F16 | Accum::F32),
        Multiplicands::Packed(Bf16 | Tf32, _) => acc == Accum::F32,
        Multiplicands::Packed(..) | Multiplicands::Bits { .. } => acc == Accum::S32,
        Multiplicands::F64 => acc == Accum::F64,
    };
    let integer = matches!(mul, Multiplicands::Packed(a, _) if a.is_int());
    shape && acc && (integer || !satfinite)
}

/// The function for these types, `depth` registers along k.
fn code(mul: Multiplicands, depth: usize) -> Code {
    use Elem::*;
    let (a, b) = match mul {
        Multiplicands::Bits { .. } => return Mma::run_bits,
        Multiplicands::F64 => return Mma::run_f64,
        Multiplicands::Packed(a, b) => (a, b),
    };
    macro_rules! pairs {
        ($($a:ident $b:ident $e:literal),*) => {
            match (a, b) {
                $(($a, $b) if depth == 1 => of_level::<kind::$a, kind::$b, $e, 1>(),
                ($a, $b) => of_level::<kind::$a, kind::$b, $e, 2>(),)*
                _ => unreachable!("{a:?} and {b:?} are not multiplied with each other: callers check"),
            }
        };
    }
    pairs!(
        F16 F16 2, Bf16 Bf16 2, Tf32 Tf32 1,
        E4m3 E4m3 4, E4m3 E5m2 4, E5m2 E4m3 4, E5m2 E5m2 4,
        S8 S8 4, S8 U8 4, U8 S8 4, U8 U8 4,
        S4 S4 8, S4 U4 8, U4 S4 8, U4 U4 8
    )
}

/// [`packed`] for this CPU.
fn of_level<A: Kind, B: Kind, const E: usize, const H: usize>() -> Code {
    #[cfg(target_arch = "x86_64")]
    {
        use super::tile::{Avx2, Avx512};
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<A: Kind, B: Kind, const E: usize, const H: usize>(
            mma: &Mma,
            d: &mut [Reg],
            a: &[&Reg],
            b: &[&Reg],
            c: &[&Reg],
        ) {
            packed::<Avx512, A, B, E, H>(mma, d, a, b, c);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<A: Kind, B: Kind, const E: usize, const H: usize>(
            mma: &Mma,
            d: &mut [Reg],
            a: &[&Reg],
            b: &[&Reg],
            c: &[&Reg],
        ) {
            packed::<Avx2, A, B, E, H>(mma, d, a, b, c);
        }
        match *LEVEL {
            Level::Avx512 => return avx512::<A, B, E, H>,
            Level::Avx2 => return avx2::<A, B, E, H>,
            Level::Base => {}
        }
    }
    packed::<Base, A, B, E, H>
}

#[inline(always)]
fn packed<S: Simd, A: Kind, B: Kind, const E: usize, const H: usize>(
    mma: &Mma,
    d: &mut [Reg],
    a: &[&Reg],
    b: &[&Reg],
    c: &[&Reg],
) {
    const NONE: &Reg = &[0; 32]; // rows 8..16 of the shapes that have 8
    let rows: [[&Reg; 2]; H] = match a.as_chunks::<2>().0.first_chunk() {
        Some(rows) if mma.m == 16 => *rows,
        _ => std::array::from_fn(|r| [a[r], NONE]),
    };
    let columns = std::array::from_fn(|r| b[r]);
    let mut b_out = MaybeUninit::uninit();
    let b = b_tile::<S, B, E, H>(&mut b_out, columns);
    let mut acc = load_acc::<S>(mma.acc, c);
    S::tile::<A, E, H>(&mut acc, rows, b);
    store_acc::<S>(mma.acc, mma.satfinite, d, &acc, c);
}

/// The two f32 registers of a packed f16 one: low halves, high halves.
pub(super) fn widen_f16x2(c: &Reg) -> [Reg; 2] {
    [c.map(|c| f16_to_f32(c as u16).to_bits()), c.map(|c| f16_to_f32((c >> 16) as u16).to_bits())]
}

/// The packed f16 register of two f32 ones, rounded to nearest even.
pub(super) fn narrow_f16x2(low: &Reg, high: &Reg) -> Reg {
    let half = |bits: u32| u32::from(f32_to_f16(f32::from_bits(bits)));
    std::array::from_fn(|l| half(low[l]) | half(high[l]) << 16)
}

/// The f32 accumulators of a tile, started from C.
///
/// Integer sums start from 0: within one instruction they stay below 2^24, where f32 is exact.
#[inline(always)]
pub(super) fn load_acc<S: Simd>(kind: Accum, c: &[&Reg]) -> Acc {
    let mut acc: Acc = [[0.0; 32]; 4];
    match kind {
        Accum::F32 => {
            for (acc, c) in acc.iter_mut().zip(c) {
                for l in 0..32 {
                    acc[l] = f32::from_bits(c[l]);
                }
            }
        }
        Accum::F16 => {
            for (acc, c) in acc.chunks_exact_mut(2).zip(c) {
                // SAFETY: the outputs are of this function.
                unsafe {
                    S::decode(&mut acc[0], Elem::F16, 0, c);
                    S::decode(&mut acc[1], Elem::F16, 1, c);
                }
            }
        }
        Accum::S32 | Accum::F64 => {}
    }
    acc
}

/// D of a tile's sums, to which an integer C is yet to be added.
#[inline(always)]
pub(super) fn store_acc<S: Simd>(kind: Accum, satfinite: bool, d: &mut [Reg], acc: &Acc, c: &[&Reg]) {
    match kind {
        Accum::F32 | Accum::F64 => {
            for (d, acc) in d.iter_mut().zip(acc) {
                S::f32_bits(d, acc);
            }
        }
        Accum::F16 => {
            for (d, acc) in d.iter_mut().zip(acc.chunks_exact(2)) {
                S::f16x2_bits(d, &acc[0], &acc[1]);
            }
        }
        Accum::S32 => {
            for ((d, acc), c) in d.iter_mut().zip(acc).zip(c) {
                S::s32_bits(d, acc, c, satfinite);
            }
        }
    }
}
