//! The published prompts, as token ids.
//!
//! ```text
//! <s><|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<img>      prefix: the same for every image
//! <IMG_CONTEXT>...                                                        image: the same for all that is asked about it
//! </img>\n What are {e1}, {e2}in this image? ...<|im_end|>\n              a sequence: one question and its answer
//! <|im_start|>assistant\nSure,{e1}:[SEG], {e2}:[SEG].<|im_end|>\n
//! ```
//!
//! `<img>` and `</img>` stand with the text around the image, so that the image has 256 rows, which fill tiles of matmuls. What opens every
//! sequence of a kind, `</img>\n What are`, is needed once an image too ([`Sequence::opening`]).
//!
//! Text is cut at special tokens only and each stretch is tokenized as one (`"assistant\nSure,left cat:"`), as the
//! published tokenizer does it: an expression never stands alone.

use super::question::{Piece, Question};
use super::tokenizer::{TokenId, Tokenizer};
use crate::{Error, Result};
use std::sync::OnceLock;

/// System message of the template `internvl2_5`; a checkpoint's `system_message` replaces it.
pub const SYSTEM_MESSAGE: &str = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。";

/// Longest expression or sentence, in characters. The longest of RefCOCO's have 300.
pub const MAX_EXPRESSION_CHARS: usize = 4096;
/// Longest [`Sequence`]: question and answer about one image.
pub const MAX_SEQUENCE_TOKENS: usize = 4096;
/// Longest text of a chat, all turns together, without image tokens.
pub const MAX_CHAT_TOKENS: usize = 32768;
/// Text with more characters than this for each token that is allowed is refused before it is tokenized.
pub const CHARS_PER_TOKEN: usize = 16;

/// What text that a user wrote may become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserText {
    /// Text. `[SEG]` in an expression is five characters.
    #[default]
    Plain,
    /// What the published code makes of it: `[SEG]` in an expression becomes one more slot, `<IMG_CONTEXT>` one more
    /// place for image features. For reproducing published results only.
    Parsed,
}

/// What follows an image: a question, and the answer that the model is forced to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Everything after the image's tokens, from `</img>` on.
    pub ids: Vec<TokenId>,
    /// Where `[SEG]` (or a forced `[REJ]`) stands in `ids`, in the order of the expressions; the mask is read at the position before.
    /// [`UserText::Parsed`] also lists those that the expressions smuggled in.
    pub slots: Vec<usize>,
    /// How many of the first of `ids` open every sequence that is asked in this way, whatever it asks for: no state of theirs is read, so
    /// that they are needed once an image. 0 where the tokenizer joins them with what follows.
    pub opening: usize,
}

/// Longest [`Sequence::opening`].
pub const MAX_OPENING_TOKENS: usize = 16;
/// What [`Prompts::joint`], [`Prompts::phrase`] and [`Prompts::reasoning`] begin with, behind `</img>`.
const OPENINGS: [&str; 3] = ["\n What are", "\n What is", "\n"];
const JOINT: usize = 0;
const PHRASE: usize = 1;
const REASONING: usize = 2;

/// A part of a prompt.
enum Part<'a> {
    Text(&'a str),
    Token(TokenId),
}
use Part::{Text, Token};

/// Builds prompts for one checkpoint.
pub struct Prompts<'a> {
    tokenizer: &'a Tokenizer,
    image_tokens: usize,
    user_text: UserText,
    prefix: Vec<TokenId>,
    /// `</img>` and each of [`OPENINGS`], once it is asked for.
    openings: [OnceLock<Vec<TokenId>>; OPENINGS.len()],
}

impl<'a> Prompts<'a> {
    /// `system_message`: config.json's, or `None` for the template's; `image_tokens`: how many `<IMG_CONTEXT>` a tile
    /// has (256 at 448 pixels).
    ///
    /// # Errors
    /// [`Error::Text`] if the system message is longer than a prompt may be; those of [`Tokenizer::encode_plain`].
    pub fn new(
        tokenizer: &'a Tokenizer,
        system_message: Option<&str>,
        image_tokens: usize,
        user_text: UserText,
    ) -> Result<Self> {
        let (prefix, openings) = (Vec::new(), Default::default());
        let mut prompts = Self { tokenizer, image_tokens, user_text, prefix, openings };
        let special = tokenizer.special();
        let system = system_message.unwrap_or(SYSTEM_MESSAGE);
        check_chars("system_message", system, MAX_EXPRESSION_CHARS)?;
        prompts.prefix = prompts.ids(&[
            Token(special.bos),
            Token(special.im_start),
            Text("system\n"),
            Text(system),
            Token(special.im_end),
            Text("\n"),
            Token(special.im_start),
            Text("user\n"),
            Token(special.img),
        ])?;
        Ok(prompts)
    }

    /// `</img>` and one of [`OPENINGS`].
    fn opening(&self, which: usize) -> Result<&[TokenId]> {
        let kept = &self.openings[which];
        if let Some(ids) = kept.get() {
            return Ok(ids);
        }
        let ids = self.ids(&[Token(self.tokenizer.special().img_end), Text(OPENINGS[which])])?;
        Ok(kept.get_or_init(|| ids))
    }

    /// Everything before the image's tokens: `<s><|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<img>`.
    pub fn prefix(&self) -> Vec<TokenId> {
        self.prefix.clone()
    }

    /// One image of one tile: `image_tokens` times `<IMG_CONTEXT>`.
    pub fn image(&self) -> Vec<TokenId> {
        vec![self.tokenizer.special().img_context; self.image_tokens]
    }

    /// One image of several tiles in a chat: `<img>`, `tiles` times [`Prompts::image`], `</img>`.
    fn tiles(&self, tiles: usize) -> Vec<TokenId> {
        let special = self.tokenizer.special();
        let mut ids = vec![special.img];
        ids.resize(1 + tiles * self.image_tokens, special.img_context);
        ids.push(special.img_end);
        ids
    }

    /// All expressions of an image in one sequence, as the published evaluation has it (both odd spaces are its own):
    /// `\n What are {e1}, {e2}in this image? Please output segmentation masks.` -> `Sure,{e1}:[SEG], {e2}:[SEG].`
    ///
    /// # Errors
    /// [`Error::Text`], naming the expression: nothing left of it by [`normalize_expression`], more than
    /// [`MAX_EXPRESSION_CHARS`]; or, of the whole: no expression, more than [`MAX_SEQUENCE_TOKENS`], no `[SEG]` token.
    pub fn joint(&self, exprs: &[&str]) -> Result<Sequence> {
        if exprs.is_empty() {
            return Err(text_error("expressions", "at least one", "none"));
        }
        let exprs = exprs.iter().map(|e| self.expression(e)).collect::<Result<Vec<_>>>()?;
        self.all(&exprs, &[])
    }

    /// [`Prompts::joint`] as the published evaluation has it: `[REJ]` in the slots of the expressions that are `rejected` (which may be
    /// shorter than `exprs`), and expressions of which nothing is left stay in their place.
    ///
    /// # Errors
    /// As [`Prompts::joint`], and if something is rejected and there is no `[REJ]` token.
    pub fn published(&self, exprs: &[&str], rejected: &[bool]) -> Result<Sequence> {
        if exprs.is_empty() {
            return Err(text_error("expressions", "at least one", "none"));
        }
        exprs.iter().try_for_each(|e| check_chars("expression", e, MAX_EXPRESSION_CHARS))?;
        let exprs: Vec<String> = exprs.iter().map(|e| normalize_expression(e)).collect();
        self.all(&exprs, rejected)
    }

    /// The prompt of [`Prompts::joint`], of expressions that are normalized.
    fn all(&self, exprs: &[String], rejected: &[bool]) -> Result<Sequence> {
        let asked = exprs.join(", ");
        let question = format!("{} {asked}in this image? Please output segmentation masks.", OPENINGS[JOINT]);
        let answer = |(i, e): (usize, &String)| format!("{}{e}:", if i == 0 { "Sure," } else { ", " });
        let answers: Vec<String> = exprs.iter().enumerate().map(answer).collect();
        self.sequence(JOINT, &question, &answers, rejected, ".")
    }

    /// [`Prompts::joint`] of one expression.
    ///
    /// # Errors
    /// As [`Prompts::joint`].
    pub fn single(&self, expr: &str) -> Result<Sequence> {
        self.joint(&[expr])
    }

    /// `\n What is {expr} in this image? Please output segmentation mask.` -> `[SEG]`
    ///
    /// # Errors
    /// As [`Prompts::joint`].
    pub fn phrase(&self, expr: &str) -> Result<Sequence> {
        let expr = self.expression(expr)?;
        let question = format!("{} {expr} in this image? Please output segmentation mask.", OPENINGS[PHRASE]);
        self.sequence(PHRASE, &question, &[String::new()], &[], "")
    }

    /// `\n {sentence} Please output segmentation mask.` -> `[SEG]`; the sentence as it is written.
    ///
    /// # Errors
    /// As [`Prompts::joint`].
    pub fn reasoning(&self, sentence: &str) -> Result<Sequence> {
        check_chars("sentence", sentence, MAX_EXPRESSION_CHARS)?;
        if strip(sentence).is_empty() {
            return Err(text_error("sentence", "some text", format!("`{}`", shown(sentence))));
        }
        let question = format!("{} {sentence} Please output segmentation mask.", OPENINGS[REASONING]);
        self.sequence(REASONING, &question, &[String::new()], &[], "")
    }

    /// A whole conversation up to `<|im_start|>assistant\n`, for free generation.
    ///
    /// `history`: earlier questions and answers; `tiles`: of how many tiles each image is made. If one image is given and no question has a
    /// place for it, `<image>\n` opens the first question.
    ///
    /// # Errors
    /// [`Error::Text`] if there are more or fewer places than images, or more text than [`MAX_CHAT_TOKENS`].
    pub fn chat(
        &self,
        history: &[(Question, String)],
        question: &Question,
        tiles: &[usize],
    ) -> Result<Vec<TokenId>> {
        let turns: Vec<(&Question, Option<&str>)> =
            history.iter().map(|(q, a)| (q, Some(a.as_str()))).chain([(question, None)]).collect();
        let chars: usize = turns.iter().map(|(q, a)| q.len() + a.map_or(0, str::len)).sum();
        if chars > MAX_CHAT_TOKENS * CHARS_PER_TOKEN {
            return Err(text_error(
                "chat",
                format!("at most {} bytes of text", MAX_CHAT_TOKENS * CHARS_PER_TOKEN),
                chars,
            ));
        }
        let marks: usize = turns.iter().map(|(q, _)| q.images()).sum();
        let opens = marks == 0 && tiles.len() == 1;
        if !opens && marks != tiles.len() {
            return Err(text_error("chat", format!("{} times `<image>`, one an image", tiles.len()), marks));
        }

        let special = self.tokenizer.special();
        let images: Vec<Vec<TokenId>> = tiles.iter().map(|&n| self.tiles(n)).collect();
        let image_ids: usize = images.iter().map(Vec::len).sum();
        let mut images = images.iter();
        let mut image =
            |parts: &mut Vec<Part>| parts.extend(images.next().into_iter().flatten().map(|&id| Token(id)));
        let mut parts: Vec<Part> = Vec::new();
        for (i, (question, answer)) in turns.iter().enumerate() {
            if i > 0 {
                parts.extend([Token(special.im_start), Text("user\n")]);
            } else if opens {
                image(&mut parts);
                parts.push(Text("\n"));
            }
            for piece in &question.0 {
                match piece {
                    Piece::Text(text) => parts.push(Text(text)),
                    Piece::Image => image(&mut parts),
                    Piece::Token(name) => parts.push(self.tokenizer.token(name).map_or(Text(name), Token)),
                }
            }
            parts.extend([Token(special.im_end), Text("\n"), Token(special.im_start), Text("assistant\n")]);
            if let Some(answer) = answer {
                parts.extend([Text(answer), Token(special.im_end), Text("\n")]);
            }
        }
        // "user\n" closes the prefix (before `<img>`) and is one stretch with a question that opens with text.
        let head = &self.prefix[..=self.prefix.iter().rposition(|&id| id == special.im_start).unwrap_or(0)];
        parts.insert(0, Text("user\n"));
        let mut ids = head.to_vec();
        ids.extend(self.ids(&parts)?);
        let text_ids = ids.len() - image_ids;
        if text_ids > MAX_CHAT_TOKENS {
            return Err(text_error("chat", format!("at most {MAX_CHAT_TOKENS} tokens of text"), text_ids));
        }
        Ok(ids)
    }

    /// An expression as it stands in a prompt.
    fn expression(&self, expr: &str) -> Result<String> {
        check_chars("expression", expr, MAX_EXPRESSION_CHARS)?;
        let e = normalize_expression(expr);
        if strip(&e).is_empty() {
            return Err(text_error(
                format!("expression `{}`", shown(expr)),
                "something to look for",
                "nothing but spaces and dots",
            ));
        }
        Ok(e)
    }

    /// Question, then the assistant's turn: each of `answers` followed by `[SEG]`, or `[REJ]` if it is `rejected`, then `end`.
    fn sequence(
        &self,
        opening: usize,
        question: &str,
        answers: &[String],
        rejected: &[bool],
        end: &str,
    ) -> Result<Sequence> {
        let special = self.tokenizer.special();
        let Some(seg) = special.seg else {
            return Err(text_error("tokenizer", "a token `[SEG]`", "none (a checkpoint for chat only)"));
        };
        let rej = match special.rej {
            _ if !rejected.contains(&true) => seg,
            Some(rej) => rej,
            None => {
                return Err(text_error("tokenizer", "a token `[REJ]`", "none (a checkpoint for RES only)"));
            }
        };
        let bytes = question.len() + answers.iter().map(String::len).sum::<usize>();
        let limit = MAX_SEQUENCE_TOKENS * CHARS_PER_TOKEN;
        if bytes > limit {
            return Err(text_error(
                "expressions of one sequence",
                format!("at most {limit} bytes of question and answer"),
                bytes,
            ));
        }
        let mut parts = vec![
            Token(special.img_end),
            Text(question),
            Token(special.im_end),
            Text("\n"),
            Token(special.im_start),
            Text("assistant\n"),
        ];
        for (i, answer) in answers.iter().enumerate() {
            let slot = if rejected.get(i) == Some(&true) { rej } else { seg };
            parts.extend([Text(answer), Token(slot)]);
        }
        parts.extend([Text(end), Token(special.im_end), Text("\n")]);
        let ids = self.ids(&parts)?;
        if ids.len() > MAX_SEQUENCE_TOKENS {
            return Err(text_error(
                "expressions of one sequence",
                format!("at most {MAX_SEQUENCE_TOKENS} tokens"),
                ids.len(),
            ));
        }
        let slots: Vec<usize> =
            ids.iter().enumerate().filter(|&(_, &id)| id == seg || id == rej).map(|(i, _)| i).collect();
        let opening = self.opening(opening)?;
        // The state before the first slot is read.
        let most = slots.first().map_or(0, |slot| slot - 1).min(MAX_OPENING_TOKENS);
        let opening = if ids.starts_with(opening) && opening.len() <= most { opening.len() } else { 0 };
        Ok(Sequence { ids, slots, opening })
    }

    /// Tokenizes stretches of text between special tokens, each as one.
    fn ids(&self, parts: &[Part]) -> Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        let mut stretch = String::new();
        for part in parts.iter().map(Some).chain([None]) {
            if let Some(Text(text)) = part {
                stretch.push_str(text);
                continue;
            }
            if !stretch.is_empty() {
                ids.extend(match self.user_text {
                    UserText::Plain => self.tokenizer.encode_plain(&stretch)?,
                    UserText::Parsed => self.tokenizer.encode_parsed(&stretch)?,
                });
                stretch.clear();
            }
            if let Some(Token(id)) = part {
                ids.push(*id);
            }
        }
        Ok(ids)
    }
}

/// `e.strip().lower().strip(".")` as Python computes it: Unicode white space (and U+001C to U+001F), Unicode lower case
/// (`İ` becomes two characters, a final `Σ` becomes `ς`).
pub fn normalize_expression(e: &str) -> String {
    strip(e).to_lowercase().trim_matches('.').to_string()
}

/// `text.strip()` as Python computes it.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// `str.isspace` of one character.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1C}'..='\u{1F}')
}

/// [`Error::Text`].
pub(super) fn text_error(
    what: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
) -> Error {
    Error::Text { what: what.into(), expected: expected.into(), found: found.to_string() }
}

fn check_chars(what: &str, text: &str, limit: usize) -> Result<()> {
    let chars = text.chars().count();
    if chars > limit {
        return Err(text_error(
            format!("{what} `{}`", shown(text)),
            format!("at most {limit} characters"),
            chars,
        ));
    }
    Ok(())
}

/// The beginning of `text`, on one line, for messages.
pub fn shown(text: &str) -> String {
    let cut = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    let dots = if cut < text.len() { "..." } else { "" };
    format!("{}{dots}", text[..cut].escape_debug())
}
