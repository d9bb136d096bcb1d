//! The header of a safetensors file, read as if an enemy had written it.
//!
//! A file is 8 bytes of header length (little endian), the header (a JSON object: name -> dtype, shape,
//! data_offsets), the data. The format wants the ranges of all tensors to cover the data exactly: no holes, no
//! overlaps (<https://github.com/huggingface/safetensors#format>). The `safetensors` crate checks this too, but it lets a
//! repeated name pass (the last one wins) and does not say which tensor is wrong, so the checks are made here.

use super::json::{self, Pairs};
use crate::{Error, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Bytes that a header may have (the limit of the `safetensors` crate).
pub const MAX_HEADER: u64 = 100_000_000;

/// Dimensions that a tensor may have.
const MAX_RANK: usize = 16;

/// A tensor as its file's header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name in the state dict.
    pub name: String,
    /// One element.
    pub dtype: Dtype,
    /// Row-major extents; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where the data lies, in bytes from the start of the file; `shape` elements long, within the file.
    pub bytes: Range<usize>,
}

/// Reads the header of `file`, the whole file's bytes; `path` is its name in errors.
/// The entries come in the order of their data. Their ranges cover everything behind the header exactly.
///
/// # Errors
/// [`Error::File`] for a file that is cut off or too long, or whose header is too large or no JSON object; [`Error::Tensor`] for one that is
/// described wrongly, comes twice, lies outside of the file, or leaves a hole or an overlap.
pub fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::file(
            path,
            "a safetensors file (at least 8 bytes)",
            format!("{} bytes", file.len()),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(Error::file(
            path,
            format!("a header of at most {MAX_HEADER} bytes"),
            format!("one of {length}"),
        ));
    }
    if length > rest.len() as u64 {
        return Err(Error::file(
            path,
            format!("a header of {length} bytes"),
            format!("{} bytes: the file is cut off", rest.len()),
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let start = file.len() - data.len();

    let Header(tensors) = json::parse::<Header>(header).map_err(|m| match m.field.split_first() {
        Some((name, [])) => tensor_error(path, name, m.expected, m.found),
        Some((name, rest)) => {
            let field = rest.join(".").replace(".[", "[");
            tensor_error(path, name, format!("{field} to be {}", m.expected), m.found)
        }
        None => Error::file(path, format!("a safetensors header: {}", m.expected), m.found),
    })?;
    if let Some(name) = tensors.repeated() {
        return Err(tensor_error(path, name, "one entry in the header", "several"));
    }

    let mut entries = Vec::with_capacity(tensors.0.len());
    for (name, info) in tensors.0 {
        let [begin, end] = info.data_offsets;
        let (dtype, shape) = (info.dtype, info.shape);
        if shape.len() > MAX_RANK {
            return Err(tensor_error(
                path,
                &name,
                format!("at most {MAX_RANK} dimensions"),
                shape.len().to_string(),
            ));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, &d| n.checked_mul(d));
        let Some(bytes) = bits.filter(|b| b % 8 == 0).map(|b| b / 8) else {
            return Err(tensor_error(path, &name, "a size that can be addressed", kind(dtype, &shape)));
        };
        if begin > end || end > data.len() {
            return Err(tensor_error(
                path,
                &name,
                format!("data within the file's {} bytes behind the header", data.len()),
                format!("data_offsets {begin}..{end}"),
            ));
        }
        if end - begin != bytes {
            return Err(tensor_error(
                path,
                &name,
                format!("{bytes} bytes for {}", kind(dtype, &shape)),
                format!("{} (data_offsets {begin}..{end})", end - begin),
            ));
        }
        entries.push(Entry { name, dtype, shape, bytes: start + begin..start + end });
    }

    entries.sort_by_key(|e| (e.bytes.start, e.bytes.end));
    let mut at = start;
    for e in &entries {
        if e.bytes.start != at {
            let what = if e.bytes.start < at { "an overlap with the one before" } else { "a hole before it" };
            return Err(tensor_error(
                path,
                &e.name,
                format!("data_offsets from {}", at - start),
                format!("from {}: {what}", e.bytes.start - start),
            ));
        }
        at = e.bytes.end;
    }
    if at != file.len() {
        return Err(Error::file(
            path,
            format!("{} bytes of tensors behind the header", at - start),
            format!("{} bytes", data.len()),
        ));
    }
    Ok(entries)
}

/// `bf16 (6144, 4096)`.
pub fn kind(dtype: Dtype, shape: &[usize]) -> String {
    let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("{} ({})", dtype.to_string().to_lowercase(), dims.join(", "))
}

fn tensor_error(path: &Path, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let tensor = json::clip(name);
    Error::Tensor { path: path.into(), tensor, expected: expected.into(), found: found.into() }
}

#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The tensors in the order of the text; `__metadata__` (free strings) is checked and dropped.
struct Header(Pairs<Info>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut tensors, mut metadata) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value::<BTreeMap<String, String>>()?).is_some() {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    }
                }
                Ok(Header(Pairs(tensors)))
            }
        }
        d.deserialize_map(All)
    }
}
