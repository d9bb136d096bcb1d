//! `mllmseg chat`: questions about pictures, once or in conversation.

use super::{On, report};
use mllmseg::chat::{Chat, Conversation, Finish, Generation, Picture, Reply, Sampling};
use mllmseg::image::{Limits, read, write_file};
use mllmseg::{Error, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ask questions about pictures
///
/// With a question: answers it and ends. Without one: a conversation, a question a line, from the terminal or from stdin. The answer is
/// written as it is produced; Ctrl-C ends the answer, not the conversation. Each turn computes only what is new. Answers are greedy unless
/// one of --sample, --temperature, --top-p and --top-k is given.
///
/// In conversation: /image FILE shows one more picture with the next question, /reset forgets all that was said and shown, /save FILE writes it as
/// JSON, /help lists these, /quit ends.
///
/// Example: mllmseg chat --model DIR --image cats.jpg "How many cats are there?"
#[derive(clap::Args)]
pub struct Args {
    /// The question; `<image>` in it is where a picture stands, if not before it
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

/// How answers are generated.
#[derive(clap::Args)]
pub struct Generate {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_new_tokens: u32,
    /// Draw tokens instead of taking the most likely: temperature 1, the 50 most likely ones, unless said otherwise
    #[arg(long)]
    sample: bool,
    /// Divide the logits by this
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the fewest most likely tokens whose probabilities add up to this
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from the K most likely tokens (0: all)
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Divide the logits of tokens that were generated before by this
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tokens that the K/V cache holds, pictures' included
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub cache_tokens: usize,
    /// Compute one token at a time: no guessing from the text before (the answers are the same)
    #[arg(long, help_heading = "Checking")]
    no_guess: bool,
}

impl Generate {
    /// As the engine takes it.
    pub fn generation(&self) -> Generation {
        let drawn = self.sample || self.temperature.is_some() || self.top_p.is_some() || self.top_k.is_some();
        let mut sampling = Sampling { seed: self.seed, ..Sampling::GREEDY };
        sampling.repetition_penalty = self.repetition_penalty;
        if drawn {
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

/// Set by Ctrl-C.
static ENDED: AtomicBool = AtomicBool::new(false);

pub fn run(args: Args) -> Result<ExitCode> {
    let mut session = Session::open(&args)?;
    // From here on: while the model is being opened, Ctrl-C ends the program.
    let set = ctrlc::set_handler(|| ENDED.store(true, Ordering::Relaxed));
    set.map_err(|e| Error::usage("Ctrl-C", "a handler", e.to_string()))?;
    if let Some(question) = &args.question {
        session.ask(question)?;
        return Ok(ExitCode::SUCCESS);
    }
    if std::io::stdin().is_terminal() { session.converse() } else { session.answer_lines() }
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
        ENDED.store(false, Ordering::Relaxed);
        let (files, pictures): (Vec<PathBuf>, Vec<Picture>) = self.next.iter().cloned().unzip();
        let (generation, json) = (self.args.generate.generation(), self.args.json);
        let mut out = std::io::stdout().lock();
        let reply = self.chat.say(&mut self.conversation, question, pictures, &generation, &mut |text| {
            // A reader that has gone ends the answer.
            let written = json || write!(out, "{text}").and_then(|()| out.flush()).is_ok();
            written && !ENDED.load(Ordering::Relaxed)
        })?;
        let line = if json { line(question, &files, &reply).to_string() } else { String::new() };
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        self.next.clear();
        self.shown.push(files);
        Ok(reply)
    }

    /// Questions from a terminal.
    fn converse(&mut self) -> Result<ExitCode> {
        let failed =
            |e: ReadlineError| Error::usage("terminal", "one that lines can be read from", e.to_string());
        let mut editor = DefaultEditor::new().map_err(failed)?;
        eprintln!("A question a line; /help for more, Ctrl-D ends.");
        for (path, picture) in &self.next {
            eprintln!("{}: {}", path.display(), counted(picture.tiles(), "tile"));
        }
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let _ = editor.add_history_entry(line.trim());
                    match self.turn(line.trim()) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) => report(&e),
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

    /// Questions from a file or a pipe; one that fails does not end the others.
    fn answer_lines(&mut self) -> Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        for line in std::io::stdin().lock().split(b'\n') {
            let line = line.map_err(Error::io(Path::new("stdin"), "read"))?;
            let text = String::from_utf8_lossy(&line);
            let turn = match text {
                Cow::Borrowed(text) => self.turn(text.trim()),
                Cow::Owned(_) => Err(not_text(format!("{text:?}"))),
            };
            match turn {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    report(&e);
                    if self.args.json {
                        println!("{}", json!({"question": text.trim(), "error": e.to_string()}));
                    }
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }

    /// A command or a question; false to end.
    fn turn(&mut self, line: &str) -> Result<bool> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let file = Path::new(rest.trim());
        match command {
            "" => {}
            "/image" | "/save" if rest.trim().is_empty() => {
                return Err(Error::usage(command, "a file behind it", "none"));
            }
            "/image" => {
                let tiles = self.show(file)?;
                eprintln!("{}: {}", file.display(), counted(tiles, "tile"));
            }
            "/reset" => {
                self.conversation = self.chat.conversation(self.args.system.clone());
                self.shown.clear();
                self.next.clear();
                eprintln!("Nothing has been said, and no picture shown.");
            }
            "/save" => {
                write_file(
                    file,
                    serde_json::to_string_pretty(&self.transcript()).unwrap_or_default().as_bytes(),
                )?;
                eprintln!("{}: {}", file.display(), counted(self.shown.len(), "turn"));
            }
            "/help" => eprintln!(
                "/image FILE   one more picture, with the next question\n\
                 /reset        forget all that was said and shown\n\
                 /save FILE    write the conversation as JSON\n\
                 /quit         end"
            ),
            "/quit" => return Ok(false),
            _ if command.starts_with('/') => {
                return Err(Error::usage(
                    command,
                    "/image, /reset, /save, /help or /quit",
                    "another command",
                ));
            }
            _ => {
                let reply = self.ask(line)?;
                if std::io::stderr().is_terminal() {
                    eprintln!("{}", summary(&reply));
                }
            }
        }
        Ok(true)
    }

    fn transcript(&self) -> Value {
        let turns = self.conversation.turns().iter().zip(&self.shown);
        let turn = |((question, answer), images): (&(String, String), &Vec<PathBuf>)| json!({"images": images, "question": question, "answer": answer});
        json!({"model": self.args.model, "system": self.args.system, "turns": turns.map(turn).collect::<Vec<_>>()})
    }
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
        "[{} behind {} ({} kept), the first after {:.2} s{speed}{guessed}{cut}]",
        counted(r.tokens.len(), "token"),
        r.prompt_tokens,
        r.cached_tokens,
        r.timings.first_token_ms / 1e3
    )
}

/// An answer as JSON.
fn line(question: &str, images: &[PathBuf], r: &Reply) -> Value {
    json!({
        "question": question, "images": images, "answer": r.text, "finish": r.finish, "tokens": r.tokens,
        "prompt_tokens": r.prompt_tokens, "cached_tokens": r.cached_tokens, "steps": r.steps,
        "guessed_tokens": r.guessed, "accepted_tokens": r.accepted,
        "tokens_per_second": r.tokens_per_second(), "timings": r.timings,
    })
}
