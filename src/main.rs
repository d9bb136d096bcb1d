//! The `mllmseg` command; one file a subcommand under `cli/`.

mod cli;

use clap::Parser;

fn main() -> std::process::ExitCode {
    cli::run(cli::Cli::parse())
}
