//! Class token before the patches, position embedding added; see `reference/vit_tokens.rs`.

use super::launch::{args, int, rows};
use super::{Gpu, Launch, Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct VitTokens {
    y: Tensor,
    patches: Tensor,
    class: Tensor,
    position: Tensor,
}

/// `y[b,0] = class + position[0]`, `y[b,1+n] = patches[b,n] + position[1+n]`.
///
/// `y` `(B, 1+N, C)`, `patches` `(B*N, C)`, `class` `(1, 1, C)`, `position` `(1, 1+N, C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn vit_tokens(
    y: &Tensor,
    patches: &Tensor,
    class: &Tensor,
    position: &Tensor,
) -> Result<impl Op + use<>> {
    let [b, t, c] = y.dims("vit_tokens y")?;
    let [rows, width] = patches.dims("vit_tokens patches")?;
    expect_equal("vit_tokens patches and class tokens", rows + b, b * t)?;
    expect_equal("vit_tokens patches columns", width, c)?;
    class.expect("vit_tokens class", &[1, 1, c])?;
    position.expect("vit_tokens position", &[1, t, c])?;
    Ok(VitTokens { y: y.clone(), patches: patches.clone(), class: class.clone(), position: position.clone() })
}

impl Op for VitTokens {
    fn kind(&self) -> &'static str {
        "vit_tokens"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.patches, &self.class, &self.position]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ((n, c), tokens) = (self.y.matrix(), self.y.shape[1]);
        let [width, tokens] = [int("vit_tokens C", c)?, int("vit_tokens tokens", tokens)?];
        let args = args![&self.y, &self.patches, &self.class, &self.position, width, tokens];
        rows("vit_tokens", "vit_tokens_bf16", n, c, args)
    }
    fn run(&self, m: &Memory) {
        let (class, position) = (m.vector(&self.class), m.vector(&self.position));
        reference::vit_tokens(m.f32_mut(&self.y), m.f32(&self.patches), &class, &position);
    }
}
