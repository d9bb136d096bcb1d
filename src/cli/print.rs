//! `print!` and its kin as the commands use them: std's panic where a write fails (a full disk behind `> results`, a log that cannot grow).
//! Here results that cannot be written end the program with an error, and what is only told gets lost.
//!
//! A reader that has seen enough (`mllmseg graph | head`) ends the program by SIGPIPE, as it does any other in a pipe. The signal is not left on
//! from the start, because a worker that dies is a closed pipe, too, and must not end `batch`.

use super::report;
use mllmseg::Error;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::path::Path;

macro_rules! print {
    ($($arg:tt)*) => { $crate::cli::print::out(format_args!($($arg)*)) };
}

macro_rules! println {
    () => { print!("\n") };
    ($($arg:tt)*) => { print!("{}\n", format_args!($($arg)*)) };
}

macro_rules! eprint {
    ($($arg:tt)*) => { $crate::cli::print::told(format_args!($($arg)*)) };
}

macro_rules! eprintln {
    () => { eprint!("\n") };
    ($($arg:tt)*) => { eprint!("{}\n", format_args!($($arg)*)) };
}

/// Writes results.
pub fn out(text: Arguments) {
    let mut stdout = std::io::stdout().lock();
    if let Err(e) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        let e = unwritten(e);
        end_unread(&e);
        report(&e);
        std::process::exit(1);
    }
}

/// Results that could not be written.
pub fn unwritten(e: std::io::Error) -> Error {
    Error::io(Path::new(STDOUT), "write")(e)
}

/// What [`unwritten`] names.
const STDOUT: &str = "<stdout>";

/// Whether this is [`unwritten`]'s.
pub fn is_unwritten(e: &Error) -> bool {
    matches!(e, Error::Io { path, .. } if path == Path::new(STDOUT))
}

/// Ends the program by SIGPIPE if `e` says that nobody reads its results.
pub fn end_unread(e: &Error) {
    if let Error::Io { source, .. } = e
        && is_unwritten(e)
        && source.kind() == ErrorKind::BrokenPipe
    {
        // SAFETY: the default action is a valid one, and ends the process.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::raise(libc::SIGPIPE);
        }
    }
}

/// Writes messages.
pub fn told(text: Arguments) {
    let _ = std::io::stderr().write_fmt(text);
}
