//! `tokenizer.json`, as far as tokenizers like ours need it.
//!
//! The `tokenizers` crate reads such a file too, but some bad ones make it panic, abort or hang. So it is given only what is
//! taken here: a BPE without affixes and dropout, and the normalizers, pre-tokenizers and decoders of [`NORMALIZERS`],
//! [`PRE_TOKENIZERS`] and [`DECODERS`], which are those of converted sentencepiece models (InternLM2, Llama) and of byte-level
//! BPEs (GPT-2, Qwen2, Llama 3). Texts are whole and prompts bring their special tokens along: truncation, padding and the
//! post-processor are not read.
//!
//! Time is bounded by the text alone, not always linearly: an added token that strips spaces or must be a word of its own
//! looks through the text before it each time that it comes.

use super::added::{MAX_ADDED, field_error};
use super::tokenizer::TokenId;
use crate::checkpoint::json::{self, Pairs, clip};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::slice::from_ref;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

const NORMALIZERS: [&str; 3] = ["NFC", "Prepend", "Replace"];
const PRE_TOKENIZERS: [&str; 3] = ["ByteLevel", "Metaspace", "Split"];
const DECODERS: [&str; 6] = ["ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip"];
/// Regular expressions that `Split` may have: Qwen2's, Llama 3's and GPT-2's. One of a stranger could backtrack for hours.
const SPLITS: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];
/// Most parts of a `Sequence`; Qwen2's has 2, InternLM2's decoder 4.
const MAX_PARTS: usize = 8;
/// Most characters of a part's text; all published ones have one.
const MAX_PART_CHARS: usize = 16;
/// Most characters of a token, so that an answer stays printable; Qwen2.5's longest has 128.
const MAX_TOKEN_CHARS: usize = 512;
/// No id is this large; the largest published vocabularies have 2^18 tokens.
const MAX_ID: TokenId = 1 << 20;

/// The fields that are read.
#[derive(Deserialize)]
struct File {
    #[serde(default, rename = "version")]
    _version: Option<Version>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
enum Version {
    #[serde(rename = "1.0")]
    One,
}

#[derive(Deserialize)]
struct Added {
    id: TokenId,
    #[serde(flatten)]
    token: AddedToken,
}

/// Options that are missing are off.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(default, rename = "type")]
    _type: Option<ModelType>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Pairs<TokenId>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
enum ModelType {
    #[serde(rename = "BPE")]
    Bpe,
}

/// Two tokens; older files have them as one text, `a b`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "neither two tokens nor a text")]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Runs the `tokenizers` crate on what a file made of it; a panic is an error too, though none is known.
pub fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| clip(&e.to_string())),
        Err(_) => Err("what the tokenizers crate panics on".into()),
    }
}

/// The tokenizer of a `tokenizer.json`'s bytes.
///
/// # Errors
/// [`Error::File`] for what is no JSON; [`Error::Field`] for kinds and options that are not taken, repeated tokens and ids,
/// merges of no tokens, added tokens that the crate would give another id.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let file: File = json::parse(bytes).map_err(|e| e.at(path))?;
    let mut ids = HashMap::new();
    let bpe = model(path, file.model, &mut ids)?;
    let failed = |e| Error::file(path, "a tokenizers file", e);
    let mut parsed = tokenizers::Tokenizer::new(guarded(|| bpe.build()).map_err(failed)?);
    let normalizer: Option<NormalizerWrapper> =
        part(path, "normalizer", file.normalizer, "normalizers", &NORMALIZERS)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> =
        part(path, "pre_tokenizer", file.pre_tokenizer, "pretokenizers", &PRE_TOKENIZERS)?;
    let decoder: Option<DecoderWrapper> = part(path, "decoder", file.decoder, "decoders", &DECODERS)?;
    let tokens = added(path, file.added_tokens, ids)?;
    guarded(|| parsed.with_normalizer(normalizer).map(|_| ())).map_err(failed)?;
    parsed.with_pre_tokenizer(pre_tokenizer).with_decoder(decoder);
    guarded(|| parsed.add_tokens(tokens)).map_err(failed)?;
    Ok(parsed)
}

/// The model's builder, and its tokens' `ids`.
fn model(
    path: &Path,
    m: Model,
    ids: &mut HashMap<String, TokenId>,
) -> Result<tokenizers::models::bpe::BpeBuilder> {
    let refuse = |field: &str, expected: String, found: String| {
        Err(field_error(path, format!("model.{field}"), expected, found))
    };
    if let Some(p) = m.dropout.filter(|p| *p != 0.) {
        return refuse("dropout", "null (the same ids each time)".into(), p.to_string());
    }
    for (field, affix) in [
        ("continuing_subword_prefix", m.continuing_subword_prefix),
        ("end_of_word_suffix", m.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.filter(|a| !a.is_empty()) {
            return refuse(field, "null".into(), format!("`{}`", clip(&affix)));
        }
    }
    let mut texts = HashMap::new();
    for (text, id) in &m.vocab.0 {
        let field = || format!("vocab.{}", clip(text));
        let chars = text.chars().count();
        if !(1..=MAX_TOKEN_CHARS).contains(&chars) {
            return refuse(
                "vocab",
                format!("tokens of 1 to {MAX_TOKEN_CHARS} characters"),
                chars.to_string(),
            );
        }
        if *id >= MAX_ID {
            return refuse(&field(), format!("an id below {MAX_ID}"), id.to_string());
        }
        if let Some(other) = texts.insert(*id, text) {
            return refuse(&field(), "an id of its own".into(), format!("{id}, which is `{}`", clip(other)));
        }
        if ids.insert(text.clone(), *id).is_some() {
            return refuse(&field(), "one value".into(), "the key twice".into());
        }
    }
    let mut merges = Vec::with_capacity(m.merges.len());
    for (i, merge) in m.merges.into_iter().enumerate() {
        let (a, b) = match merge {
            Merge::Pair(a, b) => (a, b),
            Merge::Line(line) => match line.split_once(' ') {
                Some((a, b)) if !b.contains(' ') => (a.into(), b.into()),
                _ => {
                    return refuse(
                        &format!("merges[{i}]"),
                        "two tokens".into(),
                        format!("`{}`", clip(&line)),
                    );
                }
            },
        };
        if let Some(absent) = [&a, &b, &format!("{a}{b}")].into_iter().find(|t| !ids.contains_key(*t)) {
            let expected = "two tokens of `vocab` that make a third".into();
            return refuse(&format!("merges[{i}]"), expected, format!("`{}`, which is none", clip(absent)));
        }
        merges.push((a, b));
    }
    let vocab: tokenizers::models::bpe::Vocab = m.vocab.0.into_iter().collect();
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(m.fuse_unk.unwrap_or(false))
        .byte_fallback(m.byte_fallback.unwrap_or(false))
        .ignore_merges(m.ignore_merges.unwrap_or(false));
    if let Some(token) = m.unk_token {
        bpe = bpe.unk_token(token);
    }
    Ok(bpe)
}

/// The added tokens, each of which the crate must give the id that the file says: the vocabulary's, or the next one.
fn added(path: &Path, added: Vec<Added>, mut ids: HashMap<String, TokenId>) -> Result<Vec<AddedToken>> {
    let mut next = ids.len() as TokenId;
    let mut taken: HashMap<TokenId, String> = ids.iter().map(|(text, id)| (*id, text.clone())).collect();
    if added.len() > MAX_ADDED {
        return Err(field_error(path, "added_tokens", format!("at most {MAX_ADDED}"), added.len()));
    }
    let (mut tokens, mut seen) = (Vec::with_capacity(added.len()), HashSet::new());
    for (i, Added { id, token }) in added.into_iter().enumerate() {
        let text = &token.content;
        let refuse = |field: &str, expected: String, found: String| {
            Err(field_error(path, format!("added_tokens[{i}].{field}"), expected, found))
        };
        let chars = text.chars().count();
        if !(1..=MAX_TOKEN_CHARS).contains(&chars) {
            return refuse("content", format!("1 to {MAX_TOKEN_CHARS} characters"), chars.to_string());
        }
        if !seen.insert(text.clone()) {
            return refuse("content", "a token of its own".into(), format!("`{}` again", clip(text)));
        }
        // A token of spaces that strips those on its left could end before it begins.
        if token.lstrip && (token.normalized || text.trim().is_empty()) {
            let expected = "more than spaces, and not normalized, to strip on the left".into();
            return refuse("content", expected, format!("`{}`", clip(text)));
        }
        let given = ids.get(text).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if id != given {
            return refuse(
                "id",
                format!("{given} for `{}` (no gap after the model's)", clip(text)),
                id.to_string(),
            );
        }
        ids.insert(text.clone(), id);
        if let Some(other) = taken.insert(id, text.clone()).filter(|other| other != text) {
            return refuse("id", "a free one".into(), format!("{id}, which is `{}`", clip(&other)));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// A part of the pipeline, or the parts of a `Sequence`: of these `kinds`, with options that do no harm.
fn part<T: DeserializeOwned>(
    path: &Path,
    field: &str,
    value: Value,
    list: &str,
    kinds: &[&str],
) -> Result<Option<T>> {
    if value.is_null() {
        return Ok(None);
    }
    let refuse = |expected: String, found: String| Err(field_error(path, field, expected, found));
    let parts = match value[list].as_array() {
        Some(parts) if value["type"] == "Sequence" => parts,
        _ => from_ref(&value),
    };
    if parts.len() > MAX_PARTS {
        return refuse(format!("at most {MAX_PARTS} parts"), parts.len().to_string());
    }
    for part in parts {
        let kind = part["type"].as_str().unwrap_or("none");
        if !kinds.contains(&kind) {
            return refuse(
                format!("{} or a Sequence of them", kinds.join(", ")),
                format!("`{}`", clip(kind)),
            );
        }
        let pattern = &part["pattern"]["String"];
        for text in [&part["prepend"], &part["content"], pattern].into_iter().filter_map(Value::as_str) {
            if text.chars().count() > MAX_PART_CHARS || pattern == "" {
                let expected = format!("texts of 1 to {MAX_PART_CHARS} characters in a {kind}");
                return refuse(expected, format!("`{}`", clip(text)));
            }
        }
        let chars = |text: &Value| text.as_str().map_or(0, |t| t.chars().count());
        match kind {
            "Replace" if pattern.is_null() || chars(&part["content"]) > chars(pattern) => {
                let expected = "a Replace of a text by one that is no longer";
                return refuse(expected.into(), clip(&part.to_string()));
            }
            "Split" if pattern.is_null() && !SPLITS.iter().any(|s| part["pattern"]["Regex"] == *s) => {
                let expected = "a Split at a text or by the expression of Qwen2, Llama 3 or GPT-2";
                return refuse(expected.into(), clip(&part["pattern"].to_string()));
            }
            "Strip" if part["stop"] != 0 => {
                return refuse("a Strip with `stop` 0".into(), clip(&part["stop"].to_string()));
            }
            _ => {}
        }
    }
    match guarded(|| serde_json::from_value(value).map_err(Into::into)) {
        Ok(part) => Ok(Some(part)),
        Err(e) => refuse("what its type has".into(), e),
    }
}

/// For the fuzz target: a tokenizer of this file that encodes and decodes, or an error; never a panic.
#[doc(hidden)]
pub fn fuzz_tokenizer_json(bytes: &[u8]) -> Result<()> {
    let path = Path::new("tokenizer.json");
    let failed = |e| Error::file(path, "a token for every character", e);
    let tokenizer = parse(path, bytes)?;
    for text in ["the left cat", "[SEG]<|im_end|> \n\n\0\u{1F600} e\u{301}"] {
        let ids = guarded(|| tokenizer.encode_fast(text, false)).map_err(failed)?;
        guarded(|| tokenizer.decode(ids.get_ids(), false)).map_err(failed)?;
    }
    Ok(())
}
