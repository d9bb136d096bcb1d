//! Results read line by line, and files made of them.

use super::item::Record;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read};
use std::path::Path;

/// Longest record: a mask's runs can be as long as its pixels are many.
const MAX_LINE: u64 = 1 << 30;

/// Calls `each` with every record of a file of results.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] naming the line that is no record; those of `each`.
pub(crate) fn walk(results: &Path, mut each: impl FnMut(Record) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(File::open(results).map_err(Error::io(results, "open"))?);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if n.map_err(Error::io(results, "read"))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record = serde_json::from_slice(&line)
            .map_err(|e| Error::file(results, "a record a line", format!("line {number}: {e}")))?;
        each(record)?;
    }
    Ok(())
}

/// Writes a file beside `path`, syncs it and renames it to `path`.
///
/// # Errors
/// [`Error::Io`], and those of `write`; then `path` is as it was.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let whole = || {
        let mut out =
            BufWriter::with_capacity(1 << 20, File::create(&temporary).map_err(Error::io(path, "create"))?);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io(path, "write")(e.into_error()))?;
        file.sync_all().map_err(Error::io(path, "sync"))?;
        std::fs::rename(&temporary, path).map_err(Error::io(path, "rename to"))
    };
    whole().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}
