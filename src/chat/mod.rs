//! Chat: questions about pictures in, text out, many at once.
//!
//! A [`Chat`] answers sequences side by side: each step of the model adds a token to every one of them; a new one joins, and a finished one
//! leaves, between steps. Their K and V lie in pages (`pages`) that sequences with the same beginning share: the system prompt, a picture's tiles,
//! the turns of a conversation. What else is being answered never changes an answer.
//!
//! ```
//! use mllmseg::chat::{Chat, Generation, Options};
//! use mllmseg::image::read;
//!
//! # fn main() -> mllmseg::Result<()> {
//! let mut chat = Chat::open("assets/demo/model", Options::default())?;
//! let picture = chat.picture(&read("assets/demo/images/000.png".as_ref(), &Default::default(), false)?, 12)?;
//! let mut conversation = chat.conversation(None);
//! let reply = chat.say(&mut conversation, "How many rings are there?", vec![picture], &Generation::default(), &mut |text| {
//!     print!("{text}"); // as it is produced
//!     true // go on
//! })?;
//! assert_eq!(reply.text, "1");
//! # Ok(())
//! # }
//! ```

pub mod coordinates;
mod generator;
mod lookup;
mod pages;
mod request;
mod runner;

use crate::checkpoint::{Checkpoint, config::Config};
use crate::device::Choice;
use crate::image::{Rgb, tiles};
use crate::reference::Precision;
use crate::text::{Prompts, Question, TokenId, Tokenizer, UserText, is_python_space, strip};
use crate::{Error, Result};
pub use generator::Generator;
pub use pages::Cell;
use request::History;
pub use request::{Event, Finish, Generation, Id, Picture, Prompt, Reply, Sampling, Timings};
use std::collections::HashMap;
use std::sync::Arc;

/// What boxes look like.
const TEMPLATE: &str = "[[1, 1, 1, 1]]";

/// How a chat computes.
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
    /// What special-token text in a question becomes.
    pub user_text: UserText,
    /// Tokens whose K and V there is room for, all sequences and conversations together.
    pub cache_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Choice::Cpu,
            precision: Precision::F32,
            graphs: true,
            sync: false,
            user_text: UserText::Plain,
            cache_tokens: 8192,
        }
    }
}

/// Turns of questions and answers.
pub struct Conversation {
    system: Option<String>,
    turns: Vec<(Question, String)>,
    pictures: Vec<Picture>,
    history: Option<History>,
}

impl Conversation {
    /// Questions, as they stand in the prompt, and answers.
    pub fn turns(&self) -> &[(Question, String)] {
        &self.turns
    }

    /// Puts these turns, and the pictures of their `<image>`s, in place of what was said.
    pub fn restore(&mut self, turns: Vec<(Question, String)>, pictures: Vec<Picture>) {
        (self.turns, self.pictures, self.history) = (turns, pictures, None);
    }
}

/// A question on its own.
pub struct Item {
    /// The question; a text's `<image>` is where a picture stands, if not at its beginning.
    pub question: Question,
    /// Its pictures, in order.
    pub pictures: Vec<Picture>,
    /// Instead of the checkpoint's system message.
    pub system: Option<String>,
    /// How its answer is generated.
    pub generation: Generation,
}

/// An opened model and its tokenizer, for conversations and for questions on their own.
pub struct Chat {
    generator: Generator,
    tokenizer: Arc<Tokenizer>,
    user_text: UserText,
}

impl Chat {
    /// Opens a folder or a Hugging Face cache entry (`ORG/NAME`).
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint; [`Error::OutOfMemory`] for a cache that the device has no room for.
    pub fn open(model: &str, options: Options) -> Result<Self> {
        Self::open_with(model, options, &mut |_, _| ())
    }

    /// [`open`](Self::open); `progress` is called with the bytes of weights that are on the device, and those in all.
    pub fn open_with(model: &str, options: Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(model)?);
        let tokenizer = Tokenizer::open(&checkpoint.dir)?;
        let (has, ids) = (checkpoint.config.llm_config.vocab_size, tokenizer.vocab_size());
        if ids > has {
            let expected = format!("at most {has} token ids (llm_config.vocab_size)");
            return Err(Error::file(&checkpoint.dir, expected, format!("{ids} in the tokenizer")));
        }
        let generator = Generator::new(checkpoint, &options, template(&tokenizer)?, progress)?;
        Ok(Self { generator, tokenizer: Arc::new(tokenizer), user_text: options.user_text })
    }

    /// The checkpoint behind it.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.generator.checkpoint()
    }

    fn config(&self) -> &Config {
        &self.checkpoint().config
    }

    /// The tokenizer, for decoding tokens as they come.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Pages of the cache, and those that sequences and conversations hold.
    pub fn pages(&mut self) -> (usize, usize) {
        self.generator.pages()
    }

    /// Cuts a picture into at most `max_tiles` tiles, and a thumbnail where the checkpoint wants one.
    pub fn picture(&self, rgb: &Rgb, max_tiles: usize) -> Result<Picture> {
        let c = self.config();
        let min = c.min_dynamic_patch.min(max_tiles);
        Ok(Picture::new(tiles(rgb, min, max_tiles, c.force_image_size, c.use_thumbnail)?))
    }

    /// The most tiles that the checkpoint was made for.
    pub fn max_tiles(&self) -> usize {
        self.config().max_dynamic_patch
    }

    /// A conversation with nothing said; `system` instead of the checkpoint's system message.
    pub fn conversation(&self, system: Option<String>) -> Conversation {
        Conversation { system, turns: Vec::new(), pictures: Vec::new(), history: None }
    }

    /// One more turn: the answer to `question` about `pictures` (and those of earlier turns). `on_text` is called after every step with
    /// the text that became certain, which may be empty; when it returns false the answer ends there. On an error, and if the answer ended
    /// before its first token, the conversation is as it was.
    ///
    /// # Errors
    /// [`Error::Text`] for a question that cannot be asked; [`Error::Shape`] for one that the cache has no room for.
    pub fn say(
        &mut self,
        conversation: &mut Conversation,
        question: impl Into<Question>,
        pictures: Vec<Picture>,
        generation: &Generation,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Reply> {
        let question = question.into().showing(pictures.len())?;
        let before = conversation.pictures.len();
        conversation.pictures.extend(pictures);
        let reply = self.prompt(conversation, &question).and_then(|mut prompt| {
            (prompt.history, prompt.keep) = (conversation.history.take(), true);
            let id = self.submit(prompt, generation.clone())?;
            self.stream(id, on_text)
        });
        match reply {
            Ok(mut reply) => {
                conversation.history = reply.history.take();
                if reply.tokens.is_empty() {
                    conversation.pictures.truncate(before);
                } else {
                    conversation.turns.push((question, reply.text.clone()));
                }
                Ok(reply)
            }
            Err(e) => {
                conversation.pictures.truncate(before);
                Err(e)
            }
        }
    }

    /// Steps until `id` is answered.
    fn stream(&mut self, id: Id, on_text: &mut dyn FnMut(&str) -> bool) -> Result<Reply> {
        let tokenizer = Arc::clone(&self.tokenizer);
        let (mut decoder, mut strip) = (tokenizer.decoder(true), Strip::default());
        loop {
            let (mut text, mut done) = (String::new(), None);
            for event in self.generator.step()? {
                match event {
                    Event::Tokens(i, tokens) if i == id => {
                        text.extend(tokens.into_iter().map(|t| decoder.push(t)));
                    }
                    Event::Done(i, mut reply) if i == id => {
                        text.push_str(&decoder.finish());
                        reply.text = self.text(&reply.tokens);
                        done = Some(*reply);
                    }
                    Event::Failed(i, e) if i == id => return Err(e),
                    _ => {}
                }
            }
            let go_on = on_text(&strip.push(&text));
            match done {
                Some(reply) => return Ok(reply),
                None if !go_on => self.generator.cancel(id),
                None => {}
            }
        }
    }

    /// Answers independent questions side by side, in their order; one that fails does not touch the others.
    pub fn answer(&mut self, items: Vec<Item>) -> Vec<Result<Reply>> {
        let mut replies: Vec<Option<Result<Reply>>> = items.iter().map(|_| None).collect();
        let mut items = items.into_iter().enumerate();
        self.answer_as_they_come(&mut |_| items.by_ref().collect(), &mut |i, reply| replies[i] = Some(reply));
        replies.into_iter().map(|reply| reply.expect("each is answered")).collect()
    }

    /// Answers independent questions side by side as they come. Before every step of the model `next` is asked for more, with how many are being
    /// answered; it ends when there are none of either. `done` gets each answer as it ends, and the tag that came with its question.
    pub fn answer_as_they_come<T>(
        &mut self,
        next: &mut dyn FnMut(usize) -> Vec<(T, Item)>,
        done: &mut dyn FnMut(T, Result<Reply>),
    ) {
        let mut tags: HashMap<Id, T> = HashMap::new();
        loop {
            for (tag, item) in next(tags.len()) {
                match self.put(item) {
                    Ok(id) => drop(tags.insert(id, tag)),
                    Err(e) => done(tag, Err(e)),
                }
            }
            if tags.is_empty() {
                return;
            }
            let (events, broken) = match self.generator.step() {
                Ok(events) => (events, None),
                Err(e) => (self.generator.clear(), Some(e)),
            };
            for event in events {
                let (id, reply) = match event {
                    Event::Done(id, mut reply) => {
                        reply.text = self.text(&reply.tokens);
                        (id, Ok(*reply))
                    }
                    Event::Failed(id, e) => (id, Err(e)),
                    Event::Tokens(..) => continue,
                };
                if let Some(tag) = tags.remove(&id) {
                    done(tag, reply);
                }
            }
            if let Some(e) = broken {
                let lost = || Error::Device {
                    device: "of the chat".into(),
                    expected: "one that works to the end".into(),
                    found: e.to_string(),
                };
                tags.drain().for_each(|(_, tag)| done(tag, Err(lost())));
            }
        }
    }

    /// Puts a question behind those that wait.
    fn put(&mut self, item: Item) -> Result<Id> {
        let question = item.question.showing(item.pictures.len())?;
        let mut conversation = self.conversation(item.system);
        conversation.pictures = item.pictures;
        let prompt = self.prompt(&conversation, &question)?;
        self.submit(prompt, item.generation)
    }

    /// An answer's text: without special tokens and the spaces around it, as the published `chat` returns it and keeps it in its history.
    fn text(&self, tokens: &[TokenId]) -> String {
        strip(&self.tokenizer.decode(tokens, true)).into()
    }

    fn submit(&mut self, prompt: Prompt, mut generation: Generation) -> Result<Id> {
        let special = self.tokenizer.special();
        generation.stop.get_or_insert_with(|| vec![special.im_end, special.eos]);
        self.generator.submit(prompt, generation)
    }

    /// The prompt of one more `question`, which has a place for each new picture.
    fn prompt(&self, conversation: &Conversation, question: &Question) -> Result<Prompt> {
        let c = self.config();
        let system = conversation.system.as_deref().or(c.system_message.as_deref());
        let prompts = Prompts::new(&self.tokenizer, system, c.image_tokens(), self.user_text)?;
        let counts: Vec<usize> = conversation.pictures.iter().map(Picture::tiles).collect();
        let ids = prompts.chat(&conversation.turns, question, &counts)?;
        self.generator.prompt(&ids, self.tokenizer.special().img_context, &conversation.pictures)
    }
}

/// What stands between the numbers of a box and behind them: where its first token is certain, so is the rest.
fn template(tokenizer: &Tokenizer) -> Result<Vec<Vec<TokenId>>> {
    let ids = [tokenizer.encode_plain(TEMPLATE)?, vec![tokenizer.special().im_end]].concat();
    let number = tokenizer.encode_plain("[[1")?.last().copied();
    let mut runs: Vec<Vec<TokenId>> = ids.split(|&id| Some(id) == number).map(Vec::from).collect();
    runs.dedup();
    runs.retain(|run| run.len() > 1);
    Ok(runs)
}

/// [`strip`] of a text that comes in parts: spaces wait until something follows them.
#[derive(Default)]
struct Strip {
    begun: bool,
    held: String,
}

impl Strip {
    /// What became certain with these parts.
    fn push(&mut self, text: &str) -> String {
        let mut all = std::mem::take(&mut self.held) + text;
        if !self.begun {
            all = all.trim_start_matches(is_python_space).into();
        }
        self.held = all.split_off(all.trim_end_matches(is_python_space).len());
        self.begun |= !all.is_empty();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_stripped_as_the_whole() {
        for parts in
            [&[" \n", " a ", "", " b", "\n", "c\u{1f}", " "][..], &["", " ", "\t"], &["x"], &[" x ", "y "]]
        {
            let mut strip = Strip::default();
            let found: String = parts.iter().map(|part| strip.push(part)).collect();
            assert_eq!(found, super::strip(&parts.concat()));
        }
    }
}
