//! JSON of others: bounded, and every refusal names its field.

use crate::{Error, Result};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_path_to_error::Segment;
use std::path::Path;

/// A value that does not have the type that is asked for.
pub(crate) struct Mismatch {
    /// Keys from the outermost in; indices as `[0]`. Empty when the text is no JSON at all.
    pub field: Vec<String>,
    pub expected: String,
    pub found: String,
}

impl Mismatch {
    /// [`Error::Field`] (or [`Error::File`] when no field is to blame).
    pub fn at(self, path: &Path) -> Error {
        if self.field.is_empty() {
            return Error::file(path, self.expected, self.found);
        }
        let field = self.field.join(".").replace(".[", "[");
        Error::Field { path: path.into(), field, expected: self.expected, found: self.found }
    }
}

/// Parses `text` as a `T`.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Mismatch> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut track = serde_path_to_error::Track::new();
    let value = T::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    match value.and_then(|v| json.end().map(|()| v)) {
        Ok(v) => Ok(v),
        Err(e) => Err(mismatch(&e, &track.path())),
    }
}

/// serde says "invalid type: string \"x\", expected usize" or "missing field `x`" or what is wrong with the syntax.
fn mismatch(e: &serde_json::Error, path: &serde_path_to_error::Path) -> Mismatch {
    let mut field: Vec<String> = path
        .iter()
        .filter(|s| !matches!(s, Segment::Unknown))
        .map(|s| match s {
            Segment::Seq { index } => format!("[{index}]"),
            other => clip(&other.to_string()),
        })
        .collect();
    let message = e.to_string();
    if !e.is_data() {
        return Mismatch { field: vec![], expected: "valid JSON".into(), found: message };
    }
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(m, _)| m);
    let quoted = || message.split('`').nth(1).unwrap_or("?").to_string();
    let (expected, found) = if message.starts_with("missing field") {
        field.push(quoted());
        ("a value".to_string(), "nothing".to_string())
    } else if message.starts_with("duplicate field") {
        if field.last() != Some(&quoted()) {
            field.push(quoted());
        }
        ("one value".to_string(), "the key twice".to_string())
    } else if let Some((found, expected)) = message.rsplit_once(", expected ") {
        (expected.to_string(), clip(found.split_once(": ").map_or(found, |(_, f)| f)))
    } else {
        ("a value of the right type".to_string(), clip(message))
    };
    Mismatch { field, expected, found }
}

/// A stranger's text, short and printable.
pub(crate) fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(120).flat_map(printable).collect();
    if text.chars().nth(120).is_some() {
        out.push_str("...");
    }
    out
}

fn printable(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// The whole of a regular file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !meta.is_file() {
        return Err(Error::file(path, "a file", "something else"));
    }
    if meta.len() > limit {
        return Err(Error::file(path, format!("at most {limit} bytes"), format!("{} bytes", meta.len())));
    }
    std::fs::read(path).map_err(Error::io(path, "read"))
}

/// An object as its pairs, in order, with every repetition of a key (a map would keep the last one).
pub(crate) struct Pairs<V>(pub Vec<(String, V)>);

impl<V> Default for Pairs<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Pairs<V> {
    /// The first key that is there twice.
    pub fn repeated(&self) -> Option<&str> {
        let mut seen = std::collections::HashSet::new();
        self.0.iter().map(|(k, _)| k.as_str()).find(|k| !seen.insert(*k))
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct All<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for All<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(All(std::marker::PhantomData))
    }
}
