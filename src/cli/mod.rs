//! Command line: what every subcommand shares. Progress and messages go to stderr, results to stdout or files.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod completions;
mod demo;
mod doctor;
mod dump;
mod graph;
mod inspect;
mod preprocess;
mod segment;
mod synth;
mod tokenize;

/// Which pixels are "the left cat"? Referring expression segmentation with MLLMSeg.
#[derive(Parser)]
#[command(name = "mllmseg", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Segment(segment::Args),
    Graph(graph::Args),
    Dump(dump::Args),
    Tokenize(tokenize::Args),
    Preprocess(preprocess::Args),
    Inspect(inspect::Args),
    Synth(synth::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

/// Runs the command; an error becomes one line on stderr and its exit code.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Segment(args) => segment::run(args),
        Command::Graph(args) => graph::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Preprocess(args) => preprocess::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(args),
    };
    result.unwrap_or_else(|e| {
        eprintln!("mllmseg: {e}");
        ExitCode::from(e.exit_code())
    })
}
