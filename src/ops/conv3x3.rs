//! 3x3 convolution, BatchNorm folded into its weights, ReLU; see `reference/conv3x3.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// The tile of kernels/conv3x3.cu, its threads, and its dynamic shared memory in bytes.
const TILE: [usize; 2] = [128, 64];
const BLOCK: u32 = 128;
const SMEM: u32 = 4 * (128 + 64) * 64;

struct Conv3x3 {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    side: usize,
}

/// `y[q, r*G + s, o] = relu(b[o] + Σ w[o, u, v, d] * x[q, (r+u-1)*G + (s+v-1), d])`, zero outside the map.
///
/// `y` `(Q, G*G, O)`, `x` `(Q, G*G, D)`, `w` `(O, 3, 3, D)` folded and reordered at load, `b` `(O)` f32.
pub fn conv3x3(y: &Tensor, x: &Tensor, w: &Tensor, b: &Tensor, side: usize) -> Result<impl Op + use<>> {
    let [q, p, d] = x.dims("conv3x3 x")?;
    expect_multiple("conv3x3 rows", p, side * side)?;
    let [o, ..] = w.dims::<4>("conv3x3 w")?;
    w.expect("conv3x3 w", &[o, 3, 3, d])?;
    b.expect("conv3x3 b", &[o])?;
    y.expect("conv3x3 y", &[q, p, o])?;
    Ok(Conv3x3 { y: y.clone(), x: x.clone(), w: w.clone(), b: b.clone(), side })
}

impl Op for Conv3x3 {
    fn kind(&self) -> &'static str {
        "conv3x3"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w, &self.b]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        2 * (self.x.matrix().0 * self.w.len()) as u64
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ((m, d), o) = (self.x.matrix(), self.w.shape[0]);
        expect_multiple("conv3x3 D", d, 8)?; // 16-byte copies
        let [rows, side, width, out] = [m, self.side, d, o].map(|n| int("conv3x3 extent", n));
        one(Launch {
            entry: "conv3x3_bf16",
            grid: [blocks("conv3x3 tiles", m.div_ceil(TILE[0]) * o.div_ceil(TILE[1]))?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: SMEM,
            args: args![&self.y, &self.x, &self.w, &self.b, rows?, side?, width?, out?],
        })
    }
    fn run(&self, m: &Memory) {
        let (y, x) = (m.f32_mut(&self.y), m.f32(&self.x));
        reference::conv3x3(y, x, m.weights(&self.w), m.f32(&self.b), self.side, m.precision());
    }
}
