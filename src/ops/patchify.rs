//! Pixels as rows of patches; see `reference/patchify.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// Threads a block, and patches beside each other that it makes: `kBlock`, `kPatches` in kernels/patchify.cu.
const BLOCK: u32 = 256;
const PATCHES: usize = 8;

struct Patchify {
    y: Tensor,
    x: Tensor,
    patch: usize,
}

/// `y[b*(G*G) + i*G + j, (c*P + u)*P + v] = x[b, c, P*i + u, P*j + v]`, `G = S/P`.
///
/// `y` `(B*G*G, K)` with `K >= 3*P*P`, columns from `3*P*P` on zero; `x` `(B, 3, S, S)` f32. What a convolution with stride P reads, as a matmul's rows.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit, or sides that `patch` does not divide.
pub fn patchify(y: &Tensor, x: &Tensor, patch: usize) -> Result<impl Op + use<>> {
    let [b, c, h, w] = x.dims("patchify x")?;
    expect_multiple("patchify H", h, patch)?;
    expect_multiple("patchify W", w, patch)?;
    let [_, k] = y.dims("patchify y")?;
    y.expect("patchify y", &[b * (h / patch) * (w / patch), k.max(c * patch * patch)])?;
    Ok(Patchify { y: y.clone(), x: x.clone(), patch })
}

impl Op for Patchify {
    fn kind(&self) -> &'static str {
        "patchify"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let [b, channels, h, w] = self.x.dims("patchify x")?;
        let (k, p) = (self.y.matrix().1, self.patch);
        expect_equal("patchify width", w, h)?;
        expect_multiple("patchify K", k, 8)?;
        let g = h / p;
        let [channels, side, p, k] = [channels, g, p, k].map(|n| int("patchify extent", n));
        let smem = 2 * PATCHES * self.y.matrix().1;
        one(Launch {
            entry: "patchify_bf16",
            grid: [
                blocks("patchify G", g.div_ceil(PATCHES))?,
                blocks_yz("patchify G", g)?,
                blocks_yz("patchify B", b)?,
            ],
            block: [BLOCK, 1, 1],
            smem: blocks("patchify K", smem)?,
            args: args![&self.y, &self.x, channels?, side?, p?, k?],
        })
    }
    fn run(&self, m: &Memory) {
        let [b, c, h, w] = [0, 1, 2, 3].map(|i| self.x.shape[i]);
        reference::patchify(m.f32_mut(&self.y), m.f32(&self.x), [b, c, h, w], self.patch);
    }
}
