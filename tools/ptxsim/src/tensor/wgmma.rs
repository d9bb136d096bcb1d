//! `wgmma.mma_async`: four warps multiply, `D (64,N) = A (64,K) * B (K,N) + D`, B (and A, unless in registers) in shared memory.
//!
//! | multiplicands | K | D | layouts in shared memory |
//! | --- | --- | --- | --- |
//! | f16 | 16 | f16, f32 | K-major, MN-major |
//! | bf16 | 16 | f32 | K-major, MN-major |
//! | tf32 | 8 | f32 | K-major |
//! | e4m3, e5m2 (also mixed) | 32 | f16, f32 | K-major |
//! | s8, u8 (also mixed) | 32 | s32, optionally `.satfinite` | K-major |
//!
//! N is a multiple of 8 up to 256 (integers: 8, 24 or a multiple of 16). K is always 32 bytes.
//!
//! **Registers.** Warp `w` of the warpgroup holds rows `16*w .. 16*w + 16`, in the fragments of `mma.sync` (`tile.rs`): 4
//! registers of A; for each 8 columns of D, 4 registers (f16: 2). Source: PTX ISA 9.0, "Register Fragments
//! and Shared Memory Matrix Layouts" of wgmma.
//!
//! **Shared memory.** Memory is read in chunks of 16 bytes: 16 bytes of K of one row of A or column of B
//! (K-major), or 8 consecutive rows or columns at one k (MN-major, the transposed layout). With `W` = 1, 2, 4, 8 for
//! no swizzle and 32, 64, 128 bytes of it, LBO and SBO from the descriptor:
//!
//! | | chunk | offset |
//! | --- | --- | --- |
//! | K-major, `W = 1` | row `r`, half `q` of K | `(r%8)*16 + (r/8)*SBO + q*LBO` |
//! | K-major, swizzled | | `(r%8)*16*W + (r/8)*SBO + q*16` |
//! | MN-major, `W = 1` | rows `8*u ..`, one k | `(k%8)*16 + (k/8)*LBO + u*SBO` |
//! | MN-major, swizzled | | `(u%W)*16 + (u/W)*LBO + (k%8)*16*W + (k/8)*SBO` |
//!
//! A swizzle then exchanges chunks: address bits 4.. are xor-ed with bits 7.. (one, two or three of
//! them), of the address less 128 times the base offset. Source: PTX ISA 9.0, "Shared Memory Matrix Layout",
//! "Strides", "Matrix Descriptor Format".
//!
//! Arithmetic is that of `mma.sync`.

use super::Reg;
use super::ldmatrix::{Row, ldmatrix};
use super::mma::{Accum, load_acc, store_acc};
use super::tile::{Elem, Kernel, Kind, Simd, b_tile, dispatch, kind};
use std::mem::MaybeUninit;

/// Permutation of the 16-byte chunks of shared memory, to spread a column over the banks.
///
/// The same in a matrix descriptor and in a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Chunks lie in order.
    None,
    /// Bit 4 of the address, xor bit 7: pairs of chunks, a pattern of 256 bytes.
    B32,
    /// Bits 4-5, xor bits 7-8: fours of chunks, a pattern of 512 bytes.
    B64,
    /// Bits 4-6, xor bits 7-9: eights of chunks, a pattern of 1024 bytes.
    B128,
}

impl Swizzle {
    /// Bytes within which chunks change places; 16 where none do.
    pub const fn span(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// Where the byte at linear shared-memory address `address` lies.
    #[inline]
    pub const fn apply(self, address: u32) -> u32 {
        address ^ (address >> 3 & (self.span() - 16))
    }
}

/// A decoded matrix descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Shared-memory address of the matrix, bytes, a multiple of 16.
    pub start: u32,
    /// Leading-dimension byte offset (LBO).
    pub leading: u32,
    /// Stride-dimension byte offset (SBO).
    pub stride: u32,
    /// Of the swizzle pattern, in units of 128 bytes: non-zero where it does not start at a multiple of its size.
    pub base_offset: u32,
    /// The swizzle.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Takes the 64-bit descriptor apart: bits 0-13 start, 16-29 LBO, 32-45 SBO (all three in units of 16
    /// bytes), 49-51 base offset, 62-63 swizzle (0 none, 1 128, 2 64, 3 32 bytes).
    pub fn decode(bits: u64) -> Self {
        let bytes = |shift: u32| (bits >> shift & 0x3fff) as u32 * 16;
        Self {
            start: bytes(0),
            leading: bytes(16),
            stride: bytes(32),
            base_offset: (bits >> 49 & 7) as u32,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        }
    }

    /// Address of the chunk with half `q` of K, of row (A) or column (B) `r`, K-major.
    fn k_major(&self, r: u32, q: u32) -> u32 {
        let next = if self.swizzle == Swizzle::None { self.leading } else { 16 };
        self.place(r % 8 * self.swizzle.span() + r / 8 * self.stride + q * next)
    }

    /// Address of the chunk with rows or columns `8*u ..` at `k`, MN-major.
    fn mn_major(&self, u: u32, k: u32) -> u32 {
        if self.swizzle == Swizzle::None {
            return self.place(k % 8 * 16 + k / 8 * self.leading + u * self.stride);
        }
        let span = self.swizzle.span();
        let wide = span / 16;
        self.place(u % wide * 16 + u / wide * self.leading + k % 8 * span + k / 8 * self.stride)
    }

    fn place(&self, offset: u32) -> u32 {
        let phase = 128 * self.base_offset;
        let linear = (self.start + offset) & 0x3_ffff;
        self.swizzle.apply(linear.wrapping_sub(phase)).wrapping_add(phase) & 0x3_ffff
    }
}

/// A decoded `wgmma.mma_async`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wgmma {
    /// Columns of B and D.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Type of A.
    pub a: Elem,
    /// Type of B.
    pub b: Elem,
    /// Type of D.
    pub acc: Accum,
    /// `.satfinite` (integers).
    pub satfinite: bool,
}

/// The immediate and predicate operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// `scale-d`: whether D is added to, rather than overwritten.
    pub accumulate: bool,
    /// `imm-scale-a` is -1.
    pub negate_a: bool,
    /// `imm-scale-b` is -1.
    pub negate_b: bool,
}

impl Wgmma {
    /// Reads an opcode such as `wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16`.
    ///
    /// # Errors
    /// A sentence that names the form if PTX has none such, or if it is not implemented (`.sp`, `.b1`).
    pub fn parse(opcode: &str) -> Result<Self, String> {
        use Elem::*;
        let unknown = || format!("`{opcode}` is not a wgmma form this simulator implements");
        let mut words: Vec<&str> = opcode.split('.').collect();
        let satfinite = words.get(5) == Some(&"satfinite") || words.last() == Some(&"satfinite");
        words.retain(|&word| word != "satfinite");
        let ["wgmma", "mma_async", "sync", "aligned", shape, d, a, b] = words[..] else {
            return Err(unknown());
        };
        let (n, k) = shape
            .strip_prefix("m64n")
            .and_then(|s| s.split_once('k'))
            .and_then(|(n, k)| Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?)))
            .ok_or_else(unknown)?;
        let (a, b) = (Elem::parse(a).ok_or_else(unknown)?, Elem::parse(b).ok_or_else(unknown)?);
        let acc = match d {
            "f16" => Accum::F16,
            "f32" => Accum::F32,
            "s32" => Accum::S32,
            _ => return Err(unknown()),
        };
        let types = match (a, b) {
            (F16, F16) | (E4m3 | E5m2, E4m3 | E5m2) => matches!(acc, Accum::F16 | Accum::F32),
            (Bf16, Bf16) | (Tf32, Tf32) => acc == Accum::F32,
            (S8 | U8, S8 | U8) => acc == Accum::S32,
            _ => false,
        };
        let integer = acc == Accum::S32;
        let columns = match integer {
            true => n == 8 || n == 24 || n % 16 == 0,
            false => n % 8 == 0,
        };
        if types && columns && (1..=256).contains(&n) && k * a.bits() == 256 && (integer || !satfinite) {
            Ok(Self { n, k, a, b, acc, satfinite })
        } else {
            Err(unknown())
        }
    }

    /// 32-bit registers of D in each lane.
    pub fn regs_d(&self) -> usize {
        self.n / 8 * if self.acc == Accum::F16 { 2 } else { 4 }
    }

    /// Operations that the instruction of a whole warpgroup stands for: a multiply and an add count two.
    pub fn flops(&self) -> u64 {
        2 * (64 * self.n * self.k) as u64
    }

    /// Whether the operands may be MN-major in shared memory.
    pub fn transposes(&self) -> bool {
        self.a.bits() == 16
    }

    /// Reads the 4 registers of A of warp `warp` (0-3 in its warpgroup) from shared memory: 32 chunks.
    ///
    /// `read` fills 16 bytes from a shared-memory address. `transposed` (`imm-trans-a`) is MN-major.
    ///
    /// # Errors
    /// What `read` says.
    pub fn load_a<E>(
        &self,
        descriptor: u64,
        transposed: bool,
        warp: u32,
        mut read: impl FnMut(u32, &mut Row) -> Result<(), E>,
    ) -> Result<[Reg; 4], E> {
        let descriptor = Descriptor::decode(descriptor);
        let mut a = [[0; 32]; 4];
        for (i, a) in a.iter_mut().enumerate() {
            block(a, &descriptor, transposed, 2 * warp + i as u32 % 2, i as u32 / 2, &mut read)?;
        }
        Ok(a)
    }

    /// Reads B from shared memory: for each 8 columns the 2 registers of its fragment, 16 chunks.
    ///
    /// `transposed` (`imm-trans-b`) is MN-major.
    ///
    /// # Errors
    /// What `read` says.
    pub fn load_b<E>(
        &self,
        descriptor: u64,
        transposed: bool,
        mut read: impl FnMut(u32, &mut Row) -> Result<(), E>,
    ) -> Result<Vec<[Reg; 2]>, E> {
        let descriptor = Descriptor::decode(descriptor);
        let mut b = vec![[[0; 32]; 2]; self.n / 8];
        for (tile, b) in b.iter_mut().enumerate() {
            for (q, b) in b.iter_mut().enumerate() {
                block(b, &descriptor, transposed, tile as u32, q as u32, &mut read)?;
            }
        }
        Ok(b)
    }

    /// The rows of one warp: `d = a*b`, plus `d` if `scale` says so.
    ///
    /// # Panics
    /// If `d` is not [`Wgmma::regs_d`] registers, or `b` not of N columns.
    pub fn run(&self, d: &mut [Reg], a: [&Reg; 4], b: &[[Reg; 2]], scale: Scale) {
        assert_eq!((d.len(), b.len()), (self.regs_d(), self.n / 8), "{self:?}");
        dispatch(Warp { form: self, d, a, b, scale });
    }
}

/// Reads the 8x32-byte block of rows (or columns) `8*u ..` and half `q` of K into one fragment register.
#[inline]
fn block<E>(
    out: &mut Reg,
    descriptor: &Descriptor,
    transposed: bool,
    u: u32,
    q: u32,
    read: &mut impl FnMut(u32, &mut Row) -> Result<(), E>,
) -> Result<(), E> {
    let mut rows = [[0; 16]; 8];
    for (i, row) in rows.iter_mut().enumerate() {
        let address = match transposed {
            false => descriptor.k_major(8 * u + i as u32, q),
            true => descriptor.mn_major(u, 8 * q + i as u32),
        };
        read(address, row)?;
    }
    ldmatrix(std::slice::from_mut(out), &rows, transposed);
    Ok(())
}

/// [`Wgmma::run`].
struct Warp<'a> {
    form: &'a Wgmma,
    d: &'a mut [Reg],
    a: [&'a Reg; 4],
    b: &'a [[Reg; 2]],
    scale: Scale,
}

impl Kernel for Warp<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        match (self.form.a, self.form.b) {
            (Elem::F16, _) => self.run_sized::<S, kind::F16, kind::F16, 2>(),
            (Elem::Bf16, _) => self.run_sized::<S, kind::Bf16, kind::Bf16, 2>(),
            (Elem::Tf32, _) => self.run_sized::<S, kind::Tf32, kind::Tf32, 1>(),
            (Elem::E4m3, Elem::E4m3) => self.run_sized::<S, kind::E4m3, kind::E4m3, 4>(),
            (Elem::E4m3, _) => self.run_sized::<S, kind::E4m3, kind::E5m2, 4>(),
            (Elem::E5m2, Elem::E4m3) => self.run_sized::<S, kind::E5m2, kind::E4m3, 4>(),
            (Elem::E5m2, _) => self.run_sized::<S, kind::E5m2, kind::E5m2, 4>(),
            (Elem::S8, Elem::S8) => self.run_sized::<S, kind::S8, kind::S8, 4>(),
            (Elem::S8, _) => self.run_sized::<S, kind::S8, kind::U8, 4>(),
            (Elem::U8, Elem::S8) => self.run_sized::<S, kind::U8, kind::S8, 4>(),
            (Elem::U8, _) => self.run_sized::<S, kind::U8, kind::U8, 4>(),
            (Elem::S4 | Elem::U4, _) => unreachable!("wgmma has no 4-bit form"),
        }
    }
}

impl Warp<'_> {
    #[inline(always)]
    fn run_sized<S: Simd, A: Kind, B: Kind, const E: usize>(self) {
        let a = [[self.a[0], self.a[1]], [self.a[2], self.a[3]]];
        let per_tile = self.d.len() / self.b.len();
        for (d, b) in self.d.chunks_exact_mut(per_tile).zip(self.b) {
            let mut b_out = MaybeUninit::uninit();
            let b = b_tile::<S, B, E, 2>(&mut b_out, b.each_ref());
            if self.scale.negate_a != self.scale.negate_b {
                b.negate();
            }
            let c: [Reg; 4] = match self.scale.accumulate {
                true => std::array::from_fn(|i| d.get(i).copied().unwrap_or([0; 32])),
                false => [[0; 32]; 4],
            };
            let c = &c.each_ref()[..per_tile];
            let mut acc = load_acc::<S>(self.form.acc, c);
            S::tile::<A, E, 2>(&mut acc, a, b);
            store_acc::<S>(self.form.acc, self.form.satfinite, d, &acc, c);
        }
    }
}
