//! The tensors that a config implies, against the published model's state dict.

use mllmseg::checkpoint::config::Config;
use mllmseg::checkpoint::names;
use mllmseg::checkpoint::synth::Spec;

/// `{"name": [shape], ...}` in the file's order.
fn state_dict(file: &str) -> Vec<(String, Vec<usize>)> {
    let text =
        std::fs::read_to_string(format!("{}/tests/data/golden/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let entry = |line: &str| {
        let (name, shape) = line.trim_end_matches(',').split_once(": ")?;
        Some((serde_json::from_str(name).unwrap(), serde_json::from_str(shape).unwrap()))
    };
    text.lines().filter_map(entry).collect()
}

fn preset(name: &str) -> Config {
    Spec::read(name).unwrap().config
}

#[test]
fn tiny_and_8b_are_the_published_state_dicts() {
    let tiny = preset("tiny");
    assert_eq!(names::expected(&tiny, Some(1024)), state_dict("tiny-state-dict.json"));
    let full = preset("8b");
    let names = names::expected(&full, Some(1024));
    assert_eq!(names.len(), 631);
    assert_eq!(names, state_dict("state-dict-8b.json"));
    assert_eq!((full.patches(), full.image_tokens()), (32, 256));
    assert_eq!((full.vision_config.head_dim(), full.llm_config.head_dim()), (64, 128));
}

#[test]
fn without_a_decoder_the_rest_is_the_same() {
    let tiny = preset("tiny");
    let mut all = names::expected(&tiny, Some(1024));
    all.retain(|(name, _)| !name.starts_with("res_decoder."));
    assert_eq!(names::expected(&tiny, None), all);
}
