//! What goes into a batch and what comes out: one picture with its expressions or questions; one record for each of them.

use crate::chat::{Finish, Reply};
use crate::image::{Mask, Rle};
use crate::text::TokenId;
use crate::{Answer, Error, Prompting, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// One picture and what is asked of it. Items are counted in their source's order, whatever becomes of them.
#[derive(Clone, Debug)]
pub struct Item {
    /// Place in the source, from 0. A source gives every place once, in order.
    pub index: u64,
    /// What the source calls it, any JSON; echoed on each of its records.
    pub id: Value,
    /// The picture, or why there is none.
    pub picture: Picture,
    /// What is asked, in order: expressions or questions.
    pub texts: Vec<String>,
    /// How.
    pub ask: Ask,
}

/// Where an item's picture comes from.
#[derive(Clone, Debug)]
pub enum Picture {
    /// A file, which is read when its turn comes; `name` is how the source spells it.
    #[allow(missing_docs)]
    Path { name: String, path: PathBuf },
    /// An encoded picture file (JPEG, PNG, ...); `name` is what to call it.
    #[allow(missing_docs)]
    Bytes { name: String, bytes: Vec<u8> },
    /// The source's record cannot be used: the item's one record says why.
    Bad(Failure),
}

impl Picture {
    /// What records call the picture; empty for one that is [`Picture::Bad`].
    pub fn name(&self) -> &str {
        match self {
            Self::Path { name, .. } | Self::Bytes { name, .. } => name,
            Self::Bad(_) => "",
        }
    }

    /// An error for a name of which nobody may ever have anything to read: a pipe, a device.
    pub(super) fn regular(&self) -> Result<(), Failure> {
        match self {
            Self::Path { name, path } if path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) => {
                Err(Failure::permanent(format!("{name}: expected a picture file, found a pipe or a device")))
            }
            _ => Ok(()),
        }
    }
}

/// How an item's texts are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// As expressions, in the way that the run's settings say.
    #[default]
    Expressions,
    /// As expressions, in this way.
    As(Prompting),
    /// As expressions, as the published evaluation does, with `[REJ]` forced where this says that there is no target.
    Published(Vec<bool>),
    /// As questions, each on its own, that are answered in words.
    Questions,
}

/// Items in order. A record of the source that cannot be used is an item with [`Picture::Bad`]; an `Err` is the source's own end (its file
/// cannot be read on) and ends the run.
pub type Source = Box<dyn Iterator<Item = Result<Item>> + Send>;

/// Whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The same input fails again: a corrupt picture, an expression that is too long.
    Permanent,
    /// Something around it failed: a disk, a device. A run that is continued tries such items again.
    Transient,
}

/// Why something has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether trying again may help.
    pub kind: Kind,
    /// One line: the thing, what was expected, what was found.
    pub message: String,
}

impl Failure {
    /// A failure that comes again.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: Kind::Permanent, message: message.into() }
    }

    /// A failure that may pass.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { kind: Kind::Transient, message: message.into() }
    }
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match e {
            Error::Io { source, .. } => match source.kind() {
                // What is missing may come: a mount that was down.
                Io::IsADirectory | Io::InvalidInput | Io::InvalidFilename => Kind::Permanent,
                _ => Kind::Transient,
            },
            Error::Device { .. } | Error::OutOfMemory { .. } | Error::Node { .. } => Kind::Transient,
            _ => Kind::Permanent,
        };
        Self { kind, message: e.to_string() }
    }
}

/// The answer to one expression or question of one item: a line of `results.jsonl`. It holds nothing that depends on timing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The item's place in the source.
    pub index: u64,
    /// The item's id.
    pub id: Value,
    /// What the source calls the picture.
    pub image: String,
    /// The expression as it was given; none on the record of an item that was not asked anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expr: Option<String>,
    /// The question as it was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub question: Option<String>,
    /// The answer or why there is none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of one expression or question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// A mask, empty if the model says that nothing fits.
    Mask(Found),
    /// A question's answer.
    Text(Said),
    /// None.
    #[allow(missing_docs)]
    Failed { error: Failure },
}

/// A mask as it is written: COCO's compressed RLE and what follows from it. Pixels are the source picture's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// The mask.
    pub segmentation: Segmentation,
    /// `[x, y, width, height]`; zeros for an empty mask.
    pub bbox: [usize; 4],
    /// Pixels that are set.
    pub area: u64,
    /// Mean probability inside the mask; 0 for an empty one.
    pub score: f32,
    /// The model says that nothing in the picture fits the expression.
    pub no_target: bool,
    /// The mask's PNG file, relative to the folder of the results, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mask: Option<String>,
}

/// An answer in words as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Without special tokens.
    pub answer: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its token ids, the stop token included.
    pub tokens: Vec<TokenId>,
}

impl From<Reply> for Said {
    fn from(r: Reply) -> Self {
        Self { answer: r.text, finish: r.finish, tokens: r.tokens }
    }
}

/// COCO's compressed RLE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segmentation {
    /// `[height, width]`.
    pub size: [usize; 2],
    /// pycocotools' string.
    pub counts: String,
}

impl Segmentation {
    /// The runs.
    ///
    /// # Errors
    /// Those of [`Rle::from_compressed`].
    pub fn rle(&self) -> Result<Rle> {
        Rle::from_compressed(self.size, &self.counts)
    }
}

impl Found {
    /// An answer as it is written. A rejected expression's mask is emptied unless `keep_rejected`.
    ///
    /// # Errors
    /// Those of [`Rle::encode`].
    pub fn new(answer: &Answer, keep_rejected: bool) -> Result<Self> {
        let Mask { width, height, .. } = answer.mask;
        let empty = answer.no_target && !keep_rejected;
        let rle = if empty {
            let pixels = width.saturating_mul(height);
            let counts = u32::try_from(pixels)
                .map_err(|_| Error::shape("mask", "fewer than 2^32 pixels", pixels.to_string()))?;
            Rle { size: [height, width], counts: vec![counts] }
        } else {
            Rle::encode(&answer.mask)?
        };
        Ok(Self {
            bbox: answer.bbox.filter(|_| !empty).unwrap_or_default(),
            area: if empty { 0 } else { answer.area as u64 },
            score: if empty { 0.0 } else { answer.score },
            no_target: answer.no_target,
            segmentation: Segmentation { size: rle.size, counts: rle.to_compressed() },
            mask: None,
        })
    }
}
