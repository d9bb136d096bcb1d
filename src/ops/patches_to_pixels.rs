//! Lays per-patch activations out as an image; see `reference/patches_to_pixels.rs`.

use super::launch::{args, elements, int};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct PatchesToPixels {
    y: Tensor,
    x: Tensor,
    side: usize,
    cell: usize,
}

/// `y[q, P*i + u, P*j + v] = x[q, i*G + j, P*u + v]`: `G*G` cells of `P*P` pixels.
///
/// `x` `(Q, G*G, P*P)`, `y` `(Q, G*P, G*P)`; activations after `conv1`'s ReLU, so `>= 0`; `i`, `j` count patches, `y` counts
/// pixels of the model's input, not of the source image.
/// Source: `RESDecoder.forward`, mllmseg/mllmseg_internvl.py, the two `permute`s after `conv1`.
pub fn patches_to_pixels(y: &Tensor, x: &Tensor, side: usize) -> Result<impl Op + use<>> {
    let [q, p, channels] = x.dims("patches_to_pixels x")?;
    expect_equal("patches_to_pixels cells", p, side * side)?;
    let cell = channels.isqrt();
    expect_equal("patches_to_pixels channels", channels, cell * cell)?;
    y.expect("patches_to_pixels y", &[q, side * cell, side * cell])?;
    Ok(PatchesToPixels { y: y.clone(), x: x.clone(), side, cell })
}

impl Op for PatchesToPixels {
    fn kind(&self) -> &'static str {
        "patches_to_pixels"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let [q, side, _] = self.y.dims("patches_to_pixels y")?;
        expect_multiple("patches_to_pixels S", side, 8)?;
        let [q, g, p] = [q, self.side, self.cell].map(|n| int("patches_to_pixels extent", n));
        let args = args![&self.y, &self.x, q?, g?, p?];
        elements("patches_to_pixels", "patches_to_pixels_bf16", self.y.len().div_ceil(8), args)
    }
    fn run(&self, m: &Memory) {
        reference::patches_to_pixels(m.f32_mut(&self.y), m.f32(&self.x), self.side, self.cell);
    }
}
