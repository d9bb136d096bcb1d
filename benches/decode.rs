//! Decoding on the CPU at the real widths of the 2B and 8B models, synthetic weights, few layers and the whole vocabulary: a step's time, and the
//! share of the memory's bandwidth that the weights stream with. The bandwidth is that of a plain sum over the same mapped weights by all
//! threads. Sums and steps take turns, and a step is compared with the sums before and after it: on a machine shared with others the
//! bandwidth may halve from one second to the next. Medians.
//!
//!     cargo bench --bench decode [-- DIR]
//!
//! Prints one line of JSON for each model, precision and number of sequences. DIR keeps the checkpoints (2.4 and 1.2 GB) for the next run.

use mllmseg::chat::{Event, Generation, Generator, Options};
use mllmseg::checkpoint::{Checkpoint, synth};
use mllmseg::graph::Place;
use mllmseg::reference::{Precision, has_bf16};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Layers that are made of each model: more than any cache holds.
const LAYERS: [(&str, &str, usize); 2] = [
    ("8b", include_str!("../src/checkpoint/presets/8b.json"), 2),
    ("2b", include_str!("../src/checkpoint/presets/2b.json"), 4),
];
const PROMPT: usize = 64;
const STEPS: usize = 20;

fn main() {
    let kept = std::env::args().skip(1).find(|a| !a.starts_with('-')).map(PathBuf::from);
    let folder = tempfile::tempdir().expect("a folder");
    let dir = kept.unwrap_or_else(|| folder.path().into());
    for (name, preset, layers) in LAYERS {
        let checkpoint = Arc::new(checkpoint(&dir.join(name), preset, layers));
        // Read by every step: the layers and the output projection.
        let read = |name: &str| {
            name.starts_with("language_model.model.layers") || name == "language_model.output.weight"
        };
        let weights: Vec<&[half::bf16]> = checkpoint
            .all_tensors()
            .filter(|t| read(t.name))
            .map(|t| {
                let shape = checkpoint.shape_of(t.name).expect("a tensor").to_vec();
                match checkpoint.tensor(t.name, &shape).expect("bf16").place {
                    Place::Weight(id) => checkpoint.weight(id),
                    _ => unreachable!("a tensor of the checkpoint"),
                }
            })
            .collect();
        let bytes: usize = weights.iter().map(|w| 2 * w.len()).sum();
        let precisions =
            if has_bf16() { vec![Precision::F32, Precision::Bf16] } else { vec![Precision::F32] };
        for precision in precisions {
            for sequences in [1, 4, 8] {
                let turns = turns(&checkpoint, precision, sequences, &weights);
                let of = |f: fn(&Turn) -> f64| median(turns.iter().map(f).collect());
                let (step, gbps) = (of(|t| t.step), |seconds: f64| bytes as f64 / seconds / 1e9);
                let line = json!({
                    "model": name, "layers": layers, "precision": format!("{precision:?}").to_lowercase(),
                    "sequences": sequences, "weights_mb": bytes as f64 / 1e6, "step_ms": step * 1e3,
                    "weights_gbps": gbps(step), "memory_gbps": gbps(of(|t| t.sum)),
                    "memory_best_gbps": gbps(turns.iter().map(|t| t.sum).fold(f64::INFINITY, f64::min)),
                    "share": of(|t| t.sum / t.step), "threads": rayon::current_num_threads(),
                });
                println!("{line}");
            }
        }
    }
}

/// The preset with fewer layers, written to `dir` unless it is there.
fn checkpoint(dir: &Path, preset: &str, layers: usize) -> Checkpoint {
    if !dir.join("config.json").is_file() {
        let mut spec: Value = serde_json::from_str(preset).expect("JSON");
        let config = if spec["config"].is_object() { &mut spec["config"] } else { &mut spec };
        config["llm_config"]["num_hidden_layers"] = layers.into();
        config["vision_config"]["num_hidden_layers"] = 1.into();
        let file = dir.with_extension("json");
        std::fs::create_dir_all(dir.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, spec.to_string()).expect("a file");
        let spec = synth::Spec::read(&file.to_string_lossy()).expect("a preset");
        synth::write(&spec, dir, &synth::Options::default(), &mut |_, _| {}).expect("a checkpoint");
    }
    Checkpoint::open_dir(dir).expect("a checkpoint")
}

/// Seconds of adding up all the words.
fn sum_seconds(weights: &[&[half::bf16]]) -> f64 {
    let sum = |words: &[u64]| -> u64 {
        let (chunks, _) = words.as_chunks::<32>();
        let mut sums = [0u64; 32];
        chunks.iter().for_each(|c| (0..32).for_each(|i| sums[i] = sums[i].wrapping_add(c[i])));
        sums.iter().fold(0, |a, b| a ^ b)
    };
    let start = Instant::now();
    for w in weights {
        let words = bytemuck::cast_slice::<_, u64>(w);
        std::hint::black_box(words.par_chunks(1 << 16).map(sum).reduce(|| 0, |a, b| a ^ b));
    }
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds of a step, and of a sum: the mean of those before and after it.
struct Turn {
    step: f64,
    sum: f64,
}

/// Steps of `sequences` sequences, and sums between them.
fn turns(
    checkpoint: &Arc<Checkpoint>,
    precision: Precision,
    sequences: usize,
    weights: &[&[half::bf16]],
) -> Vec<Turn> {
    let options = Options { precision, cache_tokens: 2048, ..Options::default() };
    let mut g =
        Generator::new(Arc::clone(checkpoint), &options, Vec::new(), &mut |_, _| ()).expect("a model");
    let generation =
        Generation { max_new_tokens: STEPS + sequences + 2, speculate: false, ..Generation::default() };
    for s in 0..sequences as u32 {
        let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 3 + s + 7 * i).collect();
        let prompt = g.prompt(&ids, u32::MAX, &[]).expect("a prompt");
        g.submit(prompt, generation.clone()).expect("a place");
    }
    let mut turns = Vec::new();
    let mut before = sum_seconds(weights);
    loop {
        let start = Instant::now();
        let events = g.step().expect("a step");
        let step = start.elapsed().as_secs_f64();
        let after = sum_seconds(weights);
        let tokens = events.iter().filter(|e| matches!(e, Event::Tokens(..))).count();
        if events.iter().any(|e| matches!(e, Event::Done(..))) {
            break;
        }
        if tokens == sequences {
            turns.push(Turn { step, sum: (before + after) / 2.0 });
        }
        before = after;
    }
    turns.remove(0); // in it the last prompt was computed
    turns
}
