//! What is asked in a chat: a user's text, and between it the places of images and the tokens of grounding.

use super::prompt::{strip, text_error};
use crate::Result;
use std::fmt;

/// Where an image stands in text.
const IMAGE: &str = "<image>";
/// What InternVL2.5 was trained to mark objects and places with; special tokens where the tokenizer has them.
const GROUNDING: [&str; 6] = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"];

/// Text, and what stands between it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question(pub(super) Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// It stays text, whatever it holds.
    Text(String),
    Image,
    /// One of [`GROUNDING`].
    Token(&'static str),
}

impl Question {
    /// A user's: `<image>` is where an image stands, everything else is text.
    pub fn new(text: &str) -> Self {
        let mut question = Self::default();
        question.cut(text, &[]);
        question
    }

    /// A template's, such as `Where is <ref>{}</ref>?`: each `{}` stands for `text`, which stays text; `<image>`, `<ref>`, `<box>` and `<quad>` in the
    /// template are what they are to the model.
    pub fn about(template: &str, text: &str) -> Self {
        let mut question = Self::default();
        for (i, part) in template.split("{}").enumerate() {
            if i > 0 {
                question.0.push(Piece::Text(text.into()));
            }
            question.cut(part, &GROUNDING);
        }
        question
    }

    /// Adds `text`, cut at [`IMAGE`] and at `tokens`.
    fn cut(&mut self, mut text: &str, tokens: &[&'static str]) {
        let marks = || tokens.iter().copied().chain([IMAGE]);
        while let Some((at, mark)) = marks().filter_map(|m| Some((text.find(m)?, m))).min() {
            self.0.push(Piece::Text(text[..at].into()));
            self.0.push(if mark == IMAGE { Piece::Image } else { Piece::Token(mark) });
            text = &text[at + mark.len()..];
        }
        self.0.push(Piece::Text(text.into()));
        self.0.retain(|piece| *piece != Piece::Text(String::new()));
    }

    /// Places of images.
    pub fn images(&self) -> usize {
        self.0.iter().filter(|piece| **piece == Piece::Image).count()
    }

    /// Bytes, as it is written.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.text().len()).sum()
    }

    /// With a place for each of `images` new images: as it has them; or before it, as `Image-1: <image>` where there are several.
    ///
    /// # Errors
    /// [`Error::Text`](crate::Error::Text) for another number of places, and if there is nothing but spaces.
    pub fn showing(mut self, images: usize) -> Result<Self> {
        if self.0.iter().all(|piece| matches!(piece, Piece::Text(t) if strip(t).is_empty())) {
            return Err(text_error("question", "something to answer", "nothing but spaces"));
        }
        match (self.images(), images) {
            (0, 1) => drop(self.0.splice(..0, [Piece::Image, Piece::Text("\n".into())])),
            (0, n) => {
                let list = (1..=n).flat_map(|i| {
                    [Piece::Text(format!("Image-{i}: ")), Piece::Image, Piece::Text("\n".into())]
                });
                self.0.splice(..0, list.collect::<Vec<_>>());
            }
            (places, n) if places == n => {}
            (places, n) => {
                let expected = match n {
                    0 => "no `<image>`, as there is no new picture".into(),
                    n => format!("{n} times `<image>`, one a picture, or none"),
                };
                return Err(text_error("question", expected, places));
            }
        }
        Ok(self)
    }
}

impl Piece {
    fn text(&self) -> &str {
        match self {
            Piece::Text(text) => text,
            Piece::Image => IMAGE,
            Piece::Token(name) => name,
        }
    }
}

impl From<&str> for Question {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<&String> for Question {
    fn from(text: &String) -> Self {
        Self::new(text)
    }
}

impl From<&Question> for Question {
    fn from(question: &Question) -> Self {
        question.clone()
    }
}

impl From<String> for Question {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| f.write_str(piece.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_templates_text_stays_text() {
        let q = Question::about("Where is <ref>{}</ref> in <image>?", "the <image> of a </ref>{}");
        assert_eq!(q.images(), 1);
        let text = |t: &str| Piece::Text(t.into());
        let (open, close) = (Piece::Token("<ref>"), Piece::Token("</ref>"));
        let expected = [
            text("Where is "),
            open,
            text("the <image> of a </ref>{}"),
            close,
            text(" in "),
            Piece::Image,
            text("?"),
        ];
        assert_eq!(q.0, expected);
        assert_eq!(q.to_string(), "Where is <ref>the <image> of a </ref>{}</ref> in <image>?");
        assert_eq!(Question::new("<ref>a</ref>").0, [text("<ref>a</ref>")]);
    }

    #[test]
    fn images_have_places() {
        let shown = |q: &str, n| Question::new(q).showing(n).map(|q| q.to_string());
        assert_eq!(shown("a", 0).unwrap(), "a");
        assert_eq!(shown("a", 1).unwrap(), "<image>\na");
        assert_eq!(shown("a", 2).unwrap(), "Image-1: <image>\nImage-2: <image>\na");
        assert_eq!(shown("<image>a<image>", 2).unwrap(), "<image>a<image>");
        assert_eq!(shown("<image>", 1).unwrap(), "<image>");
        for (q, n) in [("<image>", 0), ("<image>", 2), ("", 0), (" \t\n", 1)] {
            assert!(shown(q, n).is_err(), "{q:?} {n}");
        }
    }
}
