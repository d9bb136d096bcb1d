//! The batch pipeline against `segment` picture by picture, in one process on the CPU: images and expressions a second, busy shares, memory.
//!
//!     python tools/train_demo/manifest.py out/scenes --scenes 2000 --expressions 8
//!     cargo bench --bench batch -- out/scenes/manifest.jsonl [--items N] [--expressions K] [--no-single]
//!
//! The first N items with their first K expressions each. Picture by picture means: read, decode, `Engine::segment`, RLE, and nothing written.
//! Prints one line of JSON; peak_kb is the process' high-water mark after each part.

use mllmseg::batch::{
    Batch, Compute, Disk, Found, Item, Models, Picture, Settings, Stats, manifest, run_batch,
};
use mllmseg::image::{Limits, read};
use mllmseg::{Engine, Options, Prompting};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

const MODEL: &str = "assets/demo/model";

fn items(manifest: &str, n: usize, k: usize) -> Vec<Item> {
    let input = manifest::open(manifest, &[]).expect("a manifest");
    let cut = |mut item: Item| {
        item.texts.truncate(k);
        item
    };
    input.items.take(n).map(|item| cut(item.expect("a readable manifest"))).collect()
}

fn open() -> Engine {
    Engine::open(MODEL, Options::default()).expect("the demo's model")
}

/// Images in a second.
fn single(items: &[Item]) -> f64 {
    let mut engine = open();
    let mut one = |item: &Item| {
        let Picture::Path { path, .. } = &item.picture else { panic!("a path in each line") };
        let picture = read(path, &Limits::default(), false).expect("a picture");
        let texts: Vec<&str> = item.texts.iter().map(String::as_str).collect();
        let found = engine.segment(&picture, &texts, Prompting::Single, false).expect("answers");
        for answer in found.answers {
            let found = Found::new(&answer.expect("a mask"), false).expect("an RLE");
            std::hint::black_box(serde_json::to_string(&found).expect("JSON"));
        }
    };
    one(&items[0]); // buffers are made, weights are read
    let start = Instant::now();
    items.iter().for_each(one);
    items.len() as f64 / start.elapsed().as_secs_f64()
}

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let Some(manifest) = args.iter().find(|a| a.ends_with(".jsonl")) else {
        println!("no manifest: nothing is timed");
        return;
    };
    let items = items(manifest, number("--items", usize::MAX), number("--expressions", usize::MAX));
    let n = items.len();
    let alone = (!args.iter().any(|a| a == "--no-single")).then(|| single(&items));
    let single_peak = peak_kb();
    let out = tempfile::tempdir().expect("a folder");
    let batch = Batch {
        model: MODEL,
        options: String::new(),
        shard: [0, 1],
        unordered: false,
        restart: false,
        settings: Settings { out: out.path().into(), ..Settings::default() },
    };
    let (stats, position) = (Stats::default(), Arc::new(AtomicU64::new(0)));
    let source = Box::new(items.into_iter().map(Ok));
    let input = manifest::Input { items: source, fingerprint: String::new(), position, length: 0 };
    let compute = || {
        let mut models = Models::open(MODEL, Options::default(), 8192)?;
        models.engine()?;
        Ok(Compute::Here(Box::new(models)))
    };
    run_batch(&batch, input, compute, (&Disk::default(), &stats, &AtomicBool::new(false))).expect("a run");
    let summary = stats.summary();
    let line = serde_json::json!({
        "items": n, "single_images_per_s": alone, "ratio": alone.map(|a| summary.images_per_s / a), "batch": summary,
        "single_peak_kb": single_peak, "peak_kb": peak_kb(),
    });
    println!("{line}");
}
