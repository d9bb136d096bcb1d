//! Results on disk, so that a run that ends at any moment can be continued and ends with the same bytes.
//!
//! ```text
//! OUT/results.partial.jsonl   records of the items that are done, appended; results.jsonl once all are
//! OUT/journal                 one line each, appended after the records; a line's last word is the CRC-32 of what stands before it
//!     mllmseg-batch 1 {run} CRC          what is run: another run is refused
//!     item INDEX STATUS END DATA CRC     the item's records end at byte END of the results; DATA is their CRC-32
//!     end ITEMS CRC                      the source had so many items
//! ```
//! When it is opened, both are read up to the first thing that does not fit and cut there. So nothing depends on which of two writes reached the
//! disk first, and a sync now and then is enough. An item whose failure was transient is done again by a later run: its later records win, and
//! take the place of the first when the results are finished.

use super::disk::Disk;
use super::item::Kind;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Finished results.
pub const RESULTS: &str = "results.jsonl";
/// Results while items are missing.
pub const PARTIAL: &str = "results.partial.jsonl";
/// The journal.
pub const JOURNAL: &str = "journal";
/// The page that shows the first items, if it was asked for.
pub const REPORT: &str = "report.html";
/// Folder of masks, if they were asked for.
pub const MASKS: &str = "masks";
/// Folder of overlays, if they were asked for.
pub const OVERLAYS: &str = "overlays";
/// Longest time between syncs.
const SYNC: Duration = Duration::from_secs(1);
/// A line of the journal is shorter than this.
const MAX_LINE: u64 = 1 << 20;
/// Bytes of a journal that does not fit its results in which lines are counted.
const MAX_REST: u64 = 1 << 30;
/// What a journal begins with.
const MAGIC: &str = "mllmseg-batch 1 ";

/// What is run. A journal of another run is not continued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The source: names, sizes and checksums.
    pub source: String,
    /// The checkpoint: its name and checksums of its files.
    pub model: String,
    /// Everything else that the results depend on.
    pub options: String,
    /// Whether results stand in the order in which they were ready.
    pub unordered: bool,
    /// This shard and how many there are.
    pub shard: [u64; 2],
}

impl Run {
    /// In what it differs from `other`, and where.
    pub(super) fn differs(&self, other: &Self) -> String {
        let lines = |a: &str, b: &str, by: &str| {
            let (a, b): (Vec<_>, Vec<_>) = (a.split(by).collect(), b.split(by).collect());
            let apart = a.iter().zip(&b).find(|(a, b)| a != b);
            apart.map_or_else(String::new, |(a, b)| format!(" ({a}, not {b})"))
        };
        if self.source != other.source {
            format!("source{}", lines(&self.source, &other.source, "\n"))
        } else if self.model != other.model {
            format!("model{}", lines(&self.model, &other.model, "\n"))
        } else if self.options != other.options {
            format!("options{}", lines(&self.options, &other.options, ", "))
        } else if self.unordered != other.unordered {
            format!("options (unordered {}, not {})", self.unordered, other.unordered)
        } else {
            format!("shard ({:?}, not {:?})", self.shard, other.shard)
        }
    }
}

/// How an item ended: the worst of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every expression has its mask.
    Done,
    /// Something failed, and this is the worst of it.
    Failed(Kind),
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(Kind::Permanent) => "permanent",
            Self::Failed(Kind::Transient) => "transient",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [Self::Done, Self::Failed(Kind::Permanent), Self::Failed(Kind::Transient)]
            .into_iter()
            .find(|s| s.word() == word)
    }

    /// The worse of the two.
    pub(super) fn and(self, other: Self) -> Self {
        let rank = |s| match s {
            Self::Done => 0,
            Self::Failed(Kind::Permanent) => 1,
            Self::Failed(Kind::Transient) => 2,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// Items by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Every expression has its mask.
    pub done: u64,
    /// Something failed that will fail again.
    pub permanent: u64,
    /// Something failed that is tried again by the next run.
    pub transient: u64,
}

impl Counts {
    fn of(&mut self, status: Status) -> &mut u64 {
        match status {
            Status::Done => &mut self.done,
            Status::Failed(Kind::Permanent) => &mut self.permanent,
            Status::Failed(Kind::Transient) => &mut self.transient,
        }
    }

    /// All of them.
    pub fn items(&self) -> u64 {
        self.done + self.permanent + self.transient
    }
}

/// Where an item's records lie in the results.
#[derive(Clone, Copy, Debug)]
struct Entry {
    index: u64,
    status: Status,
    start: u64,
    end: u64,
    crc: u32,
}

/// Which items are recorded. Items are done nearly in order, so this is a number and a few exceptions, whatever the number of items.
#[derive(Debug, Default)]
struct Known {
    /// By place in the shard: all before this one.
    next: u64,
    /// And these.
    beyond: BTreeSet<u64>,
    /// Transient failures, by index.
    again: BTreeSet<u64>,
    /// The last records of items that have several, by index.
    replaced: BTreeMap<u64, Entry>,
    counts: Counts,
    /// Items of the whole source, once it was read to its end.
    items: Option<u64>,
    /// Bytes of results.
    end: u64,
}

impl Known {
    fn contains(&self, place: u64) -> bool {
        place < self.next || self.beyond.contains(&place)
    }

    fn add(&mut self, e: Entry, shards: u64) {
        let place = e.index / shards;
        if self.contains(place) {
            // Only transient failures are done again.
            *self.counts.of(Status::Failed(Kind::Transient)) -= u64::from(self.again.remove(&e.index));
            self.replaced.insert(e.index, e);
        } else {
            self.beyond.insert(place);
            while self.beyond.remove(&self.next) {
                self.next += 1;
            }
        }
        *self.counts.of(e.status) += 1;
        if e.status == Status::Failed(Kind::Transient) {
            self.again.insert(e.index);
        }
        self.end = e.end;
    }
}

/// Locks a journal. Its holder has a moment to let go: a process that was just killed, a child between fork and exec.
fn lock(journal: &File) -> Result<(), TryLockError> {
    for _ in 0..20 {
        match journal.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(25)),
            ended => return ended,
        }
    }
    journal.try_lock()
}

/// The results of a run, open for appending. No other process has them open.
pub struct Output<'d> {
    disk: &'d Disk,
    dir: PathBuf,
    run: Run,
    journal: File,
    data: File,
    known: Known,
    finished: bool,
    lost: u64,
    synced: Instant,
}

impl<'d> Output<'d> {
    /// Opens a folder for this run; continues what is there. `restart` forgets it.
    ///
    /// # Errors
    /// [`Error::Usage`] if the folder holds another run's results, or another process is writing them; [`Error::Io`].
    pub fn open(disk: &'d Disk, dir: &Path, run: Run, restart: bool) -> Result<Self> {
        disk.make_dir(dir)?;
        let path = dir.join(JOURNAL);
        let mut options = File::options();
        let journal = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path, "open"))?;
        match lock(&journal) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage(
                    dir.display().to_string(),
                    "no run that writes here",
                    "another process",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock")(e)),
        }
        let mut reader = Lines::new(&journal, &path)?;
        let found = reader.next()?.as_deref().and_then(header);
        let other = |expected: &str, found: &str| {
            Err(Error::usage(
                dir.display().to_string(),
                format!("{expected} (or --restart, which starts over)"),
                found,
            ))
        };
        match &found {
            _ if restart => {}
            Some(found) if *found == run => {}
            Some(found) => {
                let found = format!("those of a run that differs in its {}", found.differs(&run));
                return other("results of the same run", &found);
            }
            None if dir.join(RESULTS).exists() || dir.join(PARTIAL).exists() => {
                return other("a folder without results of other runs", "results without a journal");
            }
            // One that was ended while it wrote the first line leaves a part of it.
            None if !begins(&journal, &path)? => return other("no file `journal` but a run's", "another"),
            None => {}
        }
        let continues = found.is_some() && !restart;
        if !continues {
            disk.truncate(&journal, 0).map_err(Error::io(&path, "truncate"))?;
            (&journal).rewind().map_err(Error::io(&path, "seek in"))?; // it was read
            [RESULTS, PARTIAL, REPORT].iter().try_for_each(|f| disk.remove(&dir.join(f)))?;
            if found.is_some() {
                for folder in [MASKS, OVERLAYS].map(|f| dir.join(f)).iter().filter(|f| f.is_dir()) {
                    std::fs::remove_dir_all(folder).map_err(Error::io(folder, "remove"))?;
                }
            }
            let line = line(&format!("{MAGIC}{}", serde_json::to_string(&run).unwrap_or_default()));
            disk.write(&journal, line.as_bytes()).map_err(Error::io(&path, "write"))?;
        }
        let partial = dir.join(PARTIAL);
        let open = |p: &Path, create: bool| {
            let mut o = File::options();
            o.read(true).write(true).create(create).truncate(false).open(p).map_err(Error::io(p, "open"))
        };
        // A run that was ended while it finished leaves both; the journal fits one of them to its end.
        let mut best: Option<(u64, Known, File, bool)> = None;
        for (file, finished) in [(dir.join(RESULTS), true), (partial.clone(), false)] {
            if file.exists() {
                let data = open(&file, false)?;
                let (bytes, known) = verify(&journal, &path, &data, &file, run.shard)?;
                if best.as_ref().is_none_or(|b| bytes > b.0) {
                    best = Some((bytes, known, data, finished));
                }
            }
        }
        let (bytes, known, data, finished) = match best {
            Some(best) => best,
            None => {
                let data = open(&partial, true)?;
                let (bytes, known) = verify(&journal, &path, &data, &partial, run.shard)?;
                (bytes, known, data, false)
            }
        };
        let mut output = Self {
            disk,
            dir: dir.into(),
            run,
            journal,
            data,
            known,
            finished,
            lost: 0,
            synced: Instant::now(),
        };
        let length = |f: &File, p: &Path| f.metadata().map(|m| m.len()).map_err(Error::io(p, "look at"));
        if length(&output.journal, &path)? > bytes {
            let mut rest = Vec::new();
            let mut from = &output.journal;
            from.seek(SeekFrom::Start(bytes))
                .and_then(|_| from.take(MAX_REST).read_to_end(&mut rest))
                .map_err(Error::io(&path, "read"))?;
            output.lost = rest.iter().filter(|&&b| b == b'\n').count() as u64;
            disk.truncate(&output.journal, bytes).map_err(Error::io(&path, "truncate"))?;
        }
        if length(&output.data, &partial)? > output.known.end {
            disk.truncate(&output.data, output.known.end).map_err(Error::io(&partial, "truncate"))?;
        }
        output.seek_to_end().map_err(Error::io(&path, "seek in"))?;
        if output.finished && output.known.items.is_some() {
            disk.remove(&partial)?; // left by a run that was ended while it finished
        }
        Ok(output)
    }

    fn seek_to_end(&mut self) -> io::Result<()> {
        self.journal.seek(SeekFrom::End(0))?;
        self.data.seek(SeekFrom::Start(self.known.end))?;
        Ok(())
    }

    /// Whether nothing is left to do for this item: it is recorded, and not as a transient failure.
    pub fn has(&self, index: u64) -> bool {
        self.known.contains(index / self.run.shard[1]) && !self.known.again.contains(&index)
    }

    /// Whether every item of the source is recorded, and none as a transient failure.
    pub fn complete(&self) -> bool {
        self.finished && self.known.items.is_some() && self.known.again.is_empty()
    }

    /// Lines of the journal that were cut off when it was opened, as one before them or its results had been changed: their items are done
    /// again.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What is run.
    pub(super) fn run(&self) -> &Run {
        &self.run
    }

    /// Items recorded so far.
    pub fn counts(&self) -> Counts {
        self.known.counts
    }

    /// What is recorded now, for another thread.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            next: self.known.next,
            beyond: self.known.beyond.clone(),
            again: self.known.again.clone(),
            shard: self.run.shard,
        }
    }

    /// Appends the records of one item, whole lines.
    ///
    /// # Errors
    /// [`Error::Io`]: then nothing more may be appended, and the next run continues from what is whole.
    pub fn append(&mut self, index: u64, status: Status, records: &[u8]) -> Result<()> {
        if self.finished {
            // Transient failures are done again.
            self.disk.rename(&self.dir.join(RESULTS), &self.dir.join(PARTIAL))?;
            self.finished = false;
        }
        let crc = crc32fast::hash(records);
        let (start, end) = (self.known.end, self.known.end + records.len() as u64);
        self.disk.write(&self.data, records).map_err(Error::io(&self.dir.join(PARTIAL), "write"))?;
        let entry = Entry { index, status, start, end, crc };
        let written = self.disk.write(&self.journal, entry.line().as_bytes());
        written.map_err(Error::io(&self.dir.join(JOURNAL), "write"))?;
        self.known.add(entry, self.run.shard[1]);
        if self.synced.elapsed() >= SYNC { self.sync() } else { Ok(()) }
    }

    /// Waits until everything that was appended is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        self.disk.sync(&self.data).map_err(Error::io(&self.dir.join(PARTIAL), "sync"))?;
        self.disk.sync(&self.journal).map_err(Error::io(&self.dir.join(JOURNAL), "sync"))?;
        self.synced = Instant::now();
        Ok(())
    }

    /// Makes `results.jsonl` when every item is recorded; `items` is how many the whole source has.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] if an item is missing, or the results were changed meanwhile.
    pub fn finish(&mut self, items: u64) -> Result<()> {
        let [shard, shards] = self.run.shard;
        let own = items / shards + u64::from(shard < items % shards);
        if self.known.next != own || !self.known.beyond.is_empty() {
            let found = format!("{} and {} beyond", self.known.next, self.known.beyond.len());
            return Err(Error::file(&self.dir, format!("records of {own} items"), found));
        }
        if self.finished && self.known.items.is_some() {
            return Ok(());
        }
        let (results, partial, journal) =
            (self.dir.join(RESULTS), self.dir.join(PARTIAL), self.dir.join(JOURNAL));
        if self.known.items != Some(items) {
            let end = line(&format!("end {items}"));
            self.disk.write(&self.journal, end.as_bytes()).map_err(Error::io(&journal, "write"))?;
            self.known.items = Some(items);
        }
        self.sync()?;
        if self.known.replaced.is_empty() {
            self.disk.rename(&partial, &results)?;
        } else {
            self.rewrite(items)?;
            self.disk.rename(&self.dir.join("results.tmp"), &results)?;
            self.disk.rename(&self.dir.join("journal.tmp"), &journal)?;
            self.disk.remove(&partial)?;
        }
        self.finished = true;
        let dir = File::open(&self.dir).map_err(Error::io(&self.dir, "open"))?;
        self.disk.sync(&dir).map_err(Error::io(&self.dir, "sync"))
    }

    /// Results and journal anew, later records in the places of the first.
    fn rewrite(&mut self, items: u64) -> Result<()> {
        let (journal, partial) = (self.dir.join(JOURNAL), self.dir.join(PARTIAL));
        let (new_data, new_journal) = (self.dir.join("results.tmp"), self.dir.join("journal.tmp"));
        let create = |p: &Path| File::create(p).map_err(Error::io(p, "create"));
        let (data_file, journal_file) = (create(&new_data)?, create(&new_journal)?);
        let mut through = (
            BufWriter::new(Through(self.disk, &data_file)),
            BufWriter::new(Through(self.disk, &journal_file)),
        );
        let mut lines = Lines::new(&self.journal, &journal)?;
        let head = lines.next()?.unwrap_or_default();
        through.1.write_all(line(&head).as_bytes()).map_err(Error::io(&new_journal, "write"))?;
        let (mut written, mut records) = (BTreeSet::new(), Vec::new());
        let (mut at, mut end) = (0, 0);
        while let Some(text) = lines.next()? {
            let Some(first) = Entry::parse(&text, at) else { continue };
            at = first.end;
            let entry = match self.known.replaced.get(&first.index) {
                Some(_) if !written.insert(first.index) => continue,
                Some(last) => *last,
                None => first,
            };
            if !read(&self.data, &partial, &entry, &mut records)? {
                return Err(Error::file(&partial, "the records that were written", "others"));
            }
            end += records.len() as u64;
            through.0.write_all(&records).map_err(Error::io(&new_data, "write"))?;
            let text = Entry { end, ..entry }.line();
            through.1.write_all(text.as_bytes()).map_err(Error::io(&new_journal, "write"))?;
        }
        through
            .1
            .write_all(line(&format!("end {items}")).as_bytes())
            .map_err(Error::io(&new_journal, "write"))?;
        through.0.flush().map_err(Error::io(&new_data, "write"))?;
        through.1.flush().map_err(Error::io(&new_journal, "write"))?;
        drop(through);
        self.disk.sync(&data_file).map_err(Error::io(&new_data, "sync"))?;
        self.disk.sync(&journal_file).map_err(Error::io(&new_journal, "sync"))
    }
}

/// What was recorded when it was taken.
#[derive(Clone, Debug)]
pub struct Snapshot {
    next: u64,
    beyond: BTreeSet<u64>,
    again: BTreeSet<u64>,
    shard: [u64; 2],
}

impl Snapshot {
    /// Whether this shard still has to do the item.
    pub fn lacks(&self, index: u64) -> bool {
        let [shard, shards] = self.shard;
        let place = index / shards;
        let recorded = place < self.next || self.beyond.contains(&place);
        index % shards == shard && (!recorded || self.again.contains(&index))
    }
}

/// Finished results of another run, to be read in order.
pub(super) struct Finished {
    /// What was run.
    pub run: Run,
    /// Items of the whole source.
    pub items: u64,
    /// Items of this shard.
    pub counts: Counts,
    journal: PathBuf,
    results: PathBuf,
    lines: Lines,
    data: File,
    at: u64,
}

impl Finished {
    /// Opens and checks every record.
    ///
    /// # Errors
    /// [`Error::File`] if the results are not finished, or are damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let (journal, results) = (dir.join(JOURNAL), dir.join(RESULTS));
        let open = |p: &Path| File::open(p).map_err(Error::io(p, "open"));
        if !journal.exists() {
            return Err(Error::file(dir, "a shard's results (OUT/shard-*)", "no journal"));
        }
        if !results.exists() {
            let expected = "finished results (run the batch again to its end)";
            return Err(Error::file(dir, expected, "unfinished ones"));
        }
        let (file, data) = (open(&journal)?, open(&results)?);
        let mut lines = Lines::new(&file, &journal)?;
        let run = lines.next()?.as_deref().and_then(header);
        let run = run.ok_or_else(|| Error::file(&journal, "a journal of a batch", "another file"))?;
        let length = |p: &Path, f: &File| f.metadata().map(|m| m.len()).map_err(Error::io(p, "look at"));
        let bytes = length(&journal, &file)?;
        let (whole, known) = verify(&file, &journal, &data, &results, run.shard)?;
        let items =
            known.items.filter(|_| whole == bytes && known.end == length(&results, &data).unwrap_or(0));
        let Some(items) = items else {
            let found = format!("{} items, then something else", known.counts.items());
            return Err(Error::file(dir, "finished results (run the batch again to its end)", found));
        };
        let mut lines = Lines::new(&file, &journal)?;
        lines.next()?;
        Ok(Self { run, items, counts: known.counts, journal, results, lines, data, at: 0 })
    }

    /// The next item's index, status and records.
    pub fn next(&mut self, records: &mut Vec<u8>) -> Result<Option<(u64, Status)>> {
        while let Some(text) = self.lines.next()? {
            if let Some(e) = Entry::parse(&text, self.at) {
                self.at = e.end;
                if !read(&self.data, &self.results, &e, records)? {
                    return Err(Error::file(&self.results, "the records of its journal", "others"));
                }
                return Ok(Some((e.index, e.status)));
            }
        }
        Ok(None)
    }

    /// The journal's path.
    pub fn path(&self) -> &Path {
        &self.journal
    }
}

/// Writes to a file by way of the disk.
struct Through<'a>(&'a Disk, &'a File);

impl Write for Through<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(self.1, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `text` as a line of the journal.
fn line(text: &str) -> String {
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// The run that a journal's first line names.
fn header(text: &str) -> Option<Run> {
    serde_json::from_str(text.strip_prefix(MAGIC)?).ok()
}

/// Whether a file is empty or begins as a journal does.
fn begins(journal: &File, path: &Path) -> Result<bool> {
    let mut start = vec![0; MAGIC.len()];
    let n = journal.read_at(&mut start, 0).map_err(Error::io(path, "read"))?;
    Ok(MAGIC.as_bytes().starts_with(&start[..n]))
}

impl Entry {
    fn line(&self) -> String {
        let Self { index, status, end, crc, .. } = self;
        line(&format!("item {index} {} {end} {crc:08x}", status.word()))
    }

    /// Of a line whose records start at byte `start`.
    fn parse(text: &str, start: u64) -> Option<Self> {
        let [index, status, end, crc] =
            <[&str; 4]>::try_from(text.strip_prefix("item ")?.split(' ').collect::<Vec<_>>()).ok()?;
        let end = end.parse().ok().filter(|end| *end >= start)?;
        let crc = u32::from_str_radix(crc, 16).ok()?;
        Some(Self { index: index.parse().ok()?, status: Status::parse(status)?, start, end, crc })
    }
}

/// The lines of a journal up to the first that is not whole, without their checksums.
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    /// Bytes of the lines that were given.
    bytes: u64,
}

impl Lines {
    fn new(file: &File, path: &Path) -> Result<Self> {
        let from_start = || {
            let mut file = file.try_clone()?; // the place to read at is shared with `file`
            file.seek(SeekFrom::Start(0))?;
            Ok(BufReader::new(file))
        };
        let reader = from_start().map_err(Error::io(path, "read"))?;
        Ok(Self { reader, path: path.into(), bytes: 0 })
    }

    fn next(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut bytes);
        let n = read.map_err(Error::io(&self.path, "read"))? as u64;
        let whole = || {
            let text = std::str::from_utf8(bytes.strip_suffix(b"\n")?).ok()?;
            let (text, crc) = text.rsplit_once(' ')?;
            (crc == format!("{:08x}", crc32fast::hash(text.as_bytes()))).then(|| text.to_string())
        };
        let text = whole();
        self.bytes += if text.is_some() { n } else { 0 };
        Ok(text)
    }
}

/// The records of an entry; whether they are what was written.
fn read(data: &File, path: &Path, e: &Entry, into: &mut Vec<u8>) -> Result<bool> {
    let length = data.metadata().map_err(Error::io(path, "look at"))?.len();
    if e.end > length {
        return Ok(false);
    }
    into.resize((e.end - e.start) as usize, 0);
    data.read_exact_at(into, e.start).map_err(Error::io(path, "read"))?;
    Ok(crc32fast::hash(into) == e.crc)
}

/// What a journal's lines say, as far as they are whole and the results fit them; and how many bytes of it these are.
fn verify(
    journal: &File,
    path: &Path,
    data: &File,
    data_path: &Path,
    [shard, shards]: [u64; 2],
) -> Result<(u64, Known)> {
    let (mut lines, mut known, mut records) = (Lines::new(journal, path)?, Known::default(), Vec::new());
    lines.next()?;
    let mut bytes = lines.bytes;
    while let Some(text) = lines.next()? {
        if let Some(items) = text.strip_prefix("end ").and_then(|n| n.parse().ok()) {
            known.items = Some(items);
        } else {
            let entry = Entry::parse(&text, known.end).filter(|e| e.index % shards == shard);
            let Some(entry) = entry else { break };
            if !read(data, data_path, &entry, &mut records)? {
                break;
            }
            known.add(entry, shards);
        }
        bytes = lines.bytes;
    }
    Ok((bytes, known))
}
