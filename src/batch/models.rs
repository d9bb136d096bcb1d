//! What a checkpoint is opened as: an engine for expressions, a chat for questions, each when the first item needs it.

use super::item::{Ask, Failure, Item};
use super::pipeline::{Questions, Settings};
use crate::chat::{self, Chat};
use crate::checkpoint::Checkpoint;
use crate::engine::{Options, Prepared, Preprocessor};
use crate::image::{Rgb, grid, tiles};
use crate::text::{Prompts, Question, Tokenizer};
use crate::{Engine, Error, Result};
use std::sync::Arc;

/// Opens a model.
type Open<'a, T> = Box<dyn FnMut() -> Result<T> + 'a>;

/// The models of one checkpoint. A device other than the CPU holds the weights once for each of the two that is open.
pub struct Models<'a> {
    host: Host,
    cache_tokens: usize,
    engine: (Option<Engine>, Open<'a, Engine>),
    chat: (Option<Chat>, Open<'a, Chat>),
}

impl Models<'static> {
    /// Of a checkpoint's folder or its name in the Hugging Face cache; `cache_tokens` as in [`chat::Options`]. Nothing is opened on a device yet.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint.
    pub fn open(model: &str, options: Options, cache_tokens: usize) -> Result<Self> {
        let (for_engine, for_chat) = (model.to_string(), model.to_string());
        let chat = chat::Options {
            device: options.device,
            precision: options.precision,
            graphs: options.graphs,
            sync: options.sync,
            user_text: options.user_text,
            cache_tokens,
        };
        let engine = move || Engine::open(&for_engine, options);
        Models::new(model, (options, cache_tokens), engine, move || Chat::open(&for_chat, chat))
    }
}

impl<'a> Models<'a> {
    /// [`open`](Self::open) with ways of opening the two of one's own, which must do what the options say.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(
        model: &str,
        (options, cache_tokens): (Options, usize),
        engine: impl FnMut() -> Result<Engine> + 'a,
        chat: impl FnMut() -> Result<Chat> + 'a,
    ) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(model)?);
        let tokenizer = Arc::new(Tokenizer::open(&checkpoint.dir)?);
        let preprocessor =
            Preprocessor::new(&checkpoint.config, Arc::clone(&tokenizer), options.user_text, options.device);
        let host = Host { checkpoint, tokenizer, options, preprocessor };
        Ok(Self { host, cache_tokens, engine: (None, Box::new(engine)), chat: (None, Box::new(chat)) })
    }

    /// The engine.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn engine(&mut self) -> Result<&mut Engine> {
        match &mut self.engine {
            (Some(engine), _) => Ok(engine),
            (none, open) => Ok(none.insert(open()?)),
        }
    }

    /// The chat.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn chat(&mut self) -> Result<&mut Chat> {
        match &mut self.chat {
            (Some(chat), _) => Ok(chat),
            (none, open) => Ok(none.insert(open()?)),
        }
    }

    /// Opens what items that are asked in this way need.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open_for(&mut self, ask: &Ask) -> Result<()> {
        if *ask == Ask::Questions { self.chat().map(drop) } else { self.engine().map(drop) }
    }

    /// The engine if it is open.
    pub(super) fn open_engine(&self) -> Option<&Engine> {
        self.engine.0.as_ref()
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Tokens whose K and V the chat has room for.
    pub(super) fn cache_tokens(&self) -> usize {
        self.cache_tokens
    }
}

/// What the host does before a device runs, on any thread.
#[derive(Clone)]
pub(super) struct Host {
    checkpoint: Arc<Checkpoint>,
    tokenizer: Arc<Tokenizer>,
    options: Options,
    preprocessor: Preprocessor,
}

/// An item that can be run.
pub(super) enum Ready {
    Expressions(Prepared),
    Questions(chat::Picture),
}

impl Host {
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Resizes and tokenizes, or cuts into tiles.
    pub fn prepare(&self, item: &Item, picture: &Rgb, settings: &Settings) -> Result<Ready> {
        let texts: Vec<&str> = item.texts.iter().map(String::as_str).collect();
        let prompting = match &item.ask {
            Ask::Questions => {
                let (c, [min, max]) = (&self.checkpoint.config, self.tiles(&settings.questions));
                let tiles = tiles(picture, min, max, c.force_image_size, c.use_thumbnail)?;
                return Ok(Ready::Questions(chat::Picture::new(tiles)));
            }
            Ask::Expressions => settings.prompting,
            Ask::As(prompting) => *prompting,
            Ask::Published(rejected) => {
                self.expect_mask_decoder()?;
                let prepared = self.preprocessor.prepare_published(picture, &texts, rejected)?;
                return Ok(Ready::Expressions(prepared));
            }
        };
        self.expect_mask_decoder()?;
        Ok(Ready::Expressions(self.preprocessor.prepare_parts(picture, &texts, prompting)?))
    }

    /// Rows of text that an item's texts take, or tokens of the longest prompt; and the first that cannot be asked.
    pub fn rows(
        &self,
        item: &Item,
        [width, height]: [usize; 2],
        settings: &Settings,
    ) -> Result<(usize, Option<Failure>)> {
        let texts: Vec<&str> = item.texts.iter().map(String::as_str).collect();
        let prompting = match item.ask {
            Ask::As(prompting) => prompting,
            _ => settings.prompting,
        };
        if item.ask != Ask::Questions {
            self.expect_mask_decoder()?;
            let (rows, unusable) = self.preprocessor.rows(&texts, prompting)?;
            return Ok((rows, unusable.first().map(|(_, e)| Failure::from(e))));
        }
        let (c, [min, max]) = (&self.checkpoint.config, self.tiles(&settings.questions));
        let (columns, rows) = grid(width, height, min, max, c.force_image_size);
        let tiles = columns * rows + usize::from(c.use_thumbnail && columns * rows > 1);
        let system = settings.questions.system.as_deref().or(c.system_message.as_deref());
        let prompts = Prompts::new(&self.tokenizer, system, c.image_tokens(), self.options.user_text)?;
        let (mut most, mut failure) = (0, None);
        for question in texts {
            match Question::new(question).showing(1).and_then(|q| prompts.chat(&[], &q, &[tiles])) {
                Ok(ids) => most = most.max(ids.len()),
                Err(e) => _ = failure.get_or_insert(Failure::from(&e)),
            }
        }
        Ok((most, failure))
    }

    /// Fewest and most tiles of a picture that questions are asked about.
    fn tiles(&self, questions: &Questions) -> [usize; 2] {
        let c = &self.checkpoint.config;
        let max = questions.max_tiles.unwrap_or(c.max_dynamic_patch);
        [c.min_dynamic_patch.min(max), max]
    }

    fn expect_mask_decoder(&self) -> Result<()> {
        if self.checkpoint.has_mask_decoder() {
            return Ok(());
        }
        let expected = "a checkpoint with a mask decoder (res_decoder.*) for expressions";
        Err(Error::file(&self.checkpoint.dir, expected, "one for chat only"))
    }
}
