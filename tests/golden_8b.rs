//! The published implementation's numbers at the 8B model's widths: one vision layer, one language model layer, the projector, the mask
//! decoder for three expressions. On the CPU each stage is within 1e-5 relative L2 of its f32 run; the kernels, on the simulated driver with
//! every check on, are hardly further from it than its bf16 run is, at most by a tenth.

mod common;

use common::golden::{Golden, name_in_one_case};
use common::gpu::{device, driver, expect_clean, report};
use common::pieces::Pieces;
use mllmseg::device::{Choice, cuda};
use mllmseg::dump::Value;
use mllmseg::reference::Precision::F32;
use std::collections::BTreeMap;

/// Relative L2 distance of the published bf16 implementation from its own f32 run at these widths, by stage; of dysample_offset, that of the
/// convolution that it is made of.
const PUBLISHED: [(&str, f64); 17] = [
    ("vit_layer.norm1", 1.599e-3),
    ("vit_layer.qkv", 2.302e-3),
    ("vit_layer.out", 5.847e-3),
    ("llm_layer.attention_norm", 2.255e-3),
    ("llm_layer.wqkv", 2.801e-3),
    ("llm_layer.out", 1.188e-2),
    ("mlp1.out", 3.504e-3),
    ("dec.img_llm_down", 1.663e-3),
    ("dec.ca_layer_v2l", 5.047e-3),
    ("dec.dysample_offset", 2.313e-3),
    ("dec.dysample", 3.430e-2),
    ("dec.text_out_adapter", 1.441e-2),
    ("dec.text_down", 1.664e-3),
    ("dec.ca_layer_vl", 9.175e-3),
    ("dec.map448", 1.009e-2),
    ("dec.pre_sigmoid", 1.176e-2),
    ("dec.mask", 6.506e-3),
];

#[test]
fn real_width_pieces() {
    check(Choice::Cpu, &[true, false], |_| 1e-5);
}

#[test]
fn real_width_pieces_through_the_kernels() {
    let _driver = driver();
    cuda::reset_simulator();
    check(device(), &[true], |name| {
        let fits = |(stage, _): &&(&str, f64)| name.starts_with(stage);
        // A product of equal operands is off by its own rounding in either.
        1.1 * PUBLISHED.iter().find(fits).unwrap_or_else(|| panic!("{name}: no bound")).1
    });
    expect_clean(&report());
}

/// Every stage within `bound` of the published f32 run, the decoder's cross-attention folded or not as `folds` says.
fn check(device: Choice, folds: &[bool], bound: impl Fn(&str) -> f64) {
    let dir = tempfile::tempdir().unwrap();
    let pieces = Pieces::new(dir.path(), device);
    let golden = Golden::open("layer8b");
    let check = |values: &BTreeMap<String, Value>, pairs: &[(&str, &str)]| {
        for (name, ours) in pairs {
            // A leading extent of one is dropped in the file.
            let mut value = values[*ours].clone();
            value.shape = golden.f32(name).shape;
            golden.expect_close(name, &value, bound(name));
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
    for &fold in folds {
        let values = pieces.decoder(3, fold, F32).values(&[]);
        let stages: Vec<_> = golden
            .names()
            .filter(|n| n.starts_with("dec.") && !n.contains("resized") && !n.contains("bits"))
            .filter(|n| name_in_one_case(n, "").is_some())
            .map(|n| (n, n))
            .collect();
        assert!(stages.len() >= 10, "{} stages of the decoder", stages.len());
        check(&values, &stages);
    }
}
