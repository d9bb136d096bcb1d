//! InternLM2.5: pre-norm decoder layers with grouped-query attention and SwiGLU over packed rows of any number of sequences.
//! Source: `modeling_internlm2.py`; names are the checkpoint's under `language_model.`.

use super::Binder;
use crate::Result;
use crate::checkpoint::config::LlmConfig;
use crate::graph::{DType, Graph, Tensor};
use crate::ops::{
    Epilogue, KvCache, SEGMENT, argmax, attention_ranges, embed, gather_rows, matmul, rmsnorm, rope_split,
};
use crate::reference::inv_freq;

/// Weights of the language model.
pub struct Llm {
    tok_embeddings: Tensor, // (V, H)
    layers: Vec<LlmLayer>,
    norm: Tensor,     // (H)
    output: Tensor,   // (V, H)
    inv_freq: Tensor, // (HD/2) f32
}

/// Weights of one decoder layer.
struct LlmLayer {
    attention_norm: Tensor, // (H)
    wqkv: Tensor,           // ((NH + 2*NKV)*HD, H); per KV head: its NH/NKV query heads, then K, then V
    wo: Tensor,             // (H, NH*HD)
    ffn_norm: Tensor,       // (H)
    w1: Tensor,             // (F, H) gate
    w3: Tensor,             // (F, H) up
    w2: Tensor,             // (H, F) down
}

impl Llm {
    /// Binds `language_model.*`.
    pub fn bind(b: &mut Binder, cfg: &LlmConfig) -> Result<Self> {
        let ck = b.checkpoint;
        let (h, f, v, hd) = (cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size, cfg.head_dim());
        let (nh, nkv) = (cfg.num_attention_heads, cfg.num_key_value_heads);
        let layer = |l: usize| {
            let at = |name: &str, shape: &[usize]| {
                ck.tensor(&format!("language_model.model.layers.{l}.{name}.weight"), shape)
            };
            Ok(LlmLayer {
                attention_norm: at("attention_norm", &[h])?,
                wqkv: at("attention.wqkv", &[(nh + 2 * nkv) * hd, h])?,
                wo: at("attention.wo", &[h, nh * hd])?,
                ffn_norm: at("ffn_norm", &[h])?,
                w1: at("feed_forward.w1", &[f, h])?,
                w3: at("feed_forward.w3", &[f, h])?,
                w2: at("feed_forward.w2", &[h, f])?,
            })
        };
        Ok(Self {
            tok_embeddings: ck.tensor("language_model.model.tok_embeddings.weight", &[v, h])?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: ck.tensor("language_model.model.norm.weight", &[h])?,
            output: ck.tensor("language_model.output.weight", &[v, h])?,
            inv_freq: b.derive("rope.inv_freq", DType::F32, [hd / 2], inv_freq(cfg.rope_theta, hd)),
        })
    }
}

/// What says which token each of `T` packed rows is and what it sees: input buffers, written before each run.
#[derive(Clone)]
pub struct Rows {
    /// `(T)` token ids; `-1 - r` for row `r` of the image tokens.
    pub ids: Tensor,
    /// `(T)` positions in the row's own sequence.
    pub positions: Tensor,
    /// `(T)` rows of the K/V cache that it fills.
    pub kv_rows: Tensor,
    /// `(S, SEGMENT)`, see [`SEGMENT`].
    pub segments: Tensor,
}

impl Rows {
    /// Buffers for `t` rows in `s` segments; `make` makes a state buffer.
    pub fn new(t: usize, s: usize, make: &mut impl FnMut(&str, DType, Vec<usize>) -> Tensor) -> Self {
        Self {
            ids: make("ids", DType::I32, vec![t]),
            positions: make("positions", DType::I32, vec![t]),
            kv_rows: make("kv_rows", DType::I32, vec![t]),
            segments: make("segments", DType::I32, vec![s, SEGMENT]),
        }
    }
}

/// Which rows are read after the last layer; what no reader needs is not computed.
pub enum Read<'a> {
    /// None: the run only fills the K/V cache.
    Nothing,
    /// Every row.
    All,
    /// Those listed, `(R)` i32, in this order. With `early`, the last layer's wo, FFN and norm run for them alone.
    #[allow(missing_docs)]
    Some { rows: &'a Tensor, early: bool },
}

/// Runs the rows through the model, K and V into `kv`; the final norm's output at the rows that are read, `(R, H)`.
pub fn llm(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    at: &Rows,
    images: Option<&Tensor>,
    kv: &KvCache,
    read: Read,
) -> Result<Option<Tensor>> {
    let h = g.act("llm.h", [at.ids.len(), cfg.hidden_size]);
    g.scope("llm");
    g.push("tok_embeddings", embed(&h, &at.ids, &w.tok_embeddings, images)?); // h   (T, H)
    g.tap("llm.in.inputs_embeds", &h);
    layers(g, w, cfg, at, h, kv, read)
}

/// The decoder layers and the final norm: [`llm`] from the embedded rows `h` `(T, H)` on, which are updated.
pub fn layers(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    at: &Rows,
    mut h: Tensor,
    kv: &KvCache,
    read: Read,
) -> Result<Option<Tensor>> {
    let (t, c, hd) = (at.ids.len(), cfg.hidden_size, cfg.head_dim());
    let (nh, nkv, f) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.intermediate_size);
    let (eps, context) = (cfg.rms_norm_eps as f32, kv.k.shape[2]);
    let mut x = g.act("llm.x", [t, c]);
    let (qkv, q) = (g.act("llm.qkv", [t, (nh + 2 * nkv) * hd]), g.act("llm.q", [t, nh, hd]));
    let mut o = g.act("llm.o", [t, nh * hd]);
    let mut ffn = g.act("llm.ffn", [t, f]);
    for (l, layer) in w.layers.iter().enumerate() {
        let last = l + 1 == w.layers.len();
        let keys_only = last && matches!(read, Read::Nothing);
        let to_q = (!keys_only).then_some(&q);
        g.scope(format!("llm.{l}"));
        g.push("attention_norm", rmsnorm(&x, &h, &layer.attention_norm, eps)?); // x   (T, H)
        g.push("wqkv", matmul(&qkv, &x, &layer.wqkv)?); // qkv (T, (NH + 2*NKV)*HD)
        g.push("rope", rope_split(to_q, kv, l, &qkv, &at.positions, &at.kv_rows, &w.inv_freq, nh)?); // q   (T, NH, HD); K, V to cache
        if keys_only {
            return Ok(None);
        }
        g.push("attention", attention_ranges(&o, &q, kv, l, &at.segments, context)?); // o   (T, NH*HD)
        if let Read::Some { rows, early: true } = read
            && last
        {
            let r = rows.len();
            let (h_read, o_read) = (g.act("llm.h_read", [r, c]), g.act("llm.o_read", [r, nh * hd]));
            g.push("read_h", gather_rows(&h_read, &h, rows)?); // from here on only the R rows that are read
            g.push("read_o", gather_rows(&o_read, &o, rows)?);
            (h, o) = (h_read, o_read);
            (x, ffn) = (g.act("llm.x_read", [r, c]), g.act("llm.ffn_read", [r, f]));
        }
        g.push("wo", matmul(&h, &o, &layer.wo)?.then(Epilogue::Residual)?); // h  += o @ woᵀ
        g.push("ffn_norm", rmsnorm(&x, &h, &layer.ffn_norm, eps)?); // x   (T, H)
        g.push("w1_w3", matmul(&ffn, &x, &layer.w1)?.then(Epilogue::SiluMul(layer.w3.clone()))?); // ffn (T, F)
        g.push("w2", matmul(&h, &ffn, &layer.w2)?.then(Epilogue::Residual)?); // h  += ffn @ w2ᵀ
        g.tap(format!("llm.layer{l}"), &h);
    }
    g.scope("llm");
    let normed = g.act("llm.normed", [h.shape[0], c]);
    g.push("norm", rmsnorm(&normed, &h, &w.norm, eps)?); // (R, H)
    g.tap("llm.norm", &normed);
    match read {
        Read::Some { rows, early: false } => {
            let picked = g.act("llm.read", [rows.len(), c]);
            g.push("read", gather_rows(&picked, &normed, rows)?);
            Ok(Some(picked))
        }
        _ => Ok(Some(normed)),
    }
}

/// The most likely next token of each row: `token[r] = argmax(h[r] @ outputᵀ)`; `h` `(R, H)`, `token` `(R)` i32.
pub fn next_token(g: &mut Graph, w: &Llm, token: &Tensor, h: &Tensor) -> Result<()> {
    let logits = g.buffer("llm.logits", DType::F32, [h.shape[0], w.output.shape[0]]);
    g.scope("llm");
    g.push("output", matmul(&logits, h, &w.output)?); // logits (R, V)
    g.tap("logits_prev", &logits);
    g.push("argmax", argmax(token, &logits)?); // token  (R)
    Ok(())
}
