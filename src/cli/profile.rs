//! `mllmseg profile`: one request, node by node: time, or on the simulated driver what its kernels do.

use super::{Compute, PromptingArg};
use mllmseg::device::gpu::{ARCHS, Occupancy, ROOFLINES, Work, occupancy};
use mllmseg::device::{Choice, cuda};
use mllmseg::image::{Limits, read};
use mllmseg::ops::Gpu;
use mllmseg::{Engine, Error, Prompting, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

/// Run one request and say of every node what it costs
///
/// With --device cpu or cuda:N the times are measured (CUDA events around each node, launch latency of some microseconds included; the second
/// of two runs). With --device sim nothing is timed: the table counts what the kernels do, and the columns of GPUs are a `model`: the least
/// time that a roofline over these counts allows, never a measurement. Kernels and tiles are those for the GPU that PTXSIM_GPU names.
///
/// Layers of the same shape are one line, `llm.*.wqkv`, unless --all is given; `n` is the number of launches.
///
/// Examples:
///   mllmseg profile --device sim --model assets/demo/model --image assets/demo/images/010.png --expr "the white circle"
///   nsys profile --capture-range=cudaProfilerApi mllmseg profile --device cuda:0 --capture graphs --model DIR --image FILE --expr TEXT
///   ncu --profile-from-start off --nvtx --nvtx-include "llm.7.wqkv/" mllmseg profile --device cuda:0 --capture nodes --model DIR --image FILE --expr TEXT
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
    /// Every node on a line of its own
    #[arg(long)]
    all: bool,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    /// On a CUDA device: tell a profiler to record (cudaProfilerStart, cudaProfilerStop) one request: as it is profiled here, node by
    /// node, or with its plans replayed as CUDA graphs, of which nothing is printed
    #[arg(long, value_enum)]
    capture: Option<Capture>,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Capture {
    Nodes,
    Graphs,
}

/// A node, or a sum of several.
#[derive(Clone, Default, Serialize)]
struct Row {
    graph: &'static str,
    node: String,
    op: String,
    launches: u64,
    /// What the algebra needs at these sizes.
    flops: u64,
    /// Every operand once.
    least_bytes: u64,
    /// Rows of its first result.
    rows: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_us: Option<f64>,
    /// Registers a thread and share of a multiprocessor's warps that are resident, of the launch with the fewest.
    #[serde(skip_serializing_if = "Option::is_none")]
    registers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occupancy: Option<Occupancy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
}

/// What the simulator counted.
#[derive(Clone, Copy, Default, Serialize)]
struct Counted {
    /// Warp instructions.
    instructions: u64,
    /// Those of tensor cores, and what they compute.
    tensor: u64,
    tensor_flops: u64,
    /// Distinct bytes of global memory; 0 where the simulator does not check global races.
    distinct_bytes: u64,
    /// Bytes of the 32-byte sectors that were moved between the multiprocessors and L2, and those asked for.
    moved_bytes: u64,
    used_bytes: u64,
    /// Wavefronts of shared memory, and those beyond the fewest.
    wavefronts: u64,
    bank_conflicts: u64,
    /// Microseconds on each of [`ROOFLINES`], and what binds there.
    model: [Model; ROOFLINES.len()],
}

#[derive(Clone, Copy, Default, Serialize)]
struct Model {
    gpu: &'static str,
    us: f64,
    bound: &'static str,
}

/// Rows of the request's token matrices.
#[derive(Serialize)]
struct Rows {
    system: usize,
    image: usize,
    /// What opens all sequences, once.
    opening: usize,
    /// Each sequence behind that.
    text: Vec<usize>,
    /// Of the matrix in which the image's and the text's are packed.
    packed: usize,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let device = args.compute.on.device;
    let mut engine = args.compute.open(&args.model)?;
    let gpu = match device {
        Choice::Cpu if args.capture.is_some() => {
            return Err(Error::usage("--capture", "a CUDA device", "--device cpu"));
        }
        Choice::Cpu => None,
        Choice::Sim => cuda::devices()?.first().map(|d| d.gpu),
        Choice::Cuda(n) => cuda::devices()?.get(n as usize).map(|d| d.gpu),
    };
    let picture = read(&args.image, &Limits::default(), false)?;
    let expressions: Vec<&str> = args.expr.iter().map(String::as_str).collect();
    let mut asked = rows_of(&engine, &expressions, args.prompting.into())?;
    let pairs = pairs(&asked);
    let found = Rc::new(RefCell::new(Vec::<Row>::new()));
    let seen = Rc::clone(&found);
    let observer = move |run: mllmseg::engine::Run| {
        let (op, cost) = (&run.node.op, run.node.op.cost());
        let launches = gpu.and_then(|g| op.launch(&g).ok()).unwrap_or_default();
        let mut row = Row {
            graph: run.graph,
            node: run.node.name.clone(),
            op: op.kind().into(),
            launches: launches.len() as u64,
            flops: cost.flops,
            least_bytes: cost.bytes,
            rows: op.writes().first().map_or(0, |y| y.matrix().0),
            ..Row::default()
        };
        if let (Some(pairs), [y, ..]) = (pairs.get(run.graph), &op.writes()[..])
            && op.kind() == "attention_ranges"
        {
            let (rows, width) = (y.shape[0], y.len() / y.shape[0].max(1));
            row.flops = 4 * width as u64 * pairs(rows) as u64;
        }
        for l in &launches {
            let threads = l.block.iter().product();
            let Some((registers, o)) = gpu.and_then(|g| resident(l.entry, g.arch, threads, l.smem)) else {
                continue;
            };
            if row.occupancy.is_none_or(|least| o.share < least.share) {
                (row.registers, row.occupancy) = (Some(registers), Some(o));
            }
        }
        if device == Choice::Sim {
            let report = cuda::simulator_report().unwrap_or_default();
            let ran = report["launches"].as_array().into_iter().flatten();
            let mut sum = Counted::default();
            for (l, ran) in launches.iter().zip(ran) {
                let blocks = l.grid.iter().map(|&n| u64::from(n)).product();
                let mut c = count(&ran["counters"]);
                let bytes = match c.distinct_bytes {
                    0 => row.least_bytes / launches.len() as u64,
                    n => n,
                };
                let work = Work {
                    bytes,
                    tensor_flops: c.tensor_flops,
                    instructions: c.instructions,
                    wavefronts: c.wavefronts,
                };
                for (m, spec) in c.model.iter_mut().zip(&ROOFLINES) {
                    let threads = l.block.iter().product();
                    let o = resident(l.entry, spec.arch, threads, l.smem).map(|r| r.1);
                    let o = o.unwrap_or(Occupancy { blocks: 1, share: 0.0, limit: "unknown" });
                    let (s, bound) = spec.roofline(&work, &o, blocks);
                    *m = Model { gpu: spec.name, us: s * 1e6, bound };
                }
                sum.add(&c);
            }
            row.counted = Some(sum);
            cuda::reset_simulator();
        } else {
            row.time_us = Some(run.time.as_secs_f64() * 1e6);
        }
        seen.borrow_mut().push(row);
    };
    let segment = |engine: &mut Engine| {
        let found = engine.segment(&picture, &expressions, args.prompting.into(), false)?;
        found.answers.into_iter().collect::<Result<Vec<_>>>()
    };
    if args.capture == Some(Capture::Graphs) {
        // The first run makes the plans, the second captures them.
        segment(&mut engine)?;
        segment(&mut engine)?;
        cuda::profiler(true)?;
        segment(&mut engine)?;
        cuda::profiler(false)?;
        return Ok(ExitCode::SUCCESS);
    }
    engine.observe(observer);
    cuda::reset_simulator();
    if device != Choice::Sim {
        // The first run warms up: buffers are made, weights are read, clocks rise. What runs once a model is kept from it.
        segment(&mut engine)?;
        found.borrow_mut().retain(|r| r.graph == "system");
    }
    if args.capture == Some(Capture::Nodes) {
        cuda::profiler(true)?;
    }
    segment(&mut engine)?;
    if args.capture == Some(Capture::Nodes) {
        cuda::profiler(false)?;
    }
    let rows = found.take();
    asked.packed = packed_rows(&rows);
    let stages = sums(&rows, |r| format!("{} {}", r.graph, r.node.split('.').next().unwrap_or_default()));
    let stages: Vec<Row> = stages.into_iter().map(|(name, r)| Row { node: name, ..r }).collect();
    let whole = sums(&rows, |_| "whole request".into()).remove(0).1;
    let work = tensor_work(&rows);
    if args.json {
        let all = json!({
            "device": device.to_string(), "gpu": gpu.map(|g| json!({"arch": g.arch, "sms": g.sms})),
            "kernels_compiled_by": cuda::compiler(), "request": asked, "nodes": rows, "stages": stages, "whole": whole,
            "tensor_work": work,
        });
        println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    let name = |r: &Row| format!("{} {}", r.graph, r.node);
    let lines: Vec<(String, Row)> = match args.all {
        true => rows.iter().map(|r| (name(r), r.clone())).collect(),
        false => sums(&rows, |r| format!("{} {}", r.graph, without_layer(&r.node))),
    };
    let kind = if device == Choice::Sim { Kind::Counted } else { Kind::Timed };
    kind.head(gpu);
    for (name, r) in &lines {
        kind.line(name, r);
    }
    println!();
    for r in &stages {
        kind.line(&format!("sum: {}", r.node), r);
    }
    kind.line("sum: whole request", &whole);
    if device == Choice::Sim {
        println!();
        let text: usize = asked.text.iter().sum();
        println!(
            "tokens: {} of the system prompt; {} of the image, {} that open all sequences and {text} in {} sequences of text, which a matrix of {} rows holds",
            asked.system,
            asked.image,
            asked.opening,
            asked.text.len(),
            asked.packed
        );
        print_work(&work);
    }
    Ok(ExitCode::SUCCESS)
}

/// Registers of a kernel, and its occupancy; `None` if it was not compiled for that GPU.
fn resident(entry: &str, arch: u32, threads: u32, smem: u32) -> Option<(u32, Occupancy)> {
    let name = ARCHS.iter().find(|a| a.1.arch == arch)?.0;
    let u = cuda::usage().find(|u| u.entry == entry && u.arch == name)?;
    Some((u.registers, occupancy(arch, u.registers, u.shared + smem, threads)))
}

fn rows_of(engine: &Engine, expressions: &[&str], prompting: Prompting) -> Result<Rows> {
    let prompts = engine.prompts()?;
    let (opening, text) = engine.preprocessor().lengths(expressions, prompting)?;
    Ok(Rows { system: prompts.prefix().len(), image: prompts.image().len(), opening, text, packed: 0 })
}

type Pairs = Box<dyn Fn(usize) -> usize>;

/// Pairs of query and key that a causal layer needs, by graph, for the rows of its token matrix. Rows that only fill the matrix up are a
/// sequence of their own.
fn pairs(asked: &Rows) -> HashMap<&'static str, Pairs> {
    let causal = |n: usize| n * (n + 1) / 2;
    let (system, image, opening) = (asked.system, asked.image, asked.opening);
    let text: Vec<usize> = asked.text.clone();
    let together = move |rows: usize| {
        let behind = |seen: usize, n: usize| n * seen + causal(n);
        let fill = rows.saturating_sub(image + opening + text.iter().sum::<usize>());
        let of_text: usize = text.iter().map(|n| behind(system + image + opening, *n)).sum();
        behind(system, image) + behind(system + image, opening) + of_text + causal(fill)
    };
    HashMap::from([("system", Box::new(move |_| causal(system)) as Pairs), ("text", Box::new(together))])
}

/// Counters of a launch in a report of the simulated driver.
fn count(at: &Value) -> Counted {
    let number = |v: &Value| v.as_u64().unwrap_or(0);
    let mut c = Counted {
        instructions: number(&at["total"]["warps"]),
        distinct_bytes: number(&at["distinct_bytes"]),
        ..Counted::default()
    };
    for t in at["tensor"].as_object().into_iter().flat_map(|t| t.values()) {
        c.tensor += number(&t["ops"]);
        c.tensor_flops += number(&t["flops"]);
    }
    for part in ["global_load", "global_store", "global_atomic"] {
        c.moved_bytes += 32 * number(&at[part]["sectors"]);
        c.used_bytes += number(&at[part]["bytes"]);
    }
    for part in ["shared_load", "shared_store"] {
        let wavefronts = number(&at[part]["wavefronts"]);
        c.wavefronts += wavefronts;
        c.bank_conflicts += wavefronts.saturating_sub(number(&at[part]["ideal"]));
    }
    c
}

impl Counted {
    fn add(&mut self, o: &Counted) {
        self.instructions += o.instructions;
        self.tensor += o.tensor;
        self.tensor_flops += o.tensor_flops;
        self.distinct_bytes += o.distinct_bytes;
        self.moved_bytes += o.moved_bytes;
        self.used_bytes += o.used_bytes;
        self.wavefronts += o.wavefronts;
        self.bank_conflicts += o.bank_conflicts;
        for (a, b) in self.model.iter_mut().zip(&o.model) {
            let bound = if a.bound == b.bound || a.bound.is_empty() { b.bound } else { "mixed" };
            *a = Model { gpu: b.gpu, us: a.us + b.us, bound };
        }
    }
}

/// Rows added up by name, in the order in which the names come up.
fn sums(rows: &[Row], name: impl Fn(&Row) -> String) -> Vec<(String, Row)> {
    let mut sums: Vec<(String, Row)> = Vec::new();
    for r in rows {
        let name = name(r);
        let Some((_, s)) = sums.iter_mut().find(|s| s.0 == name) else {
            sums.push((name, r.clone()));
            continue;
        };
        s.launches += r.launches;
        s.flops += r.flops;
        s.least_bytes += r.least_bytes;
        s.time_us = s.time_us.zip(r.time_us).map(|(a, b)| a + b);
        if s.op != r.op {
            // Of different kernels the registers say nothing.
            s.op.clear();
            (s.registers, s.occupancy) = (None, None);
        }
        if let (Some(s), Some(c)) = (&mut s.counted, &r.counted) {
            s.add(c);
        }
    }
    sums
}

/// `llm.7.wqkv` as `llm.*.wqkv`.
fn without_layer(name: &str) -> String {
    let word = |w: &str| if w.parse::<u32>().is_ok() { "*".to_string() } else { w.to_string() };
    name.split('.').map(word).collect::<Vec<_>>().join(".")
}

enum Kind {
    Counted,
    Timed,
}

impl Kind {
    fn head(&self, gpu: Option<Gpu>) {
        let [a, b, c] = ROOFLINES.map(|s| s.name);
        match self {
            Kind::Counted => {
                let gpu = gpu.map_or(String::new(), |g| format!(", sm_{} with {} SMs", g.arch, g.sms));
                println!(
                    "counted on the simulated driver{gpu}; model: the least time by a roofline, not a measurement\n"
                );
                println!(
                    "{:<46} {:>4} {:>8} {:>8} {:>8} {:>5} {:>8} {:>6} {:>6} {:>4} {:>4} {:>28} {:>7}",
                    "",
                    "",
                    "",
                    "least",
                    "moved",
                    "sect.",
                    "HMMA",
                    "other/",
                    "bank",
                    "",
                    "occ.",
                    "model us",
                    "bound"
                );
                println!(
                    "{:<46} {:>4} {:>8} {:>8} {:>8} {:>5} {:>8} {:>6} {:>6} {:>4} {:>4} {:>8} {:>10} {:>8} {:>7}",
                    "node", "n", "GFLOP", "MB", "MB", "%", "k", "HMMA", "confl.", "regs", "%", a, b, c, a
                );
            }
            Kind::Timed => println!(
                "{:<46} {:>4} {:>9} {:>9} {:>11} {:>9} {:>9} {:>4} {:>5}",
                "node", "n", "GFLOP", "least MB", "us", "GFLOP/s", "GB/s", "regs", "occ.%"
            ),
        }
    }

    fn line(&self, name: &str, r: &Row) {
        let registers = r.registers.map_or(String::new(), |n| n.to_string());
        let occupied = r.occupancy.map_or(String::new(), |o| format!("{:.0}", 100.0 * o.share));
        let (gflop, mb) = (r.flops as f64 / 1e9, r.least_bytes as f64 / 1e6);
        match (self, &r.counted) {
            (Kind::Counted, Some(c)) => println!(
                "{name:<46} {:>4} {gflop:>8.3} {mb:>8.2} {:>8.2} {:>5} {:>8.1} {:>6} {:>6} {registers:>4} {occupied:>4} {:>8.1} {:>10.1} {:>8.1} {:>7}",
                r.launches,
                c.moved_bytes as f64 / 1e6,
                ratio(100 * c.used_bytes, c.moved_bytes, 1),
                c.tensor as f64 / 1e3,
                ratio(c.instructions - c.tensor, c.tensor, 2),
                c.bank_conflicts,
                c.model[0].us,
                c.model[1].us,
                c.model[2].us,
                c.model[0].bound,
            ),
            _ => {
                let us = r.time_us.unwrap_or(0.0).max(1e-3);
                println!(
                    "{name:<46} {:>4} {gflop:>9.3} {mb:>9.3} {us:>11.1} {:>9.1} {:>9.1} {registers:>4} {occupied:>5}",
                    r.launches,
                    r.flops as f64 / us / 1e3,
                    r.least_bytes as f64 / us / 1e3,
                );
            }
        }
    }
}

/// Rows of the token matrix of the largest run.
fn packed_rows(rows: &[Row]) -> usize {
    let embedded = |r: &&Row| r.graph == "text" && r.op == "embed";
    rows.iter().filter(embedded).map(|r| r.rows).max().unwrap_or(0)
}

/// What tensor cores were given to do against what the algebra needs at these sizes: rows that only fill the text's matrix included.
#[derive(Serialize)]
struct TensorWork {
    needed_flops: u64,
    executed_flops: u64,
    by_op: BTreeMap<String, [u64; 2]>,
}

fn tensor_work(rows: &[Row]) -> TensorWork {
    let mut work = TensorWork { needed_flops: 0, executed_flops: 0, by_op: BTreeMap::new() };
    for r in rows {
        let Some(c) = r.counted.filter(|c| c.tensor > 0) else { continue };
        let mut add = |op: &str, needed: u64, executed: u64| {
            work.needed_flops += needed;
            work.executed_flops += executed;
            let sum = work.by_op.entry(op.into()).or_default();
            *sum = [sum[0] + needed, sum[1] + executed];
        };
        let op = match r.op.as_str() {
            "attention" => "attention: queries and keys that fill tiles",
            "attention_ranges" => {
                "attention_ranges: masked halves of diagonal tiles, segments that end within a tile"
            }
            "conv3x3" => "conv3x3: rows and columns that fill tiles",
            _ => "matmul: rows and columns that fill tiles",
        };
        add(op, r.flops, c.tensor_flops);
    }
    work
}

fn print_work(work: &TensorWork) {
    let (needed, executed) = (work.needed_flops as f64, work.executed_flops as f64);
    let more = |needed: u64, executed: u64| {
        100.0 * (executed as f64 - needed as f64) / work.needed_flops.max(1) as f64
    };
    println!(
        "tensor cores: {:.3} GFLOP executed, {:.3} needed at these sizes: {:+.1} %, of which",
        executed / 1e9,
        needed / 1e9,
        more(work.needed_flops, work.executed_flops)
    );
    for (op, [needed, executed]) in &work.by_op {
        println!("  {:>+6.1} %  {op}", more(*needed, *executed));
    }
}

fn ratio(a: u64, b: u64, digits: usize) -> String {
    if b == 0 { "-".into() } else { format!("{:.digits$}", a as f64 / b as f64) }
}
