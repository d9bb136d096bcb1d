//! WebDataset shards: tar files in which the members of a sample stand together and share a name up to its first dot.
//!
//! ```text
//! 0001/000042.jpg    the picture: jpg, jpeg, png, webp, bmp, tif, tiff or gif
//! 0001/000042.json   {"exprs": [...]}, or another of the names of expressions, or {"questions": [...]}; and maybe "id"
//! 0001/000042.txt    else: an expression a line
//! 0001/000042.cls    else: the name of a class (a number is none)
//! ```
//! `.tar.gz` and `.tgz` are unpacked on the way. A sample without a picture, or without expressions or questions, is an item that fails, and so is
//! what is damaged of a shard.

use super::item::{Ask, Failure, Picture, Source};
use super::shards::{EXPRESSIONS, Items, QUESTIONS, spawn, strings};
use crate::image::Limits;
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Largest text of a sample.
const MAX_TEXT: u64 = 4 << 20;
/// What a member may be, by its name from the first dot on.
const PICTURES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"];

/// Reads shards one after another. If there are `exprs`, these are asked of every picture, and the texts are looked at for no
/// more than an `id`.
/// `position` counts the bytes that were read of the files.
pub fn read(shards: Vec<PathBuf>, exprs: &[String], position: Arc<AtomicU64>) -> Source {
    let exprs = exprs.to_vec();
    spawn(move |items| {
        for shard in &shards {
            // One that is damaged is an item that says so, behind those before it: the others go on.
            let go_on = match read_shard(shard, &exprs, &position, items) {
                Err(e @ Error::File { .. }) => items.push_broken(shard, &e),
                read => read?,
            };
            if !go_on {
                break;
            }
        }
        Ok(())
    })
}

/// A sample as far as it was read.
#[derive(Default)]
struct Sample {
    key: String,
    picture: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
    txt: Option<Vec<u8>>,
    cls: Option<Vec<u8>>,
    /// What is wrong with a member.
    bad: Option<String>,
}

/// One shard; whether more are wanted.
fn read_shard(path: &Path, exprs: &[String], position: &Arc<AtomicU64>, items: &mut Items) -> Result<bool> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let file = Counted { inner: BufReader::with_capacity(1 << 20, file), position: Arc::clone(position) };
    let zipped =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz") || e.eq_ignore_ascii_case("tgz"));
    let reader: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(reader);
    let broken = |e: io::Error| match e.raw_os_error() {
        // What the system refused may be there the next time, so that nothing may be counted behind it.
        Some(_) => Error::io(path, "read")(e),
        None => Error::file(path, "a tar file", e.to_string()),
    };
    let mut sample: Option<Sample> = None;
    for member in archive.entries().map_err(broken)? {
        let mut member = member.map_err(broken)?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let base = name.rfind('/').map_or(0, |at| at + 1);
        let Some(dot) = name[base..].find('.').map(|at| base + at) else { continue };
        let (key, kind) = (&name[..dot], name[dot + 1..].to_lowercase());
        if sample.as_ref().is_some_and(|s| s.key != key)
            && let Some(sample) = sample.take()
            && !sample.push(path, exprs, items)
        {
            return Ok(false);
        }
        let sample = sample.get_or_insert_with(|| Sample { key: key.into(), ..Sample::default() });
        let (place, most) = match kind.as_str() {
            k if PICTURES.contains(&k) => (&mut sample.picture, Limits::default().max_bytes),
            "json" => (&mut sample.json, MAX_TEXT),
            "txt" => (&mut sample.txt, MAX_TEXT),
            "cls" => (&mut sample.cls, MAX_TEXT),
            _ => continue,
        };
        let mut bytes = Vec::new();
        (&mut member).take(most + 1).read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > most {
            sample.bad = Some(format!("expected at most {most} bytes of `{kind}`, found more"));
        } else if place.replace(bytes).is_some() {
            sample.bad = Some(format!("expected one member of a kind, found another `{kind}`"));
        }
    }
    Ok(match sample {
        Some(sample) => sample.push(path, exprs, items),
        None => true,
    })
}

impl Sample {
    fn push(self, shard: &Path, exprs: &[String], items: &mut Items) -> bool {
        let name = format!("{}#{}", shard.display(), self.key);
        let bad = |what: String| Picture::Bad(Failure::permanent(format!("{name}: {what}")));
        let json = match self.json.as_deref().map(serde_json::from_slice::<Value>) {
            None => Value::Null,
            Some(Ok(json)) => json,
            Some(Err(_)) if !exprs.is_empty() => Value::Null,
            Some(Err(e)) => {
                let bad = bad(format!("expected JSON, found {e}"));
                return items.push(self.key.into(), bad, Default::default());
            }
        };
        let id = match &json["id"] {
            Value::Null => self.key.into(),
            id => id.clone(),
        };
        let picture = match (self.bad, self.picture) {
            (Some(what), _) => bad(what),
            (None, None) => bad(format!("expected a picture ({}), found none", PICTURES.join(", "))),
            (None, Some(bytes)) => Picture::Bytes { name: name.clone(), bytes },
        };
        let text = |bytes: &Option<Vec<u8>>| {
            String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned()
        };
        let named = |names: &[&str]| {
            names.iter().map(|n| strings(&json[*n])).find(|s| !s.is_empty()).unwrap_or_default()
        };
        let (mut found, mut ask) = (exprs.to_vec(), Ask::Expressions);
        if found.is_empty() {
            found = named(&EXPRESSIONS);
        }
        if found.is_empty() {
            found = named(&QUESTIONS);
            ask = if found.is_empty() { Ask::Expressions } else { Ask::Questions };
        }
        if found.is_empty() {
            found =
                text(&self.txt).lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
        }
        if found.is_empty() {
            let class = text(&self.cls).trim().to_string();
            found.extend((!class.is_empty() && class.parse::<f64>().is_err()).then_some(class));
        }
        items.push(id, picture, (found, ask))
    }
}

/// Counts what is read of a file.
struct Counted<R> {
    inner: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}
