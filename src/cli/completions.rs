//! `mllmseg completions`: shell completion scripts.

use clap::CommandFactory;
use mllmseg::Result;
use std::process::ExitCode;

/// Print a completion script for a shell
///
/// Example: mllmseg completions bash > ~/.local/share/bash-completion/completions/mllmseg
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "mllmseg", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
