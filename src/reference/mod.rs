//! The plain version of every operator, in f32 on the CPU: what every kernel is judged by, and what `--device cpu` runs.
//!
//! One function an operator, on slices; shapes were checked when the op was built. Sums over long axes are f64 where that is cheap,
//! so that this stays the oracle.

mod argmax;
mod attend;
mod attention;
mod attention_paged;
mod attention_ranges;
mod conv3x3;
mod conv5x5;
mod copy;
mod dysample;
mod embed;
mod gather_rows;
mod gemm;
mod layernorm;
mod mask_head;
pub mod math;
mod matmul;
mod matmul_argmax;
mod matvec;
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
pub use attention_paged::{Paging, attention_paged};
pub use attention_ranges::{Heads, attention_ranges};
pub use conv3x3::{conv3x3, fold_batchnorm};
pub use conv5x5::conv5x5;
pub use copy::copy;
pub use dysample::{dysample, dysample_offset};
pub use embed::embed;
pub use gather_rows::gather_rows;
pub use layernorm::{Summand, layernorm};
pub use mask_head::{mask_head, resize};
pub use matmul::{Then, matmul};
pub use matmul_argmax::matmul_argmax;
pub use next_ids::next_ids;
pub use patchify::patchify;
pub use pixel_shuffle::pixel_shuffle;
pub use preprocess::preprocess;
pub use rmsnorm::rmsnorm;
pub use rope_split::{Rows, inv_freq, rope_split, rope_split_paged};
pub use sample::{SAMPLE_DRAWS, SAMPLE_KNOBS, Sampling, choose, sample};
pub use sigmoid::sigmoid;
pub use vit_tokens::vit_tokens;

use bytemuck::Zeroable;
use half::bf16;

/// What the matmuls of the CPU device compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 operands and sums: the oracle.
    #[default]
    F32,
    /// bf16 operands, f32 sums, where the CPU has AVX-512 BF16; f32 elsewhere.
    Bf16,
}

/// A matrix of weights: the checkpoint's bf16, or f32 that was computed from it at load.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Mapped from the checkpoint.
    Bf16(&'a [bf16]),
    /// Folded at load.
    F32(&'a [f32]),
}

impl Weights<'_> {
    /// Elements `at..at + out.len()` as f32.
    #[inline]
    pub fn widen(&self, at: usize, out: &mut [f32]) {
        match self {
            Weights::Bf16(w) => widen(out, &w[at..at + out.len()]),
            Weights::F32(w) => out.copy_from_slice(&w[at..at + out.len()]),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Weights::Bf16(w) => w.len(),
            Weights::F32(w) => w.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether this CPU multiplies bf16 natively ([`Precision::Bf16`]).
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// There is no memory for so many bytes of a computation's own values: what it unwinds with, to the device that runs it.
pub(crate) struct Short(pub usize);

impl Short {
    /// Makes `values` as long as an operand's size decides; what is new is zero.
    pub fn resize<T: Zeroable + Clone>(values: &mut Vec<T>, n: usize) {
        let more = n.saturating_sub(values.len());
        if values.try_reserve_exact(more).is_err() {
            std::panic::resume_unwind(Box::new(Self(n * size_of::<T>()))); // calls no panic hook
        }
        values.resize(n, T::zeroed());
    }
}

/// bf16 to f32, exactly.
#[inline]
pub fn widen(out: &mut [f32], x: &[bf16]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

/// Columns `col..col + width` of a row-major matrix of `stride` columns, to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The whole matrix.
    pub data: &'a [f32],
    /// Its columns.
    pub stride: usize,
    /// First column.
    pub col: usize,
    /// Number of columns.
    pub width: usize,
}

/// The same, to write.
pub struct ViewMut<'a> {
    /// The whole matrix.
    pub data: &'a mut [f32],
    /// Its columns.
    pub stride: usize,
    /// First column.
    pub col: usize,
    /// Number of columns.
    pub width: usize,
}
