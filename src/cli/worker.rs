//! `mllmseg worker`: items in on stdin, records out on stdout; what `batch` and tools/python start.

use super::batch::{Questions, models};
use super::{Compute, Each};
use crossbeam_channel::{RecvTimeoutError, bounded};
use mllmseg::Result;
use mllmseg::batch::manifest::JsonLines;
use mllmseg::batch::workers::{Alive, Done, Ready};
use mllmseg::batch::{Ask, Disk, Ended, Stats, Work, run_here};
use std::io::{BufReader, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Take items on stdin and give their records on stdout, for another program
///
/// Lines in are those of `batch`'s manifest; they may also say their place, `index` (else their number), and what records call the
/// picture, `name`. Out comes {"ready": DEVICE}; then for each item, as it ends, its records, one line an expression or question, as in
/// results.jsonl, and {"done": INDEX, "status": "done" | "permanent" | "transient", "device_s": S}. Some tens of items may be
/// in flight; more wait in the pipe. It ends with its input.
///
/// Example: echo '{"image": "cats.jpg", "expr": "the left cat"}' | mllmseg worker --stdio --model DIR
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Speak through stdin and stdout (there is no other way yet)
    #[arg(long, required = true)]
    stdio: bool,
    /// Folder for masks and overlays
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also say {"steps": N} once a second while it works: masks, and steps towards answers in words, so far
    #[arg(long)]
    alive: bool,
    /// Be ready for questions first: what expressions need is opened when the first one comes, instead of the other way round
    #[arg(long)]
    questions_first: bool,
    #[command(flatten)]
    each: Each,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten, next_help_heading = "Questions")]
    questions: Questions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    // Ctrl-C in a terminal goes to every process; the one that reads our results ends us by closing stdin.
    let _ = ctrlc::set_handler(|| ());
    let mut settings = args.each.settings(args.out.clone());
    settings.questions = args.questions.settings();
    let ready = Ready { ready: args.compute.on.device.to_string() };
    let mut models = models(&args.model, args.compute, args.questions.cache_tokens())?;
    models.open_for(if args.questions_first { &Ask::Questions } else { &Ask::Expressions })?;
    say(&line(&ready))?;
    let (disk, stats, stop) = (Disk::default(), Arc::new(Stats::default()), AtomicBool::new(false));
    if args.alive {
        let stats = Arc::clone(&stats);
        std::thread::spawn(move || tell_steps(&stats)); // ends with the process
    }
    // Whoever writes to us may wait for an answer, and we for the next line: a device that fails must end us all the same.
    let (send, lines) = bounded(1);
    std::thread::spawn(move || {
        let stdin = BufReader::new(stdin());
        for item in JsonLines::new(stdin, Path::new("stdin"), PathBuf::new(), Arc::default()).numbered() {
            if send.send(item).is_err() {
                return; // the run has ended
            }
        }
    });
    let source = std::iter::from_fn(|| {
        loop {
            match lines.recv_timeout(Duration::from_millis(50)) {
                Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
                other => return other.ok(),
            }
        }
    });
    let mut sink = |mut ended: Ended| {
        let done = Done::new(&ended, stats.device_s());
        ended.records.extend(line(&done));
        say(&ended.records)
    };
    run_here(
        &mut models,
        Work {
            source,
            wanted: &|_| true,
            ordered: false,
            settings: &settings,
            disk: &disk,
            stats: &stats,
            stop: &stop,
            sink: &mut sink,
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Says once a second how many steps were made, if there are more.
fn tell_steps(stats: &Stats) {
    let mut said = 0;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let steps = stats.steps();
        if steps > said && say(&line(&Alive { steps })).is_err() {
            return; // nobody reads
        }
        said = steps;
    }
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain structs are JSON");
    line.push(b'\n');
    line
}

fn say(bytes: &[u8]) -> Result<()> {
    let mut stdout = stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(super::print::unwritten)
}
