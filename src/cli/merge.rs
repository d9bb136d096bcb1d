//! `mllmseg merge`: finished shards, joined.

use mllmseg::Result;
use mllmseg::batch::merge;
use std::path::PathBuf;
use std::process::ExitCode;

/// Join the finished shards of a batch, and prove that nothing is missing
///
/// Every record is checked against its shard's journal, every shard and every item of the source must be there exactly once. The
/// result is what one run without shards would have written. Masks and overlays are linked, not copied, on one file system.
///
/// Example: mllmseg merge out/shard-* --out out/whole
#[derive(clap::Args)]
pub struct Args {
    /// Folders of the shards, in any order
    #[arg(value_name = "SHARD", required = true)]
    shards: Vec<PathBuf>,
    /// Folder for the whole
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Forget what is in the folder
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    made: super::batch::Made,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let counts = merge(&args.shards, &args.out, args.restart)?;
    args.made.make(&args.out)?;
    println!(
        "{} items of {} shards: {} done, {} failed for good, {} failed for now -> {}",
        counts.items(),
        args.shards.len(),
        counts.done,
        counts.permanent,
        counts.transient,
        args.out.display()
    );
    Ok(super::batch::exit_code(&counts, false))
}
