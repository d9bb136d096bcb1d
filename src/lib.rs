//! Referring expression segmentation with MLLMSeg: which pixels are *the left cat*?
//!
//! ```
//! use mllmseg::{Engine, Options, Prompting, image};
//!
//! let mut engine = Engine::open("assets/demo/model", Options::default())?;
//! let picture = image::read("assets/demo/images/010.png".as_ref(), &image::Limits::default(), false)?;
//! for answer in engine.segment(&picture, &["the white circle"], Prompting::Single, false)?.answers {
//!     let answer = answer?;
//!     println!("{} pixels in {:?}, score {}", answer.area, answer.bbox, answer.score);
//! }
//! # Ok::<(), mllmseg::Error>(())
//! ```
//! [`Engine::segment`] says more; [`Engine::stream`] takes any number of pictures, [`batch`] whole data sets, [`chat`] answers in words.
//!
//! The design in one line: `models` append `ops` to a `graph`, a `plan` lays it out, a `device` runs it.

pub mod batch;
pub mod chat;
pub mod checkpoint;
pub mod device;
pub mod dump;
pub mod engine;
mod error;
pub mod eval;
pub mod graph;
pub mod image;
pub mod models;
pub mod ops;
pub mod plan;
pub mod reference;
pub mod text;

pub use engine::{Answer, Engine, Options, Prompting, Segmentation};
pub use error::{Error, Result};
