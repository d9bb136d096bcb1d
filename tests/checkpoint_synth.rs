//! Synthetic checkpoints, bit for bit.

use half::bf16;
use mllmseg::checkpoint::Checkpoint;
use mllmseg::checkpoint::config::Config;
use mllmseg::checkpoint::synth::{self, Options, Spec};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Shape, sha256 of the little-endian bytes, the first four elements' bits.
type Sum = (Vec<usize>, String, Vec<String>);

fn golden(file: &str) -> String {
    format!("{}/tests/data/golden/{file}", env!("CARGO_MANIFEST_DIR"))
}

fn sums(group: &str) -> BTreeMap<String, Sum> {
    let text = std::fs::read_to_string(golden("synth-sha256.json")).unwrap();
    serde_json::from_value(serde_json::from_str::<serde_json::Value>(&text).unwrap()[group].take()).unwrap()
}

fn check(name: &str, values: &[bf16], (_, sha256, first): &Sum) {
    let bits: Vec<_> = values.iter().take(4).map(|v| format!("{:04x}", v.to_bits())).collect();
    assert_eq!(&bits, first, "{name}");
    let sum = Sha256::digest(bytemuck::cast_slice::<_, u8>(values));
    let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(&sum, sha256, "{name}");
}

#[test]
fn tiny_checkpoint_has_the_golden_bits() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::read(&golden("tiny-config.json")).unwrap();
    assert_eq!(spec.config, Spec::read("tiny").unwrap().config);
    synth::write(&spec, dir.path(), &Options::default(), &mut |_, _| ()).unwrap();
    let ck = Checkpoint::open(dir.path().to_str().unwrap()).unwrap();
    let sums = sums("tiny");
    for (name, sum) in &sums {
        let tensor = ck.tensor(name, &sum.0).unwrap();
        let mllmseg::graph::Place::Weight(id) = tensor.place else { panic!("{name}") };
        check(name, ck.weight(id), sum);
    }
    // Beside those that are hashed there is DySample's constant.
    assert_eq!(ck.unbound(), ["res_decoder.upsample_adapter_l.init_pos"]);
    assert_eq!(ck.all_tensors().count(), sums.len() + 2);
    assert_eq!(ck.notes(), [""; 0]);
    assert_eq!(ck.decoder_width().unwrap(), 1024);
    let added = std::fs::read_to_string(dir.path().join("added_tokens.json")).unwrap();
    let added: BTreeMap<String, u32> = serde_json::from_str(&added).unwrap();
    assert_eq!((added["[SEG]"], added["[REJ]"], added["<IMG_CONTEXT>"]), (2046, 2047, 2039));
}

#[test]
fn real_sizes_have_the_golden_bits() {
    sums("layer8b").par_iter().for_each(|(name, sum)| check(name, &synth::fill(name, 1, &sum.0), sum));
}

#[test]
fn worked_examples() {
    let bits = |v: Vec<bf16>| v.iter().take(4).map(|v| v.to_bits()).collect::<Vec<_>>();
    let embeddings = synth::fill("language_model.model.tok_embeddings.weight", 7, &[8, 512]);
    assert_eq!(bits(embeddings), [0xbf45, 0xbf2f, 0x3dea, 0xbf6c]);
    let wqkv = synth::fill("language_model.model.layers.1.attention.wqkv.weight", 1, &[1024, 512]);
    assert_eq!(bits(wqkv), [0xba92, 0xbdd8, 0x3d31, 0xbc9d]);
    let ls1 = "vision_model.encoder.layers.0.ls1";
    let mut again = vec![bf16::ZERO; 1024];
    synth::fill_with(ls1, 1, 0.5, 0.1, &mut again);
    assert_eq!(again, synth::fill(ls1, 1, &[1024]));

    let init_pos = synth::fill("res_decoder.upsample_adapter_l.init_pos", 1, &[1, 32, 1, 1]);
    let (x, y) = ([-0.25, 0.25, -0.25, 0.25], [-0.25, -0.25, 0.25, 0.25]);
    let published: Vec<f32> = [x, x, x, x, y, y, y, y].concat();
    assert_eq!(init_pos.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), published);
}

#[test]
fn shards_and_tokenizer_files() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = dir.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    std::fs::write(tokenizer.join("tokenizer.model"), "pieces").unwrap();
    std::fs::write(tokenizer.join("added_tokens.json"), "{}").unwrap();
    std::fs::write(tokenizer.join("vectors.jsonl"), "not a tokenizer's").unwrap();
    let spec = Spec::read(&mini()).unwrap();
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    let options = Options { seed: 3, ..Options::default() };
    synth::write(&spec, &one, &options, &mut |_, _| ()).unwrap();
    let limits = Options { shard_bytes: 50_000, tokenizer: Some(tokenizer), ..options };
    let mut heard = Vec::new();
    synth::write(&spec, &many, &limits, &mut |done, total| heard.push((done, total))).unwrap();

    let (one, many) = (Checkpoint::open_dir(&one).unwrap(), Checkpoint::open_dir(&many).unwrap());
    assert!(many.files().count() > 2);
    assert!(many.files().all(|(_, bytes)| bytes < 60_000));
    let bytes: usize = many.all_tensors().map(|t| t.bytes).sum();
    assert_eq!(heard.last(), Some(&(bytes as u64, bytes as u64)));
    assert!(heard.is_sorted());
    for t in one.all_tensors().filter(|t| !t.shape.is_empty()) {
        let weight = |ck: &Checkpoint| {
            let tensor = ck.tensor(t.name, t.shape).unwrap();
            let mllmseg::graph::Place::Weight(id) = tensor.place else { panic!("{tensor}") };
            ck.weight(id).to_vec()
        };
        assert_eq!(weight(&one), weight(&many), "{}", t.name);
        assert_eq!(weight(&one), synth::fill(t.name, 3, t.shape), "{}", t.name);
    }
    assert_eq!(one.config, many.config);
    let names: Vec<_> = std::fs::read_dir(&many.dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_str().unwrap().ends_with(".tmp") && n != "vectors.jsonl"));
    assert_eq!(std::fs::read(many.dir.join("tokenizer.model")).unwrap(), b"pieces");
    assert_eq!(std::fs::read(many.dir.join("added_tokens.json")).unwrap(), b"{}");
}

#[test]
fn refuses_a_folder_with_files_and_a_tokenizer_without() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::read(&mini()).unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "").unwrap();
    let write =
        |options: &Options| synth::write(&spec, dir.path(), options, &mut |_, _| ()).unwrap_err().to_string();
    assert!(write(&Options::default()).ends_with("expected a new or empty folder, found one with 1 entries"));
    let tokenizer = Some(dir.path().to_path_buf());
    assert!(write(&Options { tokenizer, ..Options::default() }).contains("tokenizer.model"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn config_survives_and_keeps_what_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tiny", "2b", "8b"] {
        assert!(Spec::read(name).is_ok(), "{name}");
    }
    let spec = Spec::read(&mini()).unwrap();
    synth::write(&spec, dir.path(), &Options::default(), &mut |_, _| ()).unwrap();
    let path = dir.path().join("config.json");
    assert_eq!(Config::read(&path).unwrap(), spec.config);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["llm_config"]["bos_token_id"], 1);
    assert_eq!(json["system_message"], "You are small.");
    assert_eq!(json["architectures"], serde_json::json!(["MLLMSeg"]));
    assert!(Config::read(Path::new("/nowhere/config.json")).is_err());
}

/// A checkpoint of a few 100 KB.
fn mini() -> String {
    format!("{}/tests/data/checkpoint/mini.json", env!("CARGO_MANIFEST_DIR"))
}
