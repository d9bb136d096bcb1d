//! The published implementation's numbers at the 8B model's widths: one vision layer, one language model layer, the projector, the mask
//! decoder for three expressions, each stage within 1e-5 relative L2 of its f32 run.

mod common;

use common::golden::Golden;
use common::pieces::Pieces;
use mllmseg::dump::Value;
use mllmseg::reference::Precision::F32;
use std::collections::BTreeMap;

#[test]
fn real_width_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let pieces = Pieces::new(dir.path(), mllmseg::device::Choice::Cpu);
    let golden = Golden::open("layer8b");
    let check = |values: &BTreeMap<String, Value>, pairs: &[(&str, &str)]| {
        for (name, ours) in pairs {
            // A leading extent of one is dropped in the file.
            let mut value = values[*ours].clone();
            value.shape = golden.f32(name).shape;
            golden.expect_close(name, &value, 1e-5);
        }
    };
    let names =
        [("vit_layer.norm1", "vit.0.norm1"), ("vit_layer.qkv", "vit.0.qkv"), ("vit_layer.out", "vit.layer0")];
    check(&pieces.vit_layer(F32).values(&names.map(|n| n.1)), &names);
    let names = [
        ("llm_layer.attention_norm", "llm.0.attention_norm"),
        ("llm_layer.wqkv", "llm.0.wqkv"),
        ("llm_layer.out", "llm.layer0"),
    ];
    check(&pieces.llm_layer(320, F32).values(&names.map(|n| n.1)), &names);
    check(&pieces.mlp1(F32).values(&[]), &[("mlp1.out", "mlp1")]);
    for fold in [true, false] {
        let values = pieces.decoder(3, fold, F32).values(&[]);
        let stages: Vec<_> = golden
            .names()
            .filter(|n| n.starts_with("dec.") && !n.contains("resized") && !n.contains("bits"))
            .map(|n| (n, n))
            .collect();
        assert!(stages.len() >= 10, "{} stages of the decoder", stages.len());
        check(&values, &stages);
    }
}
