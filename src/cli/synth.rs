//! `mllmseg synth`: a synthetic checkpoint.

use mllmseg::Result;
use mllmseg::checkpoint::synth::{self, Options, Spec};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Write a checkpoint with synthetic weights
///
/// The shapes are real, the weights come from a formula that depends on nothing but their names and the seed, so every
/// machine makes the same bits. Its masks mean nothing; its speed and memory are those of the real model.
///
/// Example: mllmseg synth --config 8b --out /tmp/synth-8b
#[derive(clap::Args)]
pub struct Args {
    /// tiny, 2b, 8b, or a file (a config.json)
    #[arg(long, value_name = "FILE|tiny|2b|8b")]
    config: String,
    /// Chooses the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder to write; new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Copy the tokenizer's files from here
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let spec = Spec::read(&args.config)?;
    let options = Options { seed: args.seed, tokenizer: args.tokenizer, ..Options::default() };
    let start = Instant::now();
    let live = std::io::stderr().is_terminal();
    let (mut last, mut bytes) = (start, 0);
    synth::write(&spec, &args.out, &options, &mut |done, total| {
        bytes = total;
        if live && last.elapsed() > Duration::from_millis(200) {
            last = Instant::now();
            eprint!("\r{:.1} of {:.1} GB", done as f64 / 1e9, total as f64 / 1e9);
        }
    })?;
    let (seconds, gb) = (start.elapsed().as_secs_f64(), bytes as f64 / 1e9);
    let clear = if live { "\r\x1b[K" } else { "" };
    eprintln!(
        "{clear}{}: {gb:.2} GB of weights in {seconds:.1} s ({:.2} GB/s)",
        args.out.display(),
        gb / seconds
    );
    Ok(ExitCode::SUCCESS)
}
