//! The `mllmseg` command; one file a subcommand under `cli/`.

mod cli;

use clap::Parser;

fn main() -> std::process::ExitCode {
    // A file that grows past `ulimit -f` is an error like a full disk.
    // SAFETY: ignoring a signal is a valid action, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    cli::run(cli::Cli::parse())
}
