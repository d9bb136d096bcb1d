//! Logistic function; see `reference/sigmoid.rs`.

use super::launch::{args, elements, int};
use super::{Gpu, Launch, Op, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct Sigmoid {
    y: Tensor,
    x: Tensor,
}

/// `y = 1 / (1 + exp(-x))`, elementwise.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn sigmoid(y: &Tensor, x: &Tensor) -> Result<impl Op + use<>> {
    y.expect("sigmoid y", &x.shape)?;
    Ok(Sigmoid { y: y.clone(), x: x.clone() })
}

impl Op for Sigmoid {
    fn kind(&self) -> &'static str {
        "sigmoid"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        expect_multiple("sigmoid N", self.x.len(), 4)?;
        let args = args![&self.y, &self.x, int("sigmoid N", self.x.len())?];
        elements("sigmoid", "sigmoid_f32", self.x.len() / 4, args)
    }
    fn run(&self, m: &Memory) {
        reference::sigmoid(m.f32_mut(&self.y), m.f32(&self.x));
    }
}
