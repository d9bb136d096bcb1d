//! The host's work before a run: a picture's pixels at the model's size, its expressions as token ids. Any thread can do it.

use super::{Prompting, Request};
use crate::checkpoint::config::Config;
use crate::device::Choice;
use crate::image::{Rgb, resize_bicubic};
use crate::text::{Prompts, Sequence, TokenId, Tokenizer, UserText};
use crate::{Error, Result};
use std::sync::Arc;

/// Pixels of a picture that a device resizes, and of what a pass over its longer side makes; more would take more of its memory than a mask
/// decoder.
pub(super) const MAX_DEVICE_PIXELS: usize = 32 << 20;

/// Makes requests ready for an engine of the same model. Cheap to clone; clones may work on several threads at once.
#[derive(Clone)]
pub struct Preprocessor {
    tokenizer: Arc<Tokenizer>,
    system_message: Option<String>,
    image_tokens: usize,
    /// `max_position_embeddings`.
    max_positions: usize,
    /// Side of the model's input, in pixels.
    size: usize,
    user_text: UserText,
    /// Pictures of more pixels, or whose longer side makes more of the model's input, are resized here, others by the device.
    most_pixels: usize,
}

/// A picture as the model sees it, with what is asked of it; made by [`Preprocessor::prepare`].
pub struct Prepared {
    /// Width and height of the source picture, in pixels.
    pub(super) size: [usize; 2],
    /// The source, or the source resized to the model's input: resizing that again changes nothing. None if nothing can be asked.
    pub(super) picture: Option<Rgb>,
    pub(super) asked: Vec<Asked>,
    /// Expressions that cannot be used, by place.
    pub(super) unusable: Vec<(usize, Error)>,
    pub(super) expressions: usize,
}

/// A sequence and the expressions that its slots answer; `n` more than an expression's place, where there are `n`, if the slot only
/// decides whether it is rejected. Such sequences come before those that give the masks.
pub(super) struct Asked {
    pub sequence: Sequence,
    pub expressions: Vec<usize>,
}

impl Prepared {
    /// How many expressions it was asked with.
    pub fn expressions(&self) -> usize {
        self.expressions
    }

    /// Rows of text that a run packs for it.
    pub fn rows(&self) -> usize {
        rows(&self.asked)
    }
}

impl Asked {
    /// The tokens behind the opening.
    pub fn own(&self) -> &[TokenId] {
        &self.sequence.ids[self.sequence.opening..]
    }
}

/// What opens the sequences of a picture, all but those that have no opening.
pub(super) fn opening(asked: &[Asked]) -> &[TokenId] {
    let sequences = asked.iter().map(|a| &a.sequence);
    sequences.filter(|s| s.opening > 0).map(|s| &s.ids[..s.opening]).next().unwrap_or_default()
}

/// Rows of text of a picture.
fn rows(asked: &[Asked]) -> usize {
    opening(asked).len() + asked.iter().map(|a| a.own().len()).sum::<usize>()
}

impl Preprocessor {
    pub(crate) fn new(
        config: &Config,
        tokenizer: Arc<Tokenizer>,
        user_text: UserText,
        device: Choice,
    ) -> Self {
        Self {
            tokenizer,
            system_message: config.system_message.clone(),
            image_tokens: config.image_tokens(),
            max_positions: config.llm_config.max_position_embeddings,
            size: config.force_image_size,
            user_text,
            most_pixels: if device == Choice::Cpu { 0 } else { MAX_DEVICE_PIXELS },
        }
    }

    /// The prompts of this model.
    ///
    /// # Errors
    /// Those of [`Prompts::new`].
    pub fn prompts(&self) -> Result<Prompts<'_>> {
        Prompts::new(&self.tokenizer, self.system_message.as_deref(), self.image_tokens, self.user_text)
    }

    /// Rows of text that these expressions take, and the errors of those that cannot be used, by place.
    ///
    /// # Errors
    /// Those of the model's prompts.
    pub fn rows(&self, expressions: &[&str], prompting: Prompting) -> Result<(usize, Vec<(usize, Error)>)> {
        let mut unusable = Vec::new();
        let asked = self.ask(expressions, prompting, &mut unusable)?;
        Ok((rows(&asked), unusable))
    }

    /// Tokens that open all sequences that are run for these expressions, and those of each sequence behind them, to the last slot.
    ///
    /// # Errors
    /// Those of the model's prompts.
    pub fn lengths(&self, expressions: &[&str], prompting: Prompting) -> Result<(usize, Vec<usize>)> {
        let asked = self.ask(expressions, prompting, &mut Vec::new())?;
        Ok((opening(&asked).len(), asked.iter().map(|a| a.own().len()).collect()))
    }

    /// Resizes where the device does not, and tokenizes. An expression that cannot be used gets its error as its answer later.
    ///
    /// # Errors
    /// Those that concern the picture or the model's prompts.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        let expressions: Vec<&str> = request.expressions.iter().map(String::as_str).collect();
        self.prepare_parts(&request.picture, &expressions, request.prompting)
    }

    /// [`prepare`](Self::prepare) of borrowed parts.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn prepare_parts(
        &self,
        picture: &Rgb,
        expressions: &[&str],
        prompting: Prompting,
    ) -> Result<Prepared> {
        let mut unusable = Vec::new();
        let asked = self.ask(expressions, prompting, &mut unusable)?;
        let size = [picture.width, picture.height];
        let picture = if asked.is_empty() { None } else { Some(self.source(picture)?) };
        Ok(Prepared { size, picture, asked, unusable, expressions: expressions.len() })
    }

    /// Prepares what the published evaluation asks of a picture: all expressions in one prompt, whose slots hold the
    /// ground truth, `[REJ]` where `rejected` says so. What the model would have said in its place at each slot is the answer's
    /// `no_target`; the masks are read from a second prompt, in which all slots hold `[SEG]`.
    ///
    /// # Errors
    /// Those that concern the picture or the prompt.
    pub fn prepare_published(&self, picture: &Rgb, texts: &[&str], rejected: &[bool]) -> Result<Prepared> {
        let (prompts, n) = (self.prompts()?, texts.len());
        let ask = |rejected, expressions: std::ops::Range<usize>| -> Result<Asked> {
            let sequence = self.fit(&prompts, prompts.published(texts, rejected)?)?;
            Ok(Asked { sequence, expressions: expressions.collect() })
        };
        let mut asked = vec![ask(&[], 0..n)?];
        if rejected.contains(&true) {
            asked.insert(0, ask(rejected, n..2 * n)?);
        }
        let size = [picture.width, picture.height];
        Ok(Prepared {
            size,
            picture: Some(self.source(picture)?),
            asked,
            unusable: Vec::new(),
            expressions: n,
        })
    }

    /// The picture as the device takes it.
    fn source(&self, picture: &Rgb) -> Result<Rgb> {
        let longer = picture.width.max(picture.height);
        if (picture.width * picture.height).max(longer.saturating_mul(self.size)) <= self.most_pixels {
            return Ok(picture.clone());
        }
        resize_bicubic(picture, self.size, self.size)
    }

    /// The sequences of one picture; an expression that cannot be used goes to `unusable`.
    fn ask(
        &self,
        expressions: &[&str],
        prompting: Prompting,
        unusable: &mut Vec<(usize, Error)>,
    ) -> Result<Vec<Asked>> {
        let prompts = &self.prompts()?;
        // What stands at the last slot and behind it changes no state that is read: it is not run.
        let until_last_slot = |sequence: Sequence| {
            let mut sequence = self.fit(prompts, sequence)?;
            sequence.ids.truncate(sequence.slots.last().copied().unwrap_or(0));
            Ok(sequence)
        };
        let mut asked = Vec::new();
        for (i, e) in expressions.iter().enumerate() {
            let sequence = match prompting {
                Prompting::Single | Prompting::Joint => prompts.single(e),
                Prompting::Phrase => prompts.phrase(e),
                Prompting::Reasoning => prompts.reasoning(e),
            };
            match sequence.and_then(until_last_slot) {
                Ok(sequence) => asked.push(Asked { sequence, expressions: vec![i] }),
                Err(e) => unusable.push((i, e)),
            }
        }
        if prompting == Prompting::Joint && asked.len() > 1 {
            let usable: Vec<usize> = asked.iter().flat_map(|a| a.expressions.iter().copied()).collect();
            let texts: Vec<&str> = usable.iter().map(|&i| expressions[i]).collect();
            match prompts.joint(&texts).and_then(until_last_slot) {
                Ok(sequence) => asked = vec![Asked { sequence, expressions: usable }],
                Err(e) => {
                    let text = e.to_string();
                    for i in usable {
                        let expected = "expressions that fit one sequence (or single prompting)".into();
                        let (what, found) = ("joint prompt".into(), text.clone());
                        unusable.push((i, Error::Text { what, expected, found }));
                    }
                    asked.clear();
                }
            }
        }
        Ok(asked)
    }

    /// `sequence`, if what it is behind and it have positions that the model was made for: masks are not asked for past them, where the published
    /// code turns every position otherwise for each length.
    fn fit(&self, prompts: &Prompts, sequence: Sequence) -> Result<Sequence> {
        let all = prompts.prefix().len() + self.image_tokens + sequence.ids.len();
        if all > self.max_positions {
            return Err(Error::Text {
                what: "prompt".into(),
                expected: format!("at most {} tokens (max_position_embeddings)", self.max_positions),
                found: all.to_string(),
            });
        }
        Ok(sequence)
    }
}
