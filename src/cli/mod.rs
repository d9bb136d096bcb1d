//! The command line: what the subcommands share. Progress and messages go to stderr, results to stdout or files.

use clap::{Parser, Subcommand, ValueEnum};
use mllmseg::batch::Settings;
use mllmseg::chat::{self as answering, Chat};
use mllmseg::device::Choice;
use mllmseg::image::Limits;
use mllmseg::models::mllmseg::Savings;
use mllmseg::reference::Precision;
use mllmseg::text::UserText;
use mllmseg::{Engine, Error, Options, Prompting, Result};
use std::fs::File;
use std::io::{BufRead, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[macro_use]
mod print;

mod batch;
mod chat;
mod completions;
mod demo;
mod doctor;
mod dump;
mod eval;
mod graph;
mod inspect;
mod locate;
mod merge;
mod preprocess;
mod profile;
mod segment;
mod synth;
mod tokenize;
mod worker;

/// Which pixels are "the left cat"? Referring expression segmentation with MLLMSeg.
///
/// Try it with nothing downloaded:    mllmseg demo
/// Segment a picture:                 mllmseg segment --model DIR --image cats.jpg --expr "the left cat"
/// Ask about it:                      mllmseg chat --model DIR --image cats.jpg "How many cats are there?"
#[derive(Parser)]
#[command(name = "mllmseg", version, verbatim_doc_comment)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Segment(segment::Args),
    Batch(batch::Args),
    Merge(merge::Args),
    Worker(worker::Args),
    Eval(eval::Args),
    Chat(chat::Args),
    Locate(locate::Args),
    Demo(demo::Args),
    Inspect(inspect::Args),
    Graph(graph::Args),
    Dump(dump::Args),
    Tokenize(tokenize::Args),
    Preprocess(preprocess::Args),
    Profile(profile::Args),
    Synth(synth::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

/// Runs the command; an error becomes one line on stderr and its exit code.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Segment(args) => segment::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Locate(args) => locate::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Graph(args) => graph::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Preprocess(args) => preprocess::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
    };
    result.unwrap_or_else(|e| {
        print::end_unread(&e);
        report(&e);
        ExitCode::from(e.exit_code())
    })
}

/// An error as one line on stderr.
fn report(e: &Error) {
    eprintln!("mllmseg: {e}");
}

/// The next line of stdin, with its end, or why it cannot be taken: after [`Error::Io`] nothing follows, one of more than `most` bytes is passed
/// over. `None` at the end.
fn next_line(input: &mut impl BufRead, most: u64) -> Option<Result<Vec<u8>>> {
    let mut line = Vec::new();
    let mut read = || {
        input.by_ref().take(most + 1).read_until(b'\n', &mut line)?;
        let long = line.len() as u64 > most && !line.ends_with(b"\n");
        if long {
            input.skip_until(b'\n')?;
        }
        Ok(long)
    };
    match read() {
        Err(e) => Some(Err(Error::io(Path::new("<stdin>"), "read")(e))),
        Ok(true) => Some(Err(Error::Text {
            what: "line".into(),
            expected: format!("at most {most} bytes"),
            found: "more".into(),
        })),
        Ok(false) => (!line.is_empty()).then_some(Ok(line)),
    }
}

/// Where and how to compute.
#[derive(clap::Args)]
struct Compute {
    #[command(flatten)]
    on: On,
    /// Switch a saving off, to show that nothing changes (`all`: every one)
    #[arg(long, value_name = "SAVING", value_parser = saving, value_delimiter = ',', help_heading = "Checking")]
    without: Vec<String>,
    /// Write a JSON line for every node that runs: graph, node, microseconds
    #[arg(long, value_name = "FILE", help_heading = "Checking")]
    log_nodes: Option<PathBuf>,
}

/// Where to compute.
#[derive(clap::Args)]
struct On {
    /// Where to run: cpu, cuda:N, or sim (the CUDA kernels on the simulated driver)
    #[arg(long, default_value = "cpu")]
    device: Choice,
    #[command(flatten)]
    how: How,
}

/// How to compute.
#[derive(Clone, clap::Args)]
struct How {
    /// What the CPU multiplies with: f32 (the reference), or bf16 where it has AVX-512 BF16 (elsewhere f32)
    #[arg(long, value_enum, default_value_t = CpuPrecision::F32)]
    cpu_precision: CpuPrecision,
    /// Let special-token text of the user become those tokens, as the published code does
    #[arg(long, help_heading = "Checking")]
    published_text: bool,
    /// On a CUDA device: launch kernel by kernel instead of replaying CUDA graphs
    #[arg(long, help_heading = "Checking")]
    no_graph: bool,
    /// On a CUDA device: wait after every node, so that an error names the node that failed
    #[arg(long, help_heading = "Checking")]
    sync: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum CpuPrecision {
    F32,
    Bf16,
}

fn saving(name: &str) -> std::result::Result<String, String> {
    if name == "all" || Savings::NAMES.contains(&name) {
        return Ok(name.into());
    }
    Err(format!("expected `all` or one of {}", Savings::NAMES.join(", ")))
}

impl How {
    fn precision(&self) -> Precision {
        match self.cpu_precision {
            CpuPrecision::F32 => Precision::F32,
            CpuPrecision::Bf16 => Precision::Bf16,
        }
    }

    fn user_text(&self) -> UserText {
        if self.published_text { UserText::Parsed } else { UserText::Plain }
    }

    /// As arguments of another process.
    fn args(&self) -> Vec<String> {
        let flags = [
            ("--cpu-precision=bf16", self.precision() == Precision::Bf16),
            ("--published-text", self.published_text),
            ("--no-graph", self.no_graph),
            ("--sync", self.sync),
        ];
        flags.iter().filter(|f| f.1).map(|f| f.0.to_string()).collect()
    }

    /// What of it changes results, as text.
    fn results_depend_on(&self) -> String {
        format!("cpu {:?}, text {:?}", self.precision(), self.user_text())
    }
}

impl On {
    /// Calls `open` with a display of its progress.
    fn with_progress<T>(&self, open: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let show = self.device != Choice::Cpu && std::io::stderr().is_terminal();
        let opened = open(&mut |done, total| {
            if show {
                let (gb, s) = (done as f64 / 1e9, start.elapsed().as_secs_f64().max(1e-9));
                eprint!("\rweights: {gb:.1} of {:.1} GB, {:.1} GB/s ", total as f64 / 1e9, gb / s);
            }
        })?;
        if show {
            eprintln!();
        }
        Ok(opened)
    }

    /// Opens the model for chat, with room for `cache_tokens`; its notes go to stderr.
    fn chat(&self, model: &str, cache_tokens: usize) -> Result<Chat> {
        let options = answering::Options {
            device: self.device,
            precision: self.how.precision(),
            graphs: !self.how.no_graph,
            sync: self.how.sync,
            user_text: self.how.user_text(),
            cache_tokens,
        };
        let chat = self.with_progress(|progress| Chat::open_with(model, options, progress))?;
        for note in chat.checkpoint().notes() {
            eprintln!("note: {note}");
        }
        Ok(chat)
    }
}

impl Compute {
    /// Opens the model; its notes go to stderr.
    fn open(&self, model: &str) -> Result<Engine> {
        let savings =
            self.without.iter().fold(Savings::ALL, |s, name| s.without(name).unwrap_or(Savings::NONE));
        let options = Options {
            device: self.on.device,
            precision: self.on.how.precision(),
            graphs: !self.on.how.no_graph,
            sync: self.on.how.sync,
            savings,
            user_text: self.on.how.user_text(),
        };
        let mut engine = self.on.with_progress(|progress| Engine::open_with(model, options, progress))?;
        for note in engine.checkpoint().notes() {
            eprintln!("note: {note}");
        }
        let unbound = engine.checkpoint().unbound();
        if !unbound.is_empty() {
            eprintln!("note: {} tensors of the checkpoint are not used: {}", unbound.len(), brief(&unbound));
        }
        if let Some(path) = &self.log_nodes {
            let mut log = BufWriter::new(File::create(path).map_err(Error::io(path, "create"))?);
            engine.observe(move |run| {
                let line = serde_json::json!({
                    "graph": run.graph, "node": run.node.name, "op": run.node.op.kind(), "us": run.time.as_micros() as u64,
                });
                // A log that cannot be written must not stop the work.
                let _ = writeln!(log, "{line}").and_then(|()| log.flush());
            });
        }
        Ok(engine)
    }
}

/// The first few of many names.
fn brief(names: &[String]) -> String {
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{shown}, ...") } else { shown }
}

/// What becomes of each item of a batch.
#[derive(clap::Args)]
struct Each {
    /// How the expressions are asked
    #[arg(long, value_enum, default_value_t = PromptingArg::Single)]
    prompting: PromptingArg,
    /// Write each mask as a file, below masks/ in the folder of the results
    #[arg(long, value_enum, value_name = "FORMAT")]
    masks: Option<MaskFormat>,
    /// Draw each picture's masks in, below overlays/
    #[arg(long)]
    overlays: bool,
    /// Keep the mask that the decoder gave for an expression that the model rejects
    #[arg(long)]
    keep_rejected: bool,
    /// Turn pictures as their EXIF orientation says (the published code does not)
    #[arg(long)]
    exif: bool,
    /// Most memory of files, pictures and masks in flight, in GB
    #[arg(long, value_name = "GB", default_value_t = 2.0, value_parser = gigabytes)]
    buffers: f64,
    /// Threads that decode pictures, and as many that encode masks [default: a quarter of the processors, 1 to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MaskFormat {
    /// 0 or 255, the picture's size
    Png,
}

fn gigabytes(text: &str) -> std::result::Result<f64, String> {
    let gb = text.parse().ok().filter(|gb| (0.01..1e6).contains(gb));
    gb.ok_or_else(|| "expected a number of gigabytes, 0.01 and more".into())
}

impl Each {
    fn settings(&self, out: PathBuf) -> Settings {
        let mut settings = Settings {
            prompting: self.prompting.into(),
            keep_rejected: self.keep_rejected,
            exif: self.exif,
            out,
            masks: self.masks.is_some(),
            overlays: self.overlays,
            bytes: (self.buffers * 1e9) as u64,
            ..Settings::default()
        };
        settings.threads = self.threads.map_or(settings.threads, usize::from);
        settings
    }

    /// As arguments of a worker.
    fn args(&self) -> Vec<String> {
        let prompting = self.prompting.to_possible_value();
        let prompting = prompting.as_ref().map_or("single", |p| p.get_name());
        let mut args = vec![format!("--prompting={prompting}"), format!("--buffers={}", self.buffers)];
        let flags = [
            ("--masks=png", self.masks.is_some()),
            ("--overlays", self.overlays),
            ("--keep-rejected", self.keep_rejected),
            ("--exif", self.exif),
        ];
        args.extend(flags.iter().filter(|f| f.1).map(|f| f.0.to_string()));
        args.extend(self.threads.map(|n| format!("--threads={n}")));
        args
    }

    /// What of it changes results, as text.
    fn results_depend_on(&self) -> String {
        format!(
            "prompting {:?}, masks {}, overlays {}, keep rejected {}, exif {}",
            Prompting::from(self.prompting),
            self.masks.is_some(),
            self.overlays,
            self.keep_rejected,
            self.exif
        )
    }
}

/// How expressions become prompts.
#[derive(Clone, Copy, ValueEnum)]
enum PromptingArg {
    /// One sequence an expression: no expression changes another's answer
    Single,
    /// All expressions of a picture in one sequence, as in the published evaluation
    Joint,
    /// "What is {expr} in this image?", one sequence an expression
    Phrase,
    /// The expression is a whole sentence that needs reasoning, one sequence each
    Reasoning,
}

impl From<PromptingArg> for Prompting {
    fn from(p: PromptingArg) -> Self {
        match p {
            PromptingArg::Single => Prompting::Single,
            PromptingArg::Joint => Prompting::Joint,
            PromptingArg::Phrase => Prompting::Phrase,
            PromptingArg::Reasoning => Prompting::Reasoning,
        }
    }
}

/// An error for a folder that cannot be made.
fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder"))
}

/// `HxW` in pixels.
fn size(text: &str) -> std::result::Result<(usize, usize), String> {
    let side = |s: &str| s.parse::<usize>().ok().filter(|n| (1..=65535).contains(n));
    let most = Limits::default().max_pixels;
    text.split_once('x')
        .and_then(|(h, w)| Some((side(h)?, side(w)?)))
        .filter(|(h, w)| (h * w) as u64 <= most)
        .ok_or_else(|| format!("expected HEIGHTxWIDTH in pixels, each 1 to 65535, together at most {most}"))
}
