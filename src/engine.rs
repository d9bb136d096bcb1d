//! The engine: a model opened once; pictures and expressions in, masks out.
//!
//! [`Engine::segment`] answers about one picture, [`Engine::segment_batch`] about several in one run, [`Engine::stream`] about any number,
//! one after another. What the host does before a run is [`Preprocessor`]'s and may happen on other threads. An expression's answer is the
//! same, bit for bit, whatever else is in its run.

mod prepare;
mod stream;

pub use prepare::{Prepared, Preprocessor};
pub use stream::Stream;

use crate::checkpoint::Checkpoint;
use crate::device::{self, Choice, Device};
use crate::graph::{Node, Tensor};
use crate::image::{Mask, Rgb};
use crate::models::mllmseg::{
    self, Along, Image, Masks, Model, PictureData, PictureRoom, Pictures, Savings, Segment, States, System,
    Text, write_rows,
};
use crate::ops::{DESCRIPTOR, KvCache, STATS};
use crate::plan::Plan;
use crate::reference::Precision;
use crate::text::{MAX_OPENING_TOKENS, Prompts, Tokenizer, UserText};
use crate::{Error, Result};
use prepare::Asked;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pictures of one run of the image graph.
pub const MAX_IMAGES: usize = 8;
/// Rows of packed text in one run: enough for large matmuls, little enough memory.
const MAX_ROWS: usize = 2048;
/// Masks of one run: the decoder's activations are about 30 MB each in f32.
const MAX_SLOTS: usize = 16;
/// Words of 32 pixels of masks at their sources' sizes in one run.
const MAX_MASK_WORDS: usize = 64 << 20;
/// Rows of packed text are made in multiples of this on devices that keep plans.
const TEXT_STEP: usize = 32;
/// Words of masks likewise.
const MASK_STEP: usize = 1 << 12;
/// K/V rows are made in multiples of this, so that requests of similar length share a plan's buffers.
const KV_STEP: usize = 256;

/// How the expressions of one picture are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompting {
    /// One sequence an expression; what one asks for cannot change another's answer.
    #[default]
    Single,
    /// All in one sequence, as in the published evaluation.
    Joint,
    /// One sequence an expression, "What is {phrase} in this image?".
    Phrase,
    /// One sequence an expression, which is a whole sentence that needs reasoning.
    Reasoning,
}

/// How an engine computes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where it runs.
    pub device: Choice,
    /// What the CPU's matmuls compute with.
    pub precision: Precision,
    /// Whether the CUDA device replays plans as CUDA graphs.
    pub graphs: bool,
    /// Whether it waits after every node, so that an error names the node.
    pub sync: bool,
    /// Which of the exact savings are used.
    pub savings: Savings,
    /// What special-token text in an expression becomes.
    pub user_text: UserText,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Choice::Cpu,
            precision: Precision::F32,
            graphs: true,
            sync: false,
            savings: Savings::ALL,
            user_text: UserText::Plain,
        }
    }
}

/// A picture and what is asked of it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The picture.
    pub picture: Rgb,
    /// What is asked, in order.
    pub expressions: Vec<String>,
    /// How.
    pub prompting: Prompting,
}

impl Request {
    /// Expressions asked one by one.
    pub fn new(picture: Rgb, expressions: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let expressions = expressions.into_iter().map(Into::into).collect();
        Self { picture, expressions, prompting: Prompting::default() }
    }
}

/// What the model says of one expression.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The mask that the decoder gives, at the picture's size, rejected or not.
    pub mask: Mask,
    /// Pixels of the mask that are set.
    pub area: usize,
    /// The smallest box around them, `[x, y, width, height]` in the picture's pixels; none if there are none.
    pub bbox: Option<[usize; 4]>,
    /// Mean probability inside the mask; 0 for an empty one.
    pub score: f32,
    /// The model answers `[REJ]`: nothing in the picture fits the expression.
    pub no_target: bool,
    /// `(S, S)` probabilities at the model's input size, if they were asked for.
    pub probability: Option<Vec<f32>>,
}

/// Wall time of one run by stage, in milliseconds: of one picture, or of all that ran together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Timings {
    /// Prompts, resize to the model's input, normalisation.
    pub preprocess_ms: f64,
    /// Vision tower and projector.
    pub vision_ms: f64,
    /// Language model over the image's and the expressions' tokens (and the system prompt's, the first time).
    pub llm_ms: f64,
    /// Mask decoder, the part that no expression touches.
    pub decoder_image_ms: f64,
    /// Mask decoder, the part of each expression.
    pub masks_ms: f64,
    /// Resize to the source's size, threshold.
    pub resize_ms: f64,
}

/// The answers about one picture, in the order of the expressions.
pub struct Segmentation {
    /// One an expression; an expression that cannot be used has an error of its own.
    pub answers: Vec<Result<Answer>>,
    /// Where the time went.
    pub timings: Timings,
}

/// A graph that ran: for logs and profiles.
pub struct Run<'a> {
    /// `system`, `pictures`, `image`, `text` or `masks`.
    pub graph: &'static str,
    /// The node.
    pub node: &'a Node,
    /// Its time.
    pub time: Duration,
}

/// What is called after every node, if anything.
type Observer = Option<Box<dyn FnMut(Run)>>;

/// An opened model.
pub struct Engine {
    checkpoint: Arc<Checkpoint>,
    tokenizer: Arc<Tokenizer>,
    model: Model,
    device: Box<dyn Device>,
    options: Options,
    /// Pictures of one run.
    max_images: Limit,
    /// Masks of one run.
    max_slots: Limit,
    session: Option<Session>,
    observer: Observer,
    timings: Timings,
}

/// Buffers and plans that stay from run to run.
///
/// Rows of the K/V cache: the system prompt's, those of each image, those of the text.
struct Session {
    states: States,
    /// Number of state buffers that stay; those of images, of text, and of masks come after, in this order.
    kept: usize,
    kv: KvCache,
    system: (Plan, System),
    /// Rows of the system prompt, if they are computed once; else 0.
    shared: usize,
    /// K/V rows of an image, the system prompt's included if that is not shared. Room for what opens its sequences follows them.
    per_image: usize,
    /// Images that there is room for.
    max_images: usize,
    /// By pictures and their [`PictureRoom`].
    pictures: HashMap<[usize; 4], Kept<Pictures>>,
    /// By images.
    images: HashMap<[usize; 1], Kept<Image>>,
    /// By images whose rows come along, rows, sequences and slots.
    texts: HashMap<[usize; 4], Kept<Text>>,
    /// By masks, words of masks, rows of hidden states, images, and whether probabilities are kept.
    masks: HashMap<[usize; 5], Kept<Masks>>,
}

impl Session {
    /// The first K/V row of an image, or of the text behind all images.
    fn image_at(&self, i: usize) -> usize {
        self.shared + i * (self.per_image + MAX_OPENING_TOKENS)
    }
}

/// A sequence of one of the pictures of a run.
#[derive(Clone, Copy)]
struct Asking<'a> {
    /// Its picture among those of the request.
    picture: usize,
    /// Its picture among those of the run.
    image: usize,
    /// Width and height of the picture.
    size: [usize; 2],
    asked: &'a Asked,
}

/// A place in a sequence whose state becomes a mask.
struct Slot<'a> {
    of: Asking<'a>,
    expression: usize,
    /// The row that predicts it.
    row: usize,
}

impl Slot<'_> {
    /// Words of its mask's bits.
    fn words(&self) -> usize {
        self.of.size[0].div_ceil(32) * self.of.size[1]
    }
}

/// The rows of a run's images, which stand before those of the sequences.
#[derive(Clone, Default)]
struct ImageRows {
    ids: Vec<i32>,
    segments: Vec<Segment>,
    /// The first of [`Text::read`].
    read: Vec<i32>,
    /// [`Image::before`].
    before: Vec<i32>,
    /// What opens the sequences of each image; its keys and values stand behind the image's.
    openings: Vec<Vec<i32>>,
}

/// How many of something one run takes: fewer after memory was short, and more again after some runs for which it was not.
struct Limit {
    most: usize,
    now: usize,
    /// Runs of `now` since it changed.
    runs: usize,
}

impl Limit {
    /// Runs before more are tried: were memory short for good, so few of them would be made twice.
    const RUNS: usize = 32;

    fn new(most: usize) -> Self {
        Self { most, now: most, runs: 0 }
    }

    /// Memory was short for `n`.
    fn short(&mut self, n: usize) {
        *self = Self { now: (n / 2).max(1), runs: 0, ..*self };
    }

    /// Memory was enough for `n`.
    fn enough(&mut self, n: usize) {
        self.runs += usize::from(n == self.now && n < self.most);
        if self.runs == Self::RUNS {
            *self = Self { now: (2 * n).min(self.most), runs: 0, ..*self };
        }
    }
}

/// Called with each answer: the picture's place, the expression's place, the answer.
type Each<'a> = &'a mut dyn FnMut(usize, usize, Result<Answer>);

/// A plan for one bucket of sizes, its buffers, and those of them that are its own.
struct Kept<T> {
    plan: Plan,
    io: T,
    tensors: Vec<Tensor>,
}

/// Bytes of weights that the caches of a CPU hold beside what several threads compute with them.
const SMALL: u64 = 64 << 20;
/// Pictures of one run of an engine among several, whose activations stay in its core's caches.
pub(crate) const LANE_IMAGES: usize = 2;
/// Masks likewise.
const LANE_SLOTS: usize = 1;
/// Plans of one kind that are kept; one more and all are made anew.
const MAX_KEPT: usize = 32;

/// `n` rounded up to one of few sizes, at most an eighth more, where plans are worth keeping.
fn bucket(device: &dyn Device, n: usize, step: usize) -> usize {
    if device.keeps_plans() { n.next_multiple_of(step.max(n.next_power_of_two() / 8)) } else { n }
}

/// The plan of one bucket: the one that is kept, or the one that `make` makes now.
fn kept<const N: usize, T>(
    plans: &mut HashMap<[usize; N], Kept<T>>,
    shape: [usize; N],
    make: impl FnOnce() -> Result<Kept<T>>,
) -> Result<&Kept<T>> {
    if !plans.contains_key(&shape) {
        if plans.len() == MAX_KEPT {
            plans.clear();
        }
        plans.insert(shape, make()?);
    }
    Ok(&plans[&shape])
}

impl Engine {
    /// Opens a folder or a Hugging Face cache entry (`ORG/NAME`).
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`Tokenizer::open`], [`Model::bind`] and [`device::open`]; [`Error::Usage`] for a checkpoint without a
    /// mask decoder; [`Error::File`] for a tokenizer with more ids than the model has.
    pub fn open(model: &str, options: Options) -> Result<Self> {
        Self::open_with(model, options, &mut |_, _| ())
    }

    /// [`open`](Self::open); `progress` is called with the bytes of weights that are on the device, and those in all.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(model: &str, options: Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(model)?);
        if !checkpoint.has_mask_decoder() {
            let expected = "a checkpoint with a mask decoder (res_decoder.*)";
            return Err(Error::usage(model, expected, "one for chat only"));
        }
        let tokenizer = Arc::new(Tokenizer::open(&checkpoint.dir)?);
        Self::of(checkpoint, tokenizer, options, progress)
    }

    /// Of a checkpoint that is open.
    fn of(
        checkpoint: Arc<Checkpoint>,
        tokenizer: Arc<Tokenizer>,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let (model, weights) = Model::bind(&checkpoint)?;
        let (has, ids) = (model.config.llm_config.vocab_size, tokenizer.vocab_size());
        if ids > has {
            let expected = format!("at most {has} token ids (llm_config.vocab_size)");
            return Err(Error::file(&checkpoint.dir, expected, format!("{ids} in the tokenizer")));
        }
        let mut device = device::open(options.device, weights, options.precision, progress)?;
        device.debug(options.graphs, options.sync);
        Ok(Self {
            checkpoint,
            tokenizer,
            model,
            device,
            options,
            max_images: Limit::new(MAX_IMAGES),
            max_slots: Limit::new(MAX_SLOTS),
            session: None,
            observer: None,
            timings: Timings::default(),
        })
    }

    /// The checkpoint behind it.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Calls `observer` after every node that runs.
    pub fn observe(&mut self, observer: impl FnMut(Run) + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// How many engines side by side use the machine best, each on one thread: as many as there are threads if the weights are few and the
    /// device is the CPU, where operators of a small model are cut into parts that are not worth handing over; else one.
    pub fn lanes(&self) -> usize {
        let small = self.options.device == Choice::Cpu && self.weights_bytes() <= SMALL;
        if small && self.observer.is_none() { rayon::current_num_threads() } else { 1 }
    }

    /// Makes one of several engines over the same weights, on any thread; with buffers of its own, and nobody who observes it.
    ///
    /// # Errors
    /// What it returns gives those of [`device::open`] when it is called: a GPU holds the weights once more.
    pub fn another(&self) -> impl FnOnce() -> Result<Self> + Send + 'static {
        let (checkpoint, tokenizer) = (Arc::clone(&self.checkpoint), Arc::clone(&self.tokenizer));
        let options = self.options;
        move || {
            let engine = Self::of(checkpoint, tokenizer, options, &mut |_, _| ())?;
            let (max_images, max_slots) = (Limit::new(LANE_IMAGES), Limit::new(LANE_SLOTS));
            Ok(Self { max_images, max_slots, ..engine })
        }
    }

    /// The prompts of this model.
    ///
    /// # Errors
    /// Those of [`Prompts::new`].
    pub fn prompts(&self) -> Result<Prompts<'_>> {
        let config = &self.model.config;
        let (system, tokens) = (config.system_message.as_deref(), config.image_tokens());
        Prompts::new(&self.tokenizer, system, tokens, self.options.user_text)
    }

    /// What makes requests ready for this engine, on any thread.
    pub fn preprocessor(&self) -> Preprocessor {
        let (user_text, device) = (self.options.user_text, self.options.device);
        Preprocessor::new(&self.model.config, Arc::clone(&self.tokenizer), user_text, device)
    }

    /// Segments one picture; `keep_probabilities` fills [`Answer::probability`].
    ///
    /// ```
    /// use mllmseg::{Engine, Options, Prompting, image};
    ///
    /// let mut engine = Engine::open("assets/demo/model", Options::default())?;
    /// let picture = image::read("assets/demo/images/010.png".as_ref(), &image::Limits::default(), false)?;
    /// let found = engine.segment(&picture, &["the white circle", "a red cat"], Prompting::Single, false)?;
    /// let [circle, cat] = &found.answers[..] else { panic!("one answer an expression") };
    /// assert_eq!(circle.as_ref().unwrap().bbox, Some([232, 89, 48, 47]));
    /// assert!(cat.as_ref().unwrap().no_target);
    /// # Ok::<(), mllmseg::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those that concern the whole picture; an expression's own are in its answer.
    pub fn segment(
        &mut self,
        picture: &Rgb,
        expressions: &[&str],
        prompting: Prompting,
        keep_probabilities: bool,
    ) -> Result<Segmentation> {
        let start = Instant::now();
        let mut prepared = self.preprocessor().prepare_parts(picture, expressions, prompting)?;
        let took = ms(start.elapsed());
        let mut found =
            self.segment_batch(std::slice::from_mut(&mut prepared), keep_probabilities)?.remove(0);
        found.timings.preprocess_ms = took;
        Ok(found)
    }

    /// Segments several pictures, each with all its expressions, as few runs as memory allows. Each answer is the one that
    /// [`segment`](Self::segment) gives, bit for bit. The timings are those of all pictures together.
    ///
    /// ```
    /// use mllmseg::engine::Request;
    /// use mllmseg::{Engine, Options, image};
    ///
    /// let mut engine = Engine::open("assets/demo/model", Options::default())?;
    /// let read = |name: &str| image::read(name.as_ref(), &image::Limits::default(), false);
    /// let requests = [
    ///     Request::new(read("assets/demo/images/010.png")?, ["the white circle", "a red cat"]),
    ///     Request::new(read("assets/demo/images/000.png")?, ["the white square"]),
    /// ];
    /// let preprocessor = engine.preprocessor(); // Send and Clone: pictures may be prepared on other threads
    /// let mut prepared = requests.iter().map(|r| preprocessor.prepare(r)).collect::<Result<Vec<_>, _>>()?;
    /// let found = engine.segment_batch(&mut prepared, false)?;
    /// assert_eq!(found.iter().map(|f| f.answers.len()).collect::<Vec<_>>(), [2, 1]);
    /// # Ok::<(), mllmseg::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of the device, which concern all pictures; an expression's own are in its answer.
    pub fn segment_batch(
        &mut self,
        pictures: &mut [Prepared],
        keep_probabilities: bool,
    ) -> Result<Vec<Segmentation>> {
        let mut answers: Vec<Vec<Option<Result<Answer>>>> =
            pictures.iter().map(|p| (0..p.expressions).map(|_| None).collect()).collect();
        let mut each = |p: usize, e: usize, answer| answers[p][e] = Some(answer);
        self.segment_each(pictures, keep_probabilities, &mut each)?;
        let missing = || Err(Error::shape("expressions", "an answer each", "none"));
        let timings = self.timings;
        let whole =
            |a: Vec<Option<Result<Answer>>>| a.into_iter().map(|a| a.unwrap_or_else(missing)).collect();
        Ok(answers.into_iter().map(|a| Segmentation { answers: whole(a), timings }).collect())
    }

    /// [`segment_batch`](Self::segment_batch) that hands each answer on as soon as it is there, so that no more than a run's masks are in memory:
    /// `each` is called once for every expression with the picture's place in `pictures`, the expression's place, and the answer.
    ///
    /// # Errors
    /// Those of the device; expressions that had no answer by then get none, and have theirs when the same pictures are given again. Where
    /// memory is too short for a picture alone, that is the answer of its expressions.
    pub fn segment_each(
        &mut self,
        pictures: &mut [Prepared],
        keep_probabilities: bool,
        each: &mut dyn FnMut(usize, usize, Result<Answer>),
    ) -> Result<()> {
        self.timings = Timings::default();
        let usable: Vec<(usize, &Prepared)> =
            pictures.iter().enumerate().filter(|(_, p)| !p.asked.is_empty()).collect();
        // A run that is made again in halves gives some of its answers again, the same ones.
        let mut given: Vec<Vec<bool>> = pictures.iter().map(|p| vec![false; p.expressions]).collect();
        // What the sequences that only decide have said, by expression.
        let mut decided: Vec<HashMap<usize, bool>> = pictures.iter().map(|_| HashMap::new()).collect();
        let mut once = |p: usize, e: usize, mut answer: Result<Answer>| {
            let n = given[p].len();
            if let (Ok(answer), true) = (&answer, e >= n) {
                decided[p].insert(e - n, answer.no_target);
                return;
            }
            let e = e % n;
            if let (Ok(answer), Some(&no_target)) = (&mut answer, decided[p].get(&e)) {
                answer.no_target = no_target;
            }
            if !std::mem::replace(&mut given[p][e], true) {
                each(p, e, answer);
            }
        };
        let mut rest = &usable[..];
        while !rest.is_empty() {
            let most = if self.options.savings.image_once { self.max_images.now.min(rest.len()) } else { 1 };
            // Plans that are kept are made for few numbers of images.
            let n = if self.device.keeps_plans() { 1 << most.ilog2() } else { most };
            let alone = n == 1 && self.session.is_none(); // then nothing else of the engine's takes memory
            match self.run_images(&rest[..n], keep_probabilities, &mut once) {
                Err(Error::OutOfMemory { device, what, need, free }) => {
                    self.session = None;
                    self.device.release()?;
                    if n > 1 {
                        self.max_images.short(n);
                    }
                    if alone {
                        let (p, picture) = rest[0];
                        for &e in picture.asked.iter().flat_map(|a| &a.expressions) {
                            let (device, what) = (device.clone(), what.clone());
                            once(p, e, Err(Error::OutOfMemory { device, what, need, free }));
                        }
                        rest = &rest[1..];
                    }
                }
                other => {
                    other?;
                    self.max_images.enough(n);
                    rest = &rest[n..];
                }
            }
        }
        // Last, so that a run that fails takes no error with it.
        for (p, picture) in pictures.iter_mut().enumerate() {
            picture.unusable.drain(..).for_each(|(e, error)| each(p, e, Err(error)));
        }
        Ok(())
    }

    /// Answers in the order of the requests; the next pictures are prepared on another thread while the device works, and what is
    /// ready runs together. Any number of requests needs the memory of few.
    ///
    /// ```
    /// use mllmseg::engine::Request;
    /// use mllmseg::{Engine, Options, image};
    ///
    /// let mut engine = Engine::open("assets/demo/model", Options::default())?;
    /// let names = (0..24).map(|i| format!("assets/demo/images/{i:03}.png")).filter(|n| std::path::Path::new(n).exists());
    /// let read = |name: String| image::read(name.as_ref(), &image::Limits::default(), false).ok();
    /// let requests = names.filter_map(read).map(|picture| Request::new(picture, ["the largest square"]));
    /// for found in engine.stream(requests) {
    ///     let answer = found?.answers.remove(0)?;
    ///     assert!((0.0..=1.0).contains(&answer.score));
    /// }
    /// # Ok::<(), mllmseg::Error>(())
    /// ```
    pub fn stream<I>(&mut self, requests: I) -> Stream<'_>
    where
        I: IntoIterator<Item = Request>,
        I::IntoIter: Send + 'static,
    {
        Stream::new(self, requests)
    }

    /// Bytes of the weights that the device computes with.
    pub fn weights_bytes(&self) -> u64 {
        let weights = self.device.weights();
        let derived = weights.all_derived().iter().map(|(dtype, values)| values.len() * dtype.bytes(4));
        let bf16 = weights.weight_ids().into_iter().map(|id| 2 * weights.weight(id).len());
        bf16.chain(derived).sum::<usize>() as u64
    }

    /// Bytes that a run of `images` pictures, `rows` rows of text, `masks` masks and `pixels` pixels of masks, as many in each, needs on the
    /// device, by what they are for, besides the weights; nothing is allocated.
    ///
    /// # Errors
    /// Those of the prompts and of the graphs.
    pub fn memory_plan(&self, [images, rows, masks, pixels]: [usize; 4]) -> Result<Vec<(&'static str, u64)>> {
        let (prefix, image_rows) = {
            let prompts = self.prompts()?;
            (prompts.prefix().len(), prompts.image().len())
        };
        let (m, savings, act) = (&self.model, self.options.savings, self.device.act_bytes());
        let before = if savings.system_once { 0 } else { prefix }; // in each image's rows
        let cap = prefix - before + images * (before + image_rows + MAX_OPENING_TOKENS) + rows;
        let mut states = States::default();
        let kv = states.kv_cache(&m.config, cap);
        let (system, system_io) = mllmseg::system(m, &mut states, &kv, prefix, savings)?;
        let img = savings.system_once.then_some(&system_io.img);
        let (image, io) = mllmseg::image(m, &mut states, images)?;
        let side = pixels.div_ceil(masks.max(1)).clamp(1, prepare::MAX_DEVICE_PIXELS).isqrt();
        let room = PictureRoom::of(images, [side, side], m.config.force_image_size);
        let (pictures, _) = mllmseg::pictures(m, &mut states, &io.patches, images, room)?;
        let along = Along { image: &io, system: before, img };
        let (text, text_io) = mllmseg::text(m, &mut states, &kv, Some(along), [rows, masks, masks], savings)?;
        let (mask, _) =
            mllmseg::masks(m, &mut states, &io.sa, &text_io.t_q, masks, pixels.div_ceil(32), false, savings)?;
        let bytes = |t: &Tensor| (t.len() * t.dtype.bytes(act)) as u64;
        let graphs = [system, pictures, image, text, mask];
        let arena = graphs.into_iter().map(|g| Plan::new(g, act).map(|p| p.arena_bytes));
        let arena = arena.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        let kv_bytes = bytes(&kv.k) + bytes(&kv.v);
        Ok(vec![
            ("K/V cache", kv_bytes),
            ("inputs and results", states.tensors.iter().map(bytes).sum::<u64>() - kv_bytes),
            ("activations", arena as u64),
        ])
    }

    /// Runs some pictures, at most `max_images.now`, and all that is asked of them.
    fn run_images(
        &mut self,
        pictures: &[(usize, &Prepared)],
        keep_probabilities: bool,
        each: Each,
    ) -> Result<()> {
        let (prefix, image_ids) = {
            let prompts = self.prompts()?;
            (prompts.prefix(), prompts.image())
        };
        let all = pictures.iter().enumerate().flat_map(|(image, (picture, p))| {
            p.asked.iter().map(move |asked| Asking { picture: *picture, image, size: p.size, asked })
        });
        let batches = self.batches(all);
        let rows = |batch: &Vec<Asking>| batch.iter().map(|a| a.asked.own().len()).sum::<usize>();
        let openings: Vec<Vec<i32>> = pictures
            .iter()
            .map(|(_, p)| prepare::opening(&p.asked).iter().map(|&id| id as i32).collect())
            .collect();
        let longest = batches.iter().map(rows).fold(MAX_ROWS, usize::max);
        let longest = longest + openings.iter().map(Vec::len).sum::<usize>();
        let longest = bucket(self.device.as_ref(), longest, TEXT_STEP);
        let images: Vec<&Rgb> = pictures.iter().filter_map(|(_, p)| p.picture.as_ref()).collect();
        for (i, batch) in batches.iter().enumerate() {
            // With `image_once` the first batch fills what the others read.
            let first = i == 0 || !self.options.savings.image_once;
            if first {
                self.prepare(&prefix, image_ids.len(), images.len(), longest)?;
                self.see(&images)?;
            }
            let rows = first.then(|| self.image_rows(&prefix, &image_ids, openings.clone()));
            self.answer(batch, images.len(), rows.as_ref(), keep_probabilities, each)?;
        }
        Ok(())
    }

    /// Sequences packed into runs.
    fn batches<'a>(&self, asked: impl Iterator<Item = Asking<'a>>) -> Vec<Vec<Asking<'a>>> {
        let mut batches: Vec<Vec<Asking>> = Vec::new();
        let mut rows = 0;
        let packed = self.options.savings.packed && self.options.savings.image_once;
        for a in asked {
            let len = a.asked.own().len();
            rows += len;
            match batches.last_mut() {
                Some(batch) if packed && rows <= MAX_ROWS => batch.push(a),
                _ => {
                    rows = len;
                    batches.push(vec![a]);
                }
            }
        }
        batches
    }

    /// Makes the session's buffers where they are missing or too small, and runs the system prompt.
    fn prepare(&mut self, prefix: &[u32], image_rows: usize, images: usize, text_rows: usize) -> Result<()> {
        let (m, savings, act) = (&self.model, self.options.savings, self.device.act_bytes());
        let shared = if savings.system_once { prefix.len() } else { 0 };
        let per_image = prefix.len() - shared + image_rows;
        let needed = |images: usize| shared + images * (per_image + MAX_OPENING_TOKENS) + text_rows;
        let fits = |s: &Session| s.max_images >= images && s.kv.k.shape[2] >= needed(s.max_images);
        if self.session.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let max_images = self.session.as_ref().map_or(images, |s| s.max_images.max(images));
        let cap = needed(max_images).next_multiple_of(KV_STEP);
        let mut states = States::default();
        let kv = states.kv_cache(&m.config, cap);
        let (graph, io) = mllmseg::system(m, &mut states, &kv, prefix.len(), savings)?;
        let system = (Plan::new(graph, act)?, io);
        self.session = None; // its buffers are made anew: where memory is short for one, nothing is left of the others
        states.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        let session = Session {
            kept: states.tensors.len(),
            states,
            kv,
            system,
            shared,
            per_image,
            max_images,
            pictures: HashMap::new(),
            images: HashMap::new(),
            texts: HashMap::new(),
            masks: HashMap::new(),
        };
        if savings.system_once {
            let ids: Vec<i32> = prefix.iter().map(|&id| id as i32).collect();
            let (plan, io) = &session.system;
            let segment = Segment { rows: (0, prefix.len()), seen: [(0, 0); 2], kv: 0 };
            write_rows(self.device.as_mut(), &io.rows, &ids, &[segment])?;
            self.device.write_i32(&io.read, &[prefix.len() as i32 - 1])?;
            run(self.device.as_mut(), "system", plan, &mut self.timings, &mut self.observer)?;
        }
        self.session = Some(session);
        Ok(())
    }

    /// Runs the vision tower.
    fn see(&mut self, images: &[&Rgb]) -> Result<()> {
        let session = self.session.as_mut().expect("prepared");
        let (act, b, first_own) = (self.device.act_bytes(), images.len(), session.kept);
        let (states, model) = (&mut session.states, &self.model);
        let image = kept(&mut session.images, [b], || {
            states.tensors.truncate(first_own);
            let (graph, io) = mllmseg::image(model, states, b)?;
            Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_own..].to_vec() })
        })?;
        image.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        let data = PictureData::new(images.iter().copied(), model.config.force_image_size);
        let PictureRoom { bytes, tables, lines } = data.room();
        let few = |n: usize, step| bucket(self.device.as_ref(), n, step);
        let room = PictureRoom {
            bytes: few(bytes, 1 << 20),
            tables: few(tables, 1 << 12),
            lines: few(lines, 1 << 8),
        };
        let first_own = first_own + image.tensors.len();
        let pictures = kept(&mut session.pictures, [b, room.bytes, room.tables, room.lines], || {
            states.tensors.truncate(session.kept);
            states.tensors.extend_from_slice(&image.tensors);
            let (graph, io) = mllmseg::pictures(model, states, &image.io.patches, b, room)?;
            Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_own..].to_vec() })
        })?;
        pictures.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        data.write(self.device.as_mut(), &pictures.io)?;
        run(self.device.as_mut(), "pictures", &pictures.plan, &mut self.timings, &mut self.observer)?;
        run(self.device.as_mut(), "image", &image.plan, &mut self.timings, &mut self.observer)
    }

    /// The rows of images, an opening of each.
    fn image_rows(&self, prefix: &[u32], image_ids: &[u32], openings: Vec<Vec<i32>>) -> ImageRows {
        let session = self.session.as_ref().expect("prepared");
        let (shared, per_image, b) = (session.shared, session.per_image, openings.len());
        let (context, tokens) = (self.tokenizer.special().img_context, image_ids.len());
        let one: Vec<u32> = prefix[shared..].iter().chain(image_ids).copied().collect();
        let mut patch = 0;
        let ids = (0..b).flat_map(|_| &one).map(|&id| {
            if id == context {
                patch += 1;
                -patch
            } else {
                id as i32
            }
        });
        let segment = |i: usize| Segment {
            rows: (i * per_image, per_image),
            seen: [(0, shared), (0, 0)],
            kv: session.image_at(i),
        };
        // An image token is predicted by the row before it. The first one's is <img>, whose state is at hand where the system prompt is shared.
        let own = usize::from(shared == 0);
        let row = |i: usize| i / tokens * per_image + (per_image - tokens) + i % tokens - own;
        ImageRows {
            ids: ids.collect(),
            segments: (0..b).map(segment).collect(),
            read: (0..b * tokens).map(|i| row(i) as i32).collect(),
            before: (0..b * tokens).map(|i| if i % tokens == 0 { 0 } else { -(i as i32) }).collect(),
            openings,
        }
    }

    /// Runs a batch of sequences about the `images` that were just seen, and their masks; in halves where memory is short. The first batch
    /// takes the images' `rows` along.
    fn answer(
        &mut self,
        batch: &[Asking],
        images: usize,
        rows: Option<&ImageRows>,
        keep_probabilities: bool,
        each: Each,
    ) -> Result<()> {
        match self.answer_together(batch, images, rows, keep_probabilities, each) {
            Err(Error::OutOfMemory { .. }) if batch.len() > 1 => {
                let (a, b) = batch.split_at(batch.len() / 2);
                self.answer(a, images, rows, keep_probabilities, each)?;
                self.answer(b, images, None, keep_probabilities, each)
            }
            other => other,
        }
    }

    fn answer_together(
        &mut self,
        batch: &[Asking],
        images: usize,
        along: Option<&ImageRows>,
        keep_probabilities: bool,
        each: Each,
    ) -> Result<()> {
        let session = self.session.as_mut().expect("prepared");
        let (shared, per_image) = (session.shared, session.per_image);
        let text_kv = session.image_at(session.max_images);
        let none = ImageRows::default();
        let ImageRows { mut ids, mut segments, mut read, before, openings } = along.unwrap_or(&none).clone();
        let (of_images, own) = (segments.len(), ids.len()); // of the images
        let (mut slots, mut t) = (Vec::new(), 0);
        for (i, opening) in openings.iter().enumerate().filter(|(_, opening)| !opening.is_empty()) {
            let (at, len) = (session.image_at(i), opening.len());
            let seen = [(0, shared), (at, per_image)];
            segments.push(Segment { rows: (own + t, len), seen, kv: at + per_image });
            ids.extend(opening);
            t += len;
        }
        for a in batch {
            let Asked { sequence, expressions } = a.asked;
            let (opening, len) = (sequence.opening, a.asked.own().len());
            let seen = [(0, shared), (session.image_at(a.image), per_image + opening)];
            segments.push(Segment { rows: (own + t, len), seen, kv: text_kv + t });
            ids.extend(a.asked.own().iter().map(|&id| id as i32));
            // The state before a slot predicts it.
            let slot = |(&expression, &p): (&usize, &usize)| {
                let row = own + t + p - opening - 1;
                Slot { of: *a, expression, row }
            };
            slots.extend(expressions.iter().zip(&sequence.slots).map(slot));
            t += len;
        }
        let (savings, act) = (self.options.savings, self.device.act_bytes());
        let rows = bucket(self.device.as_ref(), t, TEXT_STEP);
        // Rows that only fill the bucket are a sequence of their own, which nobody reads.
        let padding =
            (rows > t).then_some(Segment { rows: (own + t, rows - t), seen: [(0, 0); 2], kv: text_kv + t });
        segments.extend(padding);
        let few = |n: usize| if self.device.keeps_plans() { n.next_power_of_two() } else { n };
        let shape = [rows, few(segments.len() - of_images), few(slots.len())];
        let image = &session.images[&[images]];
        let first_text = session.kept + image.tensors.len();
        let (states, kv, model) = (&mut session.states, &session.kv, &self.model);
        let text = kept(&mut session.texts, [of_images, shape[0], shape[1], shape[2]], || {
            states.tensors.truncate(session.kept);
            states.tensors.extend_from_slice(&image.tensors);
            let along = along.map(|_| Along {
                image: &image.io,
                system: per_image - image.io.before.len() / images,
                img: (shared > 0).then_some(&session.system.1.img),
            });
            let (graph, io) = mllmseg::text(model, states, kv, along, shape, savings)?;
            Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_text..].to_vec() })
        })?;
        text.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        ids.resize(own + rows, 0);
        segments.resize(of_images + shape[1], Segment { rows: (own + rows, 0), seen: [(0, 0); 2], kv: 0 });
        write_rows(self.device.as_mut(), &text.io.rows, &ids, &segments)?;
        read.extend(slots.iter().map(|s| s.row as i32));
        read.resize(text.io.read.len(), 0);
        self.device.write_i32(&text.io.read, &read)?;
        if along.is_some() {
            self.device.write_i32(&image.io.before, &before)?;
        }
        run(self.device.as_mut(), "text", &text.plan, &mut self.timings, &mut self.observer)?;
        let tokens = self.device.read_i32(&text.io.token)?;

        let rejected = self.tokenizer.special().rej;
        let first_masks = first_text + text.tensors.len();
        let (sa, t_q) = (&image.io.sa, &text.io.t_q);
        let mut first = 0;
        while first < slots.len() {
            let mut places = Vec::new(); // (Q, DESCRIPTOR)
            let mut used = 0;
            let at_once = if savings.packed { self.max_slots.now } else { 1 };
            for slot in slots[first..].iter().take(at_once) {
                if used > 0 && used + slot.words() > MAX_MASK_WORDS {
                    break;
                }
                places.extend([used, slot.of.size[1], slot.of.size[0]].map(|v| v as i32));
                used += slot.words();
            }
            let q = places.len() / DESCRIPTOR;
            let words = bucket(self.device.as_ref(), used, MASK_STEP);
            let shape = [q, words, shape[2], images, usize::from(keep_probabilities)];
            let masks = kept(&mut session.masks, shape, || {
                states.tensors.truncate(session.kept);
                states.tensors.extend_from_slice(&image.tensors);
                states.tensors.extend_from_slice(&text.tensors);
                let (graph, io) =
                    mllmseg::masks(model, states, sa, t_q, q, words, keep_probabilities, savings)?;
                Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_masks..].to_vec() })
            })?;
            let (io, these) = (&masks.io, &slots[first..first + q]);
            let prepared = masks.tensors.iter().try_for_each(|t| self.device.allocate(t)).and_then(|()| {
                let device = self.device.as_mut();
                let rows: Vec<i32> = (first as i32..(first + q) as i32).collect();
                device.write_i32(&io.slots.slots, &rows)?;
                let image_of: Vec<i32> = these.iter().map(|s| s.of.image as i32).collect();
                device.write_i32(&io.slots.image_of, &image_of)?;
                device.write_i32(&io.masks, &places)?;
                run(device, "masks", &masks.plan, &mut self.timings, &mut self.observer)
            });
            match prepared {
                Err(Error::OutOfMemory { .. }) if q > 1 => {
                    self.max_slots.short(q);
                    continue;
                }
                other => other?,
            }
            self.max_slots.enough(q);
            let stats = self.device.read_i32(&io.stats)?;
            let bits = self.device.read_i32(&io.bits.rows(0..used))?;
            for (i, (slot, stats)) in these.iter().zip(stats.chunks_exact(STATS)).enumerate() {
                let at = places[i * DESCRIPTOR] as usize;
                let probability =
                    io.probability.as_ref().map(|p| self.device.f32(&p.index(i))).transpose()?;
                let state = self.device.f32(&t_q.index(first + i))?;
                let answer = if stats[5] != 0 || state.iter().any(|v| v.is_nan()) {
                    let expected = "weights that give probabilities (`mllmseg inspect --values` finds those that are not finite)";
                    Err(Error::file(&self.checkpoint.dir, expected, "NaN"))
                } else {
                    let [w, h] = slot.of.size;
                    Mask::from_bits(w, h, &bits[at..at + slot.words()]).map(|mask| Answer {
                        mask,
                        area: stats[0] as usize,
                        bbox: bbox(stats),
                        score: score(stats),
                        no_target: rejected.is_some_and(|rej| rej as i32 == tokens[first + i]),
                        probability,
                    })
                };
                each(slot.of.picture, slot.expression, answer);
            }
            first += q;
        }
        Ok(())
    }
}

/// The box of a mask with these statistics.
fn bbox(stats: &[i32]) -> Option<[usize; 4]> {
    let [x0, y0, x1, y1] = [stats[1], stats[2], stats[3], stats[4]].map(|v| v as usize);
    (stats[0] > 0).then(|| [x0, y0, x1 - x0 + 1, y1 - y0 + 1])
}

/// Mean probability over the pixels of a mask with these statistics; 0 where there is none.
fn score(stats: &[i32]) -> f32 {
    let sum = u64::from(stats[7] as u32) << 32 | u64::from(stats[6] as u32);
    if stats[0] == 0 { 0.0 } else { (sum as f64 / f64::from(1 << 30) / f64::from(stats[0])) as f32 }
}

/// Runs a plan; adds its nodes' times to their stages.
fn run(
    device: &mut dyn Device,
    graph: &'static str,
    plan: &Plan,
    timings: &mut Timings,
    observer: &mut Observer,
) -> Result<()> {
    let each = observer.is_some();
    device.run(plan, each, &mut |_, node, time, _| {
        let stage = match (graph, node.name.split('.').next()) {
            (_, Some("vit" | "mlp1")) => &mut timings.vision_ms,
            ("system" | "text", Some("llm")) => &mut timings.llm_ms,
            ("text", _) => &mut timings.decoder_image_ms,
            (_, Some("out")) => &mut timings.resize_ms,
            _ => &mut timings.masks_ms,
        };
        *stage += ms(time);
        if let Some(observer) = observer {
            observer(Run { graph, node, time });
        }
        Ok(())
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
