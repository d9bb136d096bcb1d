//! Finished shards of one source, joined, and the proof that nothing is missing.

use super::journal::{Counts, Finished, MASKS, OVERLAYS, Output, Run};
use super::{Disk, item::Kind, journal::Status};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Joins the finished results of all shards of a source into the results that one run would have written. Masks and overlays are linked, or
/// copied where they cannot be.
///
/// # Errors
/// [`Error::Usage`] if a shard is missing, is there twice, or is of another run; [`Error::File`] if one is not finished or is damaged, or the
/// items are not exactly those of the source.
pub fn merge(shards: &[PathBuf], out: &Path, restart: bool) -> Result<Counts> {
    let mut by_number: BTreeMap<u64, (PathBuf, Finished)> = BTreeMap::new();
    let mut expected: Option<(Run, u64)> = None;
    for dir in shards {
        let finished = Finished::open(dir)?;
        let [number, n] = finished.run.shard;
        let run = Run { shard: [0, n], ..finished.run.clone() };
        let (first, items) = expected.get_or_insert((run.clone(), finished.items));
        let usage =
            |expected: String, found: String| Error::usage(dir.display().to_string(), expected, found);
        if *first != run {
            let found = format!("one that differs in its {}", run.differs(first));
            return Err(usage("a shard of the same run".into(), found));
        }
        if *items != finished.items {
            return Err(usage(format!("a shard of {items} items"), format!("{} items", finished.items)));
        }
        if let Some((other, _)) = by_number.insert(number, (dir.clone(), finished)) {
            return Err(usage(format!("shard {number} once"), format!("it is also in {}", other.display())));
        }
    }
    let Some((run, items)) = expected else {
        return Err(Error::usage("merge", "folders of finished shards", "none"));
    };
    let n = run.shard[1];
    let missing: Vec<String> =
        (0..n).filter(|i| !by_number.contains_key(i)).map(|i| i.to_string()).take(20).collect();
    if !missing.is_empty() {
        let found = format!("none of shard {}", missing.join(", "));
        return Err(Error::usage("merge", format!("all {n} shards"), found));
    }
    let recorded: u64 = by_number.values().map(|(_, f)| f.counts.items()).sum();
    if recorded != items {
        return Err(Error::file(out, format!("{items} items in all shards"), format!("{recorded}")));
    }
    let disk = Disk::default();
    let whole = Run { shard: [0, 1], ..run };
    let mut output = Output::open(&disk, out, whole, restart)?;
    let mut records = Vec::new();
    if output.complete() || output.counts().items() == items {
        // joined before, as far as the records
    } else if output.run().unordered {
        for (_, shard) in by_number.values_mut() {
            while let Some((index, status)) = shard.next(&mut records)? {
                if !output.has(index) {
                    output.append(index, status, &records)?;
                }
            }
        }
    } else {
        for expected in 0..items {
            let (_, shard) = by_number.get_mut(&(expected % n)).expect("all shards are there");
            match shard.next(&mut records)? {
                Some((index, _)) if index != expected => {
                    let found = format!("item {index}");
                    return Err(Error::file(shard.path(), format!("item {expected}"), found));
                }
                None => return Err(Error::file(shard.path(), format!("item {expected}"), "the end")),
                Some((index, status)) if !output.has(index) => {
                    let known = output.counts().items() > index;
                    if !(known && status == Status::Failed(Kind::Transient)) {
                        output.append(index, status, &records)?;
                    }
                }
                Some(_) => {}
            }
        }
    }
    for folder in [MASKS, OVERLAYS] {
        for (dir, _) in by_number.values() {
            link(&dir.join(folder), &out.join(folder))?;
        }
    }
    output.finish(items)?;
    Ok(output.counts())
}

/// Links every file below `from` into the same place below `to`.
fn link(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to).map_err(Error::io(to, "create the folder"))?;
    for entry in fs::read_dir(from).map_err(Error::io(from, "list"))? {
        let entry = entry.map_err(Error::io(from, "list"))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            link(&path, &target)?;
        } else if !target.exists() {
            fs::hard_link(&path, &target)
                .or_else(|_| fs::copy(&path, &target).map(|_| ()))
                .map_err(Error::io(&target, "write"))?;
        }
    }
    Ok(())
}
