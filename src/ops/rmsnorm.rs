//! RMSNorm over the last dimension; see `reference/rmsnorm.rs`.

use super::Op;
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct RmsNorm {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    eps: f32,
}

/// `y[n,c] = w[c] * x[n,c] * rsqrt(mean_c(x[n,c]²) + eps)`; `y`, `x` `(N, C)`, `w` `(C)`.
pub fn rmsnorm(y: &Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Result<impl Op + use<>> {
    let [n, c] = x.dims("rmsnorm x")?;
    y.expect("rmsnorm y", &[n, c])?;
    w.expect("rmsnorm w", &[c])?;
    Ok(RmsNorm { y: y.clone(), x: x.clone(), w: w.clone(), eps })
}

impl Op for RmsNorm {
    fn kind(&self) -> &'static str {
        "rmsnorm"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn run(&self, m: &Memory) {
        reference::rmsnorm(m.f32_mut(&self.y), m.f32(&self.x), &m.vector(&self.w), self.eps);
    }
}
