//! `mllmseg batch`: a data set of pictures and expressions, unattended.

use super::{Each, How, report as tell};
use mllmseg::batch::journal::RESULTS;
use mllmseg::batch::{Batch, Compute, Counts, Disk, Stats, Worker, dry_run, manifest, report, run_batch};
use mllmseg::batch::{coco, parquet};
use mllmseg::device::Choice;
use mllmseg::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Duration;

/// Segment a data set: a manifest, a folder, a glob, tar shards, Parquet files
///
/// A manifest has a line of JSON an item: {"id": anything, "image": FILE | "image_b64": BYTES, "exprs": [...] | "expr": ...}; paths
/// start at its folder. Tar shards (as WebDataset's) and Parquet files (as the Hugging Face hub's) hold pictures and expressions. OUT/results.jsonl gets a line for each item and expression: index, id, image, expr, and the mask as COCO
/// RLE with bbox, area, score, no_target; or {"error": {"kind": "permanent" | "transient", "message": ...}}.
///
/// Ended in any way, run again it continues, and what failed for now is tried again. Ctrl-C finishes what is in flight.
/// Exit code: 0 all done, 3 some items failed, 1 the run failed or was stopped, 2 usage.
///
/// Example: mllmseg batch data/manifest.jsonl --model DIR --device cuda:0,cuda:1 --out results
#[derive(clap::Args)]
pub struct Args {
    /// Manifest, folder of pictures, .tar, .tar.gz, .parquet, or a glob (in quotes)
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
    /// Where to run: cpu, cuda:N or sim; several, as cuda:0,cuda:1, get a process each
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    device: Vec<Choice>,
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
    #[command(flatten)]
    each: Each,
    #[command(flatten)]
    how: How,
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

/// 0 if nothing failed, else 3.
pub fn exit_code(counts: &Counts) -> ExitCode {
    ExitCode::from(if counts.permanent + counts.transient > 0 { 3 } else { 0 })
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
    let shard = args.shard.unwrap_or([0, 1]);
    let input = manifest::open(&args.source, &args.expr)?;
    let settings = args.each.settings(out.clone());
    if args.dry_run {
        let engine = args.how.open(&args.model, Choice::Cpu)?;
        let wanted = |index: u64| index % shard[1] == shard[0];
        let found = dry_run(&engine, input.items, wanted, &settings)?;
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
        options: format!("{}, {}", args.each.results_depend_on(), args.how.results_depend_on()),
        shard,
        unordered: args.unordered,
        restart: args.restart,
        settings,
    };
    let compute = || {
        if args.device == [Choice::Cpu] {
            return Ok(Compute::Engine(Box::new(args.how.open(&args.model, Choice::Cpu)?)));
        }
        let program = std::env::current_exe().map_err(Error::io(&PathBuf::from("mllmseg"), "find"))?;
        let worker = |device: &Choice| {
            let mut command = vec![program.clone().into_os_string()];
            command.extend(["worker", "--stdio", "--model", &args.model, "--out"].map(Into::into));
            command.push(out.clone().into_os_string());
            command.push(format!("--device={device}").into());
            command.extend(args.each.args().into_iter().chain(args.how.args()).map(Into::into));
            Worker { device: device.to_string(), command }
        };
        Ok(Compute::Workers(args.device.iter().map(worker).collect()))
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
        eprint!("{summary}");
        eprintln!(
            "{} items recorded: {} done, {} failed for good, {} failed for now -> {}",
            counts.items(),
            counts.done,
            counts.permanent,
            counts.transient,
            out.display()
        );
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
    Ok(exit_code(&counts))
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
