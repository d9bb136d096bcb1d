//! Probabilities to each source picture's size, thresholded; see `reference/resize_mask.rs`.

use super::launch::{args, blocks, blocks_yz, int};
use super::{Gpu, Launch, Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// i32 fields of a mask's descriptor: first element of `y`, height, width, in source pixels.
pub const DESCRIPTOR: usize = 3;

/// Threads and pixels of a block: `kBlock`, `kPixels` in kernels/resize_mask.cu.
const BLOCK: u32 = 256;
const PIXELS: usize = 16384;

struct ResizeMask {
    y: Tensor,
    score: Tensor,
    sums: Tensor,
    x: Tensor,
    masks: Tensor,
}

/// Bilinear resize (`align_corners=False`) of `x[q]` to `masks[q]`'s size, then `y = value >= 0.5`;
/// `score[q]` is the mean value over the mask's pixels, 0 for an empty mask.
///
/// `x` `(Q, S, S)` f32, `masks` `(Q, DESCRIPTOR)` i32, `y` u8 with room for all masks, `score` `(Q)` f32; `sums` `(Q, 4)` i32 is room for a
/// kernel's counts.
pub fn resize_mask(
    y: &Tensor,
    score: &Tensor,
    sums: &Tensor,
    x: &Tensor,
    masks: &Tensor,
) -> Result<impl Op + use<>> {
    let [q, h, w] = x.dims("resize_mask x")?;
    expect_equal("resize_mask width", w, h)?;
    masks.expect("resize_mask masks", &[q, DESCRIPTOR])?;
    score.expect("resize_mask score", &[q])?;
    sums.expect("resize_mask sums", &[q, 4])?;
    Ok(ResizeMask {
        y: y.clone(),
        score: score.clone(),
        sums: sums.clone(),
        x: x.clone(),
        masks: masks.clone(),
    })
}

impl Op for ResizeMask {
    fn kind(&self) -> &'static str {
        "resize_mask"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.masks]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y, &self.score, &self.sums]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let [q, s, _] = self.x.dims("resize_mask x")?;
        let count = int("resize_mask Q", q)?;
        let start = |entry, grid, args| Launch { entry, grid, block: [BLOCK, 1, 1], smem: 0, args };
        let of_sums = [blocks("resize_mask Q", (2 * q).div_ceil(BLOCK as usize))?, 1, 1];
        let of_pixels = [
            blocks("resize_mask pixels", self.y.len().div_ceil(PIXELS).max(1))?,
            blocks_yz("resize_mask Q", q)?,
            1,
        ];
        let side = int("resize_mask S", s)?;
        Ok(vec![
            start("resize_mask_clear", of_sums, args![&self.sums, 2 * count]),
            start("resize_mask_f32", of_pixels, args![&self.y, &self.sums, &self.x, &self.masks, side]),
            start("resize_mask_score", of_sums, args![&self.score, &self.sums, count]),
        ])
    }
    fn run(&self, m: &Memory) {
        let (y, score) = (m.u8_mut(&self.y), m.f32_mut(&self.score));
        reference::resize_mask(y, score, m.f32(&self.x), m.i32(&self.masks), self.x.shape[1]);
    }
}
