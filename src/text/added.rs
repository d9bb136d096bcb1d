//! `added_tokens.json`, `tokenizer_config.json`, `special_tokens_map.json`: tokens that stand beside the pieces.

use super::tokenizer::TokenId;
use crate::checkpoint::json::{self, Pairs, clip};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Largest of these JSON files that is read; the published ones have a few KB.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// Most added tokens; the published tokenizers have about twenty.
pub const MAX_ADDED: usize = 4096;

/// A token that is cut out of text before anything else.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Added {
    /// Its text.
    pub content: String,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub single_word: bool,
    /// Left out when a text for people is asked for.
    #[serde(default)]
    pub special: bool,
}

impl Added {
    /// A token of which only the text is known: special, strips nothing.
    pub fn special(content: String) -> Self {
        Self { content, lstrip: false, rstrip: false, single_word: false, special: true }
    }
}

/// What the JSON files beside `tokenizer.model` say.
#[derive(Debug, Default)]
pub struct AddedTokens {
    /// By id, with the file that names it.
    pub by_id: BTreeMap<TokenId, (Added, PathBuf)>,
    /// The files' `bos_token` and `eos_token`.
    pub bos: Option<String>,
    pub eos: Option<String>,
}

impl AddedTokens {
    /// Reads those of the three files that `dir` has.
    ///
    /// # Errors
    /// [`Error::File`] for what is no JSON, [`Error::Field`] for fields of other types than published, keys that come
    /// twice, ids that are none or are given twice, and for files that contradict each other.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut out = Self::default();
        let path = dir.join("tokenizer_config.json");
        let config: Config = open(&path)?;
        for (id, added) in once(config.added_tokens_decoder, &path)? {
            let field = format!("added_tokens_decoder.{}", clip(&id));
            let Ok(id) = id.parse() else { return Err(field_error(&path, field, "a token id", clip(&id))) };
            out.insert(id, added, &path, field)?;
        }
        let path = dir.join("added_tokens.json");
        for (content, id) in once(open(&path)?, &path)? {
            let field = clip(&content);
            out.insert(id, Added::special(content), &path, field)?;
        }
        let map: Config = open(&dir.join("special_tokens_map.json"))?;
        out.bos = config.bos_token.or(map.bos_token).map(Name::text);
        out.eos = config.eos_token.or(map.eos_token).map(Name::text);
        Ok(out)
    }

    /// Adds a token unless the same one is there, whose flags then stay.
    fn insert(&mut self, id: TokenId, added: Added, path: &Path, field: String) -> Result<()> {
        let text = clip(&added.content);
        if added.content.is_empty() {
            return Err(field_error(path, field, "a token's text", "an empty one"));
        }
        if let Some((there, _)) = self.by_id.get(&id) {
            return match there.content == added.content {
                true => Ok(()),
                false => Err(field_error(
                    path,
                    field,
                    format!("id {id} to be `{}`", clip(&there.content)),
                    format!("`{text}`"),
                )),
            };
        }
        if let Some((other, _)) = self.by_id.iter().find(|(_, (t, _))| t.content == added.content) {
            return Err(field_error(path, field, format!("`{text}` to be {other}"), id));
        }
        if self.by_id.len() == MAX_ADDED {
            return Err(field_error(path, field, format!("at most {MAX_ADDED} added tokens"), "more"));
        }
        self.by_id.insert(id, (added, path.into()));
        Ok(())
    }
}

/// [`Error::Field`].
pub fn field_error(
    path: &Path,
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Display,
) -> Error {
    Error::Field {
        path: path.into(),
        field: field.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

/// The fields that are read; the others are about training and display.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: Pairs<Added>,
    #[serde(default)]
    bos_token: Option<Name>,
    #[serde(default)]
    eos_token: Option<Name>,
}

/// A special token is written as its text or as an object with its text and flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Object(Added),
}

impl Name {
    fn text(self) -> String {
        match self {
            Name::Text(text) => text,
            Name::Object(added) => added.content,
        }
    }
}

/// A JSON file's value; the default if there is no such file.
fn open<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match json::read(path, MAX_JSON_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        bytes => json::parse(&bytes?).map_err(|e| e.at(path)),
    }
}

/// The object's pairs, if no key comes twice.
fn once<T>(pairs: Pairs<T>, path: &Path) -> Result<Vec<(String, T)>> {
    match pairs.repeated() {
        Some(key) => Err(field_error(path, key, "one value", "the key twice")),
        None => Ok(pairs.0),
    }
}
