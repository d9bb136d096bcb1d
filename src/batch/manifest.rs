//! Sources that are lists: a manifest of JSON lines, a folder, a glob with names in braces. Those that are not are opened here too.
//!
//! ```text
//! {"id": any JSON, "image": "cats.jpg", "exprs": ["the left cat", "the right cat"]}
//! {"id": 17, "image_b64": "iVBORw0KG...", "expr": "the dog"}
//! {"image": "cats.jpg", "question": "How many cats are there?"}
//! {"image": "cats.jpg", "questions": ["How many cats are there?", "What is beside them?"]}
//! ```
//! `id` may be left out; other members are ignored. A path that is not absolute starts at the manifest's folder. A line that is none of these is an
//! item that fails, not the end of the run.

use super::item::{Ask, Failure, Item, Picture, Source};
use super::{parquet, tar};
use crate::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest line: the largest picture file in base64, and some.
const MAX_LINE: u64 = 400 << 20;
/// What a folder's pictures end with.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "apng"];

/// A source that is open.
pub struct Input {
    /// Its items.
    pub items: Source,
    /// What it is, for the journal: names, sizes and checksums.
    pub fingerprint: String,
    /// How far it was read, and how far it goes, in some unit of its own; 0 if that is not known.
    pub position: Arc<AtomicU64>,
    #[allow(missing_docs)]
    pub length: u64,
}

/// Opens a manifest, a folder, a glob, or a single picture; `exprs` is what is asked of the pictures of the last three. A tar shard or a Parquet
/// file, or a glob of such, has expressions of its own; `exprs` are asked instead of them. A glob may have names in braces, as WebDataset's
/// shards are given: `train-{000..127}.tar`, `{train,val}.tar`; each of them must be there.
///
/// # Errors
/// [`Error::Usage`] if it is nothing of these, or if expressions are missing or are given twice; [`Error::Io`].
pub fn open(source: &str, exprs: &[String]) -> Result<Input> {
    let path = Path::new(source);
    let file = [path.to_path_buf()];
    let found = if path.exists() { None } else { matched(source)? };
    let files = if path.is_file() { &file[..] } else { found.as_deref().unwrap_or_default() };
    if let Some(input) = shards(files, exprs)? {
        return Ok(input);
    }
    let is_picture = |p: &Path| {
        let extension = p.extension().map(|e| e.to_string_lossy().to_lowercase());
        extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
    };
    let paths = if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Error::io(path, "list"))?;
        let mut paths = Vec::new();
        for entry in entries {
            let file = entry.map_err(Error::io(path, "list"))?.path();
            if is_picture(&file) && !file.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
            {
                paths.push(file);
            }
        }
        paths.sort();
        paths
    } else if path.is_file() && is_picture(path) {
        vec![path.into()]
    } else if path.exists() {
        if !exprs.is_empty() {
            let expected = "expressions in the manifest's lines (--expr is for folders and globs)";
            return Err(Error::usage("--expr", expected, "a manifest"));
        }
        return manifest(path);
    } else if let Some(found) = found {
        found.into_iter().filter(|p| is_picture(p)).collect()
    } else {
        return Err(Error::usage(
            source,
            "a manifest (JSON lines), a folder of pictures, tar shards, Parquet files or a glob",
            "no such file",
        ));
    };
    if paths.is_empty() {
        let expected = format!("pictures ({}), or one manifest", EXTENSIONS.join(", "));
        return Err(Error::usage(source, expected, "none"));
    }
    if exprs.is_empty() {
        return Err(Error::usage("--expr", "what is asked of a folder's pictures", "nothing"));
    }
    Ok(pictures(paths, exprs))
}

/// Names in braces, at most.
const MAX_NAMES: usize = 1 << 20;
/// Longest pattern, in bytes, whose braces are looked at: no path is longer.
const MAX_PATTERN: usize = 4096;

/// The files of a glob, sorted by name, folder by folder, for one name in braces after the other; `None` if `source` is no pattern.
fn matched(source: &str) -> Result<Option<Vec<PathBuf>>> {
    let names = if source.len() > MAX_PATTERN { Some(vec![source.into()]) } else { braces(source) };
    let names =
        names.ok_or_else(|| Error::usage(source, format!("at most {MAX_NAMES} names in braces"), "more"))?;
    let is_glob = source.contains(['*', '?', '[']);
    if !is_glob && names.len() == 1 && names[0] == source {
        return Ok(None);
    }
    let (mut files, many) = (Vec::new(), names.len() > 1);
    for name in names {
        if is_glob {
            let bad = |e: glob::PatternError| Error::usage(source, "a glob", e.to_string());
            let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
            let before = files.len();
            for file in glob::glob_with(&name, options).map_err(bad)? {
                let unlisted =
                    |e: glob::GlobError| Error::Io { path: e.path().into(), doing: "list", source: e.into() };
                files.push(file.map_err(unlisted)?);
            }
            if many && files.len() == before {
                return Err(Error::usage(
                    source,
                    "files for every name in braces",
                    format!("none for {name}"),
                ));
            }
        } else if Path::new(&name).is_file() {
            files.push(name.into());
        } else {
            return Err(Error::usage(source, "a file for every name in braces", format!("no file {name}")));
        }
    }
    Ok(Some(files))
}

/// `text` for each name in its first braces, and so on: `{a,b}` for a and b, `{08..11}` for 08, 09, 10 and 11, as the shell has them. Braces that
/// hold neither stay. `None` if there are more than [`MAX_NAMES`].
fn braces(text: &str) -> Option<Vec<String>> {
    for (open, _) in text.match_indices('{') {
        let mut depth = 0;
        let mut ends = vec![open];
        let close = text[open..].char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => ends.push(open + i),
                _ => {}
            }
            (depth == 0).then_some(open + i)
        });
        let Some(close) = close else { continue };
        ends.push(close);
        let inner = &text[open + 1..close];
        let parts: Vec<String> = if ends.len() > 2 {
            ends.windows(2).map(|e| text[e[0] + 1..e[1]].into()).collect()
        } else if let Some((first, last)) = inner.split_once("..")
            && let (Ok(a), Ok(b)) = (first.parse::<u32>(), last.parse::<u32>())
        {
            // A zero in front of either makes all as long as the longer.
            let padded = [first, last].iter().any(|n| n.len() > 1 && n.starts_with('0'));
            let width = if padded { first.len().max(last.len()) } else { 0 };
            if a.abs_diff(b) as usize >= MAX_NAMES {
                return None;
            }
            let name = |i| format!("{i:0width$}");
            if a <= b { (a..=b).map(name).collect() } else { (b..=a).rev().map(name).collect() }
        } else {
            continue;
        };
        let rest = braces(&text[close + 1..])?;
        let mut names = Vec::new();
        for part in parts {
            for part in braces(&part)? {
                if names.len() + rest.len() > MAX_NAMES {
                    return None;
                }
                names.extend(rest.iter().map(|rest| format!("{}{part}{rest}", &text[..open])));
            }
        }
        return Some(names);
    }
    Some(vec![text.into()])
}

/// The tar shards among `files`, or the Parquet files, if there are any.
fn shards(files: &[PathBuf], exprs: &[String]) -> Result<Option<Input>> {
    let ends = |p: &Path, ends: &[&str]| {
        let name = p.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        ends.iter().any(|e| name.ends_with(e))
    };
    const TAR: [&str; 3] = [".tar", ".tar.gz", ".tgz"];
    let is_parquet = files.iter().any(|p| ends(p, &[".parquet"]));
    let kind = |p: &&PathBuf| if is_parquet { ends(p, &[".parquet"]) } else { ends(p, &TAR) };
    let paths: Vec<PathBuf> = files.iter().filter(kind).cloned().collect();
    if paths.is_empty() {
        return Ok(None);
    }
    let mut fingerprints = paths.iter().map(|p| fingerprint(p, 0)).collect::<Result<Vec<_>>>()?;
    fingerprints.extend_from_slice(exprs);
    let mut length = 0;
    for path in paths.iter().filter(|_| !is_parquet) {
        length += path.metadata().map_err(Error::io(path, "look at"))?.len();
    }
    let position = Arc::new(AtomicU64::new(0));
    let at = Arc::clone(&position);
    let items = if is_parquet {
        length = parquet::rows(&paths)?;
        parquet::read(paths, exprs, at)
    } else {
        tar::read(paths, exprs, at)
    };
    Ok(Some(Input { items, fingerprint: fingerprints.join("\n"), position, length }))
}

fn pictures(paths: Vec<PathBuf>, exprs: &[String]) -> Input {
    let mut crc = crc32fast::Hasher::new();
    for text in paths.iter().map(|p| p.to_string_lossy()).chain(exprs.iter().map(Into::into)) {
        crc.update(text.as_bytes());
        crc.update(b"\n");
    }
    let (length, fingerprint) =
        (paths.len() as u64, format!("{} pictures {:08x}", paths.len(), crc.finalize()));
    let position = Arc::new(AtomicU64::new(0));
    let (at, exprs) = (Arc::clone(&position), exprs.to_vec());
    let items = paths.into_iter().zip(0..).map(move |(path, index)| {
        at.store(index + 1, Ordering::Relaxed);
        let name = path.to_string_lossy().into_owned();
        Ok(Item {
            index,
            id: name.clone().into(),
            picture: Picture::Path { name, path },
            texts: exprs.clone(),
            ask: Ask::Expressions,
        })
    });
    Input { items: Box::new(items), fingerprint, position, length }
}

/// Manifests, and a checkpoint's small files, up to this size are looked at whole for the journal.
const WHOLE: [u64; 2] = [1 << 30, 16 << 20];

/// A file for the journal: its name, its size, the CRC-32 of all of it; of one above `whole` bytes of its first and last 64 KiB.
///
/// # Errors
/// [`Error::Io`].
fn fingerprint(path: &Path, whole: u64) -> Result<String> {
    const PART: u64 = 64 << 10;
    let look = || {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut crc = crc32fast::Hasher::new();
        let mut part = Vec::new();
        if bytes <= whole {
            while file.by_ref().take(PART).read_to_end(&mut part)? > 0 {
                crc.update(&part);
                part.clear();
            }
            return Ok((bytes, crc.finalize()));
        }
        file.by_ref().take(PART).read_to_end(&mut part)?;
        crc.update(&part);
        file.seek(SeekFrom::Start(bytes.saturating_sub(PART).max(part.len() as u64)))?;
        part.clear();
        file.take(PART).read_to_end(&mut part)?;
        crc.update(&part);
        Ok((bytes, crc.finalize()))
    };
    let (bytes, crc) = look().map_err(Error::io(path, "read"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} {bytes} {crc:08x}"))
}

/// A checkpoint for the journal: as it is named, and name, size and checksum of each of its files (of large ones, of their beginnings and ends).
///
/// # Errors
/// [`Error::File`] if there is none of that name; [`Error::Io`].
pub fn model(name: &str) -> Result<String> {
    let dir = crate::checkpoint::locate(name)?;
    let look =
        || -> std::io::Result<Vec<PathBuf>> { std::fs::read_dir(&dir)?.map(|e| Ok(e?.path())).collect() };
    let mut files = look().map_err(Error::io(&dir, "read"))?;
    let of_model = |p: &PathBuf| {
        p.extension().is_some_and(|e| ["json", "model", "safetensors"].map(OsStr::new).contains(&e))
            && p.is_file()
    };
    files.retain(of_model);
    files.sort();
    let lines = std::iter::once(Ok(name.into())).chain(files.iter().map(|file| fingerprint(file, WHOLE[1])));
    Ok(lines.collect::<Result<Vec<String>>>()?.join("\n"))
}

fn manifest(path: &Path) -> Result<Input> {
    // What cannot be read again cannot be continued.
    let usage = |found: &str| Error::usage(path.display().to_string(), "a file of JSON lines", found);
    if !path.metadata().map_err(Error::io(path, "open"))?.is_file() {
        return Err(usage("a pipe or a device"));
    }
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "look at"))?.len();
    let mut start = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut start).map_err(Error::io(path, "read"))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Err(usage("one that is compressed"));
    }
    if start.starts_with(&[0, 0]) || start.get(4..8) == Some(&[0; 4]) {
        return Err(usage("a binary one"));
    }
    file.rewind().map_err(Error::io(path, "read"))?;
    let position = Arc::new(AtomicU64::new(0));
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let lines = JsonLines::new(BufReader::new(file), path, folder, Arc::clone(&position));
    Ok(Input { items: Box::new(lines), fingerprint: fingerprint(path, WHOLE[0])?, position, length })
}

/// What some editors put before a text in UTF-8.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// Items of JSON lines.
pub struct JsonLines<R> {
    reader: R,
    path: PathBuf,
    folder: PathBuf,
    position: Arc<AtomicU64>,
    index: u64,
    line: u64,
    ended: bool,
    numbered: bool,
}

impl<R: BufRead> JsonLines<R> {
    /// `path` names them in errors; relative paths of pictures start at `folder`; `position` counts the bytes that were read.
    pub fn new(reader: R, path: &Path, folder: PathBuf, position: Arc<AtomicU64>) -> Self {
        Self { reader, path: path.into(), folder, position, index: 0, line: 0, ended: false, numbered: false }
    }

    /// Lets a line say its item's place, `index`, what its records call the picture, `name`, and how it is asked, `ask`: for workers.
    #[must_use]
    pub fn numbered(self) -> Self {
        Self { numbered: true, ..self }
    }

    /// The next line that is not blank, without its end, or why it cannot be taken; `None` at the end.
    fn next_line(&mut self) -> std::io::Result<Option<std::result::Result<Vec<u8>, Failure>>> {
        loop {
            let mut bytes = Vec::new();
            let mut n = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut bytes)? as u64;
            self.line += 1;
            let mut too_long = false;
            if n == MAX_LINE && !bytes.ends_with(b"\n") {
                too_long = true;
                bytes = Vec::new();
                n += self.reader.skip_until(b'\n')? as u64;
            }
            self.position.fetch_add(n, Ordering::Relaxed);
            if n == 0 {
                return Ok(None);
            }
            if too_long {
                let message = format!(
                    "{}:{}: expected at most {MAX_LINE} bytes in a line, found more",
                    self.path.display(),
                    self.line
                );
                return Ok(Some(Err(Failure::permanent(message))));
            }
            if self.line == 1 && bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Ok(bytes)));
            }
        }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let line = match self.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => {
                self.ended = true;
                return None;
            }
            Err(e) => {
                self.ended = true;
                return Some(Err(Error::io(&self.path, "read")(e)));
            }
        };
        let index = self.index;
        self.index += 1;
        let at = || format!("{}:{}", self.path.display(), self.line);
        let bad = |id, failure| {
            let (picture, texts) = (Picture::Bad(failure), Vec::new());
            Item { index, id, picture, texts, ask: Ask::Expressions }
        };
        let parsed = line.map_err(|failure| (Value::Null, failure)).and_then(|line| parse(&line, &at));
        let parsed = parsed.and_then(|line| {
            let line = match self.numbered {
                true => line,
                false => Line { index: None, name: None, ask: None, ..line },
            };
            line.item(index, &self.folder, &at)
        });
        Some(Ok(parsed.unwrap_or_else(|(id, failure)| bad(id, failure))))
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    /// For workers: the item's place, what its records call the picture, and how its expressions are asked.
    index: Option<u64>,
    name: Option<String>,
    ask: Option<Ask>,
    image: Option<String>,
    image_b64: Option<String>,
    exprs: Option<Vec<String>>,
    expr: Option<String>,
    questions: Option<Vec<String>>,
    question: Option<String>,
}

/// What of a line that is not what it should be can still be told.
#[derive(Default, Deserialize)]
struct Named {
    #[serde(default)]
    id: Value,
}

fn parse(line: &[u8], at: &impl Fn() -> String) -> std::result::Result<Line, (Value, Failure)> {
    let bad = |found: String| {
        let expected =
            "a JSON object with `image` or `image_b64`, and `exprs`, `expr`, `questions` or `question`";
        Failure::permanent(format!("{}: expected {expected}, found {found}", at()))
    };
    // A list would be taken for the members in their order.
    if line.trim_ascii_start().starts_with(b"[") {
        return Err((Value::Null, bad("a list".into())));
    }
    serde_json::from_slice(line).map_err(|e| {
        let named: Named = serde_json::from_slice(line).unwrap_or_default();
        // Which line is said already.
        (named.id, bad(e.to_string().replace(" at line 1 column ", " at byte ")))
    })
}

impl Line {
    fn item(
        self,
        index: u64,
        folder: &Path,
        at: &impl Fn() -> String,
    ) -> std::result::Result<Item, (Value, Failure)> {
        let bad = |expected: &str, found: &str| {
            Failure::permanent(format!("{}: expected {expected}, found {found}", at()))
        };
        let (id, index) = (self.id, self.index.unwrap_or(index));
        let (expr, question) = (self.expr.map(|e| vec![e]), self.question.map(|q| vec![q]));
        let expressions = self.exprs.into_iter().chain(expr).map(|texts| (texts, Ask::Expressions));
        let questions = self.questions.into_iter().chain(question).map(|texts| (texts, Ask::Questions));
        let mut asked: Vec<_> = expressions.chain(questions).collect();
        if asked.len() > 1 {
            let expected = "one of `exprs`, `expr`, `questions` and `question`";
            return Err((id, bad(expected, &asked.len().to_string())));
        }
        let Some((texts, ask)) = asked.pop().filter(|(texts, _)| !texts.is_empty()) else {
            let expected =
                "at least one expression or question in `exprs`, `expr`, `questions` or `question`";
            return Err((id, bad(expected, "none")));
        };
        let ask = self.ask.filter(|_| ask == Ask::Expressions).unwrap_or(ask);
        let picture = match (self.image, self.image_b64) {
            (Some(image), None) => {
                Picture::Path { path: folder.join(&image), name: self.name.unwrap_or(image) }
            }
            (None, Some(text)) => match BASE64.decode(text) {
                Ok(bytes) => {
                    let name = self.name.unwrap_or_else(|| format!("image_b64 of item {index}"));
                    Picture::Bytes { name, bytes }
                }
                Err(e) => return Err((id, bad("a picture file in base64 in `image_b64`", &e.to_string()))),
            },
            (Some(_), Some(_)) => return Err((id, bad("one of `image` and `image_b64`", "both"))),
            (None, None) => return Err((id, bad("`image` or `image_b64`", "neither"))),
        };
        Ok(Item { index, id, picture, texts, ask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What bash makes of them.
    #[test]
    fn names_in_braces() {
        let list = |text: &str| braces(text).map(|names| names.join(" "));
        for (text, names) in [
            ("a.tar", "a.tar"),
            ("a-{08..11}.tar", "a-08.tar a-09.tar a-10.tar a-11.tar"),
            ("{9..11}", "9 10 11"),
            ("{98..0100}", "0098 0099 0100"),
            ("{09..11}{00..1}", "0900 0901 1000 1001 1100 1101"),
            ("{3..1}", "3 2 1"),
            ("{train,val}-{0..1}.tar", "train-0.tar train-1.tar val-0.tar val-1.tar"),
            ("x{a,b{1..2},}y", "xay xb1y xb2y xy"),
            ("{a}/{..}/{1..b}/{", "{a}/{..}/{1..b}/{"),
            ("}{{a,b}", "}{a }{b"),
            ("\u{e4}{\u{f6},\u{1f98a}}", "\u{e4}\u{f6} \u{e4}\u{1f98a}"),
        ] {
            assert_eq!(list(text).as_deref(), Some(names), "{text}");
        }
        for many in ["{0..4294967295}", "{1..1000000}{1..2}", &"{a,b}".repeat(800)] {
            assert_eq!(list(many), None);
        }
        assert_eq!(list(&"{".repeat(MAX_PATTERN)), Some("{".repeat(MAX_PATTERN)));
        let deep = format!("{}a{}", "{b,".repeat(1000), "}".repeat(1000));
        assert_eq!(braces(&deep).map(|names| names.len()), Some(1001));
    }
}
