//! 5x5 convolution of one channel; see `reference/conv5x5.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;
use crate::{Error, Result};

/// Threads of a block: `kBlock` in kernels/conv5x5.cu.
const BLOCK: u32 = 256;

/// Dynamic shared memory that a block of any GPU may have, beside 1 KB of static arrays, and of which a multiprocessor has room for two blocks.
const ONE: usize = 98 << 10;
const TWO: usize = 48 << 10;

/// Lines of each of `q` maps `(S, S)` that a block makes, and its bytes of shared memory, which `room` knows by lines. A block reads a few lines more
/// than it makes: the most that leave every multiprocessor two blocks, of which one computes while the other waits.
///
/// # Errors
/// [`Error::Shape`] if not even a few lines fit, or 16-byte reads would not be aligned.
pub(super) fn lines(gpu: &Gpu, q: usize, s: usize, room: impl Fn(usize) -> usize) -> Result<(usize, u32)> {
    expect_multiple("conv5x5 S", s, 4)?;
    let fills = |h: &usize| room(*h) <= TWO && q * s.div_ceil(*h) >= 2 * gpu.sms as usize;
    let h = [28, 14, 8].into_iter().find(fills).unwrap_or(4);
    if room(h) > ONE {
        let found = format!("{s}, of which {h} lines take {}", room(h));
        return Err(Error::shape("conv5x5 S", format!("lines that fit {ONE} bytes"), found));
    }
    Ok((h, room(h) as u32))
}

struct Conv5x5 {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor,
}

/// `y[q,r,s] = b + Σ w[u,v] * x[q, r+u-2, s+v-2]`, zero outside; `y` f32 and `x` `(Q, S, S)`, `w` `(1, 1, 5, 5)`, `b` `(1)`.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
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
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let [q, s, width] = self.x.dims("conv5x5 x")?;
        expect_equal("conv5x5 width", width, s)?;
        let (height, smem) = lines(gpu, q, s, |h| 2 * (h + 4) * s)?;
        let [side, tall] = [s, height].map(|n| int("conv5x5 extent", n));
        one(Launch {
            entry: "conv5x5_bf16",
            grid: [blocks("conv5x5 S", s.div_ceil(height))?, blocks_yz("conv5x5 Q", q)?, 1],
            block: [BLOCK, 1, 1],
            smem,
            args: args![&self.y, &self.x, &self.w, &self.b, side?, tall?],
        })
    }
    fn run(&self, m: &Memory) {
        let (w, b) = (m.vector(&self.w), m.vector(&self.b));
        reference::conv5x5(m.f32_mut(&self.y), m.f32(&self.x), &w, b[0], [self.x.shape[1], self.x.shape[2]]);
    }
}
