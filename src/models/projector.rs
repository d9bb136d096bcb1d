//! The projector `mlp1`: pixel shuffle, LayerNorm, two linear layers. Source: `InternVLChatModel.extract_feature`.

use super::{Binder, vit::pair};
use crate::Result;
use crate::checkpoint::config::Config;
use crate::graph::{Graph, Tensor};
use crate::ops::{Epilogue, layernorm, matmul, pixel_shuffle, shuffle_layernorm};

/// PyTorch's default.
const EPS: f32 = 1e-5;

/// Weights of `mlp1`.
pub struct Projector {
    norm: [Tensor; 2], // mlp1.0: (4*C), (4*C)
    fc1: [Tensor; 2],  // mlp1.1: (H, 4*C), (H)
    fc2: [Tensor; 2],  // mlp1.3: (H, H), (H)
}

impl Projector {
    /// Binds `mlp1.*`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for one that is missing, misshapen or of another type.
    pub fn bind(b: &Binder, cfg: &Config) -> Result<Self> {
        let (c, h) = (4 * cfg.vision_config.hidden_size, cfg.llm_config.hidden_size);
        Ok(Self {
            norm: pair(b.checkpoint, "mlp1.0", &[c])?,
            fc1: pair(b.checkpoint, "mlp1.1", &[h, c])?,
            fc2: pair(b.checkpoint, "mlp1.3", &[h, h])?,
        })
    }
}

/// `f_vit` `(B*G*G, C)` to image `tokens` `(B*G*G/4, H)`. `steps`: the shuffled map gets a buffer and a name, for a dump; the values are the same.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn projector(
    g: &mut Graph,
    w: &Projector,
    tokens: &Tensor,
    f_vit: &Tensor,
    side: usize,
    steps: bool,
) -> Result<()> {
    let (n, c) = f_vit.matrix();
    let (rows, h) = (n / 4, w.fc1[0].shape[0]);
    let y = g.act("mlp1.normed", [rows, 4 * c]);
    let z = g.act("mlp1.hidden", [rows, h]);
    g.scope("mlp1");
    let [gamma, beta] = &w.norm;
    if steps {
        let x = g.act("mlp1.shuffled", [rows, 4 * c]);
        g.push("pixel_shuffle", pixel_shuffle(&x, f_vit, side)?); // x      (B*256, 4*C)
        g.tap("pixel_shuffle", &x);
        g.push("0", layernorm(&y.all(), &x, gamma, beta, EPS)?); // y      (B*256, 4*C)
    } else {
        g.push("0", shuffle_layernorm(&y, f_vit, gamma, beta, side, EPS)?); // y      (B*256, 4*C)
    }
    let fc1 = matmul(&z, &y, &w.fc1[0])?.in_parts(g);
    g.push("1", fc1.bias(&w.fc1[1])?.then(Epilogue::Gelu)?); // z      (B*256, H)
    let fc2 = matmul(tokens, &z, &w.fc2[0])?.in_parts(g);
    g.push("3", fc2.bias(&w.fc2[1])?); // tokens (B*256, H)
    g.tap("mlp1", tokens);
    Ok(())
}
