//! LayerNorm over the last dimension, alone or of a sum; see `reference/layernorm.rs`.

use super::launch::{args, int, norm};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{Tensor, Window};
use crate::reference::{self, Summand};

/// By vectors of eight a thread: `kVectors` in kernels/layernorm.cu.
const LAYERNORM: [&str; 4] =
    ["layernorm_bf16_v1", "layernorm_bf16_v2", "layernorm_bf16_v4", "layernorm_bf16_v8"];

struct LayerNorm {
    y: Window,
    x: Tensor,
    add: Add,
    w: Tensor,
    b: Tensor,
    eps: f32,
}

enum Add {
    Nothing,
    Rows(Tensor),
    Broadcast {
        r: Tensor,
        image_of: Tensor,
    },
    /// Nothing added; `x` is a map of this side, read four pixels at a time.
    Shuffle(usize),
}

fn checked(y: Window, x: &Tensor, add: Add, w: &Tensor, b: &Tensor, eps: f32) -> Result<LayerNorm> {
    let c = x.matrix().1 * if matches!(add, Add::Shuffle(_)) { 4 } else { 1 };
    expect_equal("layernorm y width", y.width, c)?;
    w.expect("layernorm w", &[c])?;
    b.expect("layernorm b", &[c])?;
    Ok(LayerNorm { y, x: x.clone(), add, w: w.clone(), b: b.clone(), eps })
}

/// `y[n,c] = (x[n,c] - mean) * rsqrt(var + eps) * w[c] + b[c]`; `x` `(.., C)`, `y` a window of `C` columns, `w`, `b` `(C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn layernorm(y: &Window, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<impl Op + use<>> {
    expect_equal("layernorm rows", y.of.matrix().0, x.matrix().0)?;
    checked(y.clone(), x, Add::Nothing, w, b, eps)
}

/// `y = layernorm(pixel_shuffle(x))`: `x` `(B*G*G, C)`, `G` its `side`, `y` `(B*G*G/4, 4*C)`; see [`pixel_shuffle`](super::pixel_shuffle()).
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit, or an odd `side`.
pub fn shuffle_layernorm(
    y: &Tensor,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    side: usize,
    eps: f32,
) -> Result<impl Op + use<>> {
    let [n, c] = x.dims("shuffle_layernorm x")?;
    expect_multiple("shuffle_layernorm side", side, 2)?;
    expect_multiple("shuffle_layernorm rows", n, side * side)?;
    y.expect("shuffle_layernorm y", &[n / 4, 4 * c])?;
    checked(y.all(), x, Add::Shuffle(side), w, b, eps)
}

/// `y = layernorm(x + r)`: the post-norm of a residual block; `x`, `r`, `y` `(.., C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn add_layernorm(
    y: &Tensor,
    x: &Tensor,
    r: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
) -> Result<impl Op + use<>> {
    expect_equal("add_layernorm rows", y.matrix().0, x.matrix().0)?;
    r.expect_len("add_layernorm r", x.len())?;
    checked(y.all(), x, Add::Rows(r.clone()), w, b, eps)
}

/// `y[q,p] = layernorm(x[image_of[q],p] + r[q])`: one vector an expression, added to every row of its image.
///
/// `y` `(Q, P, C)`, `x` `(B, P, C)`, `r` `(Q, C)`, `image_of` `(Q)` i32 below `B`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn broadcast_add_layernorm(
    y: &Tensor,
    x: &Tensor,
    image_of: &Tensor,
    r: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
) -> Result<impl Op + use<>> {
    let [_, p, c] = x.dims("broadcast_add_layernorm x")?;
    let [q, _] = r.dims("broadcast_add_layernorm r")?;
    r.expect("broadcast_add_layernorm r", &[q, c])?;
    y.expect("broadcast_add_layernorm y", &[q, p, c])?;
    image_of.expect("broadcast_add_layernorm image_of", &[q])?;
    checked(y.all(), x, Add::Broadcast { r: r.clone(), image_of: image_of.clone() }, w, b, eps)
}

impl Op for LayerNorm {
    fn kind(&self) -> &'static str {
        "layernorm"
    }
    fn reads(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.x, &self.w, &self.b];
        match &self.add {
            Add::Nothing | Add::Shuffle(_) => {}
            Add::Rows(r) => all.push(r),
            Add::Broadcast { r, image_of } => all.extend([r, image_of]),
        }
        all
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y.of]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ((n, stride), c) = (self.y.of.matrix(), self.w.len());
        expect_multiple("layernorm y stride", stride, 8)?;
        let (r, image_of, per_q) = match &self.add {
            Add::Nothing | Add::Shuffle(_) => (None, None, 1),
            Add::Rows(r) => (Some(r), None, 1),
            Add::Broadcast { r, image_of } => (Some(r), Some(image_of), n / image_of.len().max(1)),
        };
        let (per_q, width) = (int("layernorm P", per_q)?, int("layernorm C", c)?);
        let stride = int("layernorm y stride", stride)?;
        let side = match self.add {
            Add::Shuffle(side) => {
                expect_multiple("shuffle_layernorm C", c, 32)?; // a thread's eight are of one pixel
                int("layernorm G", side)?
            }
            _ => 0,
        };
        let args =
            args![&self.y, stride, &self.x, r, image_of, per_q, &self.w, &self.b, width, self.eps, side];
        norm("layernorm", LAYERNORM, n, c, args)
    }
    fn run(&self, m: &Memory) {
        let mut shuffled = Vec::new();
        let x = match self.add {
            Add::Shuffle(side) => {
                reference::Short::resize(&mut shuffled, self.x.len());
                reference::pixel_shuffle(&mut shuffled, m.f32(&self.x), side, self.x.shape[1]);
                &shuffled
            }
            _ => m.f32(&self.x),
        };
        let add = match &self.add {
            Add::Nothing | Add::Shuffle(_) => Summand::Nothing,
            Add::Rows(r) => Summand::Rows(m.f32(r)),
            Add::Broadcast { r, image_of } => Summand::Broadcast { r: m.f32(r), image_of: m.i32(image_of) },
        };
        let (w, b) = (m.vector(&self.w), m.vector(&self.b));
        reference::layernorm(m.window_mut(&self.y), x, add, &w, &b, self.eps);
    }
}
