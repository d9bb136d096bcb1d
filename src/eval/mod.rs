//! The published data sets, and what the papers report of them.
//!
//! | file | is |
//! | --- | --- |
//! | [`pickle`] | the pickles that RefCOCO and its like are published as, read as data |
//! | [`dataset`] | pictures, expressions and ground truth of a split |
//! | `reason_seg` | ReasonSeg's files and outlines |
//! | [`metrics`] | cIoU, gIoU and the others, by protocol |
//! | [`run`] | a split as a batch, and its results against the ground truth |

pub mod dataset;
pub mod metrics;
pub mod pickle;
mod reason_seg;
pub mod run;

pub use dataset::{Name, Place, Split};
pub use metrics::{Compared, Metrics, Protocol, THRESHOLDS};
pub use run::{Sample, Scored, answer, score};
