//! InternViT-300M, one tile at a time: patches, 24 pre-norm layers, no final norm.
//! Source: `modeling_intern_vit.py`; names are the checkpoint's under `vision_model.`.

use super::Binder;
use crate::Result;
use crate::checkpoint::{Checkpoint, config::VisionConfig};
use crate::graph::{DType, Graph, Tensor};
use crate::ops::{Epilogue, attention, layernorm, matmul, patchify, vit_tokens};

/// Weights of the vision tower.
pub struct Vit {
    patch_embedding: [Tensor; 2], // (C, 3*P*P, padded to a multiple of 8), (C)
    class_embedding: Tensor,      // (1, 1, C)
    position_embedding: Tensor,   // (1, 1+N, C)
    layers: Vec<VitLayer>,
}

/// Weights of one encoder layer.
struct VitLayer {
    norm1: [Tensor; 2], // (C), (C)
    qkv: [Tensor; 2],   // (3*C, C), (3*C): q|k|v, heads, head size
    proj: [Tensor; 2],  // (C, C), (C)
    ls1: Tensor,        // (C)
    norm2: [Tensor; 2], // (C), (C)
    fc1: [Tensor; 2],   // (F, C), (F)
    fc2: [Tensor; 2],   // (C, F), (C)
    ls2: Tensor,        // (C)
}

/// `name.weight` of the given shape and `name.bias` of its first extent.
pub(super) fn pair(ck: &Checkpoint, name: &str, shape: &[usize]) -> Result<[Tensor; 2]> {
    Ok([ck.tensor(&format!("{name}.weight"), shape)?, ck.tensor(&format!("{name}.bias"), &shape[..1])?])
}

impl Vit {
    /// Binds `vision_model.*`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for one that is missing, misshapen or of another type.
    pub fn bind(b: &mut Binder, cfg: &VisionConfig, patches: usize) -> Result<Self> {
        let ck = b.checkpoint;
        let (c, f, p) = (cfg.hidden_size, cfg.intermediate_size, cfg.patch_size);
        let at = |name: &str| format!("vision_model.embeddings.{name}");
        let layer = |l: usize| {
            let at = |name: &str| format!("vision_model.encoder.layers.{l}.{name}");
            Ok(VitLayer {
                norm1: pair(ck, &at("norm1"), &[c])?,
                qkv: pair(ck, &at("attn.qkv"), &[3 * c, c])?,
                proj: pair(ck, &at("attn.proj"), &[c, c])?,
                ls1: ck.tensor(&at("ls1"), &[c])?,
                norm2: pair(ck, &at("norm2"), &[c])?,
                fc1: pair(ck, &at("mlp.fc1"), &[f, c])?,
                fc2: pair(ck, &at("mlp.fc2"), &[c, f])?,
                ls2: ck.tensor(&at("ls2"), &[c])?,
            })
        };
        let [pw, pb] = pair(ck, &at("patch_embedding"), &[c, 3, p, p])?;
        let k = 3 * p * p;
        let padded = padded(k);
        let mut values = vec![0.0; c * padded];
        for (to, from) in values.chunks_exact_mut(padded).zip(b.values(&pw).chunks_exact(k)) {
            to[..k].copy_from_slice(from);
        }
        let pw = b.derive("patch_embedding.padded", DType::Act, [c, padded], values);
        Ok(Self {
            patch_embedding: [pw, pb],
            class_embedding: ck.tensor(&at("class_embedding"), &[1, 1, c])?,
            position_embedding: ck.tensor(&at("position_embedding"), &[1, 1 + patches * patches, c])?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }
}

/// Columns of a patch's row: kernels read rows 16 bytes at a time.
fn padded(k: usize) -> usize {
    k.next_multiple_of(8)
}

/// Columns of a patch's row, padded.
pub fn patch_columns(cfg: &VisionConfig) -> usize {
    padded(3 * cfg.patch_size * cfg.patch_size)
}

/// `pixel_values` `(B, 3, S, S)` f32 as the rows of patches that [`vit`] reads.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn patches(g: &mut Graph, cfg: &VisionConfig, pixel_values: &Tensor) -> Result<Tensor> {
    let [b, _, size, _] = pixel_values.dims("vit pixel_values")?;
    let patches = g.act("vit.patches", [b * (size / cfg.patch_size).pow(2), patch_columns(cfg)]);
    g.scope("vit.embeddings");
    g.push("patchify", patchify(&patches, pixel_values, cfg.patch_size)?);
    Ok(patches)
}

/// `patches` `(B*N, K)` of `b` tiles to the last layer's output `(B, 1+N, C)`, class token first.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn vit(g: &mut Graph, w: &Vit, cfg: &VisionConfig, patches: &Tensor, b: usize) -> Result<Tensor> {
    let (rows, c) = (patches.matrix().0, cfg.hidden_size);
    let h = g.act("vit.h", [b, 1 + rows / b, c]);

    g.scope("vit.embeddings");
    let embedded = g.act("vit.embedded", [rows, c]);
    let [pw, pb] = &w.patch_embedding;
    g.push("patch_embedding", matmul(&embedded, patches, pw)?.bias(pb)?);
    g.push("position_embedding", vit_tokens(&h, &embedded, &w.class_embedding, &w.position_embedding)?);
    g.tap("vit.embeddings", &h);
    layers(g, w, cfg, &h)?;
    Ok(h)
}

/// The encoder layers: reads and updates `h` `(B, 1+N, C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn layers(g: &mut Graph, w: &Vit, cfg: &VisionConfig, h: &Tensor) -> Result<()> {
    let [b, t, c] = h.dims("vit h")?;
    let (f, heads, eps) = (cfg.intermediate_size, cfg.num_attention_heads, cfg.layer_norm_eps as f32);
    let rows = b * t;
    let (x, qkv) = (g.act("vit.x", [rows, c]), g.act("vit.qkv", [rows, 3 * c]));
    let (o, mlp) = (g.act("vit.o", [rows, c]), g.act("vit.mlp", [rows, f]));
    for (l, w) in w.layers.iter().enumerate() {
        g.scope(format!("vit.{l}"));
        let [q, k, v] = [0, c, 2 * c].map(|col| qkv.cols(col, c));
        g.push("norm1", layernorm(&x.all(), h, &w.norm1[0], &w.norm1[1], eps)?); // x   (B*T, C)
        g.push("qkv", matmul(&qkv, &x, &w.qkv[0])?.bias(&w.qkv[1])?); // qkv (B*T, 3*C)
        g.push("attention", attention(&o, &q, &k, &v, b, heads)?); // o   (B*T, C)
        let ls1 = Epilogue::ScaledResidual(w.ls1.clone());
        g.push("proj", matmul(h, &o, &w.proj[0])?.bias(&w.proj[1])?.then(ls1)?); // h  += ls1 * (o @ projᵀ + b)
        g.push("norm2", layernorm(&x.all(), h, &w.norm2[0], &w.norm2[1], eps)?); // x   (B*T, C)
        g.push("fc1", matmul(&mlp, &x, &w.fc1[0])?.bias(&w.fc1[1])?.then(Epilogue::Gelu)?); // mlp (B*T, F)
        let ls2 = Epilogue::ScaledResidual(w.ls2.clone());
        g.push("fc2", matmul(h, &mlp, &w.fc2[0])?.bias(&w.fc2[1])?.then(ls2)?); // h  += ls2 * (mlp @ fc2ᵀ + b)
        g.tap(format!("vit.layer{l}"), h);
    }
    Ok(())
}
