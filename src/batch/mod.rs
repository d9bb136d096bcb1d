//! Many pictures with their expressions, unattended: sources of items, the pipeline, records.

pub mod item;

pub use item::{Failure, Found, Item, Kind, Outcome, Picture, Record, Segmentation, Source};
