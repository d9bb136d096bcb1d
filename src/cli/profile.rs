//! `mllmseg profile`: one request, node by node: time, or on the simulated driver what its kernels do.

use super::{Compute, PromptingArg};
use mllmseg::Result;
use mllmseg::device::{Choice, cuda};
use mllmseg::image::{Limits, read};
use serde::Serialize;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

/// Run one request and say of every node what it costs
///
/// With --device cpu or cuda:N the times are measured (CUDA events; the second of two runs). With --device sim nothing is timed: the table
/// counts what the kernels do, and `model` is what a roofline over these counts says for the GPU that PTXSIM_GPU names (a100, rtx4090,
/// h100): a lower bound, never a measurement.
///
/// Example: mllmseg profile --device sim --model assets/demo/model --image assets/demo/images/010.png --expr "the white circle"
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// The picture
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Expressions; once for each
    #[arg(long, value_name = "TEXT", required = true, allow_hyphen_values = true)]
    expr: Vec<String>,
    /// How the expressions are asked
    #[arg(long, value_enum, default_value_t = PromptingArg::Single)]
    prompting: PromptingArg,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

/// A node, or the sum of a part's.
#[derive(Clone, Default, Serialize)]
struct Row {
    graph: &'static str,
    node: String,
    op: String,
    launches: u64,
    flops: u64,
    /// Every operand once.
    least_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
}

/// What the simulator counted.
#[derive(Clone, Copy, Default, Serialize)]
struct Counted {
    /// Warp instructions.
    instructions: u64,
    /// Those of tensor cores.
    tensor: u64,
    /// Bytes of the 32-byte sectors that were moved between the multiprocessors and L2, and those asked for.
    moved_bytes: u64,
    used_bytes: u64,
    /// Wavefronts of shared memory beyond the fewest.
    bank_conflicts: u64,
    model_us: f64,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let device = args.compute.on.device;
    let mut engine = args.compute.open(&args.model)?;
    let picture = read(&args.image, &Limits::default(), false)?;
    let expressions: Vec<&str> = args.expr.iter().map(String::as_str).collect();
    let rows = Rc::new(RefCell::new(Vec::<Row>::new()));
    let seen = Rc::clone(&rows);
    engine.observe(move |run| {
        let cost = run.node.op.cost();
        let mut row = Row {
            graph: run.graph,
            node: run.node.name.clone(),
            op: run.node.op.kind().into(),
            flops: cost.flops,
            least_bytes: cost.bytes,
            ..Row::default()
        };
        if device == Choice::Sim {
            let (launches, counted) = count(&cuda::simulator_report().unwrap_or_default());
            (row.launches, row.counted) = (launches, Some(counted));
            cuda::reset_simulator();
        } else {
            row.time_us = Some(run.time.as_secs_f64() * 1e6);
        }
        seen.borrow_mut().push(row);
    });
    cuda::reset_simulator();
    let segmentation = engine.segment(&picture, &expressions, args.prompting.into(), false)?;
    segmentation.answers.into_iter().collect::<Result<Vec<_>>>()?;
    if device != Choice::Sim {
        // The first run warms up: buffers are made, weights are read, clocks rise. What runs once a model is kept from it.
        rows.borrow_mut().retain(|r| r.graph == "system");
        engine.segment(&picture, &expressions, args.prompting.into(), false)?;
    }
    let rows = rows.borrow();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&*rows).unwrap_or_default());
    } else {
        print(&rows, device);
    }
    Ok(ExitCode::SUCCESS)
}

/// Launches and counters of a report of the simulated driver.
fn count(report: &Value) -> (u64, Counted) {
    let (mut launches, mut c) = (0, Counted::default());
    for kernel in report["kernels"].as_object().into_iter().flat_map(|k| k.values()) {
        let (at, number) = (&kernel["counters"], |v: &Value| v.as_u64().unwrap_or(0));
        launches += number(&kernel["launches"]);
        c.model_us += kernel["roofline_model_s"].as_f64().unwrap_or(0.0) * 1e6;
        c.instructions += number(&at["total"]["warps"]);
        c.tensor += at["tensor"]
            .as_object()
            .into_iter()
            .flat_map(|t| t.values())
            .map(|t| number(&t["ops"]))
            .sum::<u64>();
        for part in ["global_load", "global_store", "global_atomic"] {
            c.moved_bytes += 32 * number(&at[part]["sectors"]);
            c.used_bytes += number(&at[part]["bytes"]);
        }
        for part in ["shared_load", "shared_store"] {
            c.bank_conflicts += number(&at[part]["wavefronts"]).saturating_sub(number(&at[part]["ideal"]));
        }
    }
    (launches, c)
}

fn print(rows: &[Row], device: Choice) {
    let sim = device == Choice::Sim;
    if sim {
        let gpu = std::env::var("PTXSIM_GPU").unwrap_or_else(|_| "a100".into());
        println!(
            "counted on the simulated driver; model: a roofline over the counts for {gpu}, not a measurement\n"
        );
        println!(
            "{:<44} {:<18} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9} {:>10}",
            "node",
            "op",
            "launches",
            "GFLOP",
            "least MB",
            "moved MB",
            "sectors%",
            "HMMA k",
            "other/HMMA",
            "conflicts",
            "model us"
        );
    } else {
        println!(
            "{:<44} {:<18} {:>9} {:>9} {:>11} {:>9} {:>9}",
            "node", "op", "GFLOP", "least MB", "us", "GFLOP/s", "GB/s"
        );
    }
    let line = |r: &Row, name: String| match (&r.counted, r.time_us) {
        (Some(c), _) => println!(
            "{name:<44} {:<18} {:>8} {:>9.3} {:>9.3} {:>9.3} {:>9} {:>7.1} {:>10} {:>9} {:>10.1}",
            r.op,
            r.launches,
            r.flops as f64 / 1e9,
            r.least_bytes as f64 / 1e6,
            c.moved_bytes as f64 / 1e6,
            ratio(100 * c.used_bytes, c.moved_bytes, 1),
            c.tensor as f64 / 1e3,
            ratio(c.instructions - c.tensor, c.tensor, 2),
            c.bank_conflicts,
            c.model_us,
        ),
        (None, time) => {
            let us = time.unwrap_or(0.0).max(1e-3);
            println!(
                "{name:<44} {:<18} {:>9.3} {:>9.3} {:>11.1} {:>9.1} {:>9.1}",
                r.op,
                r.flops as f64 / 1e9,
                r.least_bytes as f64 / 1e6,
                us,
                r.flops as f64 / us / 1e3,
                r.least_bytes as f64 / us / 1e3,
            );
        }
    };
    for r in rows {
        line(r, format!("{} {}", r.graph, r.node));
    }
    println!();
    let mut parts = BTreeMap::<(usize, String), Row>::new();
    for r in rows {
        let order = ["system", "image", "text", "masks"].iter().position(|g| *g == r.graph).unwrap_or(9);
        let part = r.node.split('.').next().unwrap_or_default();
        let sum = parts.entry((order, format!("{} {part}", r.graph))).or_default();
        sum.launches += r.launches;
        sum.flops += r.flops;
        sum.least_bytes += r.least_bytes;
        sum.time_us = r.time_us.map(|t| t + sum.time_us.unwrap_or(0.0));
        if let Some(c) = r.counted {
            let s = sum.counted.get_or_insert_default();
            s.instructions += c.instructions;
            s.tensor += c.tensor;
            s.moved_bytes += c.moved_bytes;
            s.used_bytes += c.used_bytes;
            s.bank_conflicts += c.bank_conflicts;
            s.model_us += c.model_us;
        }
    }
    for ((_, name), sum) in &parts {
        line(sum, format!("sum: {name}"));
    }
}

fn ratio(a: u64, b: u64, digits: usize) -> String {
    if b == 0 { "-".into() } else { format!("{:.digits$}", a as f64 / b as f64) }
}
