//! InternLM2.5: pre-norm decoder layers with grouped-query attention and SwiGLU over packed rows of any number of sequences.
//! Source: `modeling_internlm2.py`; names are the checkpoint's under `language_model.`.

use super::Binder;
use crate::Result;
use crate::checkpoint::config::LlmConfig;
use crate::graph::{DType, Graph, Tensor};
use crate::ops::{
    Epilogue, KvCache, KvPages, PAGE, SEGMENT, argmax, argmax_partials, attention_decode, attention_paged,
    attention_parts, attention_ranges, embed, gather_rows, matmul, matmul_argmax, rmsnorm, rope_split,
    rope_split_paged, sample,
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
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for one that is missing, misshapen or of another type.
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

/// Where the rows' K and V go, and what the rows see.
#[derive(Clone, Copy)]
pub enum Context<'a> {
    /// Segments of ranges of one cache.
    #[allow(missing_docs)]
    Ranges { rows: &'a Rows, kv: &'a KvCache },
    /// Sequences in pages. With `each`, every row is computed alone, so that its bits do not depend on how many of its sequence stand
    /// beside it: a few rows, one step of decoding.
    #[allow(missing_docs)]
    Pages { rows: &'a PagedRows, kv: &'a KvPages, each: bool },
}

/// What says which token each of `T` packed rows is, and where the K and V of its sequence are.
#[derive(Clone)]
pub struct PagedRows {
    /// `(T)` token ids; `-1 - r` for row `r` of the image tokens.
    pub ids: Tensor,
    /// `(T)` the row's sequence, one of `S`; -1 for a row that only fills the plan.
    pub seq: Tensor,
    /// `(T)` positions in the row's own sequence.
    pub positions: Tensor,
    /// `(S, MAX_PAGES)` the pages of each sequence, in order.
    pub pages: Tensor,
    /// `(S, HD/2)` f32: the frequencies that each sequence's rows are rotated by.
    pub inv_freq: Tensor,
}

impl PagedRows {
    /// The first `t` rows.
    pub fn first(&self, t: usize) -> Self {
        let [ids, seq, positions] = [&self.ids, &self.seq, &self.positions].map(|x| x.rows(0..t));
        Self { ids, seq, positions, ..self.clone() }
    }
}

impl Context<'_> {
    fn ids(&self) -> &Tensor {
        match self {
            Context::Ranges { rows, .. } => &rows.ids,
            Context::Pages { rows, .. } => &rows.ids,
        }
    }
}

/// Runs the rows through the model, K and V into `kv`; the final norm's output at the rows that are read, `(R, H)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn llm(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    rows: &Rows,
    images: Option<&Tensor>,
    kv: &KvCache,
    read: Read,
) -> Result<Option<Tensor>> {
    llm_in(g, w, cfg, Context::Ranges { rows, kv }, images, read)
}

/// [`llm`] in any context.
///
/// # Errors
/// As [`llm`].
pub fn llm_in(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    at: Context,
    images: Option<&Tensor>,
    read: Read,
) -> Result<Option<Tensor>> {
    let h = g.act("llm.h", [at.ids().len(), cfg.hidden_size]);
    g.scope("llm");
    g.push("tok_embeddings", embed(&h, at.ids(), &w.tok_embeddings, images)?); // h   (T, H)
    g.tap("llm.in.inputs_embeds", &h);
    layers_in(g, w, cfg, at, h, read)
}

/// The decoder layers and the final norm: [`llm`] from the embedded rows `h` `(T, H)` on, which are updated.
///
/// # Errors
/// As [`llm`].
pub fn layers(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    rows: &Rows,
    h: Tensor,
    kv: &KvCache,
    read: Read,
) -> Result<Option<Tensor>> {
    layers_in(g, w, cfg, Context::Ranges { rows, kv }, h, read)
}

/// [`layers`] in any context.
///
/// # Errors
/// As [`llm`].
pub fn layers_in(
    g: &mut Graph,
    w: &Llm,
    cfg: &LlmConfig,
    at: Context,
    mut h: Tensor,
    read: Read,
) -> Result<Option<Tensor>> {
    let (t, c, hd) = (at.ids().len(), cfg.hidden_size, cfg.head_dim());
    let (nh, nkv, f) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.intermediate_size);
    let eps = cfg.rms_norm_eps as f32;
    let few = matches!(at, Context::Pages { each: true, .. });
    let mut x = g.act("llm.x", [t, c]);
    let (qkv, q) = (g.act("llm.qkv", [t, (nh + 2 * nkv) * hd]), g.act("llm.q", [t, nh, hd]));
    let mut o = g.act("llm.o", [t, nh * hd]);
    let mut ffn = g.act("llm.ffn", [t, f]);
    for (l, layer) in w.layers.iter().enumerate() {
        let last = l + 1 == w.layers.len();
        let keys_only = last && matches!(read, Read::Nothing);
        let to_q = (!keys_only).then_some(&q);
        g.scope(format!("llm.{l}"));
        if few {
            g.push("wqkv", matmul(&qkv, &h, &layer.wqkv)?.norm(&layer.attention_norm, eps)?); // the norm of h is taken on the way
        } else {
            g.push("attention_norm", rmsnorm(&x, &h, &layer.attention_norm, eps)?); // x   (T, H)
            g.push("wqkv", matmul(&qkv, &x, &layer.wqkv)?); // qkv (T, (NH + 2*NKV)*HD)
        }
        match at {
            // q   (T, NH, HD); K, V to cache
            Context::Ranges { rows: r, kv } => {
                g.push("rope", rope_split(to_q, kv, l, &qkv, &r.positions, &r.kv_rows, &w.inv_freq, nh)?)
            }
            Context::Pages { rows: r, kv, .. } => g.push(
                "rope",
                rope_split_paged(to_q, kv, l, &qkv, &r.seq, &r.positions, &r.pages, &r.inv_freq, nh)?,
            ),
        }
        if keys_only {
            return Ok(None);
        }
        match at {
            // o   (T, NH*HD)
            Context::Ranges { rows: r, kv } => {
                g.push("attention", attention_ranges(&o, &q, kv, l, &r.segments, kv.k.shape[2])?)
            }
            Context::Pages { rows: r, kv, each } => {
                let (seq, at, pages, most) = (&r.seq, &r.positions, &r.pages, r.pages.shape[1] * PAGE);
                if each {
                    let parts =
                        g.buffer("llm.parts", DType::F32, attention_parts(t, nh, hd, r.pages.shape[1]));
                    g.push("attention", attention_decode(&o, &parts, &q, kv, l, seq, at, pages, most)?)
                } else {
                    g.push("attention", attention_paged(&o, &q, kv, l, seq, at, pages, most)?)
                }
            }
        }
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
        let wo = matmul(&h, &o, &layer.wo)?.in_parts(g);
        g.push("wo", wo.then(Epilogue::Residual)?); // h  += o @ woᵀ
        let swiglu = Epilogue::SiluMul(layer.w3.clone());
        if few {
            g.push("w1_w3", matmul(&ffn, &h, &layer.w1)?.norm(&layer.ffn_norm, eps)?.then(swiglu)?);
        } else {
            g.push("ffn_norm", rmsnorm(&x, &h, &layer.ffn_norm, eps)?); // x   (T, H)
            g.push("w1_w3", matmul(&ffn, &x, &layer.w1)?.then(swiglu)?); // ffn (T, F)
        }
        let w2 = matmul(&h, &ffn, &layer.w2)?.in_parts(g);
        g.push("w2", w2.then(Epilogue::Residual)?); // h  += ffn @ w2ᵀ
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
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn next_token(g: &mut Graph, w: &Llm, token: &Tensor, h: &Tensor) -> Result<()> {
    let logits = g.buffer("llm.logits", DType::F32, [h.shape[0], w.output.shape[0]]);
    g.scope("llm");
    g.push("output", matmul(&logits, h, &w.output)?); // logits (R, V)
    g.tap("logits_prev", &logits);
    g.push("argmax", argmax(token, &logits)?); // token  (R)
    Ok(())
}

/// [`next_token`] without logits in memory.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn best_token(g: &mut Graph, w: &Llm, token: &Tensor, h: &Tensor) -> Result<()> {
    let partial = g.buffer("llm.best", DType::I32, [argmax_partials(w.output.shape[0]), h.shape[0], 2]);
    g.scope("llm");
    g.push("output", matmul_argmax(token, &partial, h, &w.output)?); // token  (R)
    Ok(())
}

/// How the next token of each of `R` rows is chosen; see [`sample`].
#[derive(Clone)]
pub struct Choice {
    /// `(R, SAMPLE_KNOBS)` f32
    pub knobs: Tensor,
    /// `(R, SAMPLE_DRAWS)` i32
    pub draws: Tensor,
    /// `(R, ⌈V/32⌉)` i32: tokens that the repetition penalty is for.
    pub seen: Tensor,
}

/// The next token of each row of `h` `(R, H)`, chosen from its logits: `token` `(R)` i32, `logits` `(R, V)` f32 stay.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn choose_token(
    g: &mut Graph,
    w: &Llm,
    token: &Tensor,
    logits: &Tensor,
    h: &Tensor,
    by: &Choice,
) -> Result<()> {
    g.scope("llm");
    g.push("output", matmul(logits, h, &w.output)?); // logits (R, V)
    g.tap("logits_prev", logits);
    g.push("sample", sample(token, logits, &by.knobs, &by.draws, &by.seen)?); // token  (R)
    Ok(())
}
