//! 5x5 convolution of one channel; see `reference/conv5x5.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// Outputs of a block and its threads: `kWidth`, `kHeight`, `kBlock` in kernels/conv5x5.cu.
const WIDTH: usize = 64;
const HEIGHT: usize = 32;
const BLOCK: u32 = 256;

struct Conv5x5 {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor,
}

/// `y[q,r,s] = b + Σ w[u,v] * x[q, r+u-2, s+v-2]`, zero outside; `y` f32 and `x` `(Q, S, S)`, `w` `(1, 1, 5, 5)`, `b` `(1)`.
pub fn conv5x5(y: &Tensor, x: &Tensor, w: &Tensor, b: &Tensor) -> Result<impl Op + use<>> {
    let [q, h, wd] = x.dims("conv5x5 x")?;
    y.expect("conv5x5 y", &[q, h, wd])?;
    w.expect("conv5x5 w", &[1, 1, 5, 5])?;
    b.expect("conv5x5 b", &[1])?;
    Ok(Conv5x5 { y: y.clone(), x: x.clone(), w: w.clone(), b: b.clone() })
}

impl Op for Conv5x5 {
    fn kind(&self) -> &'static str {
        "conv5x5"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w, &self.b]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        50 * self.x.len() as u64
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let [q, s, width] = self.x.dims("conv5x5 x")?;
        expect_equal("conv5x5 width", width, s)?;
        expect_multiple("conv5x5 S", s, 2)?; // pixels are read two at a time
        one(Launch {
            entry: "conv5x5_bf16",
            grid: [
                blocks("conv5x5 S", s.div_ceil(WIDTH))?,
                blocks_yz("conv5x5 S", s.div_ceil(HEIGHT))?,
                blocks_yz("conv5x5 Q", q)?,
            ],
            block: [BLOCK, 1, 1],
            smem: 0,
            args: args![&self.y, &self.x, &self.w, &self.b, int("conv5x5 S", s)?],
        })
    }
    fn run(&self, m: &Memory) {
        let (w, b) = (m.vector(&self.w), m.vector(&self.b));
        reference::conv5x5(m.f32_mut(&self.y), m.f32(&self.x), &w, b[0], [self.x.shape[1], self.x.shape[2]]);
    }
}
