//! Probabilities to each source picture's size, thresholded; see `reference/resize_mask.rs`.

use super::{Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// i32 fields of a mask's descriptor: first element of `y`, height, width, in source pixels.
pub const DESCRIPTOR: usize = 3;

struct ResizeMask {
    y: Tensor,
    score: Tensor,
    x: Tensor,
    masks: Tensor,
}

/// Bilinear resize (`align_corners=False`) of `x[q]` to `masks[q]`'s size, then `y = value >= 0.5`;
/// `score[q]` is the mean value over the mask's pixels, 0 for an empty mask.
///
/// `x` `(Q, S, S)` f32, `masks` `(Q, DESCRIPTOR)` i32, `y` u8 with room for all masks, `score` `(Q)` f32.
pub fn resize_mask(y: &Tensor, score: &Tensor, x: &Tensor, masks: &Tensor) -> Result<impl Op + use<>> {
    let [q, h, w] = x.dims("resize_mask x")?;
    expect_equal("resize_mask width", w, h)?;
    masks.expect("resize_mask masks", &[q, DESCRIPTOR])?;
    score.expect("resize_mask score", &[q])?;
    Ok(ResizeMask { y: y.clone(), score: score.clone(), x: x.clone(), masks: masks.clone() })
}

impl Op for ResizeMask {
    fn kind(&self) -> &'static str {
        "resize_mask"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.masks]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y, &self.score]
    }
    fn run(&self, m: &Memory) {
        let (y, score) = (m.u8_mut(&self.y), m.f32_mut(&self.score));
        reference::resize_mask(y, score, m.f32(&self.x), m.i32(&self.masks), self.x.shape[1]);
    }
}
