//! Text: a checkpoint's tokenizer, and the prompts that its model was trained with.
//!
//! `pieces` reads `tokenizer.model`, `added` the JSON files beside it, `tokenizer` makes both into ids and back,
//! `prompt` holds the published strings. Text from a user is text: see [`Tokenizer::encode_plain`].

mod added;
mod pieces;
mod prompt;
mod tokenizer;

pub use prompt::{
    CHARS_PER_TOKEN, MAX_CHAT_TOKENS, MAX_EXPRESSION_CHARS, MAX_SEQUENCE_TOKENS, Prompts, SYSTEM_MESSAGE,
    Sequence, UserText, normalize_expression,
};
pub use tokenizer::{Decoder, SpecialIds, TokenId, Tokenizer};

/// For the fuzz target: reads `bytes` as a `tokenizer.model` with no files beside it; never panics.
#[doc(hidden)]
pub fn fuzz_tokenizer_model(bytes: &[u8]) -> crate::Result<()> {
    let path = std::path::Path::new("tokenizer.model");
    let pieces = pieces::Pieces::parse(path, bytes)?;
    pieces.merges();
    Ok(())
}
