//! Tensor maps: the 128-byte objects that tell the tensor copy engine (TMA) what a tensor in global memory looks like.
//!
//! On a GPU the object is opaque, made by `cuTensorMapEncodeTiled` and read by `cp.async.bulk.tensor`. Here it is a layout of our
//! own, little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0-7 | `"PTXSIM\0\1"` |
//! | 8-13 | rank, data type, swizzle, interleave, L2 promotion, fill: the driver's codes |
//! | 16-23 | global address |
//! | 24-43 | global dimensions less one, 5 x u32 |
//! | 48-79 | global strides in bytes of dimensions 1-4, 4 x u64 |
//! | 80-89 | box dimensions, 5 x u16 |
//! | 90-94 | element strides, 5 x u8 |
//! | the rest | 0 |
//!
//! Source of the rules: `cuTensorMapEncodeTiled` in `cuda.h` 13.0, and PTX ISA 9.0, "Tensors". Dimension 0 is the innermost.

use super::wgmma::Swizzle;
use thiserror::Error;

/// Bytes of the object; it has to be aligned to 64.
pub const BYTES: usize = 128;

const MAGIC: [u8; 8] = *b"PTXSIM\0\x01";

/// `CUtensorMapDataType`, but for the packed 4- and 6-bit types of sm_100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the driver's names")]
pub enum DataType {
    Uint8,
    Uint16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    Float32,
    Float64,
    Bfloat16,
    Float32Ftz,
    Tfloat32,
    Tfloat32Ftz,
}

impl DataType {
    const ALL: [Self; 13] = [
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Int32,
        Self::Uint64,
        Self::Int64,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Bfloat16,
        Self::Float32Ftz,
        Self::Tfloat32,
        Self::Tfloat32Ftz,
    ];

    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Uint8 => 1,
            Self::Uint16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Uint64 | Self::Int64 | Self::Float64 => 8,
            _ => 4,
        }
    }

    const fn is_float(self) -> bool {
        matches!(
            self,
            Self::Float16
                | Self::Float32
                | Self::Float64
                | Self::Bfloat16
                | Self::Float32Ftz
                | Self::Tfloat32
                | Self::Tfloat32Ftz
        )
    }

    /// The NaN that fills what lies outside: the type's canonical one (the driver's documentation names none).
    const fn nan(self) -> u64 {
        match self {
            Self::Float16 | Self::Bfloat16 => 0x7fff,
            Self::Float64 => 0x7fff_ffff_ffff_ffff,
            _ => 0x7fff_ffff,
        }
    }
}

/// Why a tensor map cannot be made or read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorMapError {
    /// The driver refuses it, too (`CUDA_ERROR_INVALID_VALUE`).
    #[error("tensor map: {0}")]
    Invalid(String),
    /// Valid, but not implemented here: interleaved layouts, what only sm_100 has.
    #[error("tensor map: {0} is not implemented by this simulator")]
    Unsupported(String),
    /// The bytes were not made by [`TensorMap::to_bytes`].
    #[error("these 128 bytes are not a tensor map: expected one made by cuTensorMapEncodeTiled")]
    NotOne,
}

/// The arguments of `cuTensorMapEncodeTiled`, enumerations as the driver's codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiledParams<'a> {
    /// `tensorDataType`.
    pub data_type: u32,
    /// `globalAddress`.
    pub address: u64,
    /// `globalDim`, elements; its length is the rank.
    pub dims: &'a [u64],
    /// `globalStrides`, bytes, of dimensions 1 and up.
    pub strides: &'a [u64],
    /// `boxDim`, elements.
    pub box_dims: &'a [u32],
    /// `elementStrides`.
    pub element_strides: &'a [u32],
    /// `interleave`.
    pub interleave: u32,
    /// `swizzle`.
    pub swizzle: u32,
    /// `l2Promotion`; it changes no result.
    pub l2_promotion: u32,
    /// `oobFill`: 0 zeros, 1 NaN.
    pub oob_fill: u32,
}

/// A tiled tensor map, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// Element type.
    pub data_type: DataType,
    /// Address of element (0, 0, ...).
    pub address: u64,
    /// Dimensions, 1 to 5.
    pub rank: usize,
    /// Elements of each dimension; 1 beyond the rank.
    pub dims: [u64; 5],
    /// Bytes from one index to the next, of each dimension; 0 beyond the rank.
    pub strides: [u64; 5],
    /// Extent of the box that an instruction copies, in elements of the tensor.
    pub box_dims: [u32; 5],
    /// Of these extents, only each so-manieth element is copied; always 1 in dimension 0.
    pub element_strides: [u32; 5],
    /// How chunks are exchanged in shared memory.
    pub swizzle: Swizzle,
    /// Whether NaN, not zero, stands in shared memory for what lies outside the tensor.
    pub fill_nan: bool,
    l2_promotion: u8,
}

impl TensorMap {
    /// `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// [`TensorMapError`], saying which argument breaks which rule.
    pub fn tiled(params: &TiledParams) -> Result<Self, TensorMapError> {
        let invalid = |what: String| Err(TensorMapError::Invalid(what));
        let rank = params.dims.len();
        if !(1..=5).contains(&rank) {
            return invalid(format!("tensorRank is {rank}; it must be 1 to 5"));
        }
        for (name, len, want) in [
            ("globalStrides", params.strides.len(), rank - 1),
            ("boxDim", params.box_dims.len(), rank),
            ("elementStrides", params.element_strides.len(), rank),
        ] {
            if len != want {
                return invalid(format!("{name} has {len} entries; rank {rank} needs {want}"));
            }
        }
        let data_type = match params.data_type {
            code @ 0..=12 => DataType::ALL[code as usize],
            code @ 13..=15 => {
                return Err(TensorMapError::Unsupported(format!("data type {code} (packed, sm_100)")));
            }
            code => return invalid(format!("tensorDataType {code} does not exist")),
        };
        let size = u64::from(data_type.bytes());
        let swizzle = match params.swizzle {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            3 => Swizzle::B128,
            code @ 4..=6 => return Err(TensorMapError::Unsupported(format!("swizzle {code} (sm_100)"))),
            code => return invalid(format!("swizzle {code} does not exist")),
        };
        match params.interleave {
            0 => {}
            1 | 2 if rank < 3 => {
                return invalid(format!("rank {rank} with an interleaved layout, which needs 3"));
            }
            code @ 1..=2 => return Err(TensorMapError::Unsupported(format!("interleave {code}"))),
            code => return invalid(format!("interleave {code} does not exist")),
        }
        if params.l2_promotion > 3 {
            return invalid(format!("l2Promotion {} does not exist", params.l2_promotion));
        }
        match params.oob_fill {
            0 => {}
            1 if data_type.is_float() => {}
            1 => return invalid(format!("oobFill NaN with {data_type:?}, which has none")),
            code => return invalid(format!("oobFill {code} does not exist")),
        }
        if !params.address.is_multiple_of(16) {
            return invalid(format!("globalAddress {:#x} is not a multiple of 16", params.address));
        }
        for (i, &dim) in params.dims.iter().enumerate() {
            if !(1..=1 << 32).contains(&dim) {
                return invalid(format!("globalDim[{i}] is {dim}; it must be 1 to 2^32"));
            }
        }
        for (i, &stride) in params.strides.iter().enumerate() {
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                return invalid(format!(
                    "globalStrides[{i}] is {stride}; it must be a multiple of 16 below 2^40"
                ));
            }
        }
        for (i, &extent) in params.box_dims.iter().enumerate() {
            if !(1..=256).contains(&extent) {
                return invalid(format!("boxDim[{i}] is {extent}; it must be 1 to 256"));
            }
        }
        for (i, &stride) in params.element_strides.iter().enumerate() {
            if !(1..=8).contains(&stride) {
                return invalid(format!("elementStrides[{i}] is {stride}; it must be 1 to 8"));
            }
        }
        let inner = u64::from(params.box_dims[0]) * size;
        if !inner.is_multiple_of(16) {
            return invalid(format!("boxDim[0] is {inner} bytes; it must be a multiple of 16"));
        }
        if swizzle != Swizzle::None && inner > u64::from(swizzle.span()) {
            return invalid(format!(
                "boxDim[0] is {inner} bytes, more than the {}-byte swizzle",
                swizzle.span()
            ));
        }
        let mut map = Self {
            data_type,
            address: params.address,
            rank,
            dims: [1; 5],
            strides: [0; 5],
            box_dims: [1; 5],
            element_strides: [1; 5],
            swizzle,
            fill_nan: params.oob_fill == 1,
            l2_promotion: params.l2_promotion as u8,
        };
        map.dims[..rank].copy_from_slice(params.dims);
        map.strides[0] = size;
        map.strides[1..rank].copy_from_slice(params.strides);
        map.box_dims[..rank].copy_from_slice(params.box_dims);
        map.element_strides[..rank].copy_from_slice(params.element_strides);
        map.element_strides[0] = 1; // "TMA doesn't support the stride for dimension zero"
        Ok(map)
    }

    /// The object.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(&MAGIC);
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        };
        let codes =
            [self.rank as u8, self.data_type as u8, swizzle, 0, self.l2_promotion, self.fill_nan.into()];
        out[8..14].copy_from_slice(&codes);
        out[16..24].copy_from_slice(&self.address.to_le_bytes());
        for i in 0..5 {
            out[24 + 4 * i..][..4].copy_from_slice(&((self.dims[i] - 1) as u32).to_le_bytes());
            out[80 + 2 * i..][..2].copy_from_slice(&(self.box_dims[i] as u16).to_le_bytes());
            out[90 + i] = self.element_strides[i] as u8;
        }
        for i in 1..5 {
            out[40 + 8 * i..][..8].copy_from_slice(&self.strides[i].to_le_bytes());
        }
        out
    }

    /// Reads the object back, and checks it again: a kernel may have written it.
    ///
    /// # Errors
    /// [`TensorMapError`] if it is none, or breaks a rule.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Result<Self, TensorMapError> {
        if bytes[..8] != MAGIC {
            return Err(TensorMapError::NotOne);
        }
        let rank = usize::from(bytes[8]).min(5);
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0u64, |x, &byte| x << 8 | u64::from(byte))
        };
        let dims: [u64; 5] = std::array::from_fn(|i| number(24 + 4 * i, 4) + 1);
        let strides: [u64; 4] = std::array::from_fn(|i| number(48 + 8 * i, 8));
        let box_dims: [u32; 5] = std::array::from_fn(|i| number(80 + 2 * i, 2) as u32);
        let element_strides: [u32; 5] = std::array::from_fn(|i| bytes[90 + i].into());
        Self::tiled(&TiledParams {
            data_type: bytes[9].into(),
            address: number(16, 8),
            dims: &dims[..rank],
            strides: &strides[..rank.saturating_sub(1)],
            box_dims: &box_dims[..rank],
            element_strides: &element_strides[..rank],
            interleave: bytes[11].into(),
            swizzle: bytes[10].into(),
            l2_promotion: bytes[12].into(),
            oob_fill: bytes[13].into(),
        })
    }

    /// `cuTensorMapReplaceAddress`.
    ///
    /// # Errors
    /// [`TensorMapError::Invalid`] if `address` is not a multiple of 16.
    pub fn replace_address(&mut self, address: u64) -> Result<(), TensorMapError> {
        if !address.is_multiple_of(16) {
            let what = format!("globalAddress {address:#x} is not a multiple of 16");
            return Err(TensorMapError::Invalid(what));
        }
        self.address = address;
        Ok(())
    }

    /// Elements that a box has along dimension `i` in shared memory: `ceil(boxDim / elementStride)`.
    pub fn extent(&self, i: usize) -> u32 {
        self.box_dims[i].div_ceil(self.element_strides[i])
    }

    /// Bytes from one innermost row of a box to the next in shared memory.
    ///
    /// With a swizzle, rows shorter than its span still take all of it.
    pub fn row_pitch(&self) -> u32 {
        match self.swizzle {
            Swizzle::None => self.row_bytes(),
            swizzle => swizzle.span(),
        }
    }

    /// Bytes of an innermost row of a box.
    pub fn row_bytes(&self) -> u32 {
        self.box_dims[0] * self.data_type.bytes()
    }

    /// Bytes that a copy of a box adds to its mbarrier's transaction count: all of the box, whatever lies outside.
    ///
    /// At most 256^5 * 8 by the rules above, though no such box fits into shared memory: hence 64 bits.
    pub fn box_bytes(&self) -> u64 {
        u64::from(self.row_bytes()) * self.rows()
    }

    /// Bytes of shared memory from the first to the last of a box.
    pub fn shared_bytes(&self) -> u64 {
        u64::from(self.row_pitch()) * self.rows()
    }

    fn rows(&self) -> u64 {
        (1..5).map(|i| u64::from(self.extent(i))).product()
    }

    /// The bits of an element outside the tensor.
    pub fn fill(&self) -> u64 {
        if self.fill_nan { self.data_type.nan() } else { 0 }
    }
}
