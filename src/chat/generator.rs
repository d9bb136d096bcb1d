//! Token ids in, token ids out: the sequences that are being answered, their pages, and the steps of the model.

use super::pages::{Cell, Held, Key, Pages, keys};
use super::{Options, lookup};
use crate::checkpoint::Checkpoint;
use crate::device::{self, Device};
use crate::image::{Rgb, normalize};
use crate::models::chat::{Buffers, Model, PROMPT_ROWS, SEQUENCES, STEP_ROWS, TILES, prompt, step, vision};
use crate::models::mllmseg::States;
use crate::ops::PAGE;
use crate::plan::Plan;
use crate::reference::{SAMPLE_DRAWS, SAMPLE_KNOBS, inv_freq};
use crate::text::TokenId;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of a prompt's part are made in multiples of this on devices that keep plans.
const PROMPT_STEP: usize = 64;
/// Plans that are kept; one more and all are made anew.
const MAX_PLANS: usize = 64;
/// Tokens of the K/V cache, at most.
const MAX_CACHE: usize = 1 << 24;
/// Tokens that are guessed for one sequence in a step, at most; on the CPU, where more rows cost more.
const GUESSES: usize = 7;
/// See [`GUESSES`].
const CPU_GUESSES: usize = 3;
/// How an answer is generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Tokens of the answer at most, the stop token included.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Whether tokens are guessed and checked several at a time, where that changes nothing: greedy answers without penalty.
    pub speculate: bool,
    /// Whether the reply has the logits that each token was chosen from.
    pub keep_logits: bool,
    /// Tokens that end the answer; `None` for those of a chat (`<|im_end|>` and the end of text), or of a [`Generator`] for none.
    pub stop: Option<Vec<TokenId>>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_new_tokens: 1024,
            sampling: Sampling::GREEDY,
            speculate: true,
            keep_logits: false,
            stop: None,
        }
    }
}

/// How a token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Of the most likely tokens, the fewest whose probabilities add up to this; 1 for all.
    pub top_p: f32,
    /// So many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Logits of tokens that were there are divided by it, or multiplied where they are negative; 1 for none.
    pub repetition_penalty: f32,
    /// The same seed and prompt give the same answer.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 };

    /// An error for a value that makes no distribution.
    fn check(&self) -> Result<()> {
        let fail =
            |what: &str, expected: &str, found: f32| Err(Error::usage(what, expected, found.to_string()));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return fail("temperature", "0 or more", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top-p", "above 0, at most 1", self.top_p);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail("repetition penalty", "above 0", self.repetition_penalty);
        }
        Ok(())
    }

    fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }
}

/// One tile of a picture, named by its pixels.
#[derive(Clone)]
struct Tile {
    name: [u8; 16],
    pixels: Arc<Rgb>,
}

/// A picture, cut into tiles.
#[derive(Clone)]
pub struct Picture {
    tiles: Vec<Tile>,
}

impl Picture {
    /// Its tiles, the thumbnail included.
    pub fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Of tiles of the model's input size.
    pub fn new(tiles: Vec<Rgb>) -> Self {
        let tile = |pixels: Rgb| {
            let mut name = [0; 16];
            name.copy_from_slice(&Sha256::digest(&pixels.data)[..16]);
            Tile { name, pixels: Arc::new(pixels) }
        };
        Self { tiles: tiles.into_iter().map(tile).collect() }
    }
}

/// A prompt as the model sees it.
pub struct Prompt {
    cells: Vec<Cell>,
    /// Each tile and the position of its first token.
    tiles: Vec<(Tile, usize)>,
    pub(super) history: Option<History>,
}

/// What an earlier turn left in the cache.
pub(super) struct History {
    cells: Vec<Cell>,
    held: Held,
    rotation: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It has `max_new_tokens`.
    Length,
    /// The K/V cache has no room for a longer one.
    CacheFull,
    /// The caller ended it.
    Cancelled,
}

/// Wall time of one answer, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Timings {
    /// Until the first token, from when the question was put.
    pub first_token_ms: f64,
    /// Of that, the vision tower.
    pub vision_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}

/// An answer.
pub struct Reply {
    /// Without special tokens; a [`Generator`] leaves it empty.
    pub text: String,
    /// The stop token included.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt, pictures included.
    pub prompt_tokens: usize,
    /// Of those, the ones whose K and V were there already.
    pub cached_tokens: usize,
    /// Runs of the model after the prompt.
    pub steps: usize,
    /// Tokens that were guessed, and those of them that were right.
    #[allow(missing_docs)]
    pub guessed: usize,
    #[allow(missing_docs)]
    pub accepted: usize,
    /// Where the time went.
    pub timings: Timings,
    /// `(tokens, V)`, if they were asked for.
    pub logits: Vec<Vec<f32>>,
    pub(super) history: Option<History>,
}

impl Reply {
    fn new(prompt_tokens: usize) -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            finish: Finish::Stop,
            prompt_tokens,
            cached_tokens: 0,
            steps: 0,
            guessed: 0,
            accepted: 0,
            timings: Timings::default(),
            logits: Vec::new(),
            history: None,
        }
    }

    /// Tokens a second after the first; `None` for a single one.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens.len() > 1)
            .then(|| (self.tokens.len() - 1) as f64 * 1e3 / self.timings.decode_ms.max(1e-6))
    }
}

/// Names a sequence among those that are being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u64);

/// What a step brought.
pub enum Event {
    /// More of an answer.
    Tokens(Id, Vec<TokenId>),
    /// All of it, after its last tokens.
    Done(Id, Box<Reply>),
    /// A prompt that cannot be answered.
    Failed(Id, Error),
}

/// A sequence that waits for a place.
struct Waiting {
    id: Id,
    prompt: Prompt,
    generation: Generation,
    since: Instant,
}

/// A sequence in one of the places.
struct Sequence {
    id: Id,
    /// The prompt, then the answer.
    cells: Vec<Cell>,
    prompt: usize,
    tiles: Vec<(Tile, usize)>,
    generation: Generation,
    /// Tokens of the answer that there is room for.
    limit: usize,
    held: Held,
    keys: Vec<Key>,
    /// Tokens whose K and V are there.
    done: usize,
    rotation: usize,
    since: Instant,
    first: Option<Instant>,
    finish: Option<Finish>,
    reply: Reply,
}

/// What a plan is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Vision(usize),
    Prompt(usize, bool),
    Step(usize),
}

/// A model and the sequences that it continues, up to [`SEQUENCES`] side by side.
pub struct Generator {
    checkpoint: Arc<Checkpoint>,
    model: Model,
    device: Box<dyn Device>,
    buffers: Buffers,
    plans: HashMap<Kind, Plan>,
    pages: Pages,
    template: Vec<Vec<TokenId>>,
    waiting: VecDeque<Waiting>,
    /// Those that ended before they began.
    cancelled: Vec<Waiting>,
    running: [Option<Sequence>; SEQUENCES],
    /// Which length each place's frequencies were written for.
    rotations: [usize; SEQUENCES],
    next: u64,
}

impl Generator {
    /// Of an opened checkpoint; `template` are runs of tokens whose first is a guess at the rest. `progress` is called with the bytes of weights that are on the device,
    /// and those in all.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint or the device; [`Error::OutOfMemory`] for a cache that the device has no room for.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        options: &Options,
        template: Vec<Vec<TokenId>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        if options.cache_tokens == 0 || options.cache_tokens > MAX_CACHE {
            let found = options.cache_tokens.to_string();
            return Err(Error::usage("cache", format!("1 to {MAX_CACHE} tokens"), found));
        }
        let (model, weights) = Model::bind(&checkpoint)?;
        let mut device = device::open(options.device, weights, options.precision, progress)?;
        device.debug(options.graphs, options.sync);
        let pages = options.cache_tokens.div_ceil(PAGE);
        let mut states = States::default();
        let buffers = Buffers::new(&model, &mut states, pages);
        states.tensors.iter().try_for_each(|t| device.allocate(t))?;
        let seen = &buffers.choice.seen;
        device.write_i32(seen, &vec![0; seen.len()])?;
        Ok(Self {
            checkpoint,
            model,
            device,
            buffers,
            plans: HashMap::new(),
            pages: Pages::new(pages),
            template,
            waiting: VecDeque::new(),
            cancelled: Vec::new(),
            running: Default::default(),
            rotations: [usize::MAX; SEQUENCES],
            next: 0,
        })
    }

    /// The checkpoint behind it.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Pages of the cache, and those that sequences and conversations hold.
    pub fn pages(&mut self) -> (usize, usize) {
        self.pages.count()
    }

    /// A prompt of token ids: each `context` (`<IMG_CONTEXT>`) is one token of a tile, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] for a token id that the model has not, an empty prompt, or another number of image tokens than the tiles have.
    pub fn prompt(&self, ids: &[TokenId], context: TokenId, pictures: &[Picture]) -> Result<Prompt> {
        let per_tile = self.model.config.image_tokens();
        let vocab = self.model.config.llm_config.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::shape("prompt", format!("token ids below {vocab}"), id.to_string()));
        }
        let tiles: Vec<&Tile> = pictures.iter().flat_map(|p| &p.tiles).collect();
        let places: Vec<usize> = (0..).zip(ids).filter(|(_, id)| **id == context).map(|(at, _)| at).collect();
        if places.len() != tiles.len() * per_tile || ids.is_empty() {
            let expected =
                format!("{} image tokens ({per_tile} a tile, {} tiles)", tiles.len() * per_tile, tiles.len());
            return Err(Error::shape("prompt", expected, places.len().to_string()));
        }
        let mut cells: Vec<Cell> = ids.iter().map(|&id| Cell::Text(id)).collect();
        for (k, (tile, places)) in tiles.iter().zip(places.chunks(per_tile)).enumerate() {
            // The rows of a tile stand together: a part of a prompt holds all of them.
            if places[per_tile - 1] - places[0] + 1 != per_tile {
                return Err(Error::shape(
                    format!("prompt, tile {k}"),
                    "its image tokens side by side",
                    "other tokens between",
                ));
            }
            for (row, &at) in (0..).zip(places) {
                cells[at] = Cell::Image { tile: tile.name, row };
            }
        }
        let tiles = tiles.into_iter().cloned().zip(places.into_iter().step_by(per_tile.max(1))).collect();
        Ok(Prompt { cells, tiles, history: None })
    }

    /// Puts a prompt behind those that wait.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sampling that makes no distribution; [`Error::Shape`] for a prompt that is longer than the cache.
    pub fn submit(&mut self, prompt: Prompt, generation: Generation) -> Result<Id> {
        generation.sampling.check()?;
        if generation.max_new_tokens == 0 {
            return Err(Error::usage("max-new-tokens", "1 or more", "0"));
        }
        let (room, needs) = (self.pages.count().0 * PAGE, prompt.cells.len());
        if needs >= room {
            let expected = format!("fewer tokens than the K/V cache holds ({room}: --cache-tokens)");
            return Err(Error::shape("prompt", expected, needs.to_string()));
        }
        self.next += 1;
        let id = Id(self.next);
        self.waiting.push_back(Waiting { id, prompt, generation, since: Instant::now() });
        Ok(id)
    }

    /// Ends an answer; its reply comes with the next step.
    pub fn cancel(&mut self, id: Id) {
        if let Some(s) = self.running.iter_mut().flatten().find(|s| s.id == id) {
            s.finish.get_or_insert(Finish::Cancelled);
        }
        if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            self.cancelled.extend(self.waiting.remove(at));
        }
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.cancelled.clear();
        self.running = Default::default();
    }

    /// One step: sequences that wait take free places, one prompt is computed a part further, and every other sequence gets its next
    /// tokens. No events if there is nothing to do.
    ///
    /// # Errors
    /// Those of the device; the sequences in places are lost.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let done = self.advance(&mut events);
        if done.is_err() {
            self.running = Default::default();
        }
        done.map(|()| events)
    }

    fn advance(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.leave(events);
        self.admit(events)?;
        let decoding: Vec<usize> =
            (0..SEQUENCES).filter(|&i| self.at(i).is_some_and(|s| s.done >= s.prompt)).collect();
        let prompt = (0..SEQUENCES).filter_map(|i| Some((self.at(i)?, i))).filter(|(s, _)| s.done < s.prompt);
        if let Some((_, place)) = prompt.min_by_key(|(s, _)| s.id) {
            self.compute_prompt(place, events)?;
        }
        if !decoding.is_empty() {
            self.decode(&decoding, events)?;
        }
        self.leave(events);
        Ok(())
    }

    fn at(&self, place: usize) -> Option<&Sequence> {
        self.running[place].as_ref()
    }

    /// Finished sequences leave.
    fn leave(&mut self, events: &mut Vec<Event>) {
        for w in self.cancelled.drain(..) {
            let mut reply = Reply::new(w.prompt.cells.len());
            (reply.finish, reply.history) = (Finish::Cancelled, w.prompt.history);
            events.push(Event::Done(w.id, Box::new(reply)));
        }
        for place in &mut self.running {
            let Some(finish) = place.as_ref().and_then(|s| s.finish) else { continue };
            let mut s = place.take().expect("it is there");
            let now = Instant::now();
            let first = s.first.unwrap_or(now);
            s.reply.finish = finish;
            s.reply.timings.first_token_ms = ms(first - s.since);
            s.reply.timings.decode_ms = ms(now - first);
            s.held.truncate(s.done.div_ceil(PAGE));
            s.cells.truncate(s.done);
            s.reply.history = Some(History { cells: s.cells, held: s.held, rotation: s.rotation });
            events.push(Event::Done(s.id, Box::new(s.reply)));
        }
    }

    /// Those that wait take free places, in their order, as long as there are pages for all that they may need.
    fn admit(&mut self, events: &mut Vec<Event>) -> Result<()> {
        while let Some(waiting) = self.waiting.pop_front() {
            let Some(place) = (0..SEQUENCES).find(|&i| self.running[i].is_none()) else {
                self.waiting.push_front(waiting);
                break;
            };
            match self.reserve(waiting) {
                Ok(sequence) => self.enter(place, sequence)?,
                Err(waiting) if self.running.iter().all(Option::is_none) => {
                    let (all, held) = self.pages.count();
                    let expected = format!(
                        "room in the K/V cache for {} tokens (--cache-tokens; conversations hold {} of {})",
                        waiting.prompt.cells.len() + 1,
                        held * PAGE,
                        all * PAGE
                    );
                    let found = format!("{} tokens", (all - held) * PAGE);
                    events.push(Event::Failed(waiting.id, Error::shape("prompt", expected, found)));
                }
                Err(waiting) => {
                    self.waiting.push_front(*waiting);
                    break;
                }
            }
        }
        Ok(())
    }

    /// What a prompt of `len` tokens is rotated by: 0 for the checkpoint's own frequencies, `len` past `max_position_embeddings`.
    fn rotation(&self, len: usize) -> usize {
        if len > self.model.config.llm_config.max_position_embeddings { len } else { 0 }
    }

    /// The sequence with all the pages that it may need: those that hold its beginning, and free ones.
    fn reserve(&mut self, mut waiting: Waiting) -> std::result::Result<Sequence, Box<Waiting>> {
        let cells = &waiting.prompt.cells;
        let (len, rotation) = (cells.len(), self.rotation(cells.len()));
        let keys = keys(cells, rotation);
        // At least the last row is computed: the first token of the answer follows from it.
        let mut held = self.pages.find(&keys[..(len - 1) / PAGE]);
        let mut done = held.numbers().len() * PAGE;
        // Of an earlier turn's pages those are kept that hold more of this prompt than was found, and no others.
        let history = waiting.prompt.history.take().filter(|h| h.rotation == rotation).and_then(|mut h| {
            let mut same = cells[..len - 1].iter().zip(&h.cells).take_while(|(a, b)| a == b).count();
            if same % PAGE > 0 && !self.pages.is_own(h.held.numbers()[same / PAGE]) {
                same -= same % PAGE;
            }
            h.held.truncate(same.div_ceil(PAGE));
            h.cells.truncate(same);
            (same > done).then_some(h)
        });
        if let Some(h) = &history {
            done = h.cells.len();
        }
        let kept = history.as_ref().map_or(held.numbers(), |h| h.held.numbers()).len();
        let limit = waiting.generation.max_new_tokens.min(self.pages.count().0 * PAGE - len);
        let Some(free) = self.pages.take((len + limit).div_ceil(PAGE) - kept) else {
            waiting.prompt.history = history;
            return Err(Box::new(waiting));
        };
        let Waiting { id, prompt: Prompt { cells, tiles, .. }, generation, since } = waiting;
        if let Some(history) = history {
            held = history.held;
        }
        held.append(free);
        let mut reply = Reply::new(len);
        reply.cached_tokens = done;
        Ok(Sequence {
            id,
            cells,
            prompt: len,
            tiles,
            generation,
            limit,
            held,
            keys,
            done,
            rotation,
            since,
            first: None,
            finish: None,
            reply,
        })
    }

    /// A sequence takes a place: its pages are listed there.
    fn enter(&mut self, place: usize, sequence: Sequence) -> Result<()> {
        let pages = &self.buffers.rows.pages;
        let mut list: Vec<i32> = sequence.held.numbers().iter().map(|&p| p as i32).collect();
        list.resize(pages.shape[1], 0);
        self.device.write_i32(&pages.index(place), &list)?;
        self.running[place] = Some(sequence);
        Ok(())
    }

    /// The frequencies of a place, for a sequence of `len` tokens.
    fn rotate(&mut self, place: usize, len: usize) -> Result<()> {
        let c = &self.model.config.llm_config;
        let rotation = self.rotation(len);
        if self.rotations[place] != rotation {
            let frequencies = inv_freq(c.rope_theta_at(len), c.head_dim());
            self.device.write_f32(&self.buffers.rows.inv_freq.index(place), &frequencies)?;
            self.rotations[place] = rotation;
        }
        Ok(())
    }

    /// Where the part of a prompt that begins at `start` ends, and the tiles that it needs: whole tiles, as many as there is room for.
    fn part(&self, s: &Sequence) -> (usize, Vec<usize>) {
        let per_tile = self.model.config.image_tokens();
        let mut end = s.prompt.min(s.done + PROMPT_ROWS);
        let mut needed = Vec::new();
        for (k, &(_, first)) in s.tiles.iter().enumerate() {
            if first + per_tile <= s.done || first >= end {
                continue;
            }
            if needed.len() == TILES || first > s.done && first + per_tile > end {
                end = first;
            } else {
                needed.push(k);
            }
        }
        (end, needed)
    }

    /// Computes a part of the prompt in a place.
    fn compute_prompt(&mut self, place: usize, events: &mut Vec<Event>) -> Result<()> {
        let s = self.running[place].as_ref().expect("a sequence");
        let (start, (end, tiles)) = (s.done, self.part(s));
        let (per_tile, answer) = (self.model.config.image_tokens(), end == s.prompt);
        let mut ids = Vec::with_capacity(end - start);
        for (at, cell) in (start..end).zip(&s.cells[start..end]) {
            ids.push(match *cell {
                Cell::Text(id) => id as i32,
                Cell::Image { row, .. } => {
                    // Its tile begins `row` rows before it.
                    let first = at - row as usize;
                    let k = tiles
                        .iter()
                        .position(|&k| s.tiles[k].1 == first)
                        .expect("a tile that the part needs");
                    -1 - (k * per_tile + row as usize) as i32
                }
            });
        }
        let len = s.prompt;
        let pixels: Vec<f32> = tiles.iter().flat_map(|&k| normalize(&s.tiles[k].0.pixels)).collect();
        let mut seen = Duration::ZERO;
        if !tiles.is_empty() {
            let begun = Instant::now();
            self.device.write_f32(&self.buffers.pixel_values.rows(0..tiles.len()), &pixels)?;
            self.run(Kind::Vision(tiles.len()))?;
            seen = begun.elapsed();
        }
        self.rotate(place, len)?;
        let rows = ids.len();
        let bucket = if self.device.keeps_plans() {
            rows.next_multiple_of(PROMPT_STEP.max(rows.next_power_of_two() / 8)).min(PROMPT_ROWS)
        } else {
            rows
        };
        let seqs = vec![place as i32; rows];
        self.write_rows(ids, seqs, (start as i32..end as i32).collect(), bucket)?;
        if answer {
            self.device.write_i32(&self.buffers.last, &[rows as i32 - 1])?;
            self.write_choice(&[place], 1)?;
        }
        self.run(Kind::Prompt(bucket, answer))?;
        let s = self.running[place].as_mut().expect("a sequence");
        s.reply.timings.vision_ms += ms(seen);
        s.done = end;
        for (&page, &key) in s.held.numbers().iter().zip(&s.keys).take(s.done / PAGE) {
            self.pages.publish(page, key);
        }
        if answer {
            if self.device.f32(&self.buffers.logits.index(0))?.iter().any(|v| v.is_nan()) {
                let expected =
                    "weights that give logits (`mllmseg inspect --values` finds those that are not finite)";
                return Err(Error::file(&self.checkpoint.dir, expected, "NaN"));
            }
            let token = self.device.read_i32(&self.buffers.token.rows(0..1))?;
            self.accept(place, 0, &token, events)?;
        }
        Ok(())
    }

    /// Fills the buffers that say what each row is; rows up to `bucket` belong to no sequence.
    fn write_rows(
        &mut self,
        mut ids: Vec<i32>,
        mut seqs: Vec<i32>,
        mut positions: Vec<i32>,
        bucket: usize,
    ) -> Result<()> {
        ids.resize(bucket, 0);
        seqs.resize(bucket, -1);
        positions.resize(bucket, 0);
        let rows = self.buffers.rows.first(bucket);
        self.device.write_i32(&rows.ids, &ids)?;
        self.device.write_i32(&rows.seq, &seqs)?;
        self.device.write_i32(&rows.positions, &positions)
    }

    /// The next tokens of the sequences in `places`.
    fn decode(&mut self, places: &[usize], events: &mut Vec<Event>) -> Result<()> {
        let max = self.model.config.llm_config.max_position_embeddings;
        let most = if self.device.keeps_plans() { GUESSES } else { CPU_GUESSES };
        let share = (STEP_ROWS / places.len() - 1).min(most);
        let (mut ids, mut seqs, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_rows = Vec::new();
        for &place in places {
            let s = self.running[place].as_ref().expect("a sequence");
            let n = share.min(s.limit - s.reply.tokens.len() - 1);
            let exact = s.generation.speculate && s.generation.sampling.is_plain_greedy();
            // Past `max_position_embeddings` every position has frequencies of its own.
            let guessed = if exact && s.done + 1 + n <= max {
                let text: Vec<Option<u32>> = s.cells.iter().map(Cell::text).collect();
                lookup::guess(&self.template, &text, n)
            } else {
                Vec::new()
            };
            let Some(Cell::Text(newest)) = s.cells.last() else { unreachable!("an answer is text") };
            first_rows.push(ids.len());
            let rows = 1 + guessed.len();
            ids.extend([*newest].iter().chain(&guessed).map(|&id| id as i32));
            seqs.extend(std::iter::repeat_n(place as i32, rows));
            positions.extend((s.done..s.done + rows).map(|p| p as i32));
            let len = s.done + 1;
            let s = self.running[place].as_mut().expect("a sequence");
            s.reply.steps += 1;
            s.reply.guessed += guessed.len();
            self.rotate(place, len)?;
        }
        let rows = ids.len();
        let bucket = if self.device.keeps_plans() { rows.next_power_of_two() } else { rows };
        let (guesses, of_row) = (ids.clone(), seqs.clone());
        self.write_rows(ids, seqs, positions, bucket)?;
        self.write_choice(&of_row.iter().map(|&p| p as usize).collect::<Vec<_>>(), bucket)?;
        self.run(Kind::Step(bucket))?;
        let tokens = self.device.read_i32(&self.buffers.token.rows(0..rows))?;
        for (i, &place) in places.iter().enumerate() {
            let (first, end) = (first_rows[i], first_rows.get(i + 1).copied().unwrap_or(rows));
            // A guess stands if it is what the row before it says.
            let right = (first + 1..end).take_while(|&r| guesses[r] == tokens[r - 1]).count();
            let s = self.running[place].as_mut().expect("a sequence");
            s.done += 1 + right;
            let accepted = self.accept(place, first, &tokens[first..=first + right], events)? - 1;
            self.running[place].as_mut().expect("a sequence").reply.accepted += accepted;
        }
        Ok(())
    }

    /// Adds tokens, which were chosen in the rows from `row` on, to an answer, up to its end; how many it took.
    fn accept(&mut self, place: usize, row: usize, tokens: &[i32], events: &mut Vec<Event>) -> Result<usize> {
        let s = self.running[place].as_mut().expect("a sequence");
        s.first.get_or_insert_with(Instant::now);
        let mut new = Vec::new();
        for (row, &token) in (row..).zip(tokens) {
            let id = token.cast_unsigned();
            if s.generation.keep_logits {
                s.reply.logits.push(self.device.f32(&self.buffers.logits.index(row))?);
            }
            s.cells.push(Cell::Text(id));
            s.reply.tokens.push(id);
            new.push(id);
            if s.generation.stop.iter().flatten().any(|&stop| stop == id) {
                s.finish = Some(Finish::Stop);
                break;
            }
            if s.reply.tokens.len() == s.limit {
                let all = s.limit == s.generation.max_new_tokens;
                s.finish = Some(if all { Finish::Length } else { Finish::CacheFull });
                break;
            }
        }
        s.done = s.done.min(s.cells.len() - 1);
        let taken = new.len();
        events.push(Event::Tokens(s.id, new));
        Ok(taken)
    }

    /// How the tokens of rows are chosen: by the rules of the sequence in each one's place; rows up to `bucket` greedily.
    fn write_choice(&mut self, places: &[usize], bucket: usize) -> Result<()> {
        let (mut knobs, mut draws) = (vec![0.0; bucket * SAMPLE_KNOBS], vec![0; bucket * SAMPLE_DRAWS]);
        let rows = knobs.chunks_exact_mut(SAMPLE_KNOBS).zip(draws.chunks_exact_mut(SAMPLE_DRAWS));
        for ((row, &place), (knobs, draws)) in places.iter().enumerate().zip(rows) {
            let s = self.running[place].as_ref().expect("a sequence");
            let by = &s.generation.sampling;
            knobs.copy_from_slice(&[by.temperature, by.top_p, by.repetition_penalty]);
            let (low, high) = (by.seed as u32, (by.seed >> 32) as u32);
            let words = [by.top_k.min(i32::MAX as u32), low, high, s.reply.tokens.len() as u32];
            draws.copy_from_slice(&words.map(u32::cast_signed));
            if by.repetition_penalty != 1.0 {
                // As in the published code, where a prompt of embeddings is not among the tokens that were there.
                let mut seen = vec![0i32; self.buffers.choice.seen.shape[1]];
                s.reply.tokens.iter().for_each(|&id| seen[id as usize / 32] |= 1 << (id % 32));
                self.device.write_i32(&self.buffers.choice.seen.index(row), &seen)?;
            }
        }
        knobs[places.len() * SAMPLE_KNOBS..].chunks_exact_mut(SAMPLE_KNOBS).for_each(|k| k[2] = 1.0);
        let choice = &self.buffers.choice;
        self.device.write_f32(&choice.knobs.rows(0..bucket), &knobs)?;
        self.device.write_i32(&choice.draws.rows(0..bucket), &draws)
    }

    fn run(&mut self, kind: Kind) -> Result<()> {
        if !self.plans.contains_key(&kind) {
            if self.plans.len() == MAX_PLANS {
                self.plans.clear();
            }
            let (m, b) = (&self.model, &self.buffers);
            let graph = match kind {
                Kind::Vision(tiles) => vision(m, b, tiles),
                Kind::Prompt(rows, answer) => prompt(m, b, rows, answer),
                Kind::Step(rows) => step(m, b, rows),
            }?;
            self.plans.insert(kind, Plan::new(graph, self.device.act_bytes())?);
        }
        self.device.run(&self.plans[&kind], false, &mut |_, _, _, _| Ok(()))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
