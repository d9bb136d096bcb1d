//! Referring expression segmentation with MLLMSeg: which pixels are *the left cat*?
//!
//! `DESIGN` in one line: `models` append `ops` to a `graph`, a `plan` lays it out, a `device` runs it.

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
