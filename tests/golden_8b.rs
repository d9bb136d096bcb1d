//! The published implementation's numbers at the 8B model's widths: one vision layer, one language model layer, the projector, the mask
//! decoder for three expressions, each within 1e-5 relative L2 of its f32 run.

mod common;

use common::golden::Golden;
use common::pieces::{Piece, Pieces};
use mllmseg::dump::{Data, Value};
use mllmseg::reference::Precision;
use std::collections::BTreeMap;

/// Runs a piece; its taps, and its nodes' outputs, by name.
fn values(mut piece: Piece) -> BTreeMap<String, Value> {
    let taps: Vec<_> = piece.plan.graph.taps.iter().map(|t| (t.after, t.name.clone())).collect();
    let nodes: Vec<_> = piece.plan.graph.nodes.iter().map(|n| (n.name.clone(), n.op.writes()[0].clone())).collect();
    let mut out = BTreeMap::new();
    let mut wanted = Vec::new();
    piece.run(|i, memory| {
        let (name, y) = &nodes[i];
        if matches!(name.as_str(), "vit.0.norm1" | "vit.0.qkv" | "llm.0.attention_norm" | "llm.0.wqkv") {
            out.insert(name.clone(), Value { shape: y.shape.clone(), data: Data::F32(memory.f32(y).to_vec()) });
        }
        wanted.extend(taps.iter().filter(|t| t.0 == i).map(|t| (t.1.clone(), i)));
    });
    // A second run, for the taps: the plan cannot be borrowed while it runs.
    let graph = &piece.plan.graph;
    let tapped = std::cell::RefCell::new(BTreeMap::new());
    let plan_taps: Vec<_> = graph.taps.iter().map(|t| (t.after, t.name.clone(), t.value.clone(), t.shape.clone(), t.channels_first)).collect();
    piece.run(|i, memory| {
        for (_, name, value, shape, channels_first) in plan_taps.iter().filter(|t| t.0 == i) {
            tapped.borrow_mut().insert(name.clone(), mllmseg::dump::published(value, shape, *channels_first, memory));
        }
    });
    out.extend(tapped.into_inner());
    out
}

#[test]
fn real_width_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let pieces = Pieces::new(dir.path());
    let golden = Golden::open("layer8b");
    let check = |values: &BTreeMap<String, Value>, pairs: &[(&str, &str)]| {
        for (golden_name, ours) in pairs {
            golden.expect_close(golden_name, &values[*ours], 1e-5);
        }
    };
    let vit = values(pieces.vit_layer(Precision::F32));
    check(&vit, &[("vit_layer.norm1", "vit.0.norm1"), ("vit_layer.qkv", "vit.0.qkv"), ("vit_layer.out", "vit.layer0")]);
    let llm = values(pieces.llm_layer(320, Precision::F32));
    check(&llm, &[("llm_layer.attention_norm", "llm.0.attention_norm"), ("llm_layer.wqkv", "llm.0.wqkv"), ("llm_layer.out", "llm.layer0")]);
    check(&values(pieces.mlp1(Precision::F32)), &[("mlp1.out", "mlp1")]);
    for fold in [true, false] {
        let decoder = values(pieces.decoder(3, fold, Precision::F32));
        let mut compared = 0;
        for name in golden.names().filter(|n| n.starts_with("dec.") && !n.contains("resized") && !n.contains("bits")) {
            golden.expect_close(name, &decoder[name], 1e-5);
            compared += 1;
        }
        assert!(compared >= 10, "{compared} stages of the decoder compared");
    }
}
