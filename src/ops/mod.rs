//! Operators, one file each: shape checks and cost here, `reference/<op>.rs` computes it plainly on the CPU.
//!
//! A constructor (`rmsnorm(...)`) checks its operands and returns the op, which holds them. An op can then be asked
//! what it reads and writes, what it costs, and to run on the CPU. It touches no device.

mod argmax;
mod attention;
mod attention_decode;
mod attention_paged;
mod attention_ranges;
mod conv3x3;
mod conv5x5;
mod copy;
mod dysample;
mod embed;
mod gather_rows;
mod launch;
mod layernorm;
mod mask_head;
mod matmul;
mod matmul_argmax;
mod matmul_small;
mod next_ids;
mod patchify;
mod pixel_shuffle;
mod preprocess;
mod rmsnorm;
mod rope_split;
mod sample;
mod sigmoid;
mod vit_tokens;

pub use argmax::argmax;
pub use attention::attention;
pub use attention_decode::{attention_decode, attention_parts};
pub use attention_paged::{KvPages, PAGE, attention_paged};
pub use attention_ranges::{KvCache, SEGMENT, attention_ranges};
pub use conv3x3::{CONV3X3_TILES, Conv3x3, conv3x3};
pub use conv5x5::conv5x5;
pub use copy::{copy, drop_cls};
pub use dysample::{dysample, dysample_offset};
pub use embed::embed;
pub use gather_rows::gather_rows;
pub use launch::{Arg, Gpu, Launch};
pub use layernorm::{add_layernorm, broadcast_add_layernorm, layernorm, shuffle_layernorm};
pub use mask_head::{DESCRIPTOR, STATS, mask_head};
pub use matmul::{Epilogue, MATMUL_TILES, Matmul, matmul, matmul_parts_room};
pub use matmul_argmax::{ARGMAX_TILES, MatmulArgmax, argmax_partials, matmul_argmax};
pub use matmul_small::SMALL_ROWS;
pub use next_ids::next_ids;
pub use patchify::patchify;
pub use pixel_shuffle::pixel_shuffle;
pub use preprocess::{PICTURE, preprocess};
pub use rmsnorm::rmsnorm;
pub use rope_split::{MAX_POSITIONS, rope_split, rope_split_paged};
pub use sample::sample;
pub use sigmoid::sigmoid;
pub use vit_tokens::vit_tokens;

use crate::device::cpu::Memory;
use crate::graph::{Cost, Tensor};
use crate::{Error, Result};

/// An operator with its operands.
pub trait Op: Send + Sync {
    /// The op's name, that of its file: `rmsnorm`.
    fn kind(&self) -> &'static str;

    /// Operands that are read; one that is updated in place is in both lists, the same `&Tensor`.
    fn reads(&self) -> Vec<&Tensor>;

    /// Operands that are written.
    fn writes(&self) -> Vec<&Tensor>;

    /// Floating point operations, a multiply-add counted as two; 0 where memory alone decides.
    fn flops(&self) -> u64 {
        0
    }

    /// FLOPs, and the bytes of every operand once.
    fn cost(&self) -> Cost {
        let bytes = |t: &&Tensor| (t.len() * t.dtype.bytes(2)) as u64;
        let bytes = self.reads().iter().chain(&self.writes()).map(bytes).sum();
        Cost { flops: self.flops(), bytes }
    }

    /// The kernels that compute it on `gpu`, in order; none for an op without elements.
    ///
    /// # Errors
    /// [`Error::Shape`] for extents that a kernel cannot index or align.
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let _ = gpu;
        Err(Error::shape(self.kind(), "an op with a kernel", "one for the CPU alone"))
    }

    /// Runs `reference/<op>.rs` on the CPU's memory. Takes slices of the operands that the op names alone, each once, one that is updated in
    /// place to write. The memory's type is the crate's own, so that no op is made elsewhere.
    fn run(&self, memory: &Memory);
}

/// An error unless `n` is a multiple of `of`.
fn expect_multiple(what: &str, n: usize, of: usize) -> Result<()> {
    if of != 0 && n.is_multiple_of(of) {
        Ok(())
    } else {
        Err(Error::shape(what, format!("a multiple of {of}"), n.to_string()))
    }
}

/// An error unless both numbers are equal.
fn expect_equal(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::shape(what, expected.to_string(), found.to_string())) }
}
