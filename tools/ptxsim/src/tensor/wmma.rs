//! `wmma.load`, `wmma.mma` and `wmma.store`: what `nvcuda::wmma` compiles to.
//!
//! | multiplicands | shapes | 32-bit registers of A and B | C and D |
//! | --- | --- | --- | --- |
//! | f16 | m16n16k16, m32n8k16, m8n32k16 | 8 and 8 | f32: 8, f16: 4 |
//! | bf16 | the same | 4 and 4, 8 and 2, 2 and 8 | f32: 8 |
//! | tf32 | m16n16k8 | 4 and 4 | f32: 8 |
//! | s8, u8 | as f16 | 2 and 2, 4 and 1, 1 and 4 | s32: 8 |
//! | s4, u4 | m8n8k32 | 1 and 1 | s32: 2 |
//! | b1 | m8n8k128 | 1 and 1 | s32: 2 |
//! | f64 | m8n8k4 | 2 and 2 (one f64) | f64: 4 (two) |
//!
//! Source: PTX ISA 9.0, "Warp-level matrix instructions: wmma.load, wmma.store, wmma.mma"; register counts from its table
//! "Matrix fragments for WMMA". PTX leaves open which lane holds which element. Here a fragment is the
//! `mma.sync` fragments (`tile.rs`) of the 16-row and 8-column tiles the shape consists of (8-row ones if M = 8): A tile by
//! tile down the rows, B tile by tile along the columns, C and D by rows of tiles. f16 fragments of A and B have more
//! registers than elements: the later ones repeat the earlier, and are not read.

use super::Reg;
use super::mma::{Accum, Mma, Multiplicands};
use super::tile::Elem;

/// The shape of a `wmma` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
}

impl Shape {
    fn parse(word: &str) -> Option<Self> {
        let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some(Self { m: m.parse().ok()?, n: n.parse().ok()?, k: k.parse().ok()? })
    }

    /// Rows of a tile.
    fn tile_rows(self) -> usize {
        self.m.min(16)
    }

    fn row_tiles(self) -> usize {
        self.m / self.tile_rows()
    }

    fn column_tiles(self) -> usize {
        self.n / 8
    }
}

/// Element types of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Type {
    Packed(Elem),
    Bit,
    F32,
    S32,
    F64,
}

impl Type {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "b1" => Self::Bit,
            "f32" => Self::F32,
            "s32" => Self::S32,
            "f64" => Self::F64,
            _ => Self::Packed(Elem::parse(word)?),
        })
    }

    fn bits(self) -> usize {
        match self {
            Self::Packed(elem) => elem.bits(),
            Self::Bit => 1,
            Self::F32 | Self::S32 => 32,
            Self::F64 => 64,
        }
    }

    /// Elements of a row of A, or a column of B, in a lane's register.
    fn per_reg(self) -> usize {
        (32 / self.bits()).max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    A,
    B,
    C,
}

/// A decoded `wmma.load` or `wmma.store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WmmaMove {
    /// `wmma.store` rather than `wmma.load`.
    pub store: bool,
    role: Role,
    shape: Shape,
    elem: Type,
    row_major: bool,
}

/// One memory access of a whole warp, part of a `wmma.load` or `wmma.store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarpAccess {
    /// First 32-bit register that it fills or stores; with 8 bytes, the next one too.
    pub reg: usize,
    /// Where in the register its lowest bit stands.
    pub shift: u32,
    /// Bytes a lane: 1, 2, 4 or 8.
    pub bytes: usize,
    /// Byte offset from the instruction's address, a lane.
    pub offsets: [u64; 32],
}

/// The shapes and types that exist, by multiplicand.
fn exists(shape: Shape, elem: Type) -> bool {
    let Shape { m, n, k } = shape;
    let wide = matches!((m, n), (16, 16) | (32, 8) | (8, 32)) && k == 16;
    match elem {
        Type::Packed(Elem::F16 | Elem::Bf16 | Elem::S8 | Elem::U8) => wide,
        Type::Packed(Elem::Tf32) => (m, n, k) == (16, 16, 8),
        Type::Packed(Elem::S4 | Elem::U4) => (m, n, k) == (8, 8, 32),
        Type::Bit => (m, n, k) == (8, 8, 128),
        Type::F64 => (m, n, k) == (8, 8, 4),
        _ => false,
    }
}

impl WmmaMove {
    /// Reads an opcode such as `wmma.load.a.sync.aligned.row.m16n16k16.global.f16`; the state space is left to the
    /// caller.
    ///
    /// # Errors
    /// A sentence that names the form if it does not exist.
    pub fn parse(opcode: &str) -> Result<Self, String> {
        let unknown = || format!("`{opcode}` is not a wmma form this simulator implements");
        let mut words: Vec<&str> = opcode.split('.').collect();
        if words.len() == 9 && matches!(words[7], "global" | "shared" | "shared::cta") {
            words.remove(7);
        }
        let ["wmma", op, role, "sync", "aligned", layout, shape, elem] = words[..] else {
            return Err(unknown());
        };
        let (store, role) = match (op, role) {
            ("load", "a") => (false, Role::A),
            ("load", "b") => (false, Role::B),
            ("load", "c") => (false, Role::C),
            ("store", "d") => (true, Role::C),
            _ => return Err(unknown()),
        };
        let row_major = match layout {
            "row" => true,
            "col" => false,
            _ => return Err(unknown()),
        };
        let shape = Shape::parse(shape).ok_or_else(unknown)?;
        let elem = Type::parse(elem).ok_or_else(unknown)?;
        let valid = match role {
            // Elements below a byte lie along k.
            Role::A => exists(shape, elem) && (elem.bits() >= 8 || row_major),
            Role::B => exists(shape, elem) && (elem.bits() >= 8 || !row_major),
            Role::C => match elem {
                Type::Packed(Elem::F16) => exists(shape, elem),
                Type::F32 => {
                    exists(shape, Type::Packed(Elem::F16)) || exists(shape, Type::Packed(Elem::Tf32))
                }
                Type::S32 => [Type::Packed(Elem::S8), Type::Packed(Elem::S4), Type::Bit]
                    .iter()
                    .any(|&elem| exists(shape, elem)),
                Type::F64 => exists(shape, elem),
                _ => false,
            },
        };
        if valid { Ok(Self { store, role, shape, elem, row_major }) } else { Err(unknown()) }
    }

    /// 32-bit registers of the fragment; an f64 takes two.
    pub fn regs(&self) -> usize {
        match (self.role, self.elem) {
            (Role::A | Role::B, Type::Packed(Elem::F16)) => 8,
            _ => self.distinct_regs(),
        }
    }

    /// Registers that [`WmmaMove::accesses`] fill; [`WmmaMove::repeat`] makes the rest.
    fn distinct_regs(&self) -> usize {
        let (rows, columns) = match self.role {
            Role::A => (self.shape.m, self.shape.k),
            Role::B => (self.shape.k, self.shape.n),
            Role::C => (self.shape.m, self.shape.n),
        };
        rows * columns * self.elem.bits() / 1024
    }

    /// The matrix's elements from one row (row-major) or column (column-major) to the next, where none is given.
    pub fn default_stride(&self) -> u64 {
        let (rows, columns) = match self.role {
            Role::A => (self.shape.m, self.shape.k),
            Role::B => (self.shape.k, self.shape.n),
            Role::C => (self.shape.m, self.shape.n),
        };
        if self.row_major { columns as u64 } else { rows as u64 }
    }

    /// (row, column) of element `e` of register `reg` (counting an f64 as one) of `lane`.
    fn element(&self, lane: usize, reg: usize, e: usize) -> (usize, usize) {
        let (g, j) = (lane / 4, lane % 4);
        let per_reg = self.elem.per_reg();
        let halves = self.shape.tile_rows() / 8;
        let depth = self.shape.k / (4 * per_reg); // registers along k
        match self.role {
            Role::A => {
                let (tile, within) = (reg / (halves * depth), reg % (halves * depth));
                let (r, h) = (within / halves, within % halves);
                (tile * self.shape.tile_rows() + 8 * h + g, per_reg * (4 * r + j) + e)
            }
            Role::B => {
                let (tile, r) = (reg / depth, reg % depth);
                (per_reg * (4 * r + j) + e, 8 * tile + g)
            }
            Role::C => {
                // The registers of a tile: columns 2j and 2j + 1 in one (f16) or two.
                let pair = if per_reg == 2 { 1 } else { 2 };
                let (tile, within) = (reg / (halves * pair), reg % (halves * pair));
                let (tile_row, tile_column) =
                    (tile / self.shape.column_tiles(), tile % self.shape.column_tiles());
                let i = if pair == 1 { e } else { within % 2 };
                (tile_row * self.shape.tile_rows() + 8 * (within / pair) + g, 8 * tile_column + 2 * j + i)
            }
        }
    }

    /// The accesses of the instruction, each for all lanes, with rows (or columns) `stride` elements apart.
    ///
    /// A register whose elements lie side by side is one access, another one an access an element.
    pub fn accesses(&self, stride: u64) -> Vec<WarpAccess> {
        let bits = self.elem.bits();
        let words = bits.div_ceil(32); // registers an element
        let along = match self.role {
            Role::A | Role::C => self.row_major,
            Role::B => !self.row_major,
        };
        let per_reg = self.elem.per_reg();
        let pieces = if along { 1 } else { per_reg };
        let mut out = Vec::new();
        for reg in 0..self.distinct_regs() / words {
            for piece in 0..pieces {
                let offsets = std::array::from_fn(|lane| {
                    let (row, column) = self.element(lane, reg, piece);
                    let (line, at) = if self.row_major { (row, column) } else { (column, row) };
                    (line as u64 * stride + at as u64) * bits as u64 / 8
                });
                let bytes = bits.max(8).max(if along { 32 } else { 8 }) / 8;
                out.push(WarpAccess { reg: words * reg, shift: (piece * bits) as u32, bytes, offsets });
            }
        }
        out
    }

    /// Completes a loaded fragment: copies the registers that were loaded into those that repeat them.
    pub fn repeat(&self, d: &mut [Reg]) {
        let distinct = self.distinct_regs();
        for i in distinct..d.len() {
            d[i] = d[i % distinct];
        }
    }
}

/// A decoded `wmma.mma`.
#[derive(Clone, Copy, Debug)]
pub struct Wmma {
    shape: Shape,
    /// The multiply of one tile.
    tile: Mma,
    a: Type,
    c: Accum,
    d: Accum,
}

impl Wmma {
    /// Reads an opcode such as `wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32` (f16 multiplicands) or
    /// `wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32`.
    ///
    /// The layouts do not matter: fragments are alike however they were loaded.
    ///
    /// # Errors
    /// A sentence that names the form if it does not exist.
    pub fn parse(opcode: &str) -> Result<Self, String> {
        let unknown = || format!("`{opcode}` is not a wmma form this simulator implements");
        let accum = |word: &str| {
            Some(match word {
                "f16" => Accum::F16,
                "f32" => Accum::F32,
                "s32" => Accum::S32,
                "f64" => Accum::F64,
                _ => return None,
            })
        };
        let mut words: Vec<&str> = opcode.split('.').collect();
        let xor = match words[..] {
            ["wmma", "mma", op @ ("xor" | "and"), "popc", ..] => {
                words.drain(2..4);
                Some(op == "xor")
            }
            _ => None,
        };
        let satfinite = words.last() == Some(&"satfinite");
        if satfinite || words.last() == Some(&"rn") && words.contains(&"f64") {
            words.pop();
        }
        let ["wmma", "mma", "sync", "aligned", "row" | "col", "row" | "col", shape, ref types @ ..] =
            words[..]
        else {
            return Err(unknown());
        };
        let (d, a, b, c) = match *types {
            [d, c] => (d, "f16", "f16", c),
            [d, a, b, c] => (d, a, b, c),
            _ => return Err(unknown()),
        };
        let shape = Shape::parse(shape).ok_or_else(unknown)?;
        let (a, b) = (Type::parse(a).ok_or_else(unknown)?, Type::parse(b).ok_or_else(unknown)?);
        let (c, d) = (accum(c).ok_or_else(unknown)?, accum(d).ok_or_else(unknown)?);
        let float = |x| matches!(x, Accum::F16 | Accum::F32);
        let (mul, fits) = match (a, b, xor) {
            (Type::Packed(a @ Elem::F16), Type::Packed(b @ Elem::F16), None) => {
                (Multiplicands::Packed(a, b), float(c) && float(d))
            }
            (Type::Packed(a @ (Elem::Bf16 | Elem::Tf32)), Type::Packed(b), None) => {
                (Multiplicands::Packed(a, b), a == b && c == Accum::F32 && d == c)
            }
            (Type::Packed(a), Type::Packed(b), None) => {
                // wmma, unlike mma, does not mix signs.
                (Multiplicands::Packed(a, b), a == b && c == Accum::S32 && d == c)
            }
            (Type::Bit, Type::Bit, Some(xor)) => (Multiplicands::Bits { xor }, c == Accum::S32 && d == c),
            (Type::F64, Type::F64, None) => (Multiplicands::F64, c == Accum::F64 && d == c),
            _ => return Err(unknown()),
        };
        let integer = matches!(mul, Multiplicands::Packed(a, _) if a.is_int());
        if !exists(shape, a) || !fits || satfinite && !integer {
            return Err(unknown());
        }
        // f16 and f32 accumulators mix; the tile works in the wider.
        let acc = if c == d { d } else { Accum::F32 };
        let tile = Mma::of_tile(shape.tile_rows(), shape.k, mul, acc, satfinite);
        Ok(Self { shape, tile, a, c, d })
    }

    /// 32-bit registers of (D, A, B, C); an f64 takes two.
    pub fn regs(&self) -> (usize, usize, usize, usize) {
        let tiles = self.shape.row_tiles() * self.shape.column_tiles();
        let per_tile = self.tile.regs();
        let acc = |kind| match kind {
            Accum::F16 => tiles * self.shape.tile_rows() / 8,
            Accum::F32 | Accum::S32 => tiles * self.shape.tile_rows() / 4,
            Accum::F64 => tiles * self.shape.tile_rows() / 2,
        };
        let (a, b) = match self.a {
            Type::Packed(Elem::F16) => (8, 8),
            _ => (per_tile.a * self.shape.row_tiles(), per_tile.b * self.shape.column_tiles()),
        };
        (acc(self.d), a, b, acc(self.c))
    }

    /// Operations that the instruction stands for: a multiply and an add count two.
    pub fn flops(&self) -> u64 {
        2 * (self.shape.m * self.shape.n * self.shape.k) as u64
    }

    /// `d = a*b + c`.
    ///
    /// # Panics
    /// If the operands are not as many registers as [`Wmma::regs`] says.
    pub fn run(&self, d: &mut [Reg], a: &[&Reg], b: &[&Reg], c: &[&Reg]) {
        assert_eq!((d.len(), a.len(), b.len(), c.len()), self.regs(), "{self:?}");
        let per_tile = self.tile.regs();
        let tiles = self.shape.row_tiles() * self.shape.column_tiles();
        let (c_tile, d_tile) = (c.len() / tiles, d.len() / tiles);
        for tile in 0..tiles {
            let (row, column) = (tile / self.shape.column_tiles(), tile % self.shape.column_tiles());
            let a = &a[row * per_tile.a..][..per_tile.a];
            let b = &b[column * per_tile.b..][..per_tile.b];
            let c = &c[tile * c_tile..][..c_tile];
            let d = &mut d[tile * d_tile..][..d_tile];
            match (self.c, self.d) {
                (Accum::F16, Accum::F32) => {
                    let wide: Vec<Reg> = c.iter().flat_map(|c| super::mma::widen_f16x2(c)).collect();
                    self.tile.run(d, a, b, &wide.iter().collect::<Vec<_>>());
                }
                (Accum::F32, Accum::F16) => {
                    let mut wide = vec![[0; 32]; c_tile];
                    self.tile.run(&mut wide, a, b, c);
                    for (d, pair) in d.iter_mut().zip(wide.chunks_exact(2)) {
                        *d = super::mma::narrow_f16x2(&pair[0], &pair[1]);
                    }
                }
                _ => self.tile.run(d, a, b, c),
            }
        }
    }
}
