//! `mllmseg chat`: questions about pictures, once or in conversation.

use super::print::{is_unwritten, unwritten};
use super::{On, next_line, report};
use mllmseg::chat::{Chat, Conversation, Finish, Generation, Picture, Reply, Sampling};
use mllmseg::image::{Limits, read, write_file};
use mllmseg::{Error, Result};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ask questions about pictures
///
/// With a question: answers it and ends. Without one: a conversation, a question a line, from the terminal or from stdin. The answer is
/// written as it is produced; at a terminal Ctrl-C ends the answer, not the conversation. Each turn computes only what is new. Answers are
/// greedy unless one of --sample, --temperature, --top-p and --top-k is given.
///
/// In conversation: /image FILE shows one more picture with the next question, /drop takes those back, /reset forgets all that was said and shown,
/// /save FILE writes it as JSON, /help lists these, /quit ends.
///
/// Example: mllmseg chat --model DIR --image cats.jpg "How many cats are there?"
#[derive(clap::Args)]
pub struct Args {
    /// The question; `<image>` in it is where a picture stands, if not before it
    #[arg(allow_hyphen_values = true)]
    question: Option<String>,
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Pictures (JPEG, PNG, WebP, BMP, TIFF, GIF); once for each
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Instead of the checkpoint's system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    generate: Generate,
    /// Most tiles that a picture is cut into, the thumbnail not counted [default: the checkpoint's max_dynamic_patch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=12))]
    max_tiles: Option<u16>,
    /// A line of JSON on stdout for each answer
    #[arg(long)]
    json: bool,
    /// Turn pictures as their EXIF orientation says (the published code does not)
    #[arg(long)]
    exif: bool,
    #[command(flatten)]
    on: On,
}

const MAX_NEW_TOKENS: u32 = 1024;
const CACHE_TOKENS: usize = 8192;

/// How answers are generated.
#[derive(clap::Args)]
pub struct Generate {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = MAX_NEW_TOKENS, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_new_tokens: u32,
    /// Draw tokens instead of taking the most likely: temperature 1, the 50 most likely ones, unless said otherwise
    #[arg(long)]
    sample: bool,
    /// Divide the logits by this
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from the fewest most likely tokens whose probabilities add up to this
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Draw from the K most likely tokens (0: all)
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Divide the logits of tokens that were generated before by this
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = penalty, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// The same seed gives the same answers; each question or turn has random numbers of its own
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tokens that the K/V cache holds, pictures' included
    #[arg(long, value_name = "N", default_value_t = CACHE_TOKENS)]
    pub cache_tokens: usize,
    /// Compute one token at a time: no guessing from the text before (the answers are the same)
    #[arg(long, help_heading = "Checking")]
    no_guess: bool,
}

impl Generate {
    /// One of the options that is not as it is by itself.
    pub fn given(&self) -> Option<&'static str> {
        let drawn = Some("--sample, --temperature, --top-p or --top-k");
        let options = [
            ("--max-new-tokens", self.max_new_tokens != MAX_NEW_TOKENS),
            ("--repetition-penalty", self.repetition_penalty != 1.0),
            ("--seed", self.seed != 0),
            ("--cache-tokens", self.cache_tokens != CACHE_TOKENS),
            ("--no-guess", self.no_guess),
        ];
        options.iter().find(|o| o.1).map(|o| o.0).or(drawn.filter(|_| self.draws()))
    }

    fn draws(&self) -> bool {
        self.sample || self.temperature.is_some() || self.top_p.is_some() || self.top_k.is_some()
    }

    /// As the engine takes it.
    pub fn generation(&self) -> Generation {
        let mut sampling = Sampling { seed: self.seed, ..Sampling::GREEDY };
        sampling.repetition_penalty = self.repetition_penalty;
        if self.draws() {
            sampling.temperature = self.temperature.unwrap_or(1.0);
            sampling.top_p = self.top_p.unwrap_or(1.0);
            sampling.top_k = self.top_k.unwrap_or(50);
        }
        Generation {
            max_new_tokens: self.max_new_tokens as usize,
            sampling,
            speculate: !self.no_guess,
            ..Generation::default()
        }
    }
}

fn temperature(text: &str) -> std::result::Result<f32, String> {
    number(text, |temperature| Sampling { temperature, ..Sampling::GREEDY })
}

fn top_p(text: &str) -> std::result::Result<f32, String> {
    number(text, |top_p| Sampling { top_p, ..Sampling::GREEDY })
}

fn penalty(text: &str) -> std::result::Result<f32, String> {
    number(text, |repetition_penalty| Sampling { repetition_penalty, ..Sampling::GREEDY })
}

/// A number that makes a distribution.
fn number(text: &str, sampling: fn(f32) -> Sampling) -> std::result::Result<f32, String> {
    let n = text.parse().map_err(|_| "expected a number")?;
    sampling(n).check().map_err(|e| e.to_string())?;
    Ok(n)
}

/// Longest line of stdin.
const MAX_LINE: u64 = 1 << 20;
/// What a program that was ended by Ctrl-C exits with.
const INTERRUPTED: u8 = 130;
/// Whether an answer is being produced.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Set by Ctrl-C while it is.
static ENDED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C ends the answer that is being produced; if there is none, the program, unless somebody talks to it.
fn handle_interrupts(conversing: bool) -> Result<()> {
    let set = ctrlc::set_handler(move || {
        if ANSWERING.load(Ordering::Relaxed) {
            ENDED.store(true, Ordering::Relaxed);
        } else if !conversing {
            std::process::exit(INTERRUPTED.into());
        }
    });
    set.map_err(|e| Error::usage("Ctrl-C", "a handler", e.to_string()))?;
    // Those that ctrlc takes along for `batch`: here they end the program as they do any other.
    // SAFETY: the default action is a valid one.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
    Ok(())
}

/// `code`, unless the last answer was ended by Ctrl-C.
fn exit(code: ExitCode) -> ExitCode {
    if ENDED.load(Ordering::Relaxed) { ExitCode::from(INTERRUPTED) } else { code }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut session = Session::open(&args)?;
    let conversing = args.question.is_none() && std::io::stdin().is_terminal();
    // While the model is being opened, it ends the program.
    handle_interrupts(conversing)?;
    match &args.question {
        Some(question) => {
            let asked = session.ask(question);
            asked.inspect_err(|e| session.fail(question, e)).map(|_| exit(ExitCode::SUCCESS))
        }
        None if conversing => session.converse(),
        None => session.answer_lines(),
    }
}

/// A conversation and what it is about.
struct Session<'a> {
    args: &'a Args,
    chat: Chat,
    conversation: Conversation,
    /// Files of the pictures of each turn.
    shown: Vec<Vec<PathBuf>>,
    /// Pictures for the next question.
    next: Vec<(PathBuf, Picture)>,
}

impl<'a> Session<'a> {
    fn open(args: &'a Args) -> Result<Self> {
        let chat = args.on.chat(&args.model, args.generate.cache_tokens)?;
        let conversation = chat.conversation(args.system.clone());
        let mut session = Self { args, chat, conversation, shown: Vec::new(), next: Vec::new() };
        args.image.iter().try_for_each(|path| session.show(path).map(|_| ()))?;
        Ok(session)
    }

    /// One more picture for the next question.
    fn show(&mut self, path: &Path) -> Result<usize> {
        let max = self.args.max_tiles.map_or(self.chat.max_tiles(), usize::from);
        let picture = self.chat.picture(&read(path, &Limits::default(), self.args.exif)?, max)?;
        let tiles = picture.tiles();
        self.next.push((path.into(), picture));
        Ok(tiles)
    }

    /// Answers a question on stdout.
    fn ask(&mut self, question: &str) -> Result<Reply> {
        let (files, pictures): (Vec<PathBuf>, Vec<Picture>) = self.next.iter().cloned().unzip();
        let mut generation = self.args.generate.generation();
        generation.sampling = generation.sampling.nth(self.shown.len() as u64);
        let mut out = std::io::stdout().lock();
        let (json, terminal) = (self.args.json, out.is_terminal());
        let mut written = Ok(());
        ENDED.store(false, Ordering::Relaxed);
        ANSWERING.store(true, Ordering::Relaxed);
        let reply = self.chat.say(&mut self.conversation, question, pictures, &generation, &mut |text| {
            if !json && written.is_ok() {
                let text = if terminal { harmless(text) } else { text.into() };
                written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
            written.is_ok() && !ENDED.load(Ordering::Relaxed)
        });
        ANSWERING.store(false, Ordering::Relaxed);
        let reply = reply?;
        let line = if json { line(question, &files, &reply).to_string() } else { String::new() };
        let written = written.and_then(|()| writeln!(out, "{line}")).and_then(|()| out.flush());
        written.map_err(unwritten)?;
        // Of an answer that was ended before it began nothing is kept.
        if !reply.tokens.is_empty() {
            self.next.clear();
            self.shown.push(files);
        }
        Ok(reply)
    }

    /// A line of JSON for a question without an answer.
    fn fail(&self, question: &str, e: &Error) {
        if self.args.json {
            println!("{}", json!({"question": question, "error": e.to_string()}));
        }
    }

    /// Questions from a terminal.
    fn converse(&mut self) -> Result<ExitCode> {
        let failed =
            |e: ReadlineError| Error::usage("terminal", "one that lines can be read from", e.to_string());
        // Answers may go to a file; what is typed is shown on the terminal.
        let talks = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let mut editor =
            DefaultEditor::with_config(Config::builder().behavior(talks).build()).map_err(failed)?;
        eprintln!("A question a line; /help for more, Ctrl-D ends.");
        for (path, picture) in &self.next {
            eprintln!("{}: {}", path.display(), counted(picture.tiles(), "tile"));
        }
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let _ = editor.add_history_entry(line.trim());
                    match self.turn(line.as_bytes()) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) if is_unwritten(&e) => return Err(e),
                        Err(e) => {
                            report(&e);
                            if !self.next.is_empty() {
                                let pictures = counted(self.next.len(), "picture");
                                eprintln!("{pictures} for the next question (/drop takes that back)");
                            }
                        }
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("Ctrl-D or /quit ends."),
                Err(ReadlineError::Eof) => break,
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
                    report(&not_text("other bytes".into()));
                }
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Questions from a file or a pipe; one that fails does not end the others, Ctrl-C does.
    fn answer_lines(&mut self) -> Result<ExitCode> {
        let (mut code, mut stdin) = (ExitCode::SUCCESS, std::io::stdin().lock());
        while let Some(line) = next_line(&mut stdin, MAX_LINE) {
            let (turn, text) = match line {
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => (Err(e), String::new()),
                Ok(line) => (self.turn(&line), String::from_utf8_lossy(line.trim_ascii()).into_owned()),
            };
            match turn {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) if is_unwritten(&e) => return Err(e),
                Err(e) => {
                    report(&e);
                    self.fail(&text, &e);
                    code = ExitCode::FAILURE;
                }
            }
            if ENDED.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(exit(code))
    }

    /// A command or a question; false to end.
    fn turn(&mut self, line: &[u8]) -> Result<bool> {
        let line = line.trim_ascii();
        let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
        let (command, rest) = (String::from_utf8_lossy(&line[..end]), line[end..].trim_ascii());
        match &*command {
            "" => {}
            "/image" | "/save" if rest.is_empty() => {
                return Err(Error::usage(&*command, "a file behind it", "none"));
            }
            "/image" => {
                let file = file(rest);
                let tiles = self.show(&file)?;
                eprintln!("{}: {}", file.display(), counted(tiles, "tile"));
            }
            "/drop" => {
                let dropped = counted(self.next.len(), "picture");
                self.next.clear();
                eprintln!("{dropped} taken back.");
            }
            "/reset" => {
                self.conversation = self.chat.conversation(self.args.system.clone());
                self.shown.clear();
                self.next.clear();
                eprintln!("Nothing has been said, and no picture shown.");
            }
            "/save" => {
                let file = file(rest);
                let transcript = serde_json::to_string_pretty(&self.transcript()).unwrap_or_default();
                write_file(&file, transcript.as_bytes())?;
                eprintln!("{}: {}", file.display(), counted(self.shown.len(), "turn"));
            }
            "/help" => eprintln!(
                "/image FILE   one more picture, with the next question\n\
                 /drop         no pictures with the next question\n\
                 /reset        forget all that was said and shown\n\
                 /save FILE    write the conversation as JSON\n\
                 /quit         end"
            ),
            "/quit" => return Ok(false),
            // `/usr/bin is what?` is a question.
            _ if command.starts_with('/') && !command[1..].contains('/') => {
                return Err(Error::usage(
                    command,
                    "/image, /drop, /reset, /save, /help or /quit",
                    "another command",
                ));
            }
            _ => {
                let question = std::str::from_utf8(line)
                    .map_err(|_| not_text(format!("{:?}", String::from_utf8_lossy(line))))?;
                let reply = self.ask(question)?;
                if std::io::stderr().is_terminal() {
                    eprintln!("{}", summary(&reply));
                }
            }
        }
        Ok(true)
    }

    fn transcript(&self) -> Value {
        let turns = self.conversation.turns().iter().zip(&self.shown);
        let turns: Vec<Value> = turns
            .map(|((question, answer), images)| {
                json!({"images": names(images), "question": question.to_string(), "answer": answer})
            })
            .collect();
        json!({"model": self.args.model, "system": self.args.system, "turns": turns})
    }
}

/// A file behind a command: as it is written, or as a shell reads it (a terminal quotes what is dropped on it), from the home folder with `~/`.
fn file(text: &[u8]) -> PathBuf {
    let written = PathBuf::from(OsStr::from_bytes(text));
    if written.exists() {
        return written;
    }
    let path = match shlex::bytes::split(text).as_deref() {
        Some([word]) => PathBuf::from(OsStr::from_bytes(word)),
        _ => written,
    };
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// Files' names, for JSON.
fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.to_string_lossy().into_owned()).collect()
}

/// Text for a terminal: control characters, which could move its cursor or worse, as `\u{1b}`.
fn harmless(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// `2 tiles`
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn not_text(found: String) -> Error {
    Error::usage("question", "text in UTF-8", found)
}

/// What an answer cost and why it ended before its end, for a person.
fn summary(r: &Reply) -> String {
    let first =
        r.timings.first_token_ms.map_or(String::new(), |ms| format!(", the first after {:.2} s", ms / 1e3));
    let speed = r.tokens_per_second().map_or(String::new(), |s| format!(", then {s:.1} tokens/s"));
    let per_step = r.tokens.len().saturating_sub(1) as f64 / r.steps.max(1) as f64;
    let guessed = if r.accepted > 0 { format!(", {per_step:.1} a step") } else { String::new() };
    let cut = match r.finish {
        Finish::Stop => "",
        Finish::Cancelled => "; ended by Ctrl-C",
        Finish::Length => "; cut off by --max-new-tokens",
        Finish::CacheFull => "; cut off, as the cache is full (/reset, --cache-tokens)",
    };
    format!(
        "[{} behind {} ({} kept){first}{speed}{guessed}{cut}]",
        counted(r.tokens.len(), "token"),
        r.prompt_tokens,
        r.cached_tokens
    )
}

/// An answer as JSON.
fn line(question: &str, images: &[PathBuf], r: &Reply) -> Value {
    json!({
        "question": question, "images": names(images), "answer": r.text, "finish": r.finish, "tokens": r.tokens,
        "prompt_tokens": r.prompt_tokens, "cached_tokens": r.cached_tokens, "steps": r.steps,
        "guessed_tokens": r.guessed, "accepted_tokens": r.accepted,
        "tokens_per_second": r.tokens_per_second(), "timings": r.timings,
    })
}
