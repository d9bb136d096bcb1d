//! RMSNorm over the last dimension; see `reference/rmsnorm.rs`.

use super::launch::{args, int, norm};
use super::{Gpu, Launch, Op};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// By vectors of eight a thread: `kVectors` in kernels/rmsnorm.cu.
const RMSNORM: [&str; 4] = ["rmsnorm_bf16_v1", "rmsnorm_bf16_v2", "rmsnorm_bf16_v4", "rmsnorm_bf16_v8"];

struct RmsNorm {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    eps: f32,
}

/// `y[n,c] = w[c] * x[n,c] * rsqrt(mean_c(x[n,c]²) + eps)`; `y`, `x` `(N, C)`, `w` `(C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
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
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, c) = self.x.matrix();
        norm("rmsnorm", RMSNORM, n, c, args![&self.y, &self.x, &self.w, int("rmsnorm C", c)?, self.eps])
    }
    fn run(&self, m: &Memory) {
        reference::rmsnorm(m.f32_mut(&self.y), m.f32(&self.x), &m.vector(&self.w), self.eps);
    }
}
