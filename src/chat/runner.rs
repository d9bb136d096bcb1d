//! Rows in, tokens out: the plans of the model, the buffers that they read, and what stands in those already.

use super::Options;
use super::request::Sampling;
use crate::checkpoint::Checkpoint;
use crate::device::{self, Device, Fetch};
use crate::image::{Rgb, normalize};
use crate::models::chat::{Buffers, Model, PROMPT_ROW, PROMPT_ROWS, SEQUENCES, prompt, step, vision};
use crate::models::mllmseg::States;
use crate::ops::PAGE;
use crate::plan::Plan;
use crate::reference::{SAMPLE_DRAWS, SAMPLE_KNOBS, inv_freq};
use crate::text::TokenId;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of a prompt's part are made in multiples of this on devices that keep plans.
const PROMPT_STEP: usize = 64;
/// Plans that are kept; one more and all are made anew.
const MAX_PLANS: usize = 64;

/// What a plan is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Vision(usize),
    Prompt(usize, bool),
    Step(usize),
}

/// How the token behind a row is chosen.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// The rules.
    pub sampling: &'a Sampling,
    /// Names the sequence.
    pub sequence: u64,
    /// The tokens of its answer that are known.
    pub answer: &'a [TokenId],
    /// How many there are before the one that is chosen, those that are not known yet included.
    pub counter: usize,
}

impl Choice<'_> {
    /// What its row of `seen` must say: the first tokens of an answer, so many; `None` if it is not looked at.
    fn seen(&self) -> Option<(u64, usize)> {
        (self.sampling.repetition_penalty != 1.0).then_some((self.sequence, self.counter))
    }
}

/// One row of a step: the newest token of the sequence in a place, or one that is guessed to follow.
pub struct Row<'a> {
    /// The sequence's place.
    pub place: usize,
    /// The token, or `-1 - r` for what the step before chooses in its row `r`.
    pub id: i32,
    /// Its position in the sequence.
    pub position: usize,
    /// How the token behind it is chosen.
    pub choice: Choice<'a>,
}

/// A step that may still run.
pub struct Queued {
    tokens: Fetch,
    logits: Option<Fetch>,
}

impl Queued {
    /// The token behind each row; the logits `(R, V)` that they were chosen from, one row after another, if they were asked for.
    pub fn wait(self) -> Result<(Vec<TokenId>, Vec<f32>)> {
        let logits = self.logits.map_or(Ok(Vec::new()), Fetch::wait)?;
        Ok((self.tokens.wait()?, logits.into_iter().map(f32::from_bits).collect()))
    }
}

/// The model on its device.
pub struct Runner {
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// Its weights.
    pub model: Model,
    device: Box<dyn Device>,
    buffers: Buffers,
    plans: HashMap<Kind, Plan>,
    /// Which length each place's frequencies were written for.
    rotations: [usize; SEQUENCES],
    /// What each row of `seen` says, see [`Choice::seen`].
    seen: [Option<(u64, usize)>; PROMPT_ROW + 1],
}

impl Runner {
    /// With a cache of `pages` pages.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        options: &Options,
        pages: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let (model, weights) = Model::bind(&checkpoint)?;
        let mut device = device::open(options.device, weights, options.precision, progress)?;
        device.debug(options.graphs, options.sync);
        let mut states = States::default();
        let buffers = Buffers::new(&model, &mut states, pages);
        states.tensors.iter().try_for_each(|t| device.allocate(t))?;
        let (seen, token) = (&buffers.choice.seen, &buffers.token);
        device.write_i32(seen, &vec![0; seen.len()])?;
        device.write_i32(token, &vec![0; token.len()])?;
        let (rotations, seen) = ([usize::MAX; SEQUENCES], [None; PROMPT_ROW + 1]);
        Ok(Self { checkpoint, model, device, buffers, plans: HashMap::new(), rotations, seen })
    }

    /// Whether a new plan is much dearer than one that was run before.
    pub fn keeps_plans(&self) -> bool {
        self.device.keeps_plans()
    }

    /// Whether a step is queued while the one before runs.
    pub fn queues(&self) -> bool {
        self.device.queues()
    }

    /// Tokens of one sequence, at most.
    pub fn most_tokens(&self) -> usize {
        self.buffers.rows.pages.shape[1] * PAGE
    }

    /// Lists the pages of the sequence in a place.
    pub fn list_pages(&mut self, place: usize, pages: &[u32]) -> Result<()> {
        let table = &self.buffers.rows.pages;
        let mut list: Vec<i32> = pages.iter().map(|&p| p as i32).collect();
        list.resize(table.shape[1], 0);
        self.device.write_i32(&table.index(place), &list)
    }

    /// What a prompt of `len` tokens is rotated by: 0 for the checkpoint's own frequencies, `len` past `max_position_embeddings`.
    pub fn rotation(&self, len: usize) -> usize {
        if len > self.model.config.llm_config.max_position_embeddings { len } else { 0 }
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

    /// Computes the tokens of tiles, for the next part of a prompt.
    pub fn look(&mut self, tiles: &[&Rgb]) -> Result<()> {
        let pixels: Vec<f32> = tiles.iter().flat_map(|t| normalize(t)).collect();
        self.device.write_f32(&self.buffers.pixel_values.rows(0..tiles.len()), &pixels)?;
        self.run(Kind::Vision(tiles.len()))
    }

    /// Computes the part of a prompt of `len` tokens that begins at `start`: token ids, or `-1 - r` for row `r` of the tiles' tokens. With a
    /// choice, the token behind its last row and the logits `(V)` that it was chosen from. Returns when it is done.
    pub fn prompt(
        &mut self,
        place: usize,
        len: usize,
        start: usize,
        ids: Vec<i32>,
        choice: Option<Choice>,
    ) -> Result<Option<(TokenId, Vec<f32>)>> {
        self.rotate(place, len)?;
        let rows = ids.len();
        let bucket = if self.keeps_plans() {
            rows.next_multiple_of(PROMPT_STEP.max(rows.next_power_of_two() / 8)).min(PROMPT_ROWS)
        } else {
            rows
        };
        let positions = (start as i32..(start + rows) as i32).collect();
        self.write_rows(ids, vec![place as i32; rows], positions, bucket)?;
        if let Some(choice) = choice {
            self.device.write_i32(&self.buffers.last, &[rows as i32 - 1])?;
            self.write_choices(PROMPT_ROW, &[choice], 1)?;
        }
        self.run(Kind::Prompt(bucket, choice.is_some()))?;
        if choice.is_none() {
            return Ok(None);
        }
        let logits = self.device.f32(&self.buffers.logits.index(PROMPT_ROW))?;
        if logits.iter().any(|v| v.is_nan()) {
            let expected =
                "weights that give logits (`mllmseg inspect --values` finds those that are not finite)";
            return Err(Error::file(&self.checkpoint.dir, expected, "NaN"));
        }
        let token = self.device.read_i32(&self.buffers.token.rows(PROMPT_ROW..PROMPT_ROW + 1))?[0];
        Ok(Some((token.cast_unsigned(), logits)))
    }

    /// Whether the token behind row `r` of a step can be chosen so: where the rules look at the tokens before, and not all are known, the
    /// device must have noted them in that row.
    pub fn can_choose(&self, r: usize, choice: &Choice) -> bool {
        choice.counter == choice.answer.len() || choice.seen().is_none_or(|s| self.seen[r] == Some(s))
    }

    /// Queues a step behind the one before; with `logits`, they are read as well.
    pub fn step(&mut self, rows: &[Row], logits: bool) -> Result<Queued> {
        let n = rows.len();
        let bucket = if self.keeps_plans() { n.next_power_of_two() } else { n };
        let column = |f: fn(&Row) -> i32| rows.iter().map(f).collect::<Vec<i32>>();
        let seqs = column(|r| r.place as i32);
        rows.iter().try_for_each(|r| self.rotate(r.place, r.position + 1))?;
        self.write_rows(column(|r| r.id), seqs, column(|r| r.position as i32), bucket)?;
        self.write_choices(0, &rows.iter().map(|r| r.choice).collect::<Vec<_>>(), bucket)?;
        self.make(Kind::Step(bucket))?;
        self.device.queue(&self.plans[&Kind::Step(bucket)])?;
        let logits = logits.then(|| self.device.fetch(&self.buffers.logits.rows(0..n))).transpose()?;
        Ok(Queued { tokens: self.device.fetch(&self.buffers.token.rows(0..n))?, logits })
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

    /// How the tokens of the rows from `first` on are chosen; those after the choices, `rows` in all, greedily.
    fn write_choices(&mut self, first: usize, choices: &[Choice], rows: usize) -> Result<()> {
        let (mut knobs, mut draws) = (vec![0.0; rows * SAMPLE_KNOBS], vec![0; rows * SAMPLE_DRAWS]);
        knobs.chunks_exact_mut(SAMPLE_KNOBS).for_each(|k| k[2] = 1.0);
        let each = knobs.chunks_exact_mut(SAMPLE_KNOBS).zip(draws.chunks_exact_mut(SAMPLE_DRAWS));
        for ((row, choice), (knobs, draws)) in (first..).zip(choices).zip(each) {
            let by = choice.sampling;
            knobs.copy_from_slice(&[by.temperature, by.top_p, by.repetition_penalty]);
            let (low, high) = (by.seed as u32, (by.seed >> 32) as u32);
            let words = [by.top_k.min(i32::MAX as u32), low, high, choice.counter as u32];
            draws.copy_from_slice(&words.map(u32::cast_signed));
            if choice.seen().is_some() && self.seen[row] != choice.seen() {
                // As in the published code, where a prompt of embeddings is not among the tokens that were there.
                let mut seen = vec![0i32; self.buffers.choice.seen.shape[1]];
                choice.answer.iter().for_each(|&id| seen[id as usize / 32] |= 1 << (id % 32));
                self.device.write_i32(&self.buffers.choice.seen.index(row), &seen)?;
            }
        }
        // The token that is chosen is noted by the device.
        let noted = choices.iter().map(|c| c.seen().map(|(sequence, n)| (sequence, n + 1)));
        self.seen[first..first + rows]
            .iter_mut()
            .zip(noted.chain(std::iter::repeat(None)))
            .for_each(|(s, n)| *s = n);
        let choice = &self.buffers.choice;
        self.device.write_f32(&choice.knobs.rows(first..first + rows), &knobs)?;
        self.device.write_i32(&choice.draws.rows(first..first + rows), &draws)
    }

    /// The plan of a kind, if it is not there.
    fn make(&mut self, kind: Kind) -> Result<()> {
        if self.plans.contains_key(&kind) {
            return Ok(());
        }
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
        Ok(())
    }

    fn run(&mut self, kind: Kind) -> Result<()> {
        self.make(kind)?;
        self.device.run(&self.plans[&kind], false, &mut |_, _, _, _| Ok(()))
    }
}
