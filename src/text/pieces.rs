//! `tokenizer.model`: the pieces of a sentencepiece BPE model, checked.

use super::tokenizer::TokenId;
use crate::{Error, Result};
use sentencepiece_model::{ModelType, SentencePieceModel, Type};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Largest `tokenizer.model` that is read. InternLM2's has 1.5 MB.
const MAX_MODEL_BYTES: u64 = 32 << 20;
/// Longest piece. InternLM2's longest has 128 characters; splitting one costs the square of its length.
const MAX_PIECE_CHARS: usize = 256;
/// Most merges that are kept; InternLM2's pieces have a few hundred thousand.
const MAX_MERGES: usize = 4 << 20;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Made by merging characters.
    Normal,
    /// Stands for what no piece covers.
    Unknown,
    /// `<s>`, `</s>`: never arises from text.
    Control,
    /// Matches as a whole before merging.
    UserDefined,
    /// `<0xE4>`: one byte of a character that has no piece.
    Byte(u8),
}

/// One row of the vocabulary; its id is its place.
#[derive(Clone, Debug)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// The pieces of a model that the tokenizer's construction covers: BPE, no normalisation but space to U+2581,
/// nothing added in front, nothing stripped.
#[derive(Debug)]
pub struct Pieces {
    pub path: PathBuf,
    pub rows: Vec<Piece>,
    /// Text to id; every text is there once.
    pub ids: HashMap<String, TokenId>,
    pub unknown: TokenId,
    /// What the model calls its BOS and EOS pieces.
    pub bos: String,
    pub eos: String,
    pub byte_fallback: bool,
}

impl Pieces {
    /// Reads `tokenizer.model`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a file that is too large, no sentencepiece model, or of another kind
    /// (unigram, normalising, prefixing), and for pieces that are empty, repeated, too long or of impossible types.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &crate::checkpoint::json::read(path, MAX_MODEL_BYTES)?)
    }

    /// [`Pieces::open`] on the file's bytes; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |expected: &str, found: String| Err(Error::file(path, expected, found));
        if bytes.is_empty() {
            return bad("a sentencepiece model", "an empty file".into());
        }
        let model = SentencePieceModel::from_slice(bytes).map_err(|e| {
            Error::file(path, "a sentencepiece model", format!("{} bytes that are none ({e})", bytes.len()))
        })?;
        if model.pieces.is_empty() {
            return bad("a sentencepiece model with pieces", "none".into());
        }
        let Some(trainer) = model.trainer() else {
            return bad("a trainer_spec (it says the algorithm)", "none".into());
        };
        if trainer.model_type() != ModelType::Bpe {
            return bad("model_type BPE", format!("{:?}", trainer.model_type()));
        }
        if trainer.treat_whitespace_as_suffix() {
            return bad("spaces in front of words", "treat_whitespace_as_suffix".into());
        }
        let Some(normalizer) = model.normalizer() else { return bad("a normalizer_spec", "none".into()) };
        if !normalizer.precompiled_charsmap().is_empty() {
            return bad("no normalisation of characters", format!("normalizer `{}`", normalizer.name()));
        }
        if normalizer.add_dummy_prefix()
            || normalizer.remove_extra_whitespaces()
            || !normalizer.escape_whitespaces()
        {
            let found = format!(
                "add_dummy_prefix {}, remove_extra_whitespaces {}, escape_whitespaces {}",
                normalizer.add_dummy_prefix(),
                normalizer.remove_extra_whitespaces(),
                normalizer.escape_whitespaces()
            );
            return bad(
                "add_dummy_prefix false, remove_extra_whitespaces false, escape_whitespaces true",
                found,
            );
        }

        let mut rows = Vec::with_capacity(model.pieces.len());
        let mut ids = HashMap::with_capacity(model.pieces.len());
        let mut unknown = None;
        for (id, p) in model.pieces.iter().enumerate() {
            let text = p.piece().to_string();
            if text.is_empty() || text.len() > 4 * MAX_PIECE_CHARS || text.chars().count() > MAX_PIECE_CHARS {
                let found = format!("piece {id} of {} bytes", text.len());
                return bad(&format!("pieces of 1 to {MAX_PIECE_CHARS} characters"), found);
            }
            let score = p.score();
            if !score.is_finite() {
                return bad("finite scores", format!("{score} for piece {id} `{}`", text.escape_debug()));
            }
            let kind = match p.r#type() {
                Type::Unused => {
                    return bad(
                        "pieces that are all used",
                        format!("piece {id} `{}` marked unused", text.escape_debug()),
                    );
                }
                Type::Control => Kind::Control,
                Type::Normal => Kind::Normal,
                Type::UserDefined => Kind::UserDefined,
                Type::Unknown => Kind::Unknown,
                Type::Byte => match byte_of(&text) {
                    Some(b) => Kind::Byte(b),
                    None => {
                        return bad(
                            "byte pieces <0x00> to <0xFF>",
                            format!("piece {id} `{}`", text.escape_debug()),
                        );
                    }
                },
            };
            if kind == Kind::Unknown && unknown.replace(id as TokenId).is_some() {
                return bad("one unknown piece", format!("another at {id}"));
            }
            if let Some(first) = ids.insert(text.clone(), id as TokenId) {
                return bad("every piece once", format!("`{}` at {first} and at {id}", text.escape_debug()));
            }
            rows.push(Piece { text, score, kind });
        }
        let Some(unknown) = unknown else { return bad("an unknown piece", "none".into()) };
        let bytes_there = rows.iter().filter(|p| matches!(p.kind, Kind::Byte(_))).count();
        if trainer.byte_fallback() && bytes_there != 256 {
            return bad("256 byte pieces (byte_fallback is on)", bytes_there.to_string());
        }
        Ok(Self {
            path: path.into(),
            rows,
            ids,
            unknown,
            bos: trainer.bos_piece().into(),
            eos: trainer.eos_piece().into(),
            byte_fallback: trainer.byte_fallback(),
        })
    }

    /// Every way to make a normal piece of two normal pieces, in the order in which merging tries them: by the made
    /// piece's score, highest first, then by `(left id, right id)`.
    ///
    /// Sentencepiece keeps no merges: it joins whichever neighbours make the best-scored piece. Pieces of other kinds
    /// never stand where two could be joined: user-defined ones are cut out first, the others never arise from characters.
    ///
    /// # Errors
    /// [`Error::File`] if there are more than four million.
    pub fn merges(&self) -> Result<Vec<(String, String)>> {
        let normal = |text: &str| {
            self.ids.get(text).filter(|&&id| self.rows[id as usize].kind == Kind::Normal).copied()
        };
        let mut found: Vec<(f32, TokenId, TokenId)> = Vec::new();
        for piece in self.rows.iter().filter(|p| p.kind == Kind::Normal) {
            for (at, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(at);
                if let (Some(left), Some(right)) = (normal(left), normal(right)) {
                    found.push((piece.score, left, right));
                }
            }
        }
        if found.len() > MAX_MERGES {
            let expected = format!("at most {MAX_MERGES} ways to join two pieces to one");
            return Err(Error::file(&self.path, expected, found.len().to_string()));
        }
        found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let text = |id: TokenId| self.rows[id as usize].text.clone();
        Ok(found.into_iter().map(|(_, left, right)| (text(left), text(right))).collect())
    }
}

/// `<0xE4>` -> `0xE4`, in exactly this spelling.
fn byte_of(text: &str) -> Option<u8> {
    let byte = u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()?;
    (text == format!("<0x{byte:02X}>")).then_some(byte)
}
