//! The next token of each sequence, greedy or drawn; see `reference/sample.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op};
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference::{self, SAMPLE_DRAWS, SAMPLE_KNOBS};
use crate::{Error, Result};

/// Threads a block: `kBlock` in kernels/sample.cu.
const BLOCK: u32 = 1024;
/// The weights of so many tokens add up in 63 bits.
const MAX_VOCABULARY: usize = 1 << 22;

struct Sample {
    token: Tensor,
    logits: Tensor,
    knobs: Tensor,
    draws: Tensor,
    seen: Tensor,
}

/// Chooses `token` `(B)` i32 from `logits` `(B, V)` f32.
///
/// `knobs` `(B, SAMPLE_KNOBS)` f32: temperature (greedy unless above 0), top-p (none unless below 1), repetition penalty (1: none);
/// `draws` `(B, SAMPLE_DRAWS)` i32: top-k (none unless above 0), seed (low, high word), counter of the token;
/// `seen` `(B, ⌈V/32⌉)` i32: bit `i % 32` of word `i / 32` says that token `i` is in the text; the chosen token's is set.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit, or a vocabulary of none or more than 4,194,304 tokens.
pub fn sample(
    token: &Tensor,
    logits: &Tensor,
    knobs: &Tensor,
    draws: &Tensor,
    seen: &Tensor,
) -> Result<impl Op + use<>> {
    let [b, v] = logits.dims("sample logits")?;
    if v == 0 || v > MAX_VOCABULARY {
        return Err(Error::shape("sample V", format!("1 to {MAX_VOCABULARY}"), v.to_string()));
    }
    token.expect("sample token", &[b])?;
    knobs.expect("sample knobs", &[b, SAMPLE_KNOBS])?;
    draws.expect("sample draws", &[b, SAMPLE_DRAWS])?;
    seen.expect("sample seen", &[b, v.div_ceil(32)])?;
    let [token, logits, knobs, draws, seen] = [token, logits, knobs, draws, seen].map(Tensor::clone);
    Ok(Sample { token, logits, knobs, draws, seen })
}

impl Op for Sample {
    fn kind(&self) -> &'static str {
        "sample"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.logits, &self.knobs, &self.draws, &self.seen]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.token, &self.seen]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (b, v) = self.logits.matrix();
        one(Launch {
            entry: "sample_f32",
            grid: [blocks("sample B", b)?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: 0,
            args: args![&self.token, &self.logits, &self.knobs, &self.draws, &self.seen, int("sample V", v)?],
        })
    }
    fn run(&self, m: &Memory) {
        let (token, seen) = (m.i32_mut(&self.token), m.i32_mut(&self.seen));
        reference::sample(token, m.f32(&self.logits), m.f32(&self.knobs), m.i32(&self.draws), seen);
    }
}
