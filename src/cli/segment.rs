//! `mllmseg segment`.

use mllmseg::Result;
use std::process::ExitCode;

/// (being written)
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
