//! Four pixels' channels side by side (ps_version v2, scale 1/2); see `reference/pixel_shuffle.rs`.

use super::launch::{args, int, rows};
use super::{Gpu, Launch, Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct PixelShuffle {
    y: Tensor,
    x: Tensor,
    side: usize,
}

/// `y[b, r*(G/2) + s] = x[b, (2r,2s) | (2r,2s+1) | (2r+1,2s) | (2r+1,2s+1)]`, pixels of a `G*G` map.
///
/// `x` `(B*G*G, C)`, `y` `(B*G*G/4, 4*C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit, or an odd `side`.
pub fn pixel_shuffle(y: &Tensor, x: &Tensor, side: usize) -> Result<impl Op + use<>> {
    let [n, c] = x.dims("pixel_shuffle x")?;
    super::expect_multiple("pixel_shuffle side", side, 2)?;
    super::expect_multiple("pixel_shuffle rows", n, side * side)?;
    expect_equal("pixel_shuffle y columns", y.matrix().1, 4 * c)?;
    y.expect_len("pixel_shuffle y", x.len())?;
    Ok(PixelShuffle { y: y.clone(), x: x.clone(), side })
}

impl Op for PixelShuffle {
    fn kind(&self) -> &'static str {
        "pixel_shuffle"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, c) = self.x.matrix();
        let [width, side] = [int("pixel_shuffle C", c)?, int("pixel_shuffle G", self.side)?];
        rows("pixel_shuffle", "pixel_shuffle_bf16", n, c, args![&self.y, &self.x, width, side])
    }
    fn run(&self, m: &Memory) {
        reference::pixel_shuffle(m.f32_mut(&self.y), m.f32(&self.x), self.side, self.x.shape[1]);
    }
}
