//! The `mllmseg` command; one file a subcommand under `cli/`.

mod cli;

use clap::Parser;

fn main() -> std::process::ExitCode {
    // A reader that has seen enough (`mllmseg graph | head`) ends the program, as it does any other in a pipe.
    #[cfg(unix)]
    // SAFETY: no other thread runs yet, and the default action is a valid one.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    cli::run(cli::Cli::parse())
}
