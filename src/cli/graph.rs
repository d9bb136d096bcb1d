//! `mllmseg graph`: the static graphs of a model.

use super::saving;
use mllmseg::checkpoint::Checkpoint;
use mllmseg::graph::Graph;
use mllmseg::models::mllmseg::{self as model, Along, Model, PictureRoom, Savings, States};
use mllmseg::plan::Plan;
use mllmseg::{Error, Result};
use std::process::ExitCode;
use std::sync::Arc;

/// Print the graphs that a model runs: nodes, shapes, FLOPs, bytes, arena
///
/// There are five: `system` (once a model), `pictures` and `image` (once a picture: the vision tower), `text` (the language model over a
/// batch of sequences, here the first one about a picture, whose rows come along), `masks` (a batch of expressions). Bytes are those of bf16 activations.
///
/// Example: mllmseg graph --model DIR --json
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Graphviz instead of a table
    #[arg(long, conflicts_with = "json")]
    dot: bool,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Only this graph
    #[arg(long, value_parser = ["system", "pictures", "image", "text", "masks"])]
    only: Option<String>,
    /// Expressions of the picture, one sequence each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    expressions: u16,
    /// Tokens of a sequence, without those that open all sequences of a picture
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(2..=4096))]
    tokens: u16,
    /// Tokens of the system prompt, `<img>` last
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=4096))]
    system_tokens: u16,
    /// Height and width of the picture
    #[arg(long, value_name = "HxW", value_parser = super::size, default_value = "480x640")]
    size: (usize, usize),
    /// Switch a saving off (`all`: every one)
    #[arg(long, value_name = "SAVING", value_parser = saving, value_delimiter = ',')]
    without: Vec<String>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    if !checkpoint.has_mask_decoder() {
        return Err(Error::usage(
            args.model,
            "a checkpoint with a mask decoder (res_decoder.*)",
            "one for chat only",
        ));
    }
    let (m, _) = Model::bind(&checkpoint)?;
    let savings = args.without.iter().fold(Savings::ALL, |s, name| s.without(name).unwrap_or(Savings::NONE));
    let (system, image) = (usize::from(args.system_tokens), m.config.image_tokens());
    let (q, t) = (usize::from(args.expressions), usize::from(args.expressions) * usize::from(args.tokens));
    let mut states = States::default();
    let kv = states.kv_cache(&m.config, system + image + t);
    let own = if savings.system_once { 0 } else { system };
    let s = &mut states;
    let (system_graph, system_io) = model::system(&m, s, &kv, system, savings)?;
    let img = savings.system_once.then_some(&system_io.img);
    let (image_graph, image_io) = model::image(&m, s, 1)?;
    let room = PictureRoom::of(1, [args.size.1, args.size.0], m.config.force_image_size);
    let along = Along { image: &image_io, system: own, img };
    let (text_graph, text_io) = model::text(&m, s, &kv, Some(along), [t, q, q], savings)?;
    let words = q * args.size.0 * args.size.1.div_ceil(32);
    let graphs = [
        ("system", system_graph),
        ("pictures", model::pictures(&m, s, &image_io.patches, 1, room)?.0),
        ("image", image_graph),
        ("text", text_graph),
        ("masks", model::masks(&m, s, &image_io.sa, &text_io.t_q, q, words, false, savings)?.0),
    ];
    let mut all = serde_json::Map::new();
    for (name, graph) in graphs.into_iter().filter(|g| args.only.as_deref().is_none_or(|only| only == g.0)) {
        if args.dot {
            print!("{}", graph.dot().replace("digraph mllmseg", &format!("digraph {name}")));
        } else if args.json {
            let (nodes, cost) = (graph.json(), graph.cost());
            let arena = arena(graph)?;
            all.insert(name.into(), serde_json::json!({"nodes": nodes, "flops": cost.flops, "bytes": cost.bytes, "arena_bytes": arena}));
        } else {
            let (table, cost, nodes) = (graph.table(), graph.cost(), graph.nodes.len());
            let arena = arena(graph)? as f64 / 1e6;
            let (gflop, mb) = (cost.flops as f64 / 1e9, cost.bytes as f64 / 1e6);
            println!(
                "{name}: {nodes} nodes, {gflop:.2} GFLOP, {mb:.1} MB read and written, arena {arena:.1} MB\n{table}"
            );
        }
    }
    if args.json {
        println!("{}", serde_json::Value::Object(all));
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes of the arena with bf16 activations.
fn arena(graph: Graph) -> Result<usize> {
    Ok(Plan::new(graph, 2)?.arena_bytes)
}
