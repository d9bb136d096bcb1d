//! Index of the largest value of each row; see `reference/argmax.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// Threads a block: `kBlock` in kernels/argmax.cu.
const BLOCK: u32 = 1024;

struct Argmax {
    y: Tensor,
    x: Tensor,
}

/// `y[n] = argmax_c x[n,c]`, the first of equal ones; `y` `(N)` i32, `x` `(N, C)` f32.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn argmax(y: &Tensor, x: &Tensor) -> Result<impl Op + use<>> {
    let [n, _] = x.dims("argmax x")?;
    y.expect("argmax y", &[n])?;
    Ok(Argmax { y: y.clone(), x: x.clone() })
}

impl Op for Argmax {
    fn kind(&self) -> &'static str {
        "argmax"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, c) = self.x.matrix();
        one(Launch {
            entry: "argmax_f32",
            grid: [blocks("argmax N", n)?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: 0,
            args: args![&self.y, &self.x, int("argmax C", c)?],
        })
    }
    fn run(&self, m: &Memory) {
        reference::argmax(m.i32_mut(&self.y), m.f32(&self.x));
    }
}
