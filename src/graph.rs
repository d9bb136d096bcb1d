//! The static graph as data: tensors, nodes, names.

use std::fmt;
use std::sync::Arc;

/// What one element of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// An activation: bf16 on a GPU, f32 on the CPU.
    Act,
    /// A weight of the checkpoint.
    Bf16,
    /// f32 everywhere: pixels, probabilities, logits.
    F32,
    /// Token ids, positions, row numbers.
    I32,
    /// Pixels.
    U8,
}

/// Where a tensor's bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the checkpoint: `Checkpoint::weight(id)`.
    Weight(u32),
    /// In a buffer that outlives a plan (K/V cache, inputs, results), by number.
    State(u32),
    /// In the plan's arena, by number.
    Activation(u32),
}

/// A contiguous row-major tensor: what it is called, its shape, and where its bytes live.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The checkpoint's name for a weight, the graph's for everything else.
    pub name: Arc<str>,
    /// One element.
    pub dtype: DType,
    /// Row-major extents.
    pub shape: Vec<usize>,
    /// Where its bytes live.
    pub place: Place,
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape)
    }
}
