//! Many pictures with their expressions and questions, unattended: a source of items, a pipeline around the engine, results that survive anything.
//!
//! | file | is |
//! | --- | --- |
//! | [`item`] | what goes in and what comes out |
//! | [`manifest`] | sources: JSON lines, folders, globs |
//! | [`tar`], [`parquet`] | sources of many items a file; results as Parquet |
//! | [`coco`] | results as an instances file of COCO's |
//! | `run` | a whole run: source, pipeline, results |
//! | `models` | the checkpoint, opened for expressions and for questions |
//! | `pipeline` | the stages and their threads |
//! | [`workers`] | a process for each device instead of the stages |
//! | [`journal`] | results on disk: continued after any end, finished with the same bytes |
//! | `merge` | shards joined |
//! | `report` | a page that shows results |
//! | `stats` | what a run did, for people and machines |

mod budget;
pub mod coco;
mod disk;
mod dry_run;
pub mod item;
pub mod journal;
pub mod manifest;
mod merge;
mod models;
pub mod parquet;
mod pipeline;
pub(crate) mod records;
mod report;
mod run;
mod shards;
mod stats;
pub mod tar;
pub mod workers;

pub use disk::{Disk, Fault};
pub use dry_run::{DryRun, dry_run};
pub use item::{Ask, Failure, Found, Item, Kind, Outcome, Picture, Record, Said, Segmentation, Source};
pub use journal::{Counts, Status};
pub use merge::merge;
pub use models::Models;
pub use pipeline::{End, Ended, Questions, Settings, Work, run_here};
pub use report::report;
pub use run::{Batch, Compute, RunEnd, run_batch};
pub use stats::{STAGES, StageSummary, Stats, Summary};
pub use workers::{Worker, run_workers};
