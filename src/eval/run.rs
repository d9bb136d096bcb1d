//! A split as something to run in a batch, and the results of that batch against the ground truth.

use super::dataset::{Form, Picture, Pixels, Query, Split, Truth};
use super::metrics::{Compared, Metrics, Protocol};
use crate::batch::item::{self, Failure, Item, Outcome, Record};
use crate::batch::journal::{Output, Run};
use crate::batch::records::walk;
use crate::batch::{Ask, Compute, Disk, End, Ended, Settings, Stats, Work, manifest};
use crate::engine::Prompting;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

impl Protocol {
    /// Whether all expressions of a picture are asked in one prompt. Protocols that agree in this share their results.
    pub fn joint(self) -> bool {
        self == Self::Upstream
    }
}

impl Split {
    /// Its pictures and expressions as items of a batch, in order, each asked in its way; the id is the picture's place. `position` counts
    /// them.
    fn items<'a>(
        &'a self,
        asks: Vec<Ask>,
        position: &'a AtomicU64,
    ) -> impl Iterator<Item = Result<Item>> + Send + 'a {
        (0..).zip(self.pictures.iter().zip(asks)).map(|(index, (p, ask))| {
            position.store(index + 1, Relaxed);
            let picture = item::Picture::Path { name: p.name(), path: p.path.clone() };
            let texts = p.queries.iter().map(|q| q.text.clone()).collect();
            Ok(Item { index, id: index.into(), picture, texts, ask })
        })
    }

    /// How each picture is asked under this protocol.
    ///
    /// # Errors
    /// As [`Truth::pixels`]: what is forced in the published prompt depends on whether the ground truth has a pixel.
    pub fn asks(&self, protocol: Protocol) -> Result<Vec<Ask>> {
        let ask = |p: &Picture| {
            let prompting = match p.queries.first().map(|q| q.form) {
                Some(Form::Phrase) => Prompting::Phrase,
                Some(Form::Sentence) => Prompting::Reasoning,
                _ if protocol.joint() => return self.published(p).map(Ask::Published),
                _ => Prompting::Single,
            };
            Ok(Ask::As(prompting))
        };
        self.pictures.iter().map(ask).collect()
    }

    fn published(&self, p: &Picture) -> Result<Vec<bool>> {
        let rejected = |q: &Query| match p.size {
            Some(size) if self.name.generalized() => Ok(q.truth.pixels(size)?.target.area() == 0),
            _ => Ok(false),
        };
        p.queries.iter().map(rejected).collect()
    }

    /// A text that changes with everything that is asked, for the journal.
    pub fn fingerprint(&self) -> String {
        let mut crc = crc32fast::Hasher::new();
        for p in &self.pictures {
            crc.update(p.path.to_string_lossy().as_bytes());
            for q in &p.queries {
                crc.update(b"\n");
                crc.update(q.text.as_bytes());
            }
            crc.update(b"\n\n");
        }
        let (name, split_by, split) = (self.name, &self.split_by, &self.split);
        format!("{name} {split_by} {split} {} pictures {:08x}", self.pictures.len(), crc.finalize())
    }
}

impl Picture {
    /// Its file's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Answers what a folder of results lacks of a split, as a batch does: ended in any way, it continues. What computes is made by `open` when
/// there is something to do and it is not there yet. Whether all is answered; if not, the run was asked to stop.
///
/// `position` counts the pictures; `run` is what the results depend on: the checkpoint as it is named, everything else as text; and whether to start over.
///
/// # Errors
/// [`Error::Usage`] if the folder holds another run's results; those that end a batch, see [`Compute::run`].
pub fn answer<'a>(
    split: &Split,
    protocol: Protocol,
    (model, options, restart): (&str, &str, bool),
    settings: Settings,
    (compute, open): (&mut Option<Compute<'a>>, impl FnOnce() -> Result<Compute<'a>>),
    (disk, stats, stop, position): (&Disk, &Stats, &AtomicBool, &AtomicU64),
) -> Result<bool> {
    let asks = split.asks(protocol)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(format!("{asks:?}").as_bytes());
    let run = Run {
        source: split.fingerprint(),
        model: manifest::model(model)?,
        options: format!("{options}, asked {:08x}", crc.finalize()),
        unordered: false,
        shard: [0, 1],
    };
    let settings = Settings { keep_rejected: true, ..settings };
    let mut output = Output::open(disk, &settings.out, run, restart)?;
    if output.complete() {
        return Ok(true);
    }
    let recorded = output.snapshot();
    let wanted = |index: u64| recorded.lacks(index);
    let compute = match compute {
        Some(compute) => compute,
        None => compute.insert(open()?),
    };
    let mut sink = |e: Ended| output.append(e.index, e.status, &e.records);
    let work = Work {
        source: split.items(asks, position),
        wanted: &wanted,
        ordered: true,
        settings: &settings,
        disk,
        stats,
        stop,
        sink: &mut sink,
    };
    match compute.run(work)? {
        End::Complete(items) => output.finish(items).map(|()| true),
        End::Stopped => output.sync().map(|()| false),
    }
}

/// One expression and its answer: a line for people and scripts. Pixels are of the mask as the decoder gave it, whatever the protocol
/// makes of a rejection.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Sample<'a> {
    pub image: &'a str,
    pub ref_id: i64,
    pub sent_id: i64,
    pub expr: &'a str,
    /// The ground truth is that there is none.
    pub no_target: bool,
    /// The model says so.
    pub rejected: bool,
    pub intersection: u64,
    pub union: u64,
    pub iou: f64,
}

/// Results against ground truth.
#[derive(Debug)]
pub struct Scored {
    /// By picture.
    pub answers: Vec<Vec<Compared>>,
    /// Expressions without an answer: they are in none of the figures.
    pub failed: Vec<Failure>,
}

impl Scored {
    /// The figures under a protocol.
    pub fn metrics(&self, split: &Split, protocol: Protocol) -> Metrics {
        Metrics::new(split.name, protocol, &self.answers)
    }
}

/// Compares the records that [`answer`] wrote with the ground truth; `each` is called with every expression that has an answer.
///
/// # Errors
/// [`Error::File`] if the results are not those of this split; those of `each`.
pub fn score(split: &Split, results: &Path, mut each: impl FnMut(Sample) -> Result<()>) -> Result<Scored> {
    let other = |expected: String, found: String| Error::file(results, expected, found);
    let mut scored =
        Scored { answers: split.pictures.iter().map(|_| Vec::new()).collect(), failed: Vec::new() };
    let mut seen = vec![0; split.pictures.len()];
    // Of one picture; the sentences of a ref have the same.
    let mut truths: (u64, HashMap<*const Truth, Arc<Pixels>>) = (0, HashMap::new());
    walk(results, |record: Record| {
        let place = usize::try_from(record.index).ok().filter(|&i| i < seen.len()).ok_or_else(|| {
            other(format!("records of {} pictures", seen.len()), format!("one of picture {}", record.index))
        })?;
        let picture = &split.pictures[place];
        let query = picture.queries.get(seen[place]).filter(|q| record.expr.as_ref() == Some(&q.text));
        let query = query.ok_or_else(|| {
            let expected = format!("a record for each expression of {}, in order", picture.name());
            other(expected, format!("{:?} as number {}", record.expr.unwrap_or_default(), seen[place]))
        })?;
        seen[place] += 1;
        let found = match record.outcome {
            Outcome::Mask(found) => found,
            Outcome::Text(_) => return Err(other("masks".into(), "an answer in words".into())),
            Outcome::Failed { error } => {
                scored.failed.push(error);
                return Ok(());
            }
        };
        if truths.0 != record.index {
            truths = (record.index, HashMap::new());
        }
        let mut compare = || {
            let mask = found.segmentation.rle()?;
            let size = picture.size.unwrap_or(mask.size);
            let pixels = match truths.1.get(&Arc::as_ptr(&query.truth)) {
                Some(pixels) => Arc::clone(pixels),
                None => {
                    let pixels = Arc::new(query.truth.pixels(size)?);
                    truths.1.insert(Arc::as_ptr(&query.truth), Arc::clone(&pixels));
                    pixels
                }
            };
            Compared::new(&mask, found.no_target, &pixels, query.truth.bbox)
        };
        match compare() {
            Ok(compared) => {
                scored.answers[place].push(compared);
                each(Sample {
                    image: &picture.name(),
                    ref_id: query.ref_id,
                    sent_id: query.sent_id,
                    expr: &query.text,
                    no_target: compared.truth == 0,
                    rejected: compared.rejected,
                    intersection: compared.intersection,
                    union: compared.union(),
                    iou: compared.iou(),
                })
            }
            // A picture of another size than the annotations', or an annotation that cannot be.
            Err(e) => {
                let (image, expr) = (picture.name(), &query.text);
                scored.failed.push(Failure::permanent(format!("{image}: {expr:?}: {e}")));
                Ok(())
            }
        }
    })?;
    if let Some((p, n)) = split.pictures.iter().zip(&seen).find(|(p, n)| p.queries.len() != **n) {
        return Err(other(format!("{} records of {}", p.queries.len(), p.name()), n.to_string()));
    }
    Ok(scored)
}
