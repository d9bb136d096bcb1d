//! The mask decoder: detail from the vision tower, semantics from the language model, one mask an expression.
//! Source: `RESDecoder`, mllmseg/mllmseg_internvl.py; names are the checkpoint's under `res_decoder.`.

use super::{Binder, vit::pair};
use crate::Result;
use crate::checkpoint::config::Config;
use crate::graph::{DType, Graph, Tensor, Window};
use crate::ops::{
    Epilogue, add_layernorm, attention, broadcast_add_layernorm, conv3x3, conv5x5, copy, dysample,
    dysample_offset, gather_rows, layernorm, mask_head, matmul, sigmoid,
};
use crate::reference::fold_batchnorm;

/// PyTorch's default, which the published decoder uses everywhere.
const EPS: f32 = 1e-5;

/// Weights of the mask decoder, D channels wide.
pub struct MaskDecoder {
    img_llm_down: [Tensor; 2], // (D, H), (D)
    text_down: [Tensor; 2],    // (D, H), (D)
    ca_layer_v2l: DecoderLayer,
    offset: [Tensor; 2],           // (8*groups, D, 1, 1), (8*groups)
    init_pos: Tensor,              // (1, 8*groups, 1, 1)
    text_out_adapter: [Tensor; 2], // (D, 3*D), (D)
    ca_layer_vl: DecoderLayer,
    conv1: [Tensor; 2], // (P*P, 3, 3, D), (P*P): BatchNorm folded in
    conv2: [Tensor; 2], // (1, 1, 5, 5), (1)
    width: usize,
    heads: usize,
    groups: usize,
}

/// Weights of one post-norm decoder layer and the norm behind it.
struct DecoderLayer {
    self_attn: Attention,
    multihead_attn: Attention,
    linear1: [Tensor; 2],    // (D, D), (D)
    linear2: [Tensor; 2],    // (D, D), (D)
    norms: [[Tensor; 2]; 3], // (D), (D)
    norm: [Tensor; 2],       // (D), (D)
}

struct Attention {
    in_proj: [Tensor; 2],  // (3*D, D), (3*D): q|k|v
    out_proj: [Tensor; 2], // (D, D), (D)
}

impl Attention {
    fn bind(b: &Binder, name: &str, d: usize) -> Result<Self> {
        let ck = b.checkpoint;
        let in_proj = [("weight", vec![3 * d, d]), ("bias", vec![3 * d])];
        let [w, bias] = in_proj.map(|(kind, shape)| ck.tensor(&format!("{name}.in_proj_{kind}"), &shape));
        Ok(Self { in_proj: [w?, bias?], out_proj: pair(ck, &format!("{name}.out_proj"), &[d, d])? })
    }

    /// Rows `part*D..end*D` of the packed projection, 0 q, 1 k, 2 v.
    fn rows(&self, part: usize, end: usize) -> [Tensor; 2] {
        let d = self.out_proj[1].len();
        self.in_proj.each_ref().map(|t| t.rows(part * d..end * d))
    }
}

impl DecoderLayer {
    fn bind(b: &Binder, name: &str, d: usize) -> Result<Self> {
        let ck = b.checkpoint;
        let at = |part: &str| format!("res_decoder.{name}.decoder.layers.0.{part}");
        Ok(Self {
            self_attn: Attention::bind(b, &at("self_attn"), d)?,
            multihead_attn: Attention::bind(b, &at("multihead_attn"), d)?,
            linear1: pair(ck, &at("linear1"), &[d, d])?,
            linear2: pair(ck, &at("linear2"), &[d, d])?,
            norms: [
                pair(ck, &at("norm1"), &[d])?,
                pair(ck, &at("norm2"), &[d])?,
                pair(ck, &at("norm3"), &[d])?,
            ],
            norm: pair(ck, &format!("res_decoder.{name}.decoder.norm"), &[d])?,
        })
    }
}

impl MaskDecoder {
    /// Binds `res_decoder.*` and folds the BatchNorm into `conv1`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`](crate::checkpoint::Checkpoint::tensor) and of
    /// [`Checkpoint::decoder_width`](crate::checkpoint::Checkpoint::decoder_width).
    pub fn bind(b: &mut Binder, cfg: &Config) -> Result<Self> {
        let ck = b.checkpoint;
        let (d, h) = (ck.decoder_width()?, cfg.llm_config.hidden_size);
        let (groups, cells) = (cfg.res_decoder.groups, cfg.vision_config.patch_size.pow(2));
        let at = |name: &str| format!("res_decoder.{name}");
        let offset = ck.tensor(&at("upsample_adapter_l.offset.weight"), &[8 * groups, d, 1, 1])?;
        let conv = pair(ck, &at("conv1.0"), &[cells, d, 3, 3])?;
        let [gamma, beta] = pair(ck, &at("conv1.1"), &[cells])?;
        let mean = ck.tensor(&at("conv1.1.running_mean"), &[cells])?;
        let var = ck.tensor(&at("conv1.1.running_var"), &[cells])?;
        let [w, bias, gamma, beta, mean, var] =
            [&conv[0], &conv[1], &gamma, &beta, &mean, &var].map(|t| b.values(t));
        let (w, bias) = fold_batchnorm(&w, &bias, [&gamma, &beta, &mean, &var], f64::from(EPS));
        let conv1 = [
            b.derive("conv1.folded", DType::Act, [cells, 3, 3, d], w),
            b.derive("conv1.folded_bias", DType::F32, [cells], bias),
        ];
        let ck = b.checkpoint;
        Ok(Self {
            img_llm_down: pair(ck, &at("img_llm_down"), &[d, h])?,
            text_down: pair(ck, &at("text_down"), &[d, h])?,
            ca_layer_v2l: DecoderLayer::bind(b, "ca_layer_v2l", d)?,
            offset: [offset, ck.tensor(&at("upsample_adapter_l.offset.bias"), &[8 * groups])?],
            init_pos: ck.tensor(&at("upsample_adapter_l.init_pos"), &[1, 8 * groups, 1, 1])?,
            text_out_adapter: pair(ck, &at("text_out_adapter"), &[d, 3 * d])?,
            ca_layer_vl: DecoderLayer::bind(b, "ca_layer_vl", d)?,
            conv1,
            conv2: pair(ck, &at("conv2"), &[1, 1, 5, 5])?,
            width: d,
            heads: cfg.res_decoder.nhead,
            groups,
        })
    }

    /// Channels, D.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// The part that no expression touches, once an image: `sa = norm1(Z + self_attn(Z))` of `ca_layer_vl`, `(B, P, D)`.
///
/// `f_vit` `(B*P, D)` patches of the vision tower, `f_llm` `(B*P/4, H)` hidden states that predict the image tokens, `sa` written.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn image(
    g: &mut Graph,
    w: &MaskDecoder,
    sa: &Tensor,
    f_vit: &Tensor,
    f_llm: &Tensor,
    side: usize,
) -> Result<()> {
    let (d, n) = (w.width, f_vit.shape[0]);
    let (b, m) = (n / (side * side), f_llm.shape[0]);
    g.scope("dec");
    g.tap("dec.in.img_vit", f_vit);
    g.tap("dec.in.img_llm", f_llm);
    let (f16, cat) = (g.act("dec.f16", [m, d]), g.act("dec.cat", [n, 3 * d]));
    g.push("img_llm_down", matmul(&f16, f_llm, &w.img_llm_down[0])?.bias(&w.img_llm_down[1])?); // f16 (B*P/4, D)
    g.tap("dec.img_llm_down", &f16);

    let l = &w.ca_layer_v2l;
    g.scope("dec.ca_layer_v2l");
    let x = g.act("dec.x", [n, d]);
    self_attention(g, w, l, &x, f_vit, b)?;
    let y = g.act("dec.v2l", [n, d]);
    let c = cross_attention(g, w, l, &x, &f16, b)?;
    g.push("norm2", add_layernorm(&y, &x, &c, &l.norms[1][0], &l.norms[1][1], EPS)?); // y = norm2(x + c)
    feed_forward(g, l, &cat.cols(0, d), &y)?; // F_v2l into the first third
    g.tap_as("dec.ca_layer_v2l", &cat.cols(0, d), &[n, d], false);
    g.scope("dec");
    let third = cat.cols(d, d);
    g.push("f_vit", copy(&third, f_vit)?); // F_vit into the second

    let (off, offset) =
        (g.act("dec.offset_conv", [m, 8 * w.groups]), g.buffer("dec.offset", DType::F32, [m, 8 * w.groups]));
    g.push("dysample_offset_conv", matmul(&off, &f16, &w.offset[0])?.bias(&w.offset[1])?); // off (B*P/4, 8*groups)
    let map = [8 * w.groups, side / 2, side / 2];
    g.tap_as("dec.dysample_offset_conv", &off.all(), &map, true);
    g.push("dysample_offset", dysample_offset(&offset, &off, &w.init_pos)?);
    g.tap_as("dec.dysample_offset", &offset.all(), &map, true);
    g.push("dysample", dysample(&cat.cols(2 * d, d), &f16, &offset, side / 2, w.groups)?); // F_up into the last
    g.tap_as("dec.dysample", &cat.cols(2 * d, d), &[d, side, side], true);

    let z = g.act("dec.z", [n, d]);
    g.push("text_out_adapter", matmul(&z, &cat, &w.text_out_adapter[0])?.bias(&w.text_out_adapter[1])?); // z (B*P, D)
    g.tap("dec.text_out_adapter", &z);
    g.scope("dec.ca_layer_vl");
    self_attention(g, w, &w.ca_layer_vl, sa, &z, b)
}

/// The part of each expression, up to the pixels `(Q, S, S)` of the model's input size that the last convolution reads.
///
/// `sa` `(B, P, D)` from [`image`], `image_of` `(Q)` i32, `t_q` `(Q, H)` hidden states that predict `[SEG]`. `fold`: the cross-attention over
/// one text token is one vector an expression (softmax of one score is 1); without it, it is computed as written.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn expressions(
    g: &mut Graph,
    w: &MaskDecoder,
    sa: &Tensor,
    image_of: &Tensor,
    t_q: &Tensor,
    side: usize,
    fold: bool,
) -> Result<Tensor> {
    let (d, q) = (w.width, t_q.shape[0]);
    let [b, p, _] = sa.dims("mask decoder sa")?;
    let l = &w.ca_layer_vl;
    g.scope("dec");
    g.tap_as("dec.in.text_src", &t_q.all(), &[q, 1, t_q.shape[1]], false);
    let t = g.act("dec.t", [q, d]);
    g.push("text_down", matmul(&t, t_q, &w.text_down[0])?.bias(&w.text_down[1])?); // t (Q, D)
    g.tap_as("dec.text_down", &t.all(), &[q, 1, d], false);

    g.scope("dec.ca_layer_vl");
    let x = g.act("dec.vl.x", [q, p, d]);
    let [gamma, beta] = &l.norms[1];
    if fold {
        let ([vw, vb], [ow, ob]) = (l.multihead_attn.rows(2, 3), &l.multihead_attn.out_proj);
        let (v, c) = (g.act("dec.v", [q, d]), g.act("dec.c", [q, d]));
        g.push("multihead_attn.v", matmul(&v, &t, &vw)?.bias(&vb)?); // v (Q, D)
        g.push("multihead_attn.out_proj", matmul(&c, &v, ow)?.bias(ob)?); // c (Q, D)
        g.push("norm2", broadcast_add_layernorm(&x, sa, image_of, &c, gamma, beta, EPS)?); // x = norm2(sa[image_of] + c)
    } else {
        let own = g.act("dec.sa", [q, p * d]);
        g.push("sa", gather_rows(&own, &sa.reshape([b, p * d]), image_of)?);
        let own = own.reshape([q * p, d]);
        let c = cross_attention(g, w, l, &own, &t, q)?;
        g.push("norm2", add_layernorm(&x, &own, &c, gamma, beta, EPS)?);
    }
    let y = g.act("dec.vl", [q, p, d]);
    feed_forward(g, l, &y.all(), &x)?;
    g.tap_as("dec.ca_layer_vl", &y.all(), &[q, p, d], false);

    g.scope("dec");
    let size = side * w.conv1[1].len().isqrt();
    let pixels = g.act("dec.pixels", [q, size, size]);
    g.push("conv1", conv3x3(&pixels, &y, &w.conv1[0], &w.conv1[1], side)?); // pixels (Q, S, S)
    g.tap_as("dec.map448", &pixels.all(), &[q, 1, size, size], false);
    Ok(pixels)
}

/// The end of [`expressions`] as masks at their sources' sizes: `bits`, `stats`, and `probability` where it is asked for; see [`mask_head`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn masks(
    g: &mut Graph,
    w: &MaskDecoder,
    [bits, stats, places]: [&Tensor; 3],
    probability: Option<&Tensor>,
    pixels: &Tensor,
) -> Result<()> {
    g.scope("out");
    g.push("mask_head", mask_head(bits, stats, probability, pixels, &w.conv2[0], &w.conv2[1], places)?); // (h, w) each
    Ok(())
}

/// The end of [`expressions`] step by step: `mask` `(Q, S, S)` f32, the probabilities.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn probabilities(g: &mut Graph, w: &MaskDecoder, mask: &Tensor, pixels: &Tensor) -> Result<()> {
    let [q, size, _] = pixels.dims("mask decoder pixels")?;
    let pre = g.buffer("dec.pre_sigmoid", DType::F32, [q, size, size]);
    g.scope("dec");
    g.push("conv2", conv5x5(&pre, pixels, &w.conv2[0], &w.conv2[1])?); // pre    (Q, S, S)
    g.tap_as("dec.pre_sigmoid", &pre.all(), &[q, 1, size, size], false);
    g.push("mask", sigmoid(mask, &pre)?); // mask   (Q, S, S)
    g.tap_as("dec.mask", &mask.all(), &[q, size, size], false);
    Ok(())
}

/// `y = norm1(x + self_attn(x))`, each of `b` items on its own.
fn self_attention(
    g: &mut Graph,
    w: &MaskDecoder,
    l: &DecoderLayer,
    y: &Tensor,
    x: &Tensor,
    b: usize,
) -> Result<()> {
    let (n, d) = x.matrix();
    let [iw, ib] = &l.self_attn.in_proj;
    let [ow, ob] = &l.self_attn.out_proj;
    let (qkv, o, r) = (g.act("dec.qkv", [n, 3 * d]), g.act("dec.o", [n, d]), g.act("dec.r", [n, d]));
    let [q, k, v] = [0, d, 2 * d].map(|col| qkv.cols(col, d));
    g.push("self_attn.in_proj", matmul(&qkv, x, iw)?.bias(ib)?); // qkv (N, 3*D)
    g.push("self_attn", attention(&o, &q, &k, &v, b, w.heads)?); // o   (N, D)
    g.push("self_attn.out_proj", matmul(&r, &o, ow)?.bias(ob)?); // r   (N, D)
    g.push("norm1", add_layernorm(y, x, &r, &l.norms[0][0], &l.norms[0][1], EPS)?); // y   (N, D)
    Ok(())
}

/// Each of `b` items' rows of `x` attend to its rows of `memory`; before the residual.
fn cross_attention(
    g: &mut Graph,
    w: &MaskDecoder,
    l: &DecoderLayer,
    x: &Tensor,
    memory: &Tensor,
    b: usize,
) -> Result<Tensor> {
    let ((n, d), m) = (x.matrix(), memory.matrix().0);
    let ([qw, qb], [kvw, kvb]) = (l.multihead_attn.rows(0, 1), l.multihead_attn.rows(1, 3));
    let [ow, ob] = &l.multihead_attn.out_proj;
    let (q, kv) = (g.act("dec.q", [n, d]), g.act("dec.kv", [m, 2 * d]));
    let (o, c) = (g.act("dec.o", [n, d]), g.act("dec.c", [n, d]));
    g.push("multihead_attn.q", matmul(&q, x, &qw)?.bias(&qb)?); // q  (N, D)
    g.push("multihead_attn.kv", matmul(&kv, memory, &kvw)?.bias(&kvb)?); // kv (M, 2*D)
    g.push("multihead_attn", attention(&o, &q.all(), &kv.cols(0, d), &kv.cols(d, d), b, w.heads)?); // o (N, D)
    g.push("multihead_attn.out_proj", matmul(&c, &o, ow)?.bias(ob)?); // c (N, D)
    Ok(c)
}

/// `y = norm(norm3(x + linear2(relu(linear1(x)))))`.
fn feed_forward(g: &mut Graph, l: &DecoderLayer, y: &Window, x: &Tensor) -> Result<()> {
    let (n, d) = x.matrix();
    let (f, r, z) = (g.act("dec.f", [n, d]), g.act("dec.r", [n, d]), g.act("dec.n3", [n, d]));
    let ([w1, b1], [w2, b2]) = (&l.linear1, &l.linear2);
    g.push("linear1", matmul(&f, x, w1)?.bias(b1)?.then(Epilogue::Relu)?); // f (N, D)
    g.push("linear2", matmul(&r, &f, w2)?.bias(b2)?); // r (N, D)
    g.push("norm3", add_layernorm(&z, x, &r, &l.norms[2][0], &l.norms[2][1], EPS)?); // z (N, D)
    g.push("norm", layernorm(y, &z, &l.norm[0], &l.norm[1], EPS)?); // y (N, D)
    Ok(())
}
