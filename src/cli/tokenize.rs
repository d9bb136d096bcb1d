//! `mllmseg tokenize`.

use super::print::unwritten;
use mllmseg::text::{TokenId, Tokenizer};
use mllmseg::{Error, Result};
use serde_json::{Map, Value};
use std::io::Write;
use std::process::ExitCode;

/// Longest line that is read.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Turn text into token ids, or ids into text
///
/// Reads JSON lines on stdin and writes each object back with what was asked for added to it:
///
///   {"text": "left cat"}      -> `ids` of the text alone
///   {"prompt": "<s>..."}      -> `ids` of a whole prompt; a missing <s> is put in front
///   {"ids": [2512, 8383]}     -> `text`, with --decode
///
/// The text of a special token becomes that token here, as in the published tokenizer
/// (`segment` treats what a user writes as text). A bad line is reported on stderr with
/// its number; the others go on.
///
/// Example: echo '{"text":"left cat"}' | mllmseg tokenize --model DIR
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Turn `ids` into `text`
    #[arg(long)]
    decode: bool,
    /// Leave special tokens out of the text
    #[arg(long, requires = "decode")]
    skip_special: bool,
    /// Read special-token text as plain text, as `segment` does
    #[arg(long, conflicts_with = "decode")]
    plain: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let tokenizer = Tokenizer::open(&mllmseg::checkpoint::locate(&args.model)?)?;
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut failed = false;
    for number in 1.. {
        let result = match super::next_line(&mut input, MAX_LINE_BYTES) {
            None => break,
            Some(Err(e @ Error::Io { .. })) => return Err(e),
            Some(Ok(line)) if line.trim_ascii().is_empty() => continue,
            Some(line) => line.and_then(|line| answer(&tokenizer, &args, &line)),
        };
        match result {
            Ok(object) => writeln!(output, "{}", Value::Object(object)).map_err(unwritten)?,
            Err(e) => {
                eprintln!("mllmseg: <stdin> line {number}: {e}");
                failed = true;
            }
        }
    }
    output.flush().map_err(unwritten)?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// The line's object with `ids` or `text` added.
fn answer(tokenizer: &Tokenizer, args: &Args, line: &[u8]) -> Result<Map<String, Value>> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|e| bad("a JSON object", e.to_string()))?;
    if args.decode {
        let ids = object.get("ids").ok_or_else(|| bad("a field `ids`", "none"))?;
        let ids: Vec<TokenId> = serde_json::from_value(ids.clone())
            .map_err(|e| bad("`ids`: a list of token ids", e.to_string()))?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
            return Err(bad(format!("`ids` below {}", tokenizer.vocab_size()), id.to_string()));
        }
        object.insert("text".into(), tokenizer.decode(&ids, args.skip_special).into());
        return Ok(object);
    }
    let field = match (object.get("text"), object.get("prompt")) {
        (Some(text), None) => text,
        (None, Some(prompt)) => prompt,
        (None, None) => return Err(bad("a field `text` or `prompt`", "neither")),
        (Some(_), Some(_)) => return Err(bad("a field `text` or `prompt`", "both")),
    };
    let text = field.as_str().ok_or_else(|| bad("a string in `text` or `prompt`", kind(field)))?;
    let mut ids = if args.plain { tokenizer.encode_plain(text)? } else { tokenizer.encode_parsed(text)? };
    if object.contains_key("prompt") && ids.first() != Some(&tokenizer.special().bos) {
        ids.insert(0, tokenizer.special().bos);
    }
    object.insert("ids".into(), ids.into());
    Ok(object)
}

fn bad(expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Text { what: "request".into(), expected: expected.into(), found: found.into() }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
