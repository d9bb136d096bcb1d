//! Chat: which graphs run for text about pictures, over K/V in pages.
//!
//! | graph | runs | fills |
//! | --- | --- | --- |
//! | [`vision`] | once for each few tiles of a prompt | the tiles' tokens |
//! | [`prompt`] | once for each part of a prompt | K/V of its rows; for the last part, the first token of the answer |
//! | [`step`] | once a token | K/V of each sequence's newest row, and its next token |
//!
//! A step takes its rows' ids from the host or, where the host has not read them yet, from what the step before chose: so the next step can
//! be queued before a token is known to end an answer. All their inputs and results are [`Buffers`], made once; a graph of fewer rows uses the first ones. So plans differ by their number of
//! rows alone.

use super::llm::{Choice, Context, Llm, PagedRows, Read, choose_token, llm_in};
use super::mllmseg::{States, look};
use super::projector::Projector;
use super::vit::Vit;
use super::{Binder, Bound, bind_parts};
use crate::Result;
use crate::checkpoint::{Checkpoint, config::Config};
use crate::graph::{DType, Graph, Tensor};
use crate::ops::{KvPages, MAX_POSITIONS, PAGE, copy, next_ids};
use crate::reference::{SAMPLE_DRAWS, SAMPLE_KNOBS};
use std::sync::Arc;

/// Sequences that are answered at once, S.
pub const SEQUENCES: usize = 16;
/// Rows of one step: a row a sequence, or more of few sequences.
pub const STEP_ROWS: usize = 16;
/// The row of [`Buffers`]' tokens, logits and choices that a prompt uses: those of a step in flight stay.
pub const PROMPT_ROW: usize = STEP_ROWS;
/// Rows of one part of a prompt.
pub const PROMPT_ROWS: usize = 1024;
/// Tiles whose tokens one part of a prompt can hold.
pub const TILES: usize = 4;

/// The weights that chat needs; a checkpoint may have no mask decoder.
pub struct Model {
    /// `config.json`.
    pub config: Config,
    vit: Vit,
    projector: Projector,
    llm: Llm,
}

impl Model {
    /// Binds every tensor that the config implies.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for one that is missing, misshapen or of another type.
    pub fn bind(checkpoint: &Arc<Checkpoint>) -> Result<(Self, Bound)> {
        let config = checkpoint.config.clone();
        let mut b = Binder::new(checkpoint);
        let (vit, projector, llm) = bind_parts(&mut b, &config)?;
        let model = Self { config, vit, projector, llm };
        Ok((model, b.finish(Arc::clone(checkpoint))))
    }
}

/// What the graphs read and write that outlives a run.
pub struct Buffers {
    /// `(TILES, 3, S, S)` f32.
    pub pixel_values: Tensor,
    /// `(TILES * 256, H)`: the tiles' tokens.
    pub image_tokens: Tensor,
    /// [`PROMPT_ROWS`] rows of [`SEQUENCES`] sequences.
    pub rows: PagedRows,
    /// `(1)`: the last row of a prompt.
    pub last: Tensor,
    /// K and V.
    pub kv: KvPages,
    /// `(STEP_ROWS + 1, V)` f32, result: the logits that each token was chosen from.
    pub logits: Tensor,
    /// How tokens are chosen.
    pub choice: Choice,
    /// `(STEP_ROWS + 1)` i32, result.
    pub token: Tensor,
}

impl Buffers {
    /// For `pages` pages in all, of which a sequence may have all that its positions allow.
    pub fn new(m: &Model, states: &mut States, pages: usize) -> Self {
        let (c, size) = (&m.config.llm_config, m.config.force_image_size);
        let (layers, heads, hd) = (c.num_hidden_layers, c.num_key_value_heads, c.head_dim());
        let kv = KvPages::new(states.tensors.len() as u32, layers, pages, heads, hd);
        states.tensors.extend([kv.k.clone(), kv.v.clone()]);
        let mut make = |name: &str, dtype, shape: Vec<usize>| states.make(name, dtype, shape);
        Self {
            pixel_values: make("pixel_values", DType::F32, vec![TILES, 3, size, size]),
            image_tokens: make(
                "image_tokens",
                DType::Act,
                vec![TILES * m.config.image_tokens(), c.hidden_size],
            ),
            rows: PagedRows {
                ids: make("ids", DType::I32, vec![PROMPT_ROWS]),
                seq: make("seq", DType::I32, vec![PROMPT_ROWS]),
                positions: make("positions", DType::I32, vec![PROMPT_ROWS]),
                pages: make("pages", DType::I32, vec![SEQUENCES, pages.min(MAX_POSITIONS / PAGE)]),
                inv_freq: make("inv_freq", DType::F32, vec![SEQUENCES, hd / 2]),
            },
            last: make("last", DType::I32, vec![1]),
            kv,
            logits: make("logits", DType::F32, vec![PROMPT_ROW + 1, c.vocab_size]),
            choice: Choice {
                knobs: make("knobs", DType::F32, vec![PROMPT_ROW + 1, SAMPLE_KNOBS]),
                draws: make("draws", DType::I32, vec![PROMPT_ROW + 1, SAMPLE_DRAWS]),
                seen: make("seen", DType::I32, vec![PROMPT_ROW + 1, c.vocab_size.div_ceil(32)]),
            },
            token: make("token", DType::I32, vec![PROMPT_ROW + 1]),
        }
    }
}

/// The tokens of the first `tiles` tiles.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn vision(m: &Model, b: &Buffers, tiles: usize) -> Result<Graph> {
    let mut g = Graph::new();
    let (_, tokens) = look(&mut g, &m.config, &m.vit, &m.projector, &b.pixel_values.rows(0..tiles), false)?;
    g.push("tokens", copy(&b.image_tokens.rows(0..tokens.shape[0]).all(), &tokens)?);
    Ok(g)
}

/// `t` rows of a prompt; with `answer`, the token that follows row `last`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn prompt(m: &Model, b: &Buffers, t: usize, answer: bool) -> Result<Graph> {
    let mut g = Graph::new();
    let rows = &b.rows.first(t);
    let read = if answer { Read::Some { rows: &b.last, early: true } } else { Read::Nothing };
    let at = Context::Pages { rows, kv: &b.kv, each: false };
    if let Some(h) = llm_in(&mut g, &m.llm, &m.config.llm_config, at, Some(&b.image_tokens), read)? {
        choose(&mut g, m, b, &h, PROMPT_ROW)?;
    }
    Ok(g)
}

/// `t` rows, each the newest of its sequence or one that is guessed to follow, and the tokens behind them. An id `-1 - r` stands for the token
/// that the last step chose in its row `r`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn step(m: &Model, b: &Buffers, t: usize) -> Result<Graph> {
    let mut g = Graph::new();
    let rows = &b.rows.first(t);
    g.scope("llm");
    g.push("next_ids", next_ids(&rows.ids, &b.token)?);
    let at = Context::Pages { rows, kv: &b.kv, each: true };
    let h = llm_in(&mut g, &m.llm, &m.config.llm_config, at, None, Read::All)?.expect("all rows");
    choose(&mut g, m, b, &h, 0)?;
    Ok(g)
}

/// The next token of each row of `h` `(R, H)`, by and into the rows of the buffers from `first` on.
fn choose(g: &mut Graph, m: &Model, b: &Buffers, h: &Tensor, first: usize) -> Result<()> {
    let rows = |t: &Tensor| t.rows(first..first + h.shape[0]);
    let by =
        Choice { knobs: rows(&b.choice.knobs), draws: rows(&b.choice.draws), seen: rows(&b.choice.seen) };
    choose_token(g, &m.llm, &rows(&b.token), &rows(&b.logits), h, &by)
}
