//! Pixels as rows of patches; see `reference/patchify.rs`.

use super::{Op, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct Patchify {
    y: Tensor,
    x: Tensor,
    patch: usize,
}

/// `y[b*(G*G) + i*G + j, (c*P + u)*P + v] = x[b, c, P*i + u, P*j + v]`, `G = S/P`.
///
/// `y` `(B*G*G, K)` with `K >= 3*P*P`, columns from `3*P*P` on zero; `x` `(B, 3, S, S)` f32. What a convolution with stride P reads, as a matmul's rows.
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
    fn run(&self, m: &Memory) {
        let [b, c, h, w] = [0, 1, 2, 3].map(|i| self.x.shape[i]);
        reference::patchify(m.f32_mut(&self.y), m.f32(&self.x), [b, c, h, w], self.patch);
    }
}
