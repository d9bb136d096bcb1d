//! Token ids in, token ids out: the sequences that are being answered, their pages, and what the model computes next.
//!
//! A step is queued before the tokens of the one before are read, so that the device never waits for the host: its rows take those tokens
//! where they are. A sequence that turns out to have ended has one row too many, whose token is dropped and whose K and V lie behind all that the
//! sequence keeps. Two things need the tokens and so wait for them: guesses, which are worth more than the wait (a token is a whole pass over
//! the weights, the wait a few microseconds beside it), and a repetition penalty in the one step in which its sequence moves to another row. A
//! part of a prompt is waited for. The CPU queues nothing.

use super::pages::{Cell, Held, Key, Pages, keys};
use super::request::{Event, Finish, Generation, History, Id, Picture, Prompt, Reply, Tile};
use super::runner::{Choice, Queued, Row, Runner};
use super::{Options, lookup};
use crate::checkpoint::Checkpoint;
use crate::models::chat::{PROMPT_ROWS, SEQUENCES, STEP_ROWS, TILES};
use crate::ops::PAGE;
use crate::text::TokenId;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of the K/V cache, at most.
const MAX_CACHE: usize = 1 << 24;
/// Tokens that are guessed for one sequence in a step, at most; on the CPU, where more rows cost more.
const GUESSES: usize = 7;
/// See [`GUESSES`].
const CPU_GUESSES: usize = 3;

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
    /// Whether the reply has its pages.
    keep: bool,
    reply: Reply,
}

impl Sequence {
    /// Tokens that may be guessed for it beside its newest one, at most `n`, if `unread` tokens of it are not known yet. Past `max`, which is
    /// `max_position_embeddings`, every position has frequencies of its own.
    fn guesses(&self, n: usize, unread: usize, max: usize) -> usize {
        let n = n.min(self.limit - self.reply.tokens.len() - unread - 1);
        let exact = self.generation.speculate && self.generation.sampling.is_plain_greedy();
        if exact && self.done + unread + 1 + n <= max { n } else { 0 }
    }

    /// How its next token is chosen.
    fn choice(&self, unread: usize) -> Choice<'_> {
        let (sampling, answer) = (&self.generation.sampling, &self.reply.tokens[..]);
        Choice { sampling, sequence: self.id.0, answer, counter: answer.len() + unread }
    }

    /// Adds tokens, which were chosen from `logits`, to the answer, up to its end; how many it took.
    fn accept(&mut self, tokens: &[TokenId], logits: &[f32], events: &mut Vec<Event>) -> usize {
        self.first.get_or_insert_with(Instant::now);
        let mut new = Vec::new();
        for (i, &id) in tokens.iter().enumerate() {
            if self.generation.keep_logits {
                let vocab = logits.len() / tokens.len();
                self.reply.logits.push(logits[i * vocab..][..vocab].into());
            }
            self.cells.push(Cell::Text(id));
            self.reply.tokens.push(id);
            new.push(id);
            if self.generation.stop.iter().flatten().any(|&stop| stop == id) {
                self.finish = Some(Finish::Stop);
                break;
            }
            if self.reply.tokens.len() == self.limit {
                let all = self.limit == self.generation.max_new_tokens;
                self.finish = Some(if all { Finish::Length } else { Finish::CacheFull });
                break;
            }
        }
        self.done = self.done.min(self.cells.len() - 1);
        let taken = new.len();
        events.push(Event::Tokens(self.id, new));
        taken
    }
}

/// The rows of one sequence in a step.
struct Rows {
    id: Id,
    place: usize,
    /// The first, that of its newest token.
    first: usize,
    /// What the others are.
    guesses: Vec<TokenId>,
    /// Whether its newest token was not known yet.
    unread: bool,
}

/// A step that was queued and not read.
struct Step {
    rows: Vec<Rows>,
    /// Whether a sequence in it may be guessed for when it is read.
    may_guess: bool,
    queued: Queued,
}

/// A model and the sequences that it continues, up to [`SEQUENCES`] side by side.
pub struct Generator {
    runner: Runner,
    pages: Pages,
    template: Vec<Vec<TokenId>>,
    waiting: VecDeque<Waiting>,
    /// Those that ended before they began.
    cancelled: Vec<Waiting>,
    running: [Option<Sequence>; SEQUENCES],
    /// Of the sequences in it, each has one row.
    ahead: Option<Step>,
    /// What a step that failed had brought.
    unsent: Vec<Event>,
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
        let pages = options.cache_tokens.div_ceil(PAGE);
        Ok(Self {
            runner: Runner::new(checkpoint, options, pages, progress)?,
            pages: Pages::new(pages),
            template,
            waiting: VecDeque::new(),
            cancelled: Vec::new(),
            running: Default::default(),
            ahead: None,
            unsent: Vec::new(),
            next: 0,
        })
    }

    /// The checkpoint behind it.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.runner.checkpoint
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
        let per_tile = self.runner.model.config.image_tokens();
        let vocab = self.runner.model.config.llm_config.vocab_size;
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
        Ok(Prompt { cells, tiles, history: None, keep: false })
    }

    /// Puts a prompt behind those that wait.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sampling that makes no distribution; [`Error::Shape`] for a prompt that is longer than the cache, or than a
    /// sequence may be.
    pub fn submit(&mut self, prompt: Prompt, generation: Generation) -> Result<Id> {
        generation.sampling.check()?;
        if generation.max_new_tokens == 0 {
            return Err(Error::usage("max-new-tokens", "1 or more", "0"));
        }
        let (cache, most) = (self.pages.count().0 * PAGE, self.runner.most_tokens());
        let needs = prompt.cells.len();
        if needs >= most {
            let expected = if most < cache {
                format!("fewer than {most} tokens")
            } else {
                format!("fewer tokens than the K/V cache holds ({cache}: --cache-tokens)")
            };
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

    /// Forgets all sequences; what the last step brought, if it failed.
    pub fn clear(&mut self) -> Vec<Event> {
        self.waiting.clear();
        self.cancelled.clear();
        self.leave_all();
        std::mem::take(&mut self.unsent)
    }

    fn leave_all(&mut self) {
        (self.running, self.ahead) = Default::default();
    }

    /// One step: sequences that wait take free places, one prompt is computed a part further, and every other sequence gets its next
    /// tokens, on a device that queues those of the step before.
    ///
    /// # Errors
    /// Those of the device; the sequences in places are lost, but for those that had ended: the next step, or [`clear`](Self::clear), brings
    /// them.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = std::mem::take(&mut self.unsent);
        let done = self.advance(&mut events);
        if done.is_err() {
            self.leave(&mut events);
            self.leave_all();
            self.unsent = std::mem::take(&mut events);
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
        self.decode(&decoding, events)?;
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
            s.reply.finish = finish;
            s.reply.timings.first_token_ms = s.first.map(|first| ms(first - s.since));
            s.reply.timings.decode_ms = s.first.map_or(0.0, |first| ms(first.elapsed()));
            if s.keep {
                s.held.truncate(s.done.div_ceil(PAGE));
                s.cells.truncate(s.done);
                s.reply.history = Some(History { cells: s.cells, held: s.held, rotation: s.rotation });
            }
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
            let alone = self.running.iter().all(Option::is_none);
            match self.reserve(waiting, alone) {
                Ok(sequence) => self.enter(place, sequence)?,
                Err(waiting) if alone => {
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

    /// The sequence with all the pages that it may need: those that hold its beginning, and free ones; for one that is `alone`, as nothing will
    /// become free, those that there are.
    fn reserve(&mut self, mut waiting: Waiting, alone: bool) -> std::result::Result<Sequence, Box<Waiting>> {
        let cells = &waiting.prompt.cells;
        let (len, rotation) = (cells.len(), self.runner.rotation(cells.len()));
        let keys = keys(cells, rotation);
        // At least the last row is computed: the first token of the answer follows from it.
        let mut held = self.pages.find(&keys[..(len - 1) / PAGE]);
        let mut done = held.numbers().len() * PAGE;
        // Of an earlier turn's pages those are kept that hold more of this prompt than was found, and no others.
        let of_here = |h: &History| h.rotation == rotation && self.pages.owns(&h.held);
        let history = waiting.prompt.history.take().filter(of_here).and_then(|mut h| {
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
        let mut limit = waiting.generation.max_new_tokens.min(self.runner.most_tokens() - len);
        if alone {
            let (all, held) = self.pages.count();
            // One token at least: if there is no room for it, that is said.
            limit = limit.min(((all - held + kept) * PAGE).saturating_sub(len).max(1));
        }
        let Some(free) = self.pages.take((len + limit).div_ceil(PAGE) - kept) else {
            waiting.prompt.history = history;
            return Err(Box::new(waiting));
        };
        let Waiting { id, prompt: Prompt { cells, tiles, keep, .. }, generation, since } = waiting;
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
            keep,
            reply,
        })
    }

    /// A sequence takes a place: its pages are listed there.
    fn enter(&mut self, place: usize, sequence: Sequence) -> Result<()> {
        self.runner.list_pages(place, sequence.held.numbers())?;
        self.running[place] = Some(sequence);
        Ok(())
    }

    /// Where the part of a prompt that begins at `start` ends, and the tiles that it needs: whole tiles, as many as there is room for.
    fn part(&self, s: &Sequence) -> (usize, Vec<usize>) {
        let per_tile = self.runner.model.config.image_tokens();
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
        let (per_tile, answer) = (self.runner.model.config.image_tokens(), end == s.prompt);
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
        let mut seen = Duration::ZERO;
        if !tiles.is_empty() {
            let begun = Instant::now();
            self.runner.look(&tiles.iter().map(|&k| &*s.tiles[k].0.pixels).collect::<Vec<_>>())?;
            seen = begun.elapsed();
        }
        let first = self.runner.prompt(place, s.prompt, start, ids, answer.then(|| s.choice(0)))?;
        let s = self.running[place].as_mut().expect("a sequence");
        s.reply.timings.vision_ms += ms(seen);
        s.done = end;
        for (&page, &key) in s.held.numbers().iter().zip(&s.keys).take(s.done / PAGE) {
            self.pages.publish(page, key);
        }
        if let Some((token, logits)) = first {
            s.accept(&[token], &logits, events);
        }
        Ok(())
    }

    /// Queues the next step of the sequences in `places`, and reads the one before; or itself, if something waits for its tokens.
    fn decode(&mut self, places: &[usize], events: &mut Vec<Event>) -> Result<()> {
        let mut rows = self.rows(places);
        let unknown = |r: &Rows| r.unread && !self.runner.can_choose(r.first, &self.sequence(r).choice(1));
        if rows.iter().any(unknown) {
            self.read(events)?;
            rows = self.rows(places);
        }
        let next = if rows.is_empty() { None } else { Some(self.queue(rows)?) };
        self.read(events)?;
        self.ahead = next;
        if self.ahead.as_ref().is_some_and(|step| step.may_guess || !self.runner.queues()) {
            self.read(events)?;
        }
        Ok(())
    }

    fn sequence(&self, rows: &Rows) -> &Sequence {
        self.at(rows.place).expect("a sequence has rows")
    }

    /// The rows of the next step: those of the sequences in `places` that have tokens to come.
    fn rows(&self, places: &[usize]) -> Vec<Rows> {
        let max = self.runner.model.config.llm_config.max_position_embeddings;
        let unread = |s: &Sequence| self.ahead.iter().any(|step| step.rows.iter().any(|r| r.id == s.id));
        let goes_on =
            |s: &Sequence| s.finish.is_none() && s.reply.tokens.len() + usize::from(unread(s)) < s.limit;
        let going = places.iter().filter_map(|&place| Some((place, self.at(place)?)));
        let going: Vec<(usize, &Sequence)> = going.filter(|(_, s)| goes_on(s)).collect();
        let share = self.share(going.len());
        let mut first = 0;
        let rows = going.into_iter().map(|(place, s)| {
            let unread = unread(s);
            let n = if unread { 0 } else { s.guesses(share, 0, max) };
            let guesses = if n > 0 {
                let last = &s.cells[s.cells.len().saturating_sub(lookup::WINDOW)..];
                lookup::guess(&self.template, &last.iter().map(Cell::text).collect::<Vec<_>>(), n)
            } else {
                Vec::new()
            };
            let rows = Rows { id: s.id, place, first, guesses, unread };
            first += 1 + rows.guesses.len();
            rows
        });
        rows.collect()
    }

    /// Tokens that may be guessed for each of `n` sequences.
    fn share(&self, n: usize) -> usize {
        let most = if self.runner.keeps_plans() { GUESSES } else { CPU_GUESSES };
        (STEP_ROWS / n.max(1) - 1).min(most)
    }

    fn queue(&mut self, rows: Vec<Rows>) -> Result<Step> {
        let max = self.runner.model.config.llm_config.max_position_embeddings;
        let share = self.share(rows.len());
        let (mut all, mut may_guess, mut logits) = (Vec::new(), false, false);
        for r in &rows {
            let s = self.running[r.place].as_ref().expect("a sequence has rows");
            let unread = usize::from(r.unread);
            let newest = if r.unread {
                let row = self.ahead.iter().flat_map(|step| &step.rows).find(|before| before.id == r.id);
                -1 - row.expect("it is in the step before").first as i32
            } else {
                let Some(Cell::Text(newest)) = s.cells.last() else { unreachable!("an answer is text") };
                *newest as i32
            };
            let ids = std::iter::once(newest).chain(r.guesses.iter().map(|&id| id as i32));
            for (position, id) in (s.done + unread..).zip(ids) {
                all.push(Row { place: r.place, id, position, choice: s.choice(unread) });
            }
            may_guess |= s.guesses(share, unread, max) > 0;
            logits |= s.generation.keep_logits;
        }
        let queued = self.runner.step(&all, logits)?;
        Ok(Step { rows, may_guess, queued })
    }

    /// The tokens of the step that was queued and not read, if there is one.
    fn read(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let Some(Step { mut rows, queued, .. }) = self.ahead.take() else { return Ok(()) };
        let goes_on = |s: &Sequence, r: &Rows| s.id == r.id && s.finish.is_none();
        rows.retain(|r| self.at(r.place).is_some_and(|s| goes_on(s, r)));
        if rows.is_empty() {
            return Ok(());
        }
        let (tokens, logits) = queued.wait()?;
        let vocab = logits.len() / tokens.len();
        for Rows { place, first, guesses, .. } in rows {
            // A guess stands if it is what the row before it says.
            let right =
                guesses.iter().zip(&tokens[first..]).take_while(|(guess, token)| guess == token).count();
            let (end, s) = (first + right + 1, self.running[place].as_mut().expect("it goes on"));
            s.done += 1 + right;
            s.reply.steps += 1;
            s.reply.guessed += guesses.len();
            s.reply.accepted +=
                s.accept(&tokens[first..end], &logits[first * vocab..end * vocab], events) - 1;
        }
        Ok(())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
