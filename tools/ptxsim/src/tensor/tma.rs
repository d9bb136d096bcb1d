//! What `cp.async.bulk.tensor` and `cp.reduce.async.bulk` move: which bytes of shared memory meet which of global memory, and
//! what a reduction makes of them.
//!
//! **Tiled copies.** The box starts at the coordinates of the instruction (which may be negative); element `i` of dimension `d` is
//! coordinate `start[d] + i*elementStride[d]`. In shared memory it is dense, dimension 0 innermost, each row of
//! dimension 0 at a multiple of [`TensorMap::row_pitch`]; a swizzle then exchanges 16-byte chunks by address. An element with
//! any coordinate outside `0 .. dim` is outside: a load fills it, a store leaves it out.
//! Source: PTX ISA 9.0, "Tensor data, tiled mode", "Interleave layout", "Swizzling modes", `cp.async.bulk.tensor`.
//!
//! **Reductions.** Elementwise `global = global op shared`, as `red` does it: PTX ISA 9.0, `cp.reduce.async.bulk`,
//! `cp.reduce.async.bulk.tensor`.

use super::formats::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::tensormap::{DataType, TensorMap};
use super::wgmma::Swizzle;
use crate::exec::float::ftz;

/// A run of bytes of a box, contiguous on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Shared-memory address.
    pub shared: u32,
    /// Global address; `None` outside the tensor.
    pub global: Option<u64>,
    /// Length.
    pub bytes: u32,
}

/// Calls `f` with every piece of the box at `coordinates` whose shared-memory image starts at `shared`.
///
/// Pieces come in the order of shared memory before swizzling, and together are [`TensorMap::box_bytes`] long. `shared` must be a
/// multiple of 128. Addresses beyond 32 bits wrap; check `shared + map.shared_bytes()` first.
///
/// # Errors
/// The first that `f` returns.
///
/// # Panics
/// If there are not as many coordinates as the tensor has dimensions.
pub fn for_each_piece<E>(
    map: &TensorMap,
    coordinates: &[i32],
    shared: u32,
    mut f: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    assert_eq!(coordinates.len(), map.rank, "one coordinate a dimension");
    let at = |d: usize, i: u32| {
        let start = i64::from(coordinates.get(d).copied().unwrap_or(0));
        start + i64::from(i * map.element_strides[d])
    };
    let inside = |d: usize, x: i64| x >= 0 && (x as u64) < map.dims[d];
    let size = map.data_type.bytes();
    // The part of a row inside dimension 0, bytes.
    let first = at(0, 0);
    let clip = |x: i64| x.clamp(0, map.box_dims[0].into()) as u32 * size;
    let (low, high) = (clip(-first), clip(map.dims[0] as i64 - first));
    let high = high.max(low);

    let mut row = shared;
    for i4 in 0..map.extent(4) {
        for i3 in 0..map.extent(3) {
            for i2 in 0..map.extent(2) {
                for i1 in 0..map.extent(1) {
                    let outer = [(1, at(1, i1)), (2, at(2, i2)), (3, at(3, i3)), (4, at(4, i4))];
                    let present = low < high && outer.iter().all(|&(d, x)| inside(d, x));
                    let (low, high) = if present { (low, high) } else { (0, 0) };
                    // Address of the row's element 0, which need not exist.
                    let base = outer.iter().fold(
                        map.address.wrapping_add_signed(first * i64::from(size)),
                        |address, &(d, x)| address.wrapping_add_signed(x.wrapping_mul(map.strides[d] as i64)),
                    );
                    let mut emit = |from: u32, to: u32, global: bool| -> Result<(), E> {
                        let step = if map.swizzle == Swizzle::None { u32::MAX } else { 16 };
                        let mut offset = from;
                        while offset < to {
                            // Up to the next chunk of shared memory: `row` is a multiple of 16.
                            let end = (offset / step * step).saturating_add(step).min(to);
                            let shared = map.swizzle.apply(row.wrapping_add(offset));
                            let global = global.then(|| base.wrapping_add(offset.into()));
                            f(Piece { shared, global, bytes: end - offset })?;
                            offset = end;
                        }
                        Ok(())
                    };
                    emit(0, low, false)?;
                    emit(low, high, true)?;
                    emit(high, map.row_bytes(), false)?;
                    row = row.wrapping_add(map.row_pitch());
                }
            }
        }
    }
    Ok(())
}

/// Fills a piece outside the tensor; elements start at a multiple of their size from it.
pub fn fill(map: &TensorMap, out: &mut [u8]) {
    let size = map.data_type.bytes() as usize;
    let bits = map.fill().to_le_bytes();
    for element in out.chunks_mut(size) {
        element.copy_from_slice(&bits[..element.len()]);
    }
}

/// The operation of a bulk reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "PTX's names")]
pub enum ReduceOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
}

/// The element type of a bulk reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "PTX's names")]
pub enum ReduceType {
    U32,
    S32,
    U64,
    S64,
    B32,
    B64,
    F16,
    Bf16,
    F32,
    /// f32 whose subnormal operands and results count as zeros of their sign.
    F32Ftz,
    F64,
}

/// A bulk reduction that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduce {
    op: ReduceOp,
    elem: ReduceType,
}

impl ReduceOp {
    /// The operation that PTX calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "add" => Self::Add,
            "min" => Self::Min,
            "max" => Self::Max,
            "inc" => Self::Inc,
            "dec" => Self::Dec,
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            _ => return None,
        })
    }
}

impl Reduce {
    /// The reduction of `op` and the type that PTX calls `elem`, if `cp.reduce.async.bulk` has it.
    ///
    /// f16 and bf16 additions are written with `.noftz`, which the caller strips.
    pub fn parse(op: &str, elem: &str) -> Option<Self> {
        use ReduceType::*;
        let elem = match elem {
            "u32" => U32,
            "s32" => S32,
            "u64" => U64,
            "s64" => S64,
            "b32" => B32,
            "b64" => B64,
            "f16" => F16,
            "bf16" => Bf16,
            // As `red` does it in global memory.
            "f32" => F32Ftz,
            "f64" => F64,
            _ => return None,
        };
        Self::new(ReduceOp::parse(op)?, elem)
    }

    /// The reduction of `op` on a tensor's elements, if `cp.reduce.async.bulk.tensor` has it.
    pub fn of_tensor(op: ReduceOp, data_type: DataType) -> Option<Self> {
        let bitwise = matches!(op, ReduceOp::And | ReduceOp::Or | ReduceOp::Xor);
        let elem = match data_type {
            DataType::Uint32 | DataType::Int32 if bitwise => ReduceType::B32,
            DataType::Uint64 | DataType::Int64 if bitwise => ReduceType::B64,
            DataType::Uint32 => ReduceType::U32,
            DataType::Int32 => ReduceType::S32,
            DataType::Uint64 => ReduceType::U64,
            DataType::Int64 => ReduceType::S64,
            DataType::Float16 => ReduceType::F16,
            DataType::Bfloat16 => ReduceType::Bf16,
            DataType::Float32 | DataType::Tfloat32 => ReduceType::F32,
            DataType::Float32Ftz | DataType::Tfloat32Ftz => ReduceType::F32Ftz,
            DataType::Float64 => ReduceType::F64,
            DataType::Uint8 | DataType::Uint16 => return None,
        };
        Self::new(op, elem)
    }

    fn new(op: ReduceOp, elem: ReduceType) -> Option<Self> {
        use ReduceType::*;
        let exists = match op {
            // Signed and unsigned 64-bit sums are the same bits; PTX names the type .u64.
            ReduceOp::Add => !matches!(elem, B32 | B64),
            ReduceOp::Min | ReduceOp::Max => matches!(elem, U32 | S32 | U64 | S64 | F16 | Bf16),
            ReduceOp::Inc | ReduceOp::Dec => elem == U32,
            ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => matches!(elem, B32 | B64),
        };
        exists.then_some(Self { op, elem })
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self.elem {
            ReduceType::F16 | ReduceType::Bf16 => 2,
            ReduceType::U64 | ReduceType::S64 | ReduceType::B64 | ReduceType::F64 => 8,
            _ => 4,
        }
    }

    /// `old op x`, bits of the element type in the low end of 64.
    ///
    /// Additions round to nearest even. `min` and `max` prefer a number to a NaN, and -0 is below +0.
    pub fn apply(self, old: u64, x: u64) -> u64 {
        use ReduceOp::*;
        let unsigned = |a: u64, b: u64| match self.op {
            Add => a.wrapping_add(b),
            Min => a.min(b),
            Max => a.max(b),
            Inc => {
                if a >= b {
                    0
                } else {
                    a + 1
                }
            }
            Dec => {
                if a == 0 || a > b {
                    b
                } else {
                    a - 1
                }
            }
            And => a & b,
            Or => a | b,
            Xor => a ^ b,
        };
        let signed = |a: i64, b: i64| match self.op {
            Min => a.min(b).cast_unsigned(),
            Max => a.max(b).cast_unsigned(),
            _ => a.wrapping_add(b).cast_unsigned(),
        };
        let half = |widen: fn(u16) -> f32, narrow: fn(f32) -> u16| {
            let (a, b) = (widen(old as u16), widen(x as u16));
            let order = a.total_cmp(&b);
            let first = match self.op {
                Min => order.is_le(),
                _ => order.is_ge(),
            };
            let result = match self.op {
                Add => narrow(a + b),
                _ if a.is_nan() && b.is_nan() => 0x7fff,
                _ if b.is_nan() || !a.is_nan() && first => old as u16,
                _ => x as u16,
            };
            u64::from(result)
        };
        match self.elem {
            ReduceType::U32 | ReduceType::B32 => unsigned(old, x) & 0xffff_ffff,
            ReduceType::U64 | ReduceType::B64 => unsigned(old, x),
            ReduceType::S32 => signed(i64::from(old as i32), i64::from(x as i32)) & 0xffff_ffff,
            ReduceType::S64 => signed(old.cast_signed(), x.cast_signed()),
            // An f32 sum of two halves is exact enough for a second rounding to change nothing.
            ReduceType::F16 => half(f16_to_f32, f32_to_f16),
            ReduceType::Bf16 => half(bf16_to_f32, f32_to_bf16),
            ReduceType::F32 | ReduceType::F32Ftz => {
                let flush = |x: f32| if self.elem == ReduceType::F32Ftz { ftz::<true>(x) } else { x };
                let value = |bits: u64| flush(f32::from_bits(bits as u32));
                let sum = flush(value(old) + value(x));
                u64::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
            }
            ReduceType::F64 => {
                let sum = f64::from_bits(old) + f64::from_bits(x);
                if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() }
            }
        }
    }

    /// Elementwise [`Reduce::apply`] of `src` onto `dst`, whole elements of the same length.
    pub fn apply_all(self, dst: &mut [u8], src: &[u8]) {
        let size = self.bytes();
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |x, &byte| x << 8 | u64::from(byte));
        for (dst, src) in dst.chunks_exact_mut(size).zip(src.chunks_exact(size)) {
            let result = self.apply(word(dst), word(src));
            dst.copy_from_slice(&result.to_le_bytes()[..size]);
        }
    }
}
