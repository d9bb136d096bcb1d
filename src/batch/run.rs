//! A whole run: a source, a folder of results, and what computes between them.

use super::item::Item;
use super::journal::{Counts, Output, Run};
use super::manifest::{self, Input};
use super::models::Models;
use super::pipeline::{End, Ended, Work, run_here};
use super::workers::{Worker, run_workers};
use super::{Disk, Settings, Stats};
use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// What is asked for.
pub struct Batch<'a> {
    /// The checkpoint, as it is named.
    pub model: &'a str,
    /// Everything else that changes results: it is compared as text when a run is continued.
    pub options: String,
    /// This shard and how many there are: the items whose place leaves this rest.
    pub shard: [u64; 2],
    /// Records as they are ready, not in the source's order.
    pub unordered: bool,
    /// Forget what is there.
    pub restart: bool,
    /// What is done with each item, and where results go.
    pub settings: Settings,
}

/// What computes.
pub enum Compute<'a> {
    /// In this process.
    Here(Box<Models<'a>>),
    /// In a process for each device.
    Workers(Vec<Worker>),
}

impl Compute<'_> {
    /// Runs the wanted items of a source.
    ///
    /// # Errors
    /// Those of [`run_here`] and of [`run_workers`].
    pub fn run(&mut self, work: Work<impl Iterator<Item = Result<Item>> + Send>) -> Result<End> {
        match self {
            Self::Here(models) => run_here(models, work),
            Self::Workers(workers) => run_workers(workers, work),
        }
    }
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug)]
pub struct RunEnd {
    /// Whether every item is recorded; if not, the run was asked to stop.
    pub complete: bool,
    /// Items recorded, by earlier runs too.
    pub counts: Counts,
    /// Those of them that were there before.
    pub before: u64,
    /// Lines of the journal that did not fit the results: see [`Output::lost`].
    pub lost: u64,
}

/// Runs what a folder of results lacks. `compute` is called if there is anything to do.
///
/// Whatever happens on the way, running the same again continues, and the results are then the bytes that one run from beginning to end
/// would have written (for `unordered`: the same lines).
///
/// # Errors
/// [`Error::Usage`] if the folder holds another run's results; those that end a run, see [`Compute::run`].
pub fn run_batch<'a>(
    batch: &Batch,
    input: Input,
    compute: impl FnOnce() -> Result<Compute<'a>>,
    (disk, stats, stop): (&Disk, &Stats, &AtomicBool),
) -> Result<RunEnd> {
    let [shard, shards] = batch.shard;
    if shard >= shards {
        let found = format!("{shard} of {shards}");
        return Err(Error::usage("shard", "a number below the number of shards", found));
    }
    let this = Run {
        source: input.fingerprint,
        model: manifest::model(batch.model)?,
        options: batch.options.clone(),
        unordered: batch.unordered,
        shard: batch.shard,
    };
    let output = Output::open(disk, &batch.settings.out, this, batch.restart)?;
    let before = output.counts().done + output.counts().permanent;
    let lost = output.lost();
    if output.complete() {
        return Ok(RunEnd { complete: true, counts: output.counts(), before, lost });
    }
    let recorded = output.snapshot();
    let wanted = |index: u64| recorded.lacks(index);
    let output = Mutex::new(output);
    let lock = || output.lock().expect("appending returns its errors");
    let mut sink = |ended: Ended| lock().append(ended.index, ended.status, &ended.records);
    let ran = compute()?.run(Work {
        source: input.items,
        wanted: &wanted,
        ordered: !batch.unordered,
        settings: &batch.settings,
        disk,
        stats,
        stop,
        sink: &mut sink,
    });
    let mut output = output.into_inner().expect("appending returns its errors");
    let complete = match ran? {
        End::Complete(items) => {
            output.finish(items)?;
            true
        }
        End::Stopped => {
            output.sync()?;
            false
        }
    };
    Ok(RunEnd { complete, counts: output.counts(), before, lost })
}
