//! The engine: a model opened once; pictures and expressions in, masks out.

use crate::checkpoint::Checkpoint;
use crate::device::{self, Choice, Device};
use crate::graph::{Node, Tensor};
use crate::image::{Mask, Rgb, normalize, resize_bicubic};
use crate::models::llm::Rows;
use crate::models::mllmseg::{self, Image, Masks, Model, Savings, Segment, States, Text, write_rows};
use crate::ops::KvCache;
use crate::plan::Plan;
use crate::reference::Precision;
use crate::text::{Prompts, Sequence, Tokenizer, UserText};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of packed text in one run: enough for large matmuls, little enough memory.
const MAX_ROWS: usize = 2048;
/// Masks of one run: the decoder's activations are about 30 MB each in f32.
const MAX_SLOTS: usize = 16;
/// Pixels of masks at their sources' sizes in one run.
const MAX_MASK_PIXELS: usize = 256 << 20;
/// Rows of packed text are made in multiples of this on devices that keep plans.
const TEXT_STEP: usize = 32;
/// Pixels of masks likewise.
const MASK_STEP: usize = 1 << 16;
/// K/V rows are made in multiples of this, so that requests of similar length share a plan's buffers.
const KV_STEP: usize = 256;

/// How the expressions of one picture are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// What the model says of one expression.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The mask that the decoder gives, at the picture's size, rejected or not.
    pub mask: Mask,
    /// Mean probability inside the mask; 0 for an empty one.
    pub score: f32,
    /// The model answers `[REJ]`: nothing in the picture fits the expression.
    pub no_target: bool,
    /// `(S, S)` probabilities at the model's input size, if they were asked for.
    pub probability: Option<Vec<f32>>,
}

/// Wall time of one picture by stage, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Timings {
    /// Prompts, resize to the model's input, normalisation.
    pub preprocess_ms: f64,
    /// Vision tower and projector.
    pub vision_ms: f64,
    /// Language model over the image's tokens (and the system prompt's, the first time).
    pub image_prefix_ms: f64,
    /// Mask decoder, the part that no expression touches.
    pub decoder_image_ms: f64,
    /// Language model over the expressions' tokens.
    pub text_ms: f64,
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
    /// `system`, `image`, `text` or `masks`.
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
    tokenizer: Tokenizer,
    model: Model,
    device: Box<dyn Device>,
    options: Options,
    session: Option<Session>,
    observer: Observer,
    timings: Timings,
}

/// Buffers and plans that stay from picture to picture.
struct Session {
    states: States,
    /// Number of state buffers that stay; those of text and masks come after.
    kept: usize,
    kv: KvCache,
    system: (Plan, Rows),
    image: (Plan, Image),
    /// Rows of the system prompt's K/V that are computed and shared.
    shared: usize,
    /// By rows, sequences and slots.
    texts: HashMap<[usize; 3], Kept<Text>>,
    /// By masks, pixels of masks, and rows of hidden states.
    masks: HashMap<[usize; 3], Kept<Masks>>,
}

/// A plan for one bucket of sizes, its buffers, and those of them that are its own.
struct Kept<T> {
    plan: Plan,
    io: T,
    tensors: Vec<Tensor>,
}

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
    /// Whatever is wrong with the checkpoint; [`Error::Usage`] for one without a mask decoder.
    pub fn open(model: &str, options: Options) -> Result<Self> {
        Self::open_with(model, options, &mut |_, _| ())
    }

    /// [`open`](Self::open); `progress` is called with the bytes of weights that are on the device, and those in all.
    pub fn open_with(model: &str, options: Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(model)?);
        if !checkpoint.has_mask_decoder() {
            let expected = "a checkpoint with a mask decoder (res_decoder.*)";
            return Err(Error::usage(model, expected, "one for chat only"));
        }
        let tokenizer = Tokenizer::open(&checkpoint.dir)?;
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

    /// The prompts of this model.
    pub fn prompts(&self) -> Result<Prompts<'_>> {
        let config = &self.model.config;
        let (system, tokens) = (config.system_message.as_deref(), config.image_tokens());
        Prompts::new(&self.tokenizer, system, tokens, self.options.user_text)
    }

    /// Segments one picture; `keep_probabilities` fills [`Answer::probability`].
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
        self.timings = Timings::default();
        let mut answers: Vec<Option<Result<Answer>>> = expressions.iter().map(|_| None).collect();
        let (prefix, image_ids, asked) = {
            let prompts = self.prompts()?;
            (prompts.prefix(), prompts.image(), ask(&prompts, expressions, prompting, &mut answers))
        };
        if !asked.is_empty() {
            let size = self.model.config.force_image_size;
            let pixels = normalize(&resize_bicubic(picture, size, size)?);
            self.timings.preprocess_ms = ms(start.elapsed());
            let batches = self.batches(asked);
            let rows = |batch: &Vec<Asked>| batch.iter().map(|a| a.sequence.ids.len()).sum::<usize>();
            let longest = batches.iter().map(rows).fold(MAX_ROWS, usize::max);
            let longest = bucket(self.device.as_ref(), longest, TEXT_STEP);
            for (i, batch) in batches.iter().enumerate() {
                // With `image_once` the first batch fills what the others read.
                if i == 0 || !self.options.savings.image_once {
                    self.prepare(&prefix, image_ids.len(), longest)?;
                    self.see(&prefix, &image_ids, &pixels)?;
                }
                let seen = prefix.len() + image_ids.len();
                self.answer(batch, seen, picture, keep_probabilities, &mut answers)?;
            }
        }
        let missing = || Err(Error::shape("expressions", "an answer each", "none"));
        let answers = answers.into_iter().map(|a| a.unwrap_or_else(missing)).collect();
        Ok(Segmentation { answers, timings: self.timings })
    }

    /// Sequences packed into runs.
    fn batches(&self, asked: Vec<Asked>) -> Vec<Vec<Asked>> {
        let mut batches: Vec<Vec<Asked>> = Vec::new();
        let mut rows = 0;
        let packed = self.options.savings.packed && self.options.savings.image_once;
        for a in asked {
            rows += a.sequence.ids.len();
            match batches.last_mut() {
                Some(batch) if packed && rows <= MAX_ROWS => batch.push(a),
                _ => {
                    rows = a.sequence.ids.len();
                    batches.push(vec![a]);
                }
            }
        }
        batches
    }

    /// Makes the session's buffers where they are missing or too small, and runs the system prompt.
    fn prepare(&mut self, prefix: &[u32], image_rows: usize, text_rows: usize) -> Result<()> {
        let cap = (prefix.len() + image_rows + text_rows).next_multiple_of(KV_STEP);
        if self.session.as_ref().is_some_and(|s| s.kv.k.shape[2] >= cap) {
            return Ok(());
        }
        let (m, savings, act) = (&self.model, self.options.savings, self.device.act_bytes());
        let mut states = States::default();
        let kv = states.kv_cache(&m.config, cap);
        let (graph, rows) = mllmseg::system(m, &mut states, &kv, prefix.len())?;
        let system = (Plan::new(graph, act)?, rows);
        let shared = if savings.system_once { prefix.len() } else { 0 };
        let (graph, io) =
            mllmseg::image(m, &mut states, &kv, 1, prefix.len() - shared + image_rows, savings)?;
        let image = (Plan::new(graph, act)?, io);
        states.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        let session = Session {
            kept: states.tensors.len(),
            states,
            kv,
            system,
            image,
            shared,
            texts: HashMap::new(),
            masks: HashMap::new(),
        };
        if savings.system_once {
            let segment = Segment { rows: (0, prefix.len()), seen: [(0, 0); 2], kv: 0 };
            let ids: Vec<i32> = prefix.iter().map(|&id| id as i32).collect();
            write_rows(self.device.as_mut(), &session.system.1, &ids, &[segment])?;
            run(self.device.as_mut(), "system", &session.system.0, &mut self.timings, &mut self.observer)?;
        }
        self.session = Some(session);
        Ok(())
    }

    /// Runs the image: its K/V and the decoder's part stay for the expressions.
    fn see(&mut self, prefix: &[u32], image_ids: &[u32], pixels: &[f32]) -> Result<()> {
        let session = self.session.as_ref().expect("prepared");
        let (plan, io) = &session.image;
        let before = prefix.len() - session.shared; // rows of the system prompt that are computed here
        let context = self.tokenizer.special().img_context;
        let mut patch = 0;
        let token = |&id: &u32| {
            if id == context {
                patch += 1;
                -patch
            } else {
                id as i32
            }
        };
        let ids: Vec<i32> = prefix[session.shared..].iter().chain(image_ids).map(token).collect();
        let segment = Segment {
            rows: (0, before + image_ids.len()),
            seen: [(0, session.shared), (0, 0)],
            kv: session.shared,
        };
        self.device.write_f32(&io.pixel_values, pixels)?;
        write_rows(self.device.as_mut(), &io.rows, &ids, &[segment])?;
        // hidden states of <img> and of all context tokens but the last predict the context tokens
        let read: Vec<i32> = (0..io.read.len()).map(|i| (before + i) as i32).collect();
        self.device.write_i32(&io.read, &read)?;
        run(self.device.as_mut(), "image", plan, &mut self.timings, &mut self.observer)
    }

    /// Runs a batch of sequences behind the `seen` K/V rows of their image, and their masks; in halves where memory is short.
    fn answer(
        &mut self,
        batch: &[Asked],
        seen: usize,
        picture: &Rgb,
        keep_probabilities: bool,
        answers: &mut [Option<Result<Answer>>],
    ) -> Result<()> {
        match self.answer_together(batch, seen, picture, keep_probabilities, answers) {
            Err(Error::OutOfMemory { .. }) if batch.len() > 1 => {
                let (a, b) = batch.split_at(batch.len() / 2);
                self.answer(a, seen, picture, keep_probabilities, answers)?;
                self.answer(b, seen, picture, keep_probabilities, answers)
            }
            other => other,
        }
    }

    fn answer_together(
        &mut self,
        batch: &[Asked],
        seen: usize,
        picture: &Rgb,
        keep_probabilities: bool,
        answers: &mut [Option<Result<Answer>>],
    ) -> Result<()> {
        let session = self.session.as_mut().expect("prepared");
        let (mut segments, mut slots, mut t) = (Vec::new(), Vec::new(), 0);
        for a in batch {
            let len = a.sequence.ids.len();
            segments.push(Segment { rows: (t, len), seen: [(0, seen), (0, 0)], kv: seen + t });
            // The state before a slot predicts it.
            slots.extend(a.expressions.iter().zip(&a.sequence.slots).map(|(&e, &p)| (e, t + p - 1)));
            t += len;
        }
        let (savings, act) = (self.options.savings, self.device.act_bytes());
        let rows = bucket(self.device.as_ref(), t, TEXT_STEP);
        // Rows that only fill the bucket are a sequence of their own, which nobody reads.
        let padding = (rows > t).then_some(Segment { rows: (t, rows - t), seen: [(0, 0); 2], kv: seen + t });
        segments.extend(padding);
        let few = |n: usize| if self.device.keeps_plans() { n.next_power_of_two() } else { n };
        let shape = [rows, few(segments.len()), few(slots.len())];
        let (states, first_own) = (&mut session.states, session.kept);
        let (kv, model) = (&session.kv, &self.model);
        let text = kept(&mut session.texts, shape, || {
            states.tensors.truncate(first_own);
            let (graph, io) = mllmseg::text(model, states, kv, shape, savings)?;
            Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_own..].to_vec() })
        })?;
        text.tensors.iter().try_for_each(|t| self.device.allocate(t))?;
        let mut ids: Vec<i32> =
            batch.iter().flat_map(|a| a.sequence.ids.iter().map(|&id| id as i32)).collect();
        ids.resize(rows, 0);
        segments.resize(shape[1], Segment { rows: (rows, 0), seen: [(0, 0); 2], kv: 0 });
        write_rows(self.device.as_mut(), &text.io.rows, &ids, &segments)?;
        let mut read: Vec<i32> = slots.iter().map(|s| s.1 as i32).collect();
        read.resize(shape[2], 0);
        self.device.write_i32(&text.io.read, &read)?;
        run(self.device.as_mut(), "text", &text.plan, &mut self.timings, &mut self.observer)?;
        let tokens = self.device.read_i32(&text.io.token)?;

        let (w, h) = (picture.width, picture.height);
        let mut at_once = if savings.packed { (MAX_MASK_PIXELS / (w * h)).clamp(1, MAX_SLOTS) } else { 1 };
        let rejected = self.tokenizer.special().rej;
        let first_own = first_own + text.tensors.len();
        let (sa, t_q) = (&session.image.1.sa, &text.io.t_q);
        let mut first = 0;
        while first < slots.len() {
            let q = at_once.min(slots.len() - first);
            let pixels = bucket(self.device.as_ref(), q * w * h, MASK_STEP);
            let masks = kept(&mut session.masks, [q, pixels, shape[2]], || {
                states.tensors.truncate(session.kept);
                states.tensors.extend_from_slice(&text.tensors);
                let (graph, io) = mllmseg::masks(model, states, sa, t_q, q, pixels, savings)?;
                Ok(Kept { plan: Plan::new(graph, act)?, io, tensors: states.tensors[first_own..].to_vec() })
            })?;
            let io = &masks.io;
            let prepared = masks.tensors.iter().try_for_each(|t| self.device.allocate(t)).and_then(|()| {
                self.device.write_i32(&io.slots, &(first as i32..(first + q) as i32).collect::<Vec<_>>())?;
                self.device.write_i32(&io.image_of, &vec![0i32; q])?;
                let places: Vec<i32> = (0..q).flat_map(|i| [i * w * h, h, w].map(|v| v as i32)).collect();
                self.device.write_i32(&io.masks, &places)?;
                run(self.device.as_mut(), "masks", &masks.plan, &mut self.timings, &mut self.observer)
            });
            match prepared {
                Err(Error::OutOfMemory { .. }) if at_once > 1 => {
                    at_once /= 2;
                    continue;
                }
                other => other?,
            }
            let scores = self.device.f32(&io.score)?;
            let pixels = self.device.read_u8(&io.mask.rows(0..q * w * h))?;
            for (i, pixels) in pixels.chunks_exact(w * h).enumerate() {
                let (expression, token) = (slots[first + i].0, tokens[first + i]);
                let probability = self.device.f32(&io.probability.index(i))?;
                let state = self.device.f32(&t_q.index(first + i))?;
                answers[expression] = Some(if state.iter().chain(&probability).any(|v| v.is_nan()) {
                    let expected = "weights that give probabilities (`mllmseg inspect --values` finds those that are not finite)";
                    Err(Error::file(&self.checkpoint.dir, expected, "NaN"))
                } else {
                    Mask::new(w, h, pixels.to_vec()).map(|mask| Answer {
                        mask,
                        score: scores[i],
                        no_target: rejected.is_some_and(|rej| rej as i32 == token),
                        probability: keep_probabilities.then_some(probability),
                    })
                });
            }
            first += q;
        }
        Ok(())
    }
}

/// A sequence and the expressions that its slots answer.
struct Asked {
    sequence: Sequence,
    expressions: Vec<usize>,
}

/// The sequences of one picture; an expression that cannot be used gets its error as its answer.
fn ask(
    prompts: &Prompts,
    expressions: &[&str],
    prompting: Prompting,
    answers: &mut [Option<Result<Answer>>],
) -> Vec<Asked> {
    let mut asked = Vec::new();
    for (i, e) in expressions.iter().enumerate() {
        let sequence = match prompting {
            Prompting::Single | Prompting::Joint => prompts.single(e),
            Prompting::Phrase => prompts.phrase(e),
            Prompting::Reasoning => prompts.reasoning(e),
        };
        match sequence {
            Ok(sequence) => asked.push(Asked { sequence, expressions: vec![i] }),
            Err(e) => answers[i] = Some(Err(e)),
        }
    }
    if prompting == Prompting::Joint && asked.len() > 1 {
        let usable: Vec<usize> = asked.iter().flat_map(|a| a.expressions.iter().copied()).collect();
        match prompts.joint(&usable.iter().map(|&i| expressions[i]).collect::<Vec<_>>()) {
            Ok(sequence) => return vec![Asked { sequence, expressions: usable }],
            Err(e) => {
                let text = e.to_string();
                for i in usable {
                    let expected = "expressions that fit one sequence (or single prompting)".into();
                    answers[i] =
                        Some(Err(Error::Text { what: "joint prompt".into(), expected, found: text.clone() }));
                }
                return Vec::new();
            }
        }
    }
    asked
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
            ("system" | "image", Some("llm")) => &mut timings.image_prefix_ms,
            ("image", _) => &mut timings.decoder_image_ms,
            ("text", _) => &mut timings.text_ms,
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
