//! What is asked of a generator and what it answers.

use super::pages::{Cell, Held};
use crate::image::Rgb;
use crate::text::TokenId;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// How an answer is generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Tokens of the answer at most, the stop token included.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Whether tokens are guessed and checked several at a time, where that changes nothing: greedy answers without penalty.
    pub speculate: bool,
    /// Whether the reply has the logits that each token was chosen from.
    pub keep_logits: bool,
    /// Tokens that end the answer; `None` for those of a chat (`<|im_end|>` and the end of text), or of a [`Generator`](super::Generator) for none.
    pub stop: Option<Vec<TokenId>>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_new_tokens: 1024,
            sampling: Sampling::GREEDY,
            speculate: true,
            keep_logits: false,
            stop: None,
        }
    }
}

/// How a token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Of the most likely tokens, the fewest whose probabilities add up to this; 1 for all.
    pub top_p: f32,
    /// So many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Logits of tokens that were there are divided by it, or multiplied where they are negative; 1 for none.
    pub repetition_penalty: f32,
    /// The same seed and prompt give the same answer.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 };

    /// For the `n`-th of several answers: other random numbers than the others have, and the same ones every time. The first has the seed itself.
    pub fn nth(self, n: u64) -> Self {
        // The mixing step of SplitMix64, which 0 stands still under.
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { seed: self.seed ^ n ^ (n >> 31), ..self }
    }

    /// An error for a value that makes no distribution.
    pub fn check(&self) -> Result<()> {
        let fail =
            |what: &str, expected: &str, found: f32| Err(Error::usage(what, expected, found.to_string()));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return fail("temperature", "0 or more", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top-p", "above 0, at most 1", self.top_p);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail("repetition penalty", "above 0", self.repetition_penalty);
        }
        Ok(())
    }

    pub(super) fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }
}

/// One tile of a picture, named by its pixels.
#[derive(Clone)]
pub(super) struct Tile {
    pub(super) name: [u8; 16],
    pub(super) pixels: Arc<Rgb>,
}

/// A picture, cut into tiles.
#[derive(Clone)]
pub struct Picture {
    pub(super) tiles: Vec<Tile>,
}

impl Picture {
    /// Its tiles, the thumbnail included.
    pub fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Of tiles of the model's input size.
    pub fn new(tiles: Vec<Rgb>) -> Self {
        let tile = |pixels: Rgb| {
            let mut name = [0; 16];
            name.copy_from_slice(&Sha256::digest(&pixels.data)[..16]);
            Tile { name, pixels: Arc::new(pixels) }
        };
        Self { tiles: tiles.into_iter().map(tile).collect() }
    }
}

/// A prompt as the model sees it.
pub struct Prompt {
    pub(super) cells: Vec<Cell>,
    /// Each tile and the position of its first token.
    pub(super) tiles: Vec<(Tile, usize)>,
    /// What an earlier turn left; and whether this one leaves something.
    pub(super) history: Option<History>,
    pub(super) keep: bool,
}

/// What an earlier turn left in the cache.
pub(super) struct History {
    pub(super) cells: Vec<Cell>,
    pub(super) held: Held,
    pub(super) rotation: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It has `max_new_tokens`.
    Length,
    /// The K/V cache has no room for a longer one.
    CacheFull,
    /// The caller ended it.
    Cancelled,
}

/// Wall time of one answer, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Timings {
    /// Until the first token, from when the question was put; `None` if there is none.
    pub first_token_ms: Option<f64>,
    /// Of the time before it, the vision tower.
    pub vision_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}

/// An answer.
pub struct Reply {
    /// Without special tokens; a [`Generator`](super::Generator) leaves it empty.
    pub text: String,
    /// The stop token included.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt, pictures included.
    pub prompt_tokens: usize,
    /// Of those, the ones whose K and V were there already.
    pub cached_tokens: usize,
    /// Runs of the model after the prompt.
    pub steps: usize,
    /// Tokens that were guessed, and those of them that were right.
    #[allow(missing_docs)]
    pub guessed: usize,
    #[allow(missing_docs)]
    pub accepted: usize,
    /// Where the time went.
    pub timings: Timings,
    /// `(tokens, V)`, if they were asked for.
    pub logits: Vec<Vec<f32>>,
    pub(super) history: Option<History>,
}

impl Reply {
    pub(super) fn new(prompt_tokens: usize) -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            finish: Finish::Stop,
            prompt_tokens,
            cached_tokens: 0,
            steps: 0,
            guessed: 0,
            accepted: 0,
            timings: Timings::default(),
            logits: Vec::new(),
            history: None,
        }
    }

    /// Tokens a second after the first; `None` for a single one.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens.len() > 1)
            .then(|| (self.tokens.len() - 1) as f64 * 1e3 / self.timings.decode_ms.max(1e-6))
    }
}

/// Names a sequence among those that are being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(super) u64);

/// What a step brought.
pub enum Event {
    /// More of an answer.
    Tokens(Id, Vec<TokenId>),
    /// All of it, after its last tokens.
    Done(Id, Box<Reply>),
    /// A prompt that cannot be answered.
    Failed(Id, Error),
}
