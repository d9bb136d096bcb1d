//! The mask decoder's pixels to masks at each source picture's size; see `reference/mask_head.rs`.

use super::conv5x5::lines;
use super::launch::{args, blocks, blocks_yz, int};
use super::{Gpu, Launch, Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// i32 fields of a mask's descriptor: first word of `bits`; height and width, in source pixels.
pub const DESCRIPTOR: usize = 3;

/// i32 fields of a mask's statistics: pixels that are set; x0, y0, x1, y1 of those, `i32::MAX` and -1 where none is; whether a probability is
/// NaN; sum of the set pixels' values in units of 2^-30, low and high half.
pub const STATS: usize = 8;

/// Threads of a block: `kBlock` in kernels/mask_head.cu.
const BLOCK: u32 = 256;

struct MaskHead {
    bits: Tensor,
    stats: Tensor,
    probability: Option<Tensor>,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    masks: Tensor,
}

/// `p = sigmoid(conv5x5(x))`; bit `s%32` of word `r*ceil(W/32) + s/32` of mask q: whether the bilinear resize (`align_corners=False`) of `p[q]` to
/// `masks[q]`'s size is `>= 0.5` at `(r, s)`.
///
/// `x` `(Q, S, S)`, `w` `(1, 1, 5, 5)`, `b` `(1)`, `masks` `(Q, DESCRIPTOR)` i32; `bits` i32 with room for all masks, `stats` `(Q, STATS)` i32,
/// `probability` `(Q, S, S)` f32, `p`, where somebody asks for it.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn mask_head(
    bits: &Tensor,
    stats: &Tensor,
    probability: Option<&Tensor>,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    masks: &Tensor,
) -> Result<impl Op + use<>> {
    let [q, h, width] = x.dims("mask_head x")?;
    expect_equal("mask_head width", width, h)?;
    masks.expect("mask_head masks", &[q, DESCRIPTOR])?;
    stats.expect("mask_head stats", &[q, STATS])?;
    w.expect("mask_head w", &[1, 1, 5, 5])?;
    b.expect("mask_head b", &[1])?;
    probability.map_or(Ok(()), |p| p.expect("mask_head probability", &x.shape))?;
    let [bits, stats, x, w, b, masks] = [bits, stats, x, w, b, masks].map(Tensor::clone);
    Ok(MaskHead { bits, stats, probability: probability.cloned(), x, w, b, masks })
}

impl Op for MaskHead {
    fn kind(&self) -> &'static str {
        "mask_head"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w, &self.b, &self.masks]
    }
    fn writes(&self) -> Vec<&Tensor> {
        [&self.bits, &self.stats].into_iter().chain(&self.probability).collect()
    }
    fn flops(&self) -> u64 {
        50 * self.x.len() as u64
    }
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let [q, s, _] = self.x.dims("mask_head x")?;
        if q == 0 {
            return Ok(Vec::new());
        }
        // Lines of x and of p.
        let (height, smem) = lines(gpu, q, s, |h| 2 * (h + 6) * s + 4 * (h + 1) * s)?;
        // A block that goes on downwards reads each line once. Lower ones are there to fill the GPU.
        let few = 2 * gpu.sms as usize;
        let fills = |n: &usize| height > 8 && q * s.div_ceil(height * n) >= few;
        let steps = [8, 4, 2].into_iter().find(fills).unwrap_or(1);
        let [side, count, tall, down] = [s, q, height, steps].map(|n| int("mask_head extent", n));
        let cleared = (q * STATS).div_ceil(BLOCK as usize);
        let grid = [blocks("mask_head S", s.div_ceil(height * steps))?, blocks_yz("mask_head Q", q)?, 1];
        let start = |entry, grid, smem, args| Launch { entry, grid, block: [BLOCK, 1, 1], smem, args };
        let (bits, stats, p) = (&self.bits, &self.stats, self.probability.as_ref());
        Ok(vec![
            start("mask_head_clear", [blocks("mask_head Q", cleared)?, 1, 1], 0, args![stats, count?]),
            start(
                "mask_head_bf16",
                grid,
                smem,
                args![bits, stats, p, &self.x, &self.w, &self.b, &self.masks, side?, tall?, down?],
            ),
        ])
    }
    fn run(&self, m: &Memory) {
        let (w, b) = (m.vector(&self.w), m.vector(&self.b));
        reference::mask_head(
            m.i32_mut(&self.bits),
            m.i32_mut(&self.stats),
            self.probability.as_ref().map(|p| m.f32_mut(p)),
            m.f32(&self.x),
            (&w, b[0]),
            m.i32(&self.masks),
            self.x.shape[1],
        );
    }
}
