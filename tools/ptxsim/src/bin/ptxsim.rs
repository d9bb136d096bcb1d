//! `ptxsim run`: one kernel of a PTX file, on files and numbers. `ptxsim opcodes`: what a PTX file needs.
//!
//! Exit codes: 0 if all is well; 1 if the kernel faulted, a check found something, or an opcode is not supported; 2 if
//! there was nothing to run.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ptxsim::{
    Checks, Counters, Form, GpuSpec, KernelInfo, LaunchConfig, LaunchReport, LoadedModule, Memory, Module,
    Occupancy, Options, ParamInfo, Roofline, launch,
};
use serde::Serialize;

/// Runs CUDA kernels (PTX) without a GPU: every access checked, every instruction counted.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one kernel once
    Run(Run),
    /// List the opcode forms that a file uses, and whether each can be run
    Opcodes {
        /// PTX file
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Run {
    /// PTX file
    file: PathBuf,
    /// Name of the kernel
    kernel: String,
    /// Blocks: X, X,Y or X,Y,Z
    #[arg(long, value_parser = dims)]
    grid: [u32; 3],
    /// Threads a block: X, X,Y or X,Y,Z
    #[arg(long, value_parser = dims)]
    block: [u32; 3],
    /// Blocks a cluster: X, X,Y or X,Y,Z
    #[arg(long, value_parser = dims, default_value = "1")]
    cluster: [u32; 3],
    /// Dynamic shared memory, bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    smem: u32,
    /// A parameter, in order: u32:5, s32:-1, u64:7, s64:-7, f32:0.5, f64:0.5; or a buffer: in:FILE (its contents),
    /// out:BYTES:FILE (unwritten, saved afterwards), inout:FILE:FILE (contents of the first, saved to the second)
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    args: Vec<String>,
    /// Write everything as JSON to this file (- is standard output, instead of the table)
    #[arg(long, value_name = "REPORT")]
    json: Option<PathBuf>,
    /// all, none, or a list of uninit, shared-race, global-race, sync, async, leak; -NAME leaves one out
    #[arg(long, default_value = "all", value_parser = Checks::parse, allow_hyphen_values = true)]
    checks: Checks,
    /// Host threads; 0 means one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Order in which warps run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// GPU to pretend
    #[arg(long, default_value = "a100", value_parser = gpu)]
    gpu: &'static GpuSpec,
    /// Registers a thread as ptxas reports them, for the occupancy (default: estimated from the PTX)
    #[arg(long, value_name = "N")]
    registers: Option<u32>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    report: &'a LaunchReport,
    gpu: &'static str,
    occupancy_model: Occupancy,
    roofline_model: Roofline,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run_kernel(&run),
        Command::Opcodes { file, json } => opcodes(&file, json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn dims(text: &str) -> Result<[u32; 3], String> {
    let mut dims = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err(format!("expected X, X,Y or X,Y,Z, found `{text}`"));
    }
    for (dim, part) in dims.iter_mut().zip(parts) {
        *dim = part.trim().parse().ok().filter(|n| *n > 0).ok_or("expected whole numbers above 0")?;
    }
    Ok(dims)
}

fn gpu(name: &str) -> Result<&'static GpuSpec, String> {
    let known = || GpuSpec::all().iter().map(|g| g.name).collect::<Vec<_>>().join(", ");
    GpuSpec::named(name).ok_or_else(|| format!("expected one of {}", known()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(path, bytes).map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

/// Standard output; that nobody reads it is no error.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn parse(file: &Path) -> Result<Module, String> {
    let text = String::from_utf8(read(file)?).map_err(|_| format!("{}: not text", file.display()))?;
    Module::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
}

/// A buffer to save after the run.
struct Save {
    address: u64,
    bytes: usize,
    file: PathBuf,
}

/// The bytes of one parameter.
fn argument(
    text: &str,
    param: &ParamInfo,
    memory: &Memory,
    saves: &mut Vec<Save>,
) -> Result<Vec<u8>, String> {
    let bad = |expected: &str| format!("--arg {text}: expected {expected}");
    let (kind, value) = text.split_once(':').ok_or_else(|| bad("KIND:VALUE"))?;
    macro_rules! number {
        ($ty:ty) => {{
            let hex = value.strip_prefix("0x").and_then(|h| u64::from_str_radix(h, 16).ok());
            let parsed = hex.and_then(|h| <$ty>::try_from(h).ok()).or_else(|| value.parse::<$ty>().ok());
            parsed.ok_or_else(|| bad(concat!("a ", stringify!($ty))))?.to_le_bytes().to_vec()
        }};
    }
    let buffer = |contents: &[u8], bytes: usize| -> Result<u64, String> {
        let address = memory.alloc(bytes.max(1) as u64, 256).map_err(|e| e.to_string())?;
        if !contents.is_empty() {
            memory.write(address, contents).map_err(|e| e.to_string())?;
        }
        Ok(address)
    };
    let bytes = match kind {
        "u32" => number!(u32),
        "s32" => number!(i32),
        "u64" => number!(u64),
        "s64" => number!(i64),
        "f32" => value.parse::<f32>().map_err(|_| bad("a f32"))?.to_le_bytes().to_vec(),
        "f64" => value.parse::<f64>().map_err(|_| bad("a f64"))?.to_le_bytes().to_vec(),
        "in" => {
            let contents = read(Path::new(value))?;
            buffer(&contents, contents.len())?.to_le_bytes().to_vec()
        }
        "out" => {
            let (bytes, file) = value.split_once(':').ok_or_else(|| bad("out:BYTES:FILE"))?;
            let bytes = bytes.parse().map_err(|_| bad("out:BYTES:FILE"))?;
            let address = buffer(&[], bytes)?;
            saves.push(Save { address, bytes, file: file.into() });
            address.to_le_bytes().to_vec()
        }
        "inout" => {
            let (from, to) = value.split_once(':').ok_or_else(|| bad("inout:FILE:FILE"))?;
            let contents = read(Path::new(from))?;
            let address = buffer(&contents, contents.len())?;
            saves.push(Save { address, bytes: contents.len(), file: to.into() });
            address.to_le_bytes().to_vec()
        }
        _ => return Err(bad("u32, s32, u64, s64, f32, f64, in, out or inout")),
    };
    if bytes.len() != param.bytes as usize {
        return Err(format!(
            "--arg {text}: parameter `{}` has {} bytes, not {}",
            param.name,
            param.bytes,
            bytes.len()
        ));
    }
    Ok(bytes)
}

fn run_kernel(run: &Run) -> Result<bool, String> {
    let module = parse(&run.file)?;
    let info = module.kernel(&run.kernel).ok_or_else(|| {
        let names: Vec<String> = module.kernels().into_iter().map(|k| k.name).collect();
        format!("{}: no kernel `{}`; there are: {}", run.file.display(), run.kernel, names.join(", "))
    })?;
    if run.args.len() != info.params.len() {
        return Err(format!(
            "kernel `{}` has {} parameters, found {}",
            info.name,
            info.params.len(),
            run.args.len()
        ));
    }
    let memory = Memory::new(run.gpu.memory_bytes);
    let mut saves = Vec::new();
    let mut params = vec![0; info.param_bytes as usize];
    for (text, param) in run.args.iter().zip(&info.params) {
        let at = param.offset as usize;
        params[at..at + param.bytes as usize].copy_from_slice(&argument(text, param, &memory, &mut saves)?);
    }
    let loaded = LoadedModule::load(module.into(), &memory).map_err(|e| e.to_string())?;
    let config = LaunchConfig {
        cluster: run.cluster,
        dynamic_shared: run.smem,
        params,
        ..LaunchConfig::with_dims(run.grid, run.block)
    };
    let options = Options {
        checks: run.checks,
        threads: run.threads,
        seed: run.seed,
        gpu: run.gpu,
        ..Options::default()
    };
    let report = launch(&memory, &loaded, &run.kernel, &config, &options)
        .map_err(|e| format!("{}: {e}", run.file.display()))?;
    for save in saves {
        let mut bytes = vec![0; save.bytes];
        memory.read(save.address, &mut bytes).map_err(|e| e.to_string())?;
        write(&save.file, &bytes)?;
    }
    let threads = run.block.iter().product();
    let occupancy_model = match run.registers {
        Some(n) => run.gpu.occupancy_of(n, info.static_shared.saturating_add(run.smem), threads),
        None => run.gpu.occupancy(&info, threads, run.smem),
    };
    let blocks = run.grid.iter().map(|n| u64::from(*n)).product();
    let roofline_model = run.gpu.roofline(&report.counters, &occupancy_model, blocks);
    let json = Json { report: &report, gpu: run.gpu.name, occupancy_model, roofline_model };
    let to_stdout = run.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &run.json {
        let text = serde_json::to_string_pretty(&json).map_err(|e| e.to_string())? + "\n";
        if to_stdout {
            print(&text);
        } else {
            write(path, text.as_bytes())?;
        }
    }
    if !to_stdout {
        print(&table(&json, &info, run.registers.is_none()));
    }
    Ok(report.is_clean())
}

/// `1234567` as `1,234,567`.
fn digits(n: u64) -> String {
    let plain = n.to_string();
    let mut out = String::new();
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}

fn time(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.3} s")
    } else if seconds >= 1e-3 {
        format!("{:.3} ms", seconds * 1e3)
    } else {
        format!("{:.3} us", seconds * 1e6)
    }
}

/// The report for a person. Writing to a string cannot fail.
fn table(json: &Json, info: &KernelInfo, registers_estimated: bool) -> String {
    let Json { report, gpu, occupancy_model: occupancy, roofline_model: roofline } = json;
    let mut out = String::new();
    if !report.output.is_empty() {
        out += &report.output;
        out += "\n";
    }
    let ([gx, gy, gz], [bx, by, bz]) = (report.grid, report.block);
    let _ = writeln!(out, "kernel {}   grid {gx} x {gy} x {gz}   block {bx} x {by} x {bz}", report.kernel);
    if let Some(fault) = &report.fault {
        let _ = writeln!(out, "\nFAULT {fault}");
    }
    for finding in &report.reports {
        let _ = writeln!(out, "\n{finding}");
    }
    for (kind, n) in &report.found {
        let _ = writeln!(out, "found: {kind} {}", digits(*n));
    }
    if report.is_clean() {
        out += "no fault, nothing found\n";
    }
    counters(&mut out, &report.counters);
    let estimated = if registers_estimated { " (estimated from the PTX)" } else { "" };
    let _ = writeln!(
        out,
        "\nmodel of {gpu}: {} registers a thread{estimated}, {} bytes static shared memory\n  \
         occupancy  {} blocks, {} warps an SM ({:.0}%), limited by {}\n  \
         roofline   at least {} ({}-bound): memory {}, tensor {}, issue {}, shared {}; all sectors uncached {}",
        occupancy.registers,
        info.static_shared,
        occupancy.blocks_per_sm,
        occupancy.warps_per_sm,
        occupancy.share * 100.0,
        occupancy.limit,
        time(roofline.seconds),
        roofline.bound,
        time(roofline.memory_s),
        time(roofline.tensor_s),
        time(roofline.issue_s),
        time(roofline.shared_s),
        time(roofline.uncached_s),
    );
    let _ = writeln!(out, "simulated in {}", time(report.seconds));
    out
}

fn counters(out: &mut String, c: &Counters) {
    let total = c.total.warps;
    let _ = writeln!(
        out,
        "\ninstructions {} warp, {} thread ({} of lanes active)",
        digits(total),
        digits(c.total.lanes),
        ratio(c.total.lanes, total * 32)
    );
    let mut classes: Vec<_> = c.classes.iter().collect();
    classes.sort_by_key(|(_, n)| std::cmp::Reverse(n.warps));
    for (class, n) in classes {
        let name =
            serde_json::to_value(class).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let _ = writeln!(out, "  {name:<12} {:>16} {:>7}", digits(n.warps), ratio(n.warps, total));
    }
    let mut forms: Vec<_> = c.opcodes.iter().collect();
    forms.sort_by_key(|(_, n)| std::cmp::Reverse(n.warps));
    let _ = writeln!(out, "\nopcodes (the first {} of {})", forms.len().min(12), forms.len());
    for (form, n) in forms.into_iter().take(12) {
        let _ = writeln!(out, "  {form:<56} {:>14} {:>7}", digits(n.warps), ratio(n.warps, total));
    }
    let global = [("load", c.global_load), ("store", c.global_store), ("atomic", c.global_atomic)];
    if global.iter().any(|(_, g)| g.requests > 0) {
        let _ = writeln!(out, "\nglobal       requests        sectors          bytes   of sectors used");
        for (name, g) in global.iter().filter(|(_, g)| g.requests > 0) {
            let used = ratio(g.bytes, g.sectors * 32);
            let _ = writeln!(
                out,
                "  {name:<8} {:>10} {:>14} {:>14}   {used}",
                digits(g.requests),
                digits(g.sectors),
                digits(g.bytes)
            );
        }
        let _ = writeln!(out, "  distinct bytes touched: {}", digits(c.distinct_bytes));
    }
    let shared = [("load", c.shared_load), ("store", c.shared_store)];
    if shared.iter().any(|(_, s)| s.requests > 0) {
        let _ = writeln!(out, "\nshared       requests     wavefronts          ideal   conflicts");
        for (name, s) in shared.iter().filter(|(_, s)| s.requests > 0) {
            let extra = digits(s.wavefronts.saturating_sub(s.ideal));
            let _ = writeln!(
                out,
                "  {name:<8} {:>10} {:>14} {:>14}   {extra}",
                digits(s.requests),
                digits(s.wavefronts),
                digits(s.ideal)
            );
        }
    }
    for (shape, t) in &c.tensor {
        let _ = writeln!(out, "\ntensor {shape}: {} instructions, {} FLOPs", digits(t.ops), digits(t.flops));
    }
    if c.atomics + c.barriers + c.async_bytes > 0 {
        let _ = writeln!(
            out,
            "\natomics {}   barriers {}   asynchronous copies {} bytes, at most {} in flight a block",
            digits(c.atomics),
            digits(c.barriers),
            digits(c.async_bytes),
            digits(c.async_in_flight_max)
        );
    }
    let mut lines: Vec<_> = c.lines.iter().collect();
    lines.sort_by_key(|l| std::cmp::Reverse(l.ops.warps));
    if !lines.is_empty() {
        let _ = writeln!(
            out,
            "\nlines (the first {} of {})   instructions    global sectors  shared wavefronts",
            lines.len().min(10),
            lines.len()
        );
        for l in lines.into_iter().take(10) {
            let place = if l.file.is_empty() {
                format!("PTX line {}", l.line)
            } else {
                format!("{}:{}", l.file, l.line)
            };
            let sectors = digits(l.global_load.sectors + l.global_store.sectors);
            let wavefronts = digits(l.shared.wavefronts);
            let _ = writeln!(out, "  {place:<28} {:>14} {sectors:>17} {wavefronts:>18}", digits(l.ops.warps));
        }
    }
}

fn opcodes(file: &Path, json: bool) -> Result<bool, String> {
    let forms = parse(file)?.forms();
    let supported = forms.iter().all(|f| f.unsupported.is_none());
    if json {
        let rows: Vec<_> = forms
            .iter()
            .map(|f| {
                let Form { text, count, line, unsupported } = f;
                serde_json::json!({ "form": text, "count": count, "line": line, "unsupported": unsupported })
            })
            .collect();
        print(&(serde_json::to_string_pretty(&rows).map_err(|e| e.to_string())? + "\n"));
        return Ok(supported);
    }
    let mut out = format!("{:<56} {:>8} {:>8}  supported\n", "form", "count", "line");
    for f in &forms {
        let verdict = f.unsupported.as_deref().map_or("yes".to_owned(), |why| format!("NO: {why}"));
        let _ = writeln!(out, "{:<56} {:>8} {:>8}  {verdict}", f.text, f.count, f.line);
    }
    print(&out);
    Ok(supported)
}
