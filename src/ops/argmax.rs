//! Index of the largest value of each row; see `reference/argmax.rs`.

use super::Op;
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct Argmax {
    y: Tensor,
    x: Tensor,
}

/// `y[n] = argmax_c x[n,c]`, the first of equal ones; `y` `(N)` i32, `x` `(N, C)` f32.
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
    fn run(&self, m: &Memory) {
        reference::argmax(m.i32_mut(&self.y), m.f32(&self.x));
    }
}
