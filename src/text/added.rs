//! `added_tokens.json`, `tokenizer_config.json`, `special_tokens_map.json`: tokens that stand beside the pieces.

use super::tokenizer::TokenId;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Largest of these JSON files that is read; the published ones have a few KB.
const MAX_JSON_BYTES: u64 = 4 << 20;

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
    #[serde(default)]
    pub special: bool,
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
    /// Reads those of the three files that `dir` has. A token without flags is special and strips nothing.
    ///
    /// # Errors
    /// [`Error::File`] for what is not JSON of the published form or names a token twice, [`Error::Field`] for ids that
    /// are none, are taken, or differ between the files.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut out = Self::default();
        let (config_path, map_path) =
            (dir.join("tokenizer_config.json"), dir.join("special_tokens_map.json"));
        let config: Config = json(&config_path)?.unwrap_or_default();
        let map: Config = json(&map_path)?.unwrap_or_default();
        for (id, added) in config.added_tokens_decoder.0 {
            let field = format!("added_tokens_decoder.{id}");
            let Ok(id) = id.parse() else {
                return Err(field_error(&config_path, field, "a token id", id));
            };
            out.insert(id, added, &config_path, field)?;
        }
        let path = dir.join("added_tokens.json");
        for (content, id) in json::<Pairs<u64>>(&path)?.unwrap_or_default().0 {
            let Ok(id) = TokenId::try_from(id) else {
                return Err(field_error(&path, content, "a token id", id));
            };
            let added = Added {
                content: content.clone(),
                lstrip: false,
                rstrip: false,
                single_word: false,
                special: true,
            };
            out.insert(id, added, &path, content)?;
        }
        out.bos = config.bos_token.or(map.bos_token).map(Name::text);
        out.eos = config.eos_token.or(map.eos_token).map(Name::text);
        Ok(out)
    }

    /// Adds a token unless the same one is there; the first file's flags stay.
    fn insert(&mut self, id: TokenId, added: Added, path: &Path, field: String) -> Result<()> {
        if added.content.is_empty() {
            return Err(field_error(path, field, "a token's text", "an empty one"));
        }
        if let Some((there, _)) = self.by_id.get(&id) {
            if there.content != added.content {
                return Err(field_error(
                    path,
                    field,
                    format!("id {id} to be `{}`", there.content),
                    format!("`{}`", added.content),
                ));
            }
            return Ok(());
        }
        if let Some((other, _)) = self.by_id.iter().find(|(_, (t, _))| t.content == added.content) {
            return Err(field_error(path, field, format!("`{}` to be {other}", added.content), id));
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
    found: impl fmt::Display,
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

/// A JSON object in its order, an error if a key comes twice.
struct Pairs<T>(Vec<(String, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs<T>, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format_args!("`{key}` twice")));
                    }
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// A JSON file's value; `None` if there is no such file.
fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match read(path, MAX_JSON_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::file(path, "JSON as the published tokenizers have it", e.to_string()))
}

/// A file's bytes, at most `limit`.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("at most {limit} bytes"), "more"));
    }
    Ok(bytes)
}
