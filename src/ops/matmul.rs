//! `y = epilogue(x @ wᵀ + b)`; see `reference/matmul.rs`.

use super::{Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// What happens to the product before it is stored.
#[derive(Clone, Debug, Default)]
pub enum Epilogue {
    /// `y = v`
    #[default]
    Store,
    /// `y = v/2 * (1 + erf(v/√2))`
    Gelu,
    /// `y = max(v, 0)`
    Relu,
    /// `y += v`: the residual stream, in place.
    Residual,
    /// `y += ls[n] * v`, `ls` `(N)`: InternViT's layer scale.
    ScaledResidual(Tensor),
    /// `y = silu(v) * (x @ w3ᵀ)`, `w3` `(N, K)`: SwiGLU; `w` is the gate.
    SiluMul(Tensor),
}

/// The op; built with [`matmul`] and the methods here.
pub struct Matmul {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Option<Tensor>,
    epilogue: Epilogue,
}

/// `y (M,N) = x (M,K) @ w (N,K)ᵀ`; leading extents of `y` and `x` are taken as rows, trailing ones of `w` as columns.
pub fn matmul(y: &Tensor, x: &Tensor, w: &Tensor) -> Result<Matmul> {
    let (m, k) = x.matrix();
    let n = w.shape.first().copied().unwrap_or(0);
    w.expect_len("matmul w", n * k)?;
    expect_equal("matmul y columns", y.matrix().1, n)?;
    expect_equal("matmul y rows", y.matrix().0, m)?;
    Ok(Matmul { y: y.clone(), x: x.clone(), w: w.clone(), b: None, epilogue: Epilogue::Store })
}

impl Matmul {
    /// Adds `b` `(N)` to the product.
    pub fn bias(mut self, b: &Tensor) -> Result<Self> {
        b.expect("matmul b", &[self.w.shape[0]])?;
        self.b = Some(b.clone());
        Ok(self)
    }

    /// Sets the epilogue.
    pub fn then(mut self, epilogue: Epilogue) -> Result<Self> {
        match &epilogue {
            Epilogue::ScaledResidual(ls) => ls.expect("matmul ls", &[self.w.shape[0]])?,
            Epilogue::SiluMul(w3) => w3.expect("matmul w3", &self.w.shape)?,
            _ => {}
        }
        self.epilogue = epilogue;
        Ok(self)
    }
}

impl Op for Matmul {
    fn kind(&self) -> &'static str {
        match self.epilogue {
            Epilogue::Store => "matmul",
            Epilogue::Gelu => "matmul_gelu",
            Epilogue::Relu => "matmul_relu",
            Epilogue::Residual => "matmul_add",
            Epilogue::ScaledResidual(_) => "matmul_scale_add",
            Epilogue::SiluMul(_) => "matmul_silu_mul",
        }
    }
    fn reads(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.x, &self.w];
        all.extend(&self.b);
        match &self.epilogue {
            Epilogue::Residual => all.push(&self.y),
            Epilogue::ScaledResidual(ls) => all.extend([&self.y, ls]),
            Epilogue::SiluMul(w3) => all.push(w3),
            _ => {}
        }
        all
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        let twice = if matches!(self.epilogue, Epilogue::SiluMul(_)) { 2 } else { 1 };
        2 * twice * (self.x.matrix().0 * self.w.len()) as u64
    }
    fn run(&self, m: &Memory) {
        let b = self.b.as_ref().map(|b| m.vector(b));
        let (mut ls, mut then) = (None, reference::Then::Store);
        match &self.epilogue {
            Epilogue::Store => {}
            Epilogue::Gelu => then = reference::Then::Gelu,
            Epilogue::Relu => then = reference::Then::Relu,
            Epilogue::Residual => then = reference::Then::Residual,
            Epilogue::ScaledResidual(t) => then = reference::Then::ScaledResidual(ls.insert(m.vector(t))),
            Epilogue::SiluMul(w3) => then = reference::Then::SiluMul(m.weights(w3)),
        }
        let n = self.w.shape[0];
        reference::matmul(
            m.f32_mut(&self.y),
            m.f32(&self.x),
            m.weights(&self.w),
            n,
            b.as_deref(),
            then,
            m.precision(),
        );
    }
}
