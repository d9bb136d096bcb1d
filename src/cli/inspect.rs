//! `mllmseg inspect`: what a checkpoint holds.

use mllmseg::Result;
use mllmseg::checkpoint::{Checkpoint, Report};
use mllmseg::text::Tokenizer;
use std::fmt::Write;
use std::process::ExitCode;

/// Show a checkpoint's config, files and parameters, and what is missing
///
/// Exits with 1 if a tensor that config.json implies is missing, has another shape, or (with --values) is not finite, and if the tokenizer
/// cannot be opened.
///
/// Example: mllmseg inspect --model DIR --values
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint's folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read all weights and look for NaNs and infinities
    #[arg(long)]
    values: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let ck = Checkpoint::open(&args.model)?;
    let mut report = Report::of(&ck);
    if args.values {
        report = report.values(&ck);
    }
    if args.json {
        let files: Vec<_> = ck
            .files()
            .map(|(path, bytes)| serde_json::json!({ "path": path.to_string_lossy(), "bytes": bytes }))
            .collect();
        let all = serde_json::json!({
            "dir": ck.dir.to_string_lossy(), "config": ck.config, "files": files, "notes": ck.notes(),
            "complete": report.is_complete(), "report": report,
        });
        println!("{all:#}");
    } else {
        print!("{}", text(&ck, &report));
    }
    let tokenizer = Tokenizer::open(&ck.dir).inspect_err(super::report);
    Ok(if report.is_complete() && tokenizer.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Problems of a kind that are printed one by one.
const SHOWN: usize = 20;

fn text(ck: &Checkpoint, report: &Report) -> String {
    let mut out = format!("{}\n\n", ck.dir.display());
    // Writing to a String cannot fail.
    let _ = config(&mut out, ck);

    let files: Vec<_> = ck.files().collect();
    let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let width = files.iter().map(|(path, _)| name(path).len()).max().unwrap_or(0);
    let _ = writeln!(out);
    for (path, bytes) in files {
        let _ = writeln!(out, "  {:<width$}  {:>10}", name(path), size(bytes));
    }

    let _ = writeln!(out, "\n  {:<16}{:>8}{:>16}{:>12}", "part", "tensors", "parameters", "size");
    let row = |out: &mut String, name: &str, tensors: usize, parameters: usize, bytes: usize| {
        let _ = writeln!(out, "  {name:<16}{tensors:>8}{:>16}{:>12}", thousands(parameters), size(bytes));
    };
    for p in &report.parts {
        row(&mut out, &p.name, p.tensors, p.parameters, p.bytes);
    }
    let sum = |f: fn(&mllmseg::checkpoint::Part) -> usize| report.parts.iter().map(f).sum();
    row(&mut out, "total", sum(|p| p.tensors), sum(|p| p.parameters), sum(|p| p.bytes));
    let _ = writeln!(out);

    for note in ck.notes() {
        let _ = writeln!(out, "  note: {note}");
    }
    let missing = report.missing.iter().map(|m| format!("{}: {}", m.name, m.expected));
    list(&mut out, "missing", missing.collect());
    let misshapen =
        report.misshapen.iter().map(|m| format!("{}: expected {}, found {}", m.name, m.expected, m.found));
    list(&mut out, "misshapen", misshapen.collect());
    list(&mut out, "unexpected (never read)", report.unexpected.clone());
    let bad = report.non_finite.iter().flatten();
    let bad = bad.map(|b| format!("{}: {} elements, the first at {}", b.name, b.count, b.first));
    list(&mut out, "not finite", bad.collect());
    if report.is_complete() {
        let values = if report.non_finite.is_some() { ", and every value is finite" } else { "" };
        let _ = writeln!(out, "  every tensor that config.json implies is there{values}");
    }
    out
}

fn config(out: &mut String, ck: &Checkpoint) -> std::fmt::Result {
    let (v, l, d) = (&ck.config.vision_config, &ck.config.llm_config, &ck.config.res_decoder);
    writeln!(
        out,
        "  vision tower    {} layers of width {}, {} heads of {}, MLP {}",
        v.num_hidden_layers,
        v.hidden_size,
        v.num_attention_heads,
        v.head_dim(),
        v.intermediate_size
    )?;
    writeln!(
        out,
        "  picture         {0} x {0} pixels, {1} x {1} patches of {2} x {2}, {3} tokens",
        v.image_size,
        ck.config.patches(),
        v.patch_size,
        ck.config.image_tokens()
    )?;
    writeln!(
        out,
        "  language model  {} layers of width {}, {} heads of {}, {} of keys and values, MLP {}, {} tokens",
        l.num_hidden_layers,
        l.hidden_size,
        l.num_attention_heads,
        l.head_dim(),
        l.num_key_value_heads,
        l.intermediate_size,
        thousands(l.vocab_size)
    )?;
    if ck.has_mask_decoder() {
        writeln!(out, "  mask decoder    width {}, {} heads, {} groups", v.hidden_size, d.nhead, d.groups)
    } else {
        writeln!(out, "  mask decoder    none: this checkpoint chats, but cannot segment")
    }
}

fn list(out: &mut String, what: &str, items: Vec<String>) {
    if items.is_empty() {
        return;
    }
    let _ = writeln!(out, "  {what}: {}", items.len());
    for item in items.iter().take(SHOWN) {
        let _ = writeln!(out, "    {item}");
    }
    if items.len() > SHOWN {
        let _ = writeln!(out, "    and {} more (--json lists all)", items.len() - SHOWN);
    }
}

/// 1,234,567
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into_owned()).collect();
    groups.join(",")
}

/// In units of 1000 bytes, as the published sizes are.
fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
