//! What the tensor and tensor-memory instructions of PTX compute, as pure functions of registers and bytes.
//!
//! A register is [`Reg`]: one 32-bit value a lane. Nothing here knows the executor: addresses, masks,
//! asynchrony and checks are its business; which lane holds which element, and what comes out, is decided here.

// Loops run over the indices that the layouts are written in.
#![allow(clippy::needless_range_loop)]

pub mod formats;
pub mod ldmatrix;
pub mod mma;
pub mod tensormap;
mod tile;
pub mod tma;
pub mod wgmma;
pub mod wmma;

pub use tile::Elem;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// One 32-bit register of a warp, indexed by lane.
pub type Reg = [u32; LANES];
