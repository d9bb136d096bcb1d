//! `mllmseg batch`: a data set of pictures and expressions, unattended.

use super::chat::Generate;
use super::{Compute, Each, How, On, report as tell};
use mllmseg::batch::journal::{JOURNAL, MASKS, OVERLAYS, PARTIAL, REPORT, RESULTS};
use mllmseg::batch::{self as batch, Ask, Batch, Counts, Disk, Models, Stats, Worker};
use mllmseg::batch::{coco, dry_run, manifest, parquet, report, run_batch};
use mllmseg::chat::Sampling;
use mllmseg::device::Choice;
use mllmseg::{Error, Options, Result};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Duration;

/// Segment a data set: a manifest, a folder, a glob, tar shards, Parquet files
///
/// A manifest has a line of JSON an item: {"id": anything, "image": FILE | "image_b64": BYTES, "exprs": [...] | "expr": ...}; paths
/// start at its folder. Tar shards (as WebDataset's) and Parquet files (as the Hugging Face hub's) hold pictures and expressions.
/// OUT/results.jsonl gets a line for each item and expression: index, id, image, expr, and the mask as COCO RLE with bbox, area, score,
/// no_target; or {"error": {"kind": "permanent" | "transient", "message": ...}}.
///
/// Instead of expressions an item may have "questions": [...] | "question": ..., each of which is answered on its own, in words: its line has
/// question, answer, finish (why it ended: stop, length, cache_full) and tokens. With nothing but questions the checkpoint needs no mask
/// decoder.
///
/// Ended in any way, run again it continues, and what failed for now is tried again. Ctrl-C and SIGTERM finish what is in flight.
/// Exit code: 0 all done, 3 some items failed, 1 the run failed or was stopped, 2 usage.
///
/// Example: mllmseg batch data/manifest.jsonl --model DIR --device cuda:0,cuda:1 --out results
#[derive(clap::Args)]
pub struct Args {
    /// Manifest, folder of pictures, .tar, .tar.gz, .parquet, or a glob, `{000..127}` too (in quotes)
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What to ask of the pictures of a folder or glob, or instead of what tar shards and Parquet files ask; once for each
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    expr: Vec<String>,
    /// Do the I-th of N parts, I from 0, into OUT/shard-I-of-N; `auto` takes both from a Slurm array's or an indexed Kubernetes job's
    /// variables (SLURM_ARRAY_TASK_ID and _COUNT; JOB_COMPLETION_INDEX and JOB_COMPLETIONS)
    #[arg(long, value_name = "I/N|auto", value_parser = shard)]
    shard: Option<[u64; 2]>,
    /// Write results as they are ready instead of in the source's order
    #[arg(long)]
    unordered: bool,
    /// Forget what is in the folder and start over
    #[arg(long)]
    restart: bool,
    /// Write OUT/report.html, a page that shows the first thousand items (implies --overlays)
    #[arg(long)]
    report: bool,
    /// Look at every record, picture header and expression, say what the run needs, and compute nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    made: Made,
    /// The final numbers as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Exit with 0 also if items failed (their lines say why), for schedulers that would run the whole again
    #[arg(long)]
    failures_ok: bool,
    #[command(flatten)]
    each: Each,
    #[command(flatten)]
    devices: Devices,
    #[command(flatten, next_help_heading = "Questions")]
    questions: Questions,
}

/// Where a data set is computed.
#[derive(clap::Args)]
pub struct Devices {
    /// Where to run: cpu, cuda:N or sim; several, as cuda:0,cuda:1. All but a single cpu get a process each
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    device: Vec<Choice>,
    /// End a device's process that gave no mask and no word of an answer for S seconds, and try its items once more on another (0: wait
    /// forever). Opening the model takes part of it, and so do the first eight pictures
    #[arg(long, value_name = "S", default_value_t = 1800)]
    item_timeout: u64,
    #[command(flatten)]
    pub how: How,
}

impl Devices {
    /// How long a process may say nothing.
    pub fn timeout(&self) -> Option<Duration> {
        (self.item_timeout > 0).then(|| Duration::from_secs(self.item_timeout))
    }

    /// What computes: a single CPU in this process, everything else in processes of their own, which get `args`. What `first`, the way in which
    /// the first item is asked, needs is opened at once.
    pub fn compute<'a>(
        &'a self,
        model: &'a str,
        cache_tokens: usize,
        args: Vec<OsString>,
        first: &Ask,
    ) -> Result<batch::Compute<'a>> {
        if self.device == [Choice::Cpu] {
            let on = On { device: Choice::Cpu, how: self.how.clone() };
            let compute = Compute { on, without: Vec::new(), log_nodes: None };
            let mut models = models(model, compute, cache_tokens)?;
            models.open_for(first)?;
            return Ok(batch::Compute::Here(Box::new(models)));
        }
        let program = std::env::current_exe().map_err(Error::io(Path::new("mllmseg"), "find"))?;
        let worker = |device: &Choice| {
            let mut command = vec![program.clone().into_os_string()];
            command.extend(["worker", "--stdio", "--alive", "--model", model].map(Into::into));
            command.push(format!("--device={device}").into());
            command.extend((*first == Ask::Questions).then(|| "--questions-first".into()));
            command.extend(args.iter().cloned().chain(self.how.args().into_iter().map(Into::into)));
            Worker { device: device.to_string(), command }
        };
        Ok(batch::Compute::Workers(self.device.iter().map(worker).collect()))
    }
}

/// A checkpoint for expressions and questions on one device, of which nothing is opened yet.
pub fn models(model: &str, compute: Compute, cache_tokens: usize) -> Result<Models<'_>> {
    let options =
        Options { device: compute.on.device, user_text: compute.on.how.user_text(), ..Options::default() };
    let on = On { device: compute.on.device, how: compute.on.how.clone() };
    let chat = move || on.chat(model, cache_tokens);
    Models::new(model, (options, cache_tokens), move || compute.open(model), chat)
}

/// How questions are answered.
#[derive(clap::Args)]
pub struct Questions {
    #[command(flatten)]
    generate: Generate,
    /// Most tiles that a picture is cut into, the thumbnail not counted [default: the checkpoint's max_dynamic_patch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=12))]
    max_tiles: Option<u16>,
    /// Instead of the checkpoint's system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

impl Questions {
    /// Tokens that the K/V cache holds.
    pub fn cache_tokens(&self) -> usize {
        self.generate.cache_tokens
    }

    /// As a batch takes it.
    pub fn settings(&self) -> batch::Questions {
        let (generation, max_tiles) = (self.generate.generation(), self.max_tiles.map(usize::from));
        batch::Questions { generation, max_tiles, system: self.system.clone() }
    }

    /// As arguments of a worker.
    fn args(&self) -> Vec<String> {
        let batch::Questions { generation, max_tiles, system } = self.settings();
        let by = generation.sampling;
        let mut args = vec![
            format!("--max-new-tokens={}", generation.max_new_tokens),
            format!("--repetition-penalty={}", by.repetition_penalty),
            format!("--seed={}", by.seed),
            format!("--cache-tokens={}", self.cache_tokens()),
        ];
        if by != (Sampling { repetition_penalty: by.repetition_penalty, seed: by.seed, ..Sampling::GREEDY }) {
            args.extend([format!("--temperature={}", by.temperature), format!("--top-p={}", by.top_p)]);
            args.push(format!("--top-k={}", by.top_k));
        }
        args.extend((!generation.speculate).then(|| "--no-guess".into()));
        args.extend(max_tiles.map(|n| format!("--max-tiles={n}")));
        args.extend(system.map(|text| format!("--system={text}")));
        args
    }

    /// What of it changes results, as text.
    fn results_depend_on(&self) -> String {
        let batch::Questions { generation, max_tiles, system } = self.settings();
        let (most, by, cache) = (generation.max_new_tokens, generation.sampling, self.cache_tokens());
        format!("questions {most} {by:?} {cache} {max_tiles:?} {system:?}")
    }
}

/// Files that are made of the results when all are there.
#[derive(clap::Args)]
pub struct Made {
    /// Make an instances file of COCO's of the results, for pycocotools or CVAT
    #[arg(long, value_name = "FILE")]
    coco: Option<PathBuf>,
    /// Make a Parquet file of the results, a row an expression
    #[arg(long, value_name = "FILE")]
    parquet: Option<PathBuf>,
}

impl Made {
    /// An error if one would take the place of the other, of the source or of results.
    fn check(&self, source: &str, out: &Path) -> Result<()> {
        let whole = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.into());
        let (out, source) = (whole(out), whole(Path::new(source)));
        let mut made = Vec::new();
        for (option, file) in [("--coco", &self.coco), ("--parquet", &self.parquet)] {
            let Some(file) = file else { continue };
            let path = whole(file);
            let owned = [JOURNAL, RESULTS, PARTIAL, REPORT, MASKS, OVERLAYS].map(|name| out.join(name));
            if path == source || made.contains(&path) || owned.iter().any(|p| path.starts_with(p)) {
                return Err(Error::usage(option, "a file of its own", file.display().to_string()));
            }
            made.push(path);
        }
        Ok(())
    }

    /// Makes them of the results in `out`.
    pub fn make(&self, out: &Path) -> Result<()> {
        let results = out.join(RESULTS);
        if let Some(file) = &self.coco {
            coco::write(&results, file)?;
        }
        if let Some(file) = &self.parquet {
            parquet::write(&results, file)?;
        }
        Ok(())
    }

    fn any(&self) -> bool {
        self.coco.is_some() || self.parquet.is_some()
    }
}

fn shard(text: &str) -> std::result::Result<[u64; 2], String> {
    if text == "auto" {
        return shard_of(&|name| std::env::var(name).ok());
    }
    let parts = text.split_once('/').and_then(|(i, n)| Some([i.parse().ok()?, n.parse().ok()?]));
    let valid = parts.filter(|[i, n]: &[u64; 2]| i < n);
    valid.ok_or_else(|| "expected I/N with I from 0 to N-1, or auto".into())
}

/// The shard that a cluster's variables name.
fn shard_of(variable: &dyn Fn(&str) -> Option<String>) -> std::result::Result<[u64; 2], String> {
    let number = |name: &str| -> std::result::Result<u64, String> {
        let value =
            variable(name).ok_or_else(|| format!("expected {name} in the environment, found none"))?;
        value.trim().parse().map_err(|_| format!("{name}: expected a number, found `{value}`"))
    };
    let (i, n) = if variable("SLURM_ARRAY_TASK_ID").is_some() {
        let first = variable("SLURM_ARRAY_TASK_MIN").map_or(Ok(0), |_| number("SLURM_ARRAY_TASK_MIN"))?;
        let i = number("SLURM_ARRAY_TASK_ID")?;
        (
            i.checked_sub(first).ok_or("SLURM_ARRAY_TASK_ID: expected SLURM_ARRAY_TASK_MIN or more")?,
            number("SLURM_ARRAY_TASK_COUNT")?,
        )
    } else if variable("JOB_COMPLETION_INDEX").is_some() {
        (number("JOB_COMPLETION_INDEX")?, number("JOB_COMPLETIONS")?)
    } else {
        let expected =
            "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or JOB_COMPLETION_INDEX and JOB_COMPLETIONS";
        return Err(format!("expected {expected} in the environment, found neither"));
    };
    if i >= n {
        return Err(format!(
            "expected a task number below the {n} tasks, found {i} (an array's numbers must be without gaps)"
        ));
    }
    Ok([i, n])
}

/// 0 if nothing failed, or if that is `ok`, else 3.
pub fn exit_code(counts: &Counts, ok: bool) -> ExitCode {
    ExitCode::from(if !ok && counts.permanent + counts.transient > 0 { 3 } else { 0 })
}

/// Set at the first Ctrl-C; the second ends the process.
pub fn stop_at_interrupt() -> &'static AtomicBool {
    static STOP: AtomicBool = AtomicBool::new(false);
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        let handler = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nfinishing what is in flight; once more ends it at once, and loses only that");
        });
        if let Err(e) = handler {
            eprintln!("note: Ctrl-C will not finish what is in flight: {e}");
        }
    });
    &STOP
}

pub fn run(mut args: Args) -> Result<ExitCode> {
    args.each.overlays |= args.report;
    if args.shard.is_some() && args.made.any() {
        let expected = "them with `mllmseg merge`, which has all results";
        return Err(Error::usage("--coco, --parquet", expected, "a shard"));
    }
    let mut out = args.out.clone();
    if let Some([i, n]) = args.shard {
        out.push(format!("shard-{i:05}-of-{n:05}"));
    }
    args.made.check(&args.source, &out)?;
    let shard = args.shard.unwrap_or([0, 1]);
    let input = manifest::open(&args.source, &args.expr)?;
    let mut settings = args.each.settings(out.clone());
    (settings.questions, settings.timeout) = (args.questions.settings(), args.devices.timeout());
    let how = &args.devices.how;
    if args.dry_run {
        let on = On { device: Choice::Cpu, how: how.clone() };
        let compute = Compute { on, without: Vec::new(), log_nodes: None };
        let mut models = models(&args.model, compute, args.questions.cache_tokens())?;
        let wanted = |index: u64| index % shard[1] == shard[0];
        let found = dry_run(&mut models, input.items, wanted, &settings)?;
        for (index, failure) in &found.problems {
            eprintln!("item {index}: {}", failure.message);
        }
        if args.json {
            println!("{}", serde_json::to_string(&found).unwrap_or_default());
        } else {
            print!("{found}");
        }
        return Ok(ExitCode::from(if found.failing > 0 { 3 } else { 0 }));
    }
    let batch = Batch {
        model: &args.model,
        options: [args.each.results_depend_on(), how.results_depend_on(), args.questions.results_depend_on()]
            .join(", "),
        shard,
        unordered: args.unordered,
        restart: args.restart,
        settings,
    };
    // The first item says what is opened at once.
    let mut items = input.items.peekable();
    let first = items.peek().and_then(|item| Some(item.as_ref().ok()?.ask.clone())).unwrap_or_default();
    let input = manifest::Input { items: Box::new(items), ..input };
    let compute = || {
        let mut worker: Vec<OsString> = vec!["--out".into(), out.clone().into()];
        worker.extend(args.each.args().into_iter().chain(args.questions.args()).map(Into::into));
        args.devices.compute(&args.model, args.questions.cache_tokens(), worker, &first)
    };
    let (disk, stats) = (Disk::default(), Stats::default());
    let (position, length) = (std::sync::Arc::clone(&input.position), input.length);
    let ran = progress(&stats, (&position, length), || {
        run_batch(&batch, input, compute, (&disk, &stats, stop_at_interrupt()))
    });
    let end = ran?;
    let (summary, counts) = (stats.summary(), end.counts);
    if args.json {
        let mut numbers = serde_json::to_value(&summary).unwrap_or_default();
        numbers["complete"] = end.complete.into();
        numbers["recorded"] = serde_json::to_value(counts).unwrap_or_default();
        numbers["out"] = out.to_string_lossy().into();
        println!("{numbers}");
    } else {
        if end.before > 0 {
            eprintln!("{} items were done before", end.before);
        }
        if end.lost > 0 {
            eprintln!(
                "{} lines of the journal did not fit the results: what they told of was done again",
                end.lost
            );
        }
        eprint!("{summary}");
        eprintln!(
            "{} items recorded: {} done, {} failed for good, {} failed for now -> {}",
            counts.items(),
            counts.done,
            counts.permanent,
            counts.transient,
            out.display()
        );
        if counts.permanent + counts.transient > 0 {
            eprintln!("why: lines with an \"error\" in {}", out.join(RESULTS).display());
        }
    }
    if !end.complete {
        eprintln!("stopped; run the same again to continue");
        return Ok(ExitCode::FAILURE);
    }
    args.made.make(&out)?;
    if args.report {
        match report(&out) {
            Ok(page) => eprintln!("page: {}", page.display()),
            Err(e) => {
                tell(&e);
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(exit_code(&counts, args.failures_ok))
}

/// Runs `work` and says on stderr how far it is: often on a terminal, now and then in a log.
pub fn progress<T>(stats: &Stats, (position, length): (&AtomicU64, u64), work: impl FnOnce() -> T) -> T {
    let over = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let terminal = std::io::stderr().is_terminal();
            let every = if terminal { Duration::from_millis(500) } else { Duration::from_secs(10) };
            let share = || 1.0 - position.load(Ordering::Relaxed) as f64 / length as f64;
            let mut all = None;
            let mut ended = over.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let wait = over.1.wait_timeout_while(ended, every, |ended| !*ended);
                ended = wait.unwrap_or_else(PoisonError::into_inner).0;
                if *ended {
                    break;
                }
                // What was there before is passed in no time: the clock of what is left starts at the first item.
                if stats.summary().items > 0 && all.is_none() {
                    all = Some(share());
                }
                let line = stats.line(all.filter(|_| length > 0).map(|all| (share(), all)));
                if terminal { eprint!("\r\x1b[K{line}") } else { eprintln!("{line}") }
            }
            if terminal {
                eprint!("\r\x1b[K");
            }
        });
        let done = work();
        *over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        over.1.notify_all();
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_come_from_the_cluster() {
        let of = |vars: &[(&str, &str)]| {
            shard_of(&|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string()))
        };
        let slurm =
            [("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_COUNT", "8"), ("SLURM_ARRAY_TASK_MIN", "1")];
        assert_eq!(of(&slurm), Ok([6, 8]));
        assert_eq!(of(&slurm[..2]), Ok([7, 8]));
        assert_eq!(of(&[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "3")]), Ok([0, 3]));
        assert!(of(&[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        assert!(of(&[("JOB_COMPLETION_INDEX", "0")]).unwrap_err().contains("JOB_COMPLETIONS"));
        assert!(
            of(&[("JOB_COMPLETION_INDEX", "3"), ("JOB_COMPLETIONS", "3")])
                .unwrap_err()
                .contains("below the 3")
        );
        assert!(
            of(&[("SLURM_ARRAY_TASK_ID", "x"), ("SLURM_ARRAY_TASK_COUNT", "3")]).unwrap_err().contains("`x`")
        );
        assert_eq!(shard("2/4"), Ok([2, 4]));
        assert!(shard("4/4").is_err() && shard("1").is_err() && shard("a/b").is_err());
    }
}
