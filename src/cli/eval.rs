//! `mllmseg eval`: the published data sets, and the figures that the papers report of them.

use super::batch::{Devices, progress, stop_at_interrupt};
use super::make_dir;
use mllmseg::batch::journal::RESULTS;
use mllmseg::batch::{Ask, Compute, Disk, Settings, Stats};
use mllmseg::chat;
use mllmseg::eval::{Metrics, Name, Place, Protocol, Split, THRESHOLDS, answer, score};
use mllmseg::image::write_file;
use mllmseg::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;

/// Evaluate on RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO or ReasonSeg, in their published files
///
/// DIR is laid out as the published code has it: refcoco/refs(unc).p and instances.json, grefcoco/grefs(unc).json,
/// images/mscoco/images/train2014/, ReasonSeg/val/; refer_seg/ or reason_seg/ may stand between. Pickles are read as data: nothing
/// in them can run.
///
/// Protocols: `deploy` asks every expression alone, nothing of the ground truth in the prompt; `upstream` does what the published scripts do
/// (all expressions of a picture in one prompt, the slots in it holding the ground truth, their way of counting); `rela` (gRefCOCO)
/// asks as `deploy` and counts as that data set's paper.
///
/// Prints a table of percentages. OUT/eval.json has the same as shares; OUT/SPLIT/results.jsonl the masks, samples.jsonl a line an
/// expression. Ended in any way, run again it continues; what is answered is not asked again, also for other protocols.
/// Exit code: 0 all done, 3 some expressions failed (they are in no figure), 1 the run failed or was stopped, 2 usage.
///
/// Example: mllmseg eval --model DIR --data datasets --dataset refcoco,refcoco+ --protocol upstream,deploy --device cuda:0,cuda:1 --out eval
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Folder that holds the data sets' folders
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// refcoco, refcoco+, refcocog, grefcoco, ReasonSeg; several with commas
    #[arg(long, value_name = "NAME", required = true, value_delimiter = ',')]
    dataset: Vec<Name>,
    /// Splits [default: those that results are reported on]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    split: Vec<String>,
    /// Whose split [default: umd for refcocog, else unc]
    #[arg(long, value_parser = ["unc", "umd", "google"])]
    split_by: Option<String>,
    /// COCO's train2014 pictures, if they are not in DIR
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// upstream, deploy, rela; several with commas
    #[arg(long, value_name = "NAME", default_value = "deploy", value_delimiter = ',', value_parser = protocol)]
    protocol: Vec<Protocol>,
    /// Only the first N pictures of each split
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Forget what is in the folder and start over
    #[arg(long)]
    restart: bool,
    /// The figures as JSON on stdout instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    devices: Devices,
}

fn protocol(text: &str) -> std::result::Result<Protocol, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected upstream, deploy or rela".into())
}

pub fn run(args: Args) -> Result<ExitCode> {
    let other = args.dataset.iter().find(|name| !name.generalized());
    if let Some(name) = other.filter(|_| args.protocol.contains(&Protocol::Rela)) {
        return Err(Error::usage("--protocol rela", "grefcoco only", name.to_string()));
    }
    make_dir(&args.out)?;
    let (mut state, mut rows, mut failed) = (State::default(), Vec::new(), 0);
    if !args.json {
        println!("{}", header());
    }
    for &name in &args.dataset {
        let split_by = args.split_by.clone().unwrap_or_else(|| name.split_by().into());
        let splits = match &args.split[..] {
            [] => name.splits(&split_by).iter().map(|s| s.to_string()).collect(),
            splits => splits.to_vec(),
        };
        let place = Place { root: args.data.clone(), images: args.images.clone(), name, split_by };
        for mut split in place.read(&splits)? {
            split.pictures.truncate(args.limit.map_or(usize::MAX, |n| n as usize));
            for &protocol in &args.protocol {
                let Some(row) = one(&args, &split, protocol, &mut state)? else {
                    eprintln!("stopped; run the same again to continue");
                    return Ok(ExitCode::FAILURE);
                };
                if !args.json {
                    println!("{}", line(&split, protocol, &row));
                }
                failed += row.1;
                rows.push(as_json(&split, protocol, &row));
            }
        }
    }
    let file = args.out.join("eval.json");
    let text = format!("{:#}\n", json!({"model": args.model, "figures": rows}));
    write_file(&file, text.as_bytes())?;
    if args.json {
        print!("{text}");
    }
    eprintln!("as shares: {}", file.display());
    if failed > 0 {
        eprintln!("{failed} expressions have no answer and are in no figure");
    }
    Ok(ExitCode::from(if failed > 0 { 3 } else { 0 }))
}

/// What stays from split to split.
#[derive(Default)]
struct State<'a> {
    /// Opened when there is something to ask.
    compute: Option<Compute<'a>>,
    /// Folders that were started over.
    restarted: HashSet<String>,
}

/// Figures, and how many expressions are not in them.
type Row = (Metrics, usize);

/// Answers what is missing of a split and scores it; `None` if the run was asked to stop.
fn one<'a>(args: &'a Args, split: &Split, protocol: Protocol, state: &mut State<'a>) -> Result<Option<Row>> {
    let how = if protocol.joint() { "joint" } else { "single" };
    let name = [split.name.folder(), &split.split_by, &split.split, how].join("_");
    let settings =
        Settings { out: args.out.join(&name), timeout: args.devices.timeout(), ..Settings::default() };
    let out = settings.out.clone();
    let (disk, stats) = (Disk::default(), Stats::default());
    let options = args.devices.how.results_depend_on();
    let open = || {
        // Nothing is asked in words.
        let cache_tokens = chat::Options::default().cache_tokens;
        let worker = vec!["--keep-rejected".into()];
        args.devices.compute(&args.model, cache_tokens, worker, &Ask::Expressions)
    };
    let (position, length) = (AtomicU64::new(0), split.pictures.len() as u64);
    let done = progress(&stats, (&position, length), || {
        let restart = args.restart && state.restarted.insert(name.clone());
        let run = (args.model.as_str(), options.as_str(), restart);
        let shared = (&disk, &stats, stop_at_interrupt(), &position);
        answer(split, protocol, run, settings, (&mut state.compute, open), shared)
    })?;
    if !done {
        return Ok(None);
    }
    let mut lines = Vec::new();
    let scored = score(split, &out.join(RESULTS), |sample| {
        serde_json::to_writer(&mut lines, &sample).map_err(|e| Error::io(&out, "write")(e.into()))?;
        lines.push(b'\n');
        Ok(())
    })?;
    write_file(&out.join("samples.jsonl"), &lines)?;
    for failure in scored.failed.iter().take(5) {
        eprintln!("{name}: {}", failure.message);
    }
    Ok(Some((scored.metrics(split, protocol), scored.failed.len())))
}

fn header() -> String {
    let precision: String = THRESHOLDS.iter().map(|t| format!(" {:>6}", format!("P@{t}"))).collect();
    format!(
        "{:<20} {:<8} {:>6} {:>6} {:>6}{precision} {:>6} {:>6} {:>6}",
        "split", "protocol", "expr.", "cIoU", "gIoU", "REC", "N-acc", "T-acc"
    )
}

/// Percentages.
fn line(split: &Split, protocol: Protocol, (m, failed): &Row) -> String {
    let cell = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.2}", 100.0 * s));
    let precision: String =
        (0..THRESHOLDS.len()).map(|i| format!(" {:>6}", cell(m.precision.map(|p| p[i])))).collect();
    let figures = [m.rec, m.n_acc, m.t_acc].map(|v| format!(" {:>6}", cell(v))).concat();
    let name = format!("{} {}", split.name, split.split);
    let note = if *failed > 0 { format!("  ({failed} failed)") } else { String::new() };
    format!(
        "{name:<20} {:<8} {:>6} {:>6} {:>6}{precision}{figures}{note}",
        protocol.to_string(),
        m.expressions,
        cell(m.ciou),
        cell(m.giou)
    )
}

fn as_json(split: &Split, protocol: Protocol, (metrics, failed): &Row) -> Value {
    json!({
        "dataset": split.name.folder(), "split_by": split.split_by, "split": split.split, "protocol": protocol,
        "metrics": metrics, "failed": failed,
    })
}
