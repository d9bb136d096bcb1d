//! Text: a checkpoint's tokenizer, and the prompts that its model was trained with.
//!
//! `pieces` reads `tokenizer.model`, `added` the JSON files beside it, `tokenizer_json` the file of all in one; `tokenizer` makes text into
//! ids and back, `prompt` holds the published strings, `question` what is asked in a chat. Text from a user is text: see
//! [`Tokenizer::encode_plain`].

mod added;
mod pieces;
mod prompt;
mod question;
mod tokenizer;
mod tokenizer_json;

pub(crate) use prompt::is_python_space;
pub use prompt::{
    CHARS_PER_TOKEN, MAX_CHAT_TOKENS, MAX_EXPRESSION_CHARS, MAX_OPENING_TOKENS, MAX_SEQUENCE_TOKENS, Prompts,
    SYSTEM_MESSAGE, Sequence, UserText, normalize_expression, shown, strip,
};
pub use question::Question;
pub use tokenizer::{Decoder, SpecialIds, TokenId, Tokenizer};
#[doc(hidden)]
pub use tokenizer_json::fuzz_tokenizer_json;

/// For the fuzz target: a tokenizer of these pieces and the tokens that prompts need, or an error; never a panic.
#[doc(hidden)]
pub fn fuzz_tokenizer_model(model: &[u8]) -> crate::Result<()> {
    let tokenizer = Tokenizer::from_model(model)?;
    for text in ["the left cat", "[SEG]<|im_end|> \0\u{1F600}"] {
        let ids = tokenizer.encode_plain(text)?;
        tokenizer.decode(&ids, false);
    }
    Ok(())
}
