//! The models: functions that append nodes to a graph, one line a step, and the weights they use.

pub mod chat;
pub mod llm;
pub mod mask_decoder;
pub mod mllmseg;
pub mod projector;
pub mod vit;

use crate::Result;
use crate::checkpoint::{Checkpoint, config::Config};
use crate::graph::{DType, Place, Tensor};
use half::bf16;
use llm::Llm;
use projector::Projector;
use std::sync::Arc;
use vit::Vit;

/// Binds the parts that every checkpoint has: vision tower, projector, language model.
fn bind_parts(b: &mut Binder, config: &Config) -> Result<(Vit, Projector, Llm)> {
    Ok((
        Vit::bind(b, &config.vision_config, config.patches())?,
        Projector::bind(b, config)?,
        Llm::bind(b, &config.llm_config)?,
    ))
}

/// A checkpoint's weights and what was computed from them at load: all that a device needs to know of them.
#[derive(Clone, Default)]
pub struct Bound {
    checkpoint: Option<Arc<Checkpoint>>,
    derived: Arc<[(DType, Vec<f32>)]>,
}

impl Bound {
    /// Weight `id` (`Place::Weight`).
    pub fn weight(&self, id: u32) -> &[bf16] {
        self.checkpoint.as_ref().map_or(&[], |c| c.weight(id))
    }

    /// The ids of all weights that were bound.
    pub fn weight_ids(&self) -> Vec<u32> {
        self.checkpoint.as_ref().map_or(Vec::new(), |c| c.bound())
    }

    /// What was derived, by id, and what a device holds it as.
    pub fn all_derived(&self) -> &[(DType, Vec<f32>)] {
        &self.derived
    }

    /// Derived weight `id` (`Place::Derived`).
    pub fn derived(&self, id: u32) -> &[f32] {
        &self.derived[id as usize].1
    }
}

/// Binds weights: collects what is derived from them.
pub struct Binder<'a> {
    /// The checkpoint; every tensor taken from it is marked as bound.
    pub checkpoint: &'a Checkpoint,
    derived: Vec<(DType, Vec<f32>)>,
}

impl<'a> Binder<'a> {
    /// Nothing derived yet.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, derived: Vec::new() }
    }

    /// A tensor computed at load: f32 everywhere ([`DType::F32`]), or bf16 on a GPU ([`DType::Act`]).
    pub fn derive(
        &mut self,
        name: &str,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        values: Vec<f32>,
    ) -> Tensor {
        let t = Tensor::new(name, dtype, shape, Place::Derived(self.derived.len() as u32));
        assert_eq!(t.len(), values.len(), "derived `{name}`");
        self.derived.push((dtype, values));
        t
    }

    /// The values of a bound weight, in f32.
    pub fn values(&self, t: &Tensor) -> Vec<f32> {
        match t.place {
            Place::Weight(id) => self.checkpoint.weight(id).iter().map(|w| w.to_f32()).collect(),
            Place::Derived(id) => self.derived[id as usize].1.clone(),
            Place::State(_) | Place::Activation(_) => Vec::new(),
        }
    }

    /// Done: what the devices get.
    pub fn finish(self, checkpoint: Arc<Checkpoint>) -> Bound {
        Bound { checkpoint: Some(checkpoint), derived: self.derived.into() }
    }
}
