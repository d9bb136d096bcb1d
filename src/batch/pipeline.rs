//! The stages between a source and its results.
//!
//! ```text
//! read ─► decode, resize, tokenize ─► device ─► RLE, PNG, overlays ─► write
//!  1 thread      n threads         the caller's      n threads       1 thread
//! ```
//! On the CPU, a small model's masks are computed by a thread a processor, each with an engine of its own over the same weights
//! ([`Engine::lanes`]): operators that are cut into parts would spend their time with handing these over. Questions go to the caller's thread.
//!
//! Every stage has threads of its own and hands its work to the next through a queue. What is in flight together has a budget of items and bytes,
//! which the reader takes from and the writer gives back to: memory does not grow with the source.

use super::budget::{Budget, Hold};
use super::disk::Disk;
use super::item::{Ask, Failure, Found, Item, Outcome, Picture, Record};
use super::journal::{MASKS, OVERLAYS, Status};
use super::models::{Host, Models, Ready};
use super::stats::Stats;
use crate::chat::{self, Chat, Generation};
use crate::engine::{LANE_IMAGES, MAX_IMAGES, Prepared};
use crate::image::{self, Limits, Rgb};
use crate::models::chat::SEQUENCES;
use crate::{Answer, Engine, Error, Prompting, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Items in flight of one device, and of one lane: those of the run, of the next, and those on their way to and from it.
pub(super) const WINDOW: usize = 5 * MAX_IMAGES;
/// Bytes of masks between device and encoding.
const ANSWER_BYTES: u64 = 256 << 20;
/// Masks of one item that are in memory together, for the estimate of what an item needs.
const MASKS_AT_ONCE: u64 = 16;

/// What is done with each item.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How expressions are asked, where an item does not say it.
    pub prompting: Prompting,
    /// How questions are answered.
    pub questions: Questions,
    /// Keep the decoder's mask of an expression that the model rejects.
    pub keep_rejected: bool,
    /// Turn pictures as their EXIF orientation says.
    pub exif: bool,
    /// What a picture may cost.
    pub limits: Limits,
    /// Folder of the results: masks and overlays are written below it.
    pub out: PathBuf,
    /// Write each mask as a PNG file.
    pub masks: bool,
    /// Write each picture with its masks drawn in.
    pub overlays: bool,
    /// Bytes of what is in flight together: files, pictures, masks.
    pub bytes: u64,
    /// Threads that decode, and threads that encode.
    pub threads: usize,
    /// A worker that has given no answer for so long, though it has items, is ended.
    pub timeout: Option<Duration>,
}

/// How questions are answered.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    /// How each answer is generated.
    pub generation: Generation,
    /// Most tiles that a picture is cut into, the thumbnail not counted; else the checkpoint's `max_dynamic_patch`.
    pub max_tiles: Option<usize>,
    /// Instead of the checkpoint's system message.
    pub system: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prompting: Prompting::default(),
            questions: Questions::default(),
            keep_rejected: false,
            exif: false,
            limits: Limits::default(),
            out: PathBuf::new(),
            masks: false,
            overlays: false,
            bytes: 2 << 30,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(4)).min(8),
            timeout: None,
        }
    }
}

impl Settings {
    /// An item's mask file, relative to [`out`](Self::out): a folder for each thousand items.
    pub(super) fn mask_file(index: u64, expression: usize) -> String {
        format!("{MASKS}/{:05}/{index:08}_{expression}.png", index / 1000)
    }

    /// An item's overlay, relative to [`out`](Self::out).
    pub(super) fn overlay_file(index: u64) -> String {
        format!("{OVERLAYS}/{:05}/{index:08}.png", index / 1000)
    }
}

/// An item that is done with.
#[derive(Debug)]
pub struct Ended {
    /// Its place in the source.
    pub index: u64,
    /// How.
    pub status: Status,
    /// Its records, a line of JSON each.
    pub records: Vec<u8>,
    /// Expressions or questions that it was asked with.
    pub expressions: u64,
}

/// How a source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was read to its end and had so many items, those that were not wanted included.
    Complete(u64),
    /// The run was asked to stop before.
    Stopped,
}

/// What the threads of a run share.
pub(super) struct Shared<'a> {
    pub settings: &'a Settings,
    pub disk: &'a Disk,
    pub stats: &'a Stats,
    /// Read no more items; set by a failure too, so that a source that waits for items can see it.
    pub stop: &'a AtomicBool,
    /// Something failed that concerns the run: what is in flight is dropped.
    pub abort: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl<'a> Shared<'a> {
    pub fn new(settings: &'a Settings, disk: &'a Disk, stats: &'a Stats, stop: &'a AtomicBool) -> Self {
        Self { settings, disk, stats, stop, abort: AtomicBool::new(false), failure: Mutex::new(None) }
    }

    /// Ends the run; the first error is the one that is told.
    pub fn fail(&self, e: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        self.abort.store(true, Relaxed);
        self.stop.store(true, Relaxed);
    }

    /// Runs something on a device that is open; whether the run goes on.
    fn ran<D>(&self, device: Result<D>, work: impl FnOnce(D) -> Result<()>) -> bool {
        if self.abort.load(Relaxed) {
            return false;
        }
        device.and_then(work).map_err(|e| self.fail(e)).is_ok()
    }

    /// The run's error, if it has one.
    pub fn result<T>(self, ok: T) -> Result<T> {
        match self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(ok),
        }
    }
}

/// A job and the bytes of its picture.
pub(super) type Loaded = (Arc<Job>, Result<Vec<u8>, Failure>);

/// An item on its way.
pub(super) struct Job {
    /// Its place among the items of this run.
    pub seq: u64,
    pub item: Item,
    /// The source picture, if it is drawn on later.
    picture: OnceLock<Rgb>,
    /// One an expression or question, and how many are missing.
    outcomes: Mutex<(Vec<Option<Outcome>>, usize)>,
    _hold: Hold,
}

impl Job {
    /// The item has no picture: all its records say why.
    pub fn failed(&self, failure: &Failure) -> Ended {
        let n = self.item.texts.len();
        self.ended((0..n.max(1)).map(|_| Outcome::Failed { error: failure.clone() }).collect())
    }

    fn ended(&self, outcomes: Vec<Outcome>) -> Ended {
        let Item { index, id, picture, texts, ask } = &self.item;
        let mut ended = Ended {
            index: *index,
            status: Status::Done,
            records: Vec::new(),
            expressions: texts.len() as u64,
        };
        for (k, outcome) in outcomes.into_iter().enumerate() {
            if let Outcome::Failed { error } = &outcome {
                ended.status = ended.status.and(Status::Failed(error.kind));
            }
            let (image, text) = (picture.name().to_string(), texts.get(k).cloned());
            let (expr, question) = if *ask == Ask::Questions { (None, text) } else { (text, None) };
            let record = Record { index: *index, id: id.clone(), image, expr, question, outcome };
            serde_json::to_writer(&mut ended.records, &record)
                .expect("a record is JSON, and memory takes it");
            ended.records.push(b'\n');
        }
        ended
    }
}

/// Reads the source: each item that is `wanted`, with `load`'s bytes of its picture, to `send`, when the budget has room.
pub(super) fn read(
    shared: &Shared,
    source: impl Iterator<Item = Result<Item>>,
    wanted: &(dyn Fn(u64) -> bool + Sync),
    budget: &Arc<Budget>,
    load: impl Fn(&mut Item) -> (Result<Vec<u8>, Failure>, u64),
    send: &Sender<Loaded>,
) -> End {
    let stage = &shared.stats.stages[0];
    stage.set_threads(1);
    let (mut items, mut seq) = (0, 0);
    let mut source = source.into_iter();
    loop {
        if shared.stop.load(Relaxed) || shared.abort.load(Relaxed) {
            return End::Stopped;
        }
        let item = match stage.time(|| source.next()) {
            None => return End::Complete(items),
            Some(Ok(item)) => item,
            Some(Err(e)) => {
                shared.fail(e);
                return End::Stopped;
            }
        };
        items += 1;
        if !wanted(item.index) {
            continue;
        }
        let mut item = item;
        let (bytes, need) = stage.time(|| load(&mut item));
        let Some(hold) = budget.acquire(need, &shared.abort) else { return End::Stopped };
        let n = item.texts.len();
        let outcomes = Mutex::new(((0..n).map(|_| None).collect(), n));
        let job = Job { seq, item, picture: OnceLock::new(), outcomes, _hold: hold };
        seq += 1;
        if send.send((Arc::new(job), bytes)).is_err() {
            return End::Stopped;
        }
    }
}

/// Hands ended items on in their order, or as they come; returns when no more come.
pub(super) fn write(
    shared: &Shared,
    ordered: bool,
    ended: &Receiver<(Arc<Job>, Ended)>,
    sink: &mut (dyn FnMut(Ended) -> Result<()> + Send),
) {
    let (stage, stats) = (&shared.stats.stages[4], shared.stats);
    stage.set_threads(1);
    let (mut waiting, mut next) = (BTreeMap::new(), 0);
    for (job, ended) in ended {
        if shared.abort.load(Relaxed) {
            waiting.clear();
            continue;
        }
        let place = if ordered { job.seq } else { next };
        waiting.insert(place, (job, ended));
        while let Some((job, ended)) = waiting.remove(&next) {
            next += 1;
            let (failed, expressions) = (ended.status != Status::Done, ended.expressions);
            if let Err(e) = stage.time(|| sink(ended)) {
                shared.fail(e);
                break;
            }
            drop(job);
            stats.items.fetch_add(1, Relaxed);
            stats.failed.fetch_add(u64::from(failed), Relaxed);
            stats.expressions.fetch_add(expressions, Relaxed);
        }
    }
}

/// A run: what it takes items from, what it does with them, whom it tells.
pub struct Work<'a, S> {
    /// The items.
    pub source: S,
    /// Those of them that are done, by their places.
    pub wanted: &'a (dyn Fn(u64) -> bool + Sync),
    /// Whether `sink` gets them in the source's order.
    pub ordered: bool,
    #[allow(missing_docs)]
    pub settings: &'a Settings,
    #[allow(missing_docs)]
    pub disk: &'a Disk,
    #[allow(missing_docs)]
    pub stats: &'a Stats,
    /// Setting it ends the run when what is in flight has ended; a run that fails sets it, and then waits for `source` to give its next
    /// item or end.
    pub stop: &'a AtomicBool,
    /// Called with each item that ended.
    pub sink: &'a mut (dyn FnMut(Ended) -> Result<()> + Send),
}

/// Runs the wanted items of a source in this process. A failure that concerns one item is in its records.
///
/// # Errors
/// Those of the source, of `sink`, and of a device that cannot go on: then what was in flight has not ended.
pub fn run_here(models: &mut Models, work: Work<impl Iterator<Item = Result<Item>> + Send>) -> Result<End> {
    let Work { source, wanted, ordered, settings, disk, stats, stop, sink } = work;
    let shared = Shared::new(settings, disk, stats, stop);
    let lanes = models.open_engine().map_or(1, Engine::lanes);
    let (budget, answers) =
        (Budget::new(lanes * WINDOW, settings.bytes), Budget::new(usize::MAX, ANSWER_BYTES));
    let host = models.host().clone();
    stats.begin();
    let end = std::thread::scope(|scope| {
        let (loaded, to_decode) = bounded(settings.threads);
        let (ready, to_run) = bounded(2 * MAX_IMAGES);
        let (answered, to_encode) = unbounded(); // bounded by the budget `answers`
        let (ended, to_write) = unbounded(); // bounded by `budget`
        let shared = &shared;
        let reader = scope.spawn(move || {
            // Its two senders are gone when it ends, and the stages behind it end one after another.
            read(shared, source, wanted, &budget, |item| load(item, &shared.settings.limits), &loaded)
        });
        // Where there are lanes, what they do is not for the caller's thread.
        let mut masks = ready.clone();
        if let Some(engine) = models.open_engine().filter(|_| lanes > 1) {
            let (for_lanes, to_lanes) = bounded(2 * lanes * LANE_IMAGES);
            masks = for_lanes;
            for _ in 0..lanes {
                let (from, to, answers) = (to_lanes.clone(), answered.clone(), Arc::clone(&answers));
                let open = engine.another();
                scope.spawn(move || alone(|| lane(shared, open, &from, &to, &answers)));
            }
        }
        for (stage, n) in [(1, settings.threads), (2, lanes), (3, settings.threads)] {
            stats.stages[stage].set_threads(n);
        }
        for _ in 0..settings.threads {
            let (from, masks, words) = (to_decode.clone(), masks.clone(), ready.clone());
            let (host, done) = (host.clone(), ended.clone());
            scope.spawn(move || alone(|| decode(shared, &host, &from, [&masks, &words], &done)));
            let (from, done) = (to_encode.clone(), ended.clone());
            scope.spawn(move || alone(|| encode(shared, &from, &done)));
        }
        let writer = scope.spawn(move || write(shared, ordered, &to_write, sink));
        drop((to_decode, ready, masks, to_encode, ended));
        // With lanes, this thread is one more, if it has anything to do.
        let threads = lanes + usize::from(lanes > 1);
        device(shared, models, threads, &to_run, &answered, &answers);
        drop((to_run, answered));
        let end = reader.join().expect("the reader returns its errors");
        writer.join().expect("the writer returns its errors");
        end
    });
    shared.result(end)
}

/// Runs a host stage so that what it computes in parallel stays on its thread and leaves the other threads to the device.
fn alone(stage: impl FnOnce()) {
    // The pool is this thread; where it cannot be made, the stage shares the device's.
    let _pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    stage();
}

/// The bytes of an item's picture, and an estimate of what it needs in flight.
fn load(item: &mut Item, limits: &Limits) -> (Result<Vec<u8>, Failure>, u64) {
    let regular = item.picture.regular();
    let bytes = match &mut item.picture {
        Picture::Bytes { bytes, .. } => Ok(std::mem::take(bytes)),
        Picture::Path { path, .. } => {
            regular.and_then(|()| image::read_bytes(path, limits).map_err(|e| Failure::from(&e)))
        }
        Picture::Bad(failure) => Err(failure.clone()),
    };
    let need = bytes.as_ref().map_or(0, |bytes| {
        let pixels = imagesize::blob_size(bytes).map_or(0, |s| s.width as u64 * s.height as u64);
        let masks = (item.texts.len() as u64).min(MASKS_AT_ONCE);
        bytes.len() as u64 + pixels.min(limits.max_pixels) * (3 + masks)
    });
    (bytes, need)
}

/// The stage that makes pictures ready: for masks, for words.
fn decode(
    shared: &Shared,
    host: &Host,
    from: &Receiver<Loaded>,
    [masks, words]: [&Sender<(Arc<Job>, Ready)>; 2],
    done: &Sender<(Arc<Job>, Ended)>,
) {
    let settings = shared.settings;
    let prepare = |job: &Job, bytes: Result<Vec<u8>, Failure>| {
        let (item, bytes) = (&job.item, bytes?);
        let work = || {
            let picture = image::decode(&bytes, item.picture.name(), &settings.limits, settings.exif)?;
            let ready = host.prepare(item, &picture, settings)?;
            if settings.overlays {
                let _ = job.picture.set(picture); // set once
            }
            Ok(ready)
        };
        // A decoder's bug must not take the other items with it.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(prepared) => prepared.map_err(|e: Error| Failure::from(&e)),
            Err(_) => {
                let name = item.picture.name();
                Err(Failure::permanent(format!(
                    "{name}: expected a picture, found one that the decoder fails on"
                )))
            }
        }
    };
    for (job, bytes) in from {
        match shared.stats.stages[1].time(|| prepare(&job, bytes)) {
            // Nothing to ask, nothing to say.
            Ok(_) if job.item.texts.is_empty() => _ = done.send((Arc::clone(&job), job.ended(Vec::new()))),
            Ok(ready @ Ready::Expressions(_)) => _ = masks.send((job, ready)),
            Ok(ready) => _ = words.send((job, ready)),
            Err(failure) => _ = done.send((Arc::clone(&job), job.failed(&failure))),
        }
    }
}

/// An answer on its way to be encoded.
struct Piece {
    job: Arc<Job>,
    /// The place of what was asked.
    text: usize,
    answer: Result<Said, Failure>,
    _hold: Option<Hold>,
}

/// What a model says.
enum Said {
    Mask(Answer),
    Text(chat::Reply),
}

/// The stage that runs what is ready together: for masks, up to a run's fill.
fn device(
    shared: &Shared,
    models: &mut Models,
    threads: usize,
    from: &Receiver<(Arc<Job>, Ready)>,
    to: &Sender<Piece>,
    answers: &Arc<Budget>,
) {
    let mut next = None;
    while let Some(first) = next.take().or_else(|| from.recv().ok()) {
        let (mut masks, mut words) = (Vec::new(), Vec::new());
        for (job, ready) in [first].into_iter().chain(from.try_iter().take(MAX_IMAGES - 1)) {
            match ready {
                Ready::Expressions(prepared) => masks.push((job, prepared)),
                Ready::Questions(picture) => words.push((job, picture)),
            }
        }
        if !words.is_empty() {
            shared.stats.stages[2].set_threads(threads);
        }
        let ran = [
            masks.is_empty() || shared.ran(models.engine(), |e| segment(shared, e, masks, to, answers)),
            words.is_empty()
                || shared.ran(models.chat(), |chat| {
                    next = answer(shared, chat, words, from, to)?;
                    Ok(())
                }),
        ];
        if ran.contains(&false) {
            return;
        }
    }
}

/// One of several of these stages side by side, for masks, with the engine that `open` makes.
fn lane(
    shared: &Shared,
    open: impl FnOnce() -> Result<Engine>,
    from: &Receiver<(Arc<Job>, Ready)>,
    to: &Sender<Piece>,
    answers: &Arc<Budget>,
) {
    let mut engine = match open() {
        Ok(engine) => engine,
        Err(e) => return shared.fail(e),
    };
    while let Ok(first) = from.recv() {
        let ready = [first].into_iter().chain(from.try_iter().take(LANE_IMAGES - 1));
        let prepared = |(job, ready)| match ready {
            Ready::Expressions(prepared) => Some((job, prepared)),
            Ready::Questions(_) => None, // they go elsewhere
        };
        let batch = ready.filter_map(prepared).collect();
        if !shared.ran(Ok(&mut engine), |e| segment(shared, e, batch, to, answers)) {
            return;
        }
    }
}

/// Runs the expressions of a batch.
///
/// # Errors
/// Those of a device that cannot go on: so would say every later item.
fn segment(
    shared: &Shared,
    engine: &mut Engine,
    mut batch: Vec<(Arc<Job>, Prepared)>,
    to: &Sender<Piece>,
    answers: &Arc<Budget>,
) -> Result<()> {
    batch.sort_by_key(|(job, _)| job.seq);
    let (jobs, mut pictures): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let (start, mut waited) = (Instant::now(), Duration::ZERO);
    let mut hand_on = |picture: usize, text: usize, answer: Result<Answer>| {
        let wait = Instant::now();
        let bytes = answer.as_ref().map_or(0, |a| a.mask.data.len() as u64);
        let answer = answer.map(Said::Mask).map_err(|e| Failure::from(&e));
        let hold = answers.acquire(bytes, &shared.abort);
        let _ = to.send(Piece { job: Arc::clone(&jobs[picture]), text, answer, _hold: hold });
        shared.stats.steps.fetch_add(1, Relaxed);
        waited += wait.elapsed();
    };
    let ran = engine.segment_each(&mut pictures, false, &mut hand_on);
    shared.stats.stages[2].add(start.elapsed().saturating_sub(waited));
    ran
}

/// Answers questions side by side: those of `pictures`, and as answers end those that are ready by then, up to the first picture that is ready for
/// something else, which is returned.
///
/// # Errors
/// Those of a device that cannot go on.
fn answer(
    shared: &Shared,
    chat: &mut Chat,
    pictures: Vec<(Arc<Job>, chat::Picture)>,
    from: &Receiver<(Arc<Job>, Ready)>,
    to: &Sender<Piece>,
) -> Result<Option<(Arc<Job>, Ready)>> {
    let Questions { generation, system, .. } = &shared.settings.questions;
    let items = |(job, picture): (Arc<Job>, chat::Picture)| {
        let item = |(text, question): (usize, &String)| {
            let sampling = generation.sampling.nth((job.item.index << 20) + text as u64);
            let item = chat::Item {
                question: question.into(),
                pictures: vec![picture.clone()],
                system: system.clone(),
                generation: Generation { sampling, ..generation.clone() },
            };
            ((Arc::clone(&job), text), item)
        };
        job.item.texts.iter().enumerate().map(item).collect::<Vec<_>>()
    };
    let (mut pictures, mut other, broken) = (pictures.into_iter(), None, OnceCell::new());
    let mut next = |answering: usize| {
        shared.stats.steps.fetch_add(1, Relaxed);
        let mut more = Vec::new();
        while answering + more.len() < SEQUENCES && other.is_none() && broken.get().is_none() {
            match pictures.next().map(Ok).or_else(|| Some(Err(from.try_recv().ok()?))) {
                Some(Ok(picture)) => more.extend(items(picture)),
                Some(Err((job, Ready::Questions(picture)))) => more.extend(items((job, picture))),
                Some(Err(ready)) => other = Some(ready),
                None => break,
            }
        }
        more
    };
    let mut done = |(job, text), reply: Result<chat::Reply>| {
        let answer = match reply {
            Err(e @ Error::Device { .. }) => return drop(broken.set(e)),
            reply => reply.map(Said::Text).map_err(|e| Failure::from(&e)),
        };
        let _ = to.send(Piece { job, text, answer, _hold: None });
    };
    shared.stats.stages[2].time(|| chat.answer_as_they_come(&mut next, &mut done));
    match broken.into_inner() {
        Some(e) => Err(e),
        None => Ok(other),
    }
}

/// The stage that makes records and files of answers.
fn encode(shared: &Shared, from: &Receiver<Piece>, done: &Sender<(Arc<Job>, Ended)>) {
    for piece in from {
        if shared.abort.load(Relaxed) {
            continue;
        }
        let ended = shared.stats.stages[3].time(|| {
            let Piece { job, text, answer, _hold } = piece;
            let outcome = match answer {
                Ok(Said::Mask(answer)) => mask(shared, job.item.index, text, &answer)
                    .map_or_else(|e| Outcome::Failed { error: unwritten(&e) }, Outcome::Mask),
                Ok(Said::Text(reply)) => Outcome::Text(reply.into()),
                Err(error) => Outcome::Failed { error },
            };
            let mut outcomes = job.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.0[text] = Some(outcome);
            outcomes.1 -= 1;
            if outcomes.1 > 0 {
                return None;
            }
            let mut all: Vec<Outcome> = std::mem::take(&mut outcomes.0).into_iter().flatten().collect();
            drop(outcomes);
            if let Some(picture) = job.picture.get()
                && let Err(e) = overlay(shared, &job.item, picture, &all)
            {
                // The answers are there, but not all that was asked for.
                let failure = unwritten(&e);
                all.iter_mut().for_each(|o| *o = Outcome::Failed { error: failure.clone() });
            }
            let ended = job.ended(all);
            Some((job, ended))
        });
        if let Some(ended) = ended {
            let _ = done.send(ended);
        }
    }
}

/// Why a file is missing: where it could not be written that is no fault of the item.
fn unwritten(e: &Error) -> Failure {
    if matches!(e, Error::Io { .. }) { Failure::transient(e.to_string()) } else { Failure::from(e) }
}

/// One mask as it is written, and its file.
fn mask(shared: &Shared, index: u64, expression: usize, answer: &Answer) -> Result<Found> {
    let mut found = Found::new(answer, shared.settings.keep_rejected)?;
    if shared.settings.masks {
        let name = Settings::mask_file(index, expression);
        let path = shared.settings.out.join(&name);
        let emptied = found.area == 0 && answer.area > 0;
        let png = if emptied { found.segmentation.rle()?.decode()?.to_png() } else { answer.mask.to_png() };
        shared.disk.make_dir(path.parent().unwrap_or(&path))?;
        shared.disk.write_file(&path, &png)?;
        found.mask = Some(name);
    }
    Ok(found)
}

/// The picture with all its masks drawn in.
fn overlay(shared: &Shared, item: &Item, picture: &Rgb, outcomes: &[Outcome]) -> Result<()> {
    let mut masks = Vec::new();
    for (expr, outcome) in item.texts.iter().zip(outcomes) {
        if let Outcome::Mask(found) = outcome
            && found.area > 0
        {
            masks.push((expr, found, found.segmentation.rle()?.decode()?));
        }
    }
    let drawn: Vec<image::Item> = masks
        .iter()
        .map(|(expr, found, mask)| {
            let (score, bbox) = (Some(found.score), Some(found.bbox));
            image::Item { mask, label: expr, score, bbox }
        })
        .collect();
    let path = shared.settings.out.join(Settings::overlay_file(item.index));
    shared.disk.make_dir(path.parent().unwrap_or(&path))?;
    shared.disk.write_file(&path, &image::overlay(picture, &drawn).to_png())
}
