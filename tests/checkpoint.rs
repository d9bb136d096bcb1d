//! Opening checkpoints: good ones, and strangers' files that must end in an error that helps.

mod common;

use half::{bf16, f16};
use mllmseg::checkpoint::synth::{self, Options, Spec};
use mllmseg::checkpoint::{Checkpoint, Report, header};
use mllmseg::graph::{Place, Tensor};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const ATTN: &str = "language_model.model.layers.0.attention.wqkv.weight";
const NORM: &str = "language_model.model.norm.weight";

/// A good checkpoint of a few 100 KB, in one file and in shards; every test breaks its own copy.
static GOOD: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = common::folder_for_all();
    let spec =
        Spec::read(&format!("{}/tests/data/checkpoint/mini.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (name, shard_bytes) in [("one", 1 << 30), ("many", 60_000)] {
        let options = Options { shard_bytes, ..Options::default() };
        synth::write(&spec, &dir.join(name), &options, &mut |_, _| ()).unwrap();
    }
    dir
});

fn copy_of(which: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(GOOD.join(which)).unwrap() {
        let from = file.unwrap().path();
        std::fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    dir
}

/// Binds everything that the config implies, as the models do.
fn open_and_bind(dir: &Path) -> mllmseg::Result<Checkpoint> {
    let ck = Checkpoint::open(dir.to_str().unwrap())?;
    let width = if ck.has_mask_decoder() { Some(ck.decoder_width()?) } else { None };
    for (name, shape) in mllmseg::checkpoint::names::expected(&ck.config, width) {
        if !name.ends_with("num_batches_tracked") {
            ck.tensor(&name, &shape)?;
        }
    }
    Ok(ck)
}

fn values<'a>(ck: &'a Checkpoint, t: &Tensor) -> &'a [bf16] {
    let Place::Weight(id) = t.place else { panic!("{t}") };
    ck.weight(id)
}

/// A file taken apart: header object and data.
struct Parts {
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn read(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&file[8..8 + length]).unwrap();
        Self { header, data: file[8 + length..].to_vec() }
    }

    fn write(&self, path: &Path) {
        write_raw(path, self.header.to_string().as_bytes(), &self.data);
    }

    fn range(&self, tensor: &str) -> std::ops::Range<usize> {
        let offsets = &self.header[tensor]["data_offsets"];
        offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize
    }

    /// The tensors' bytes, laid out anew after `change`.
    fn relayout(&mut self, change: impl FnOnce(&mut BTreeMap<String, (String, Vec<usize>, Vec<u8>)>)) {
        let mut tensors = BTreeMap::new();
        for (name, info) in self.header.as_object().unwrap() {
            if name != "__metadata__" {
                let shape = serde_json::from_value(info["shape"].clone()).unwrap();
                let bytes = self.data[self.range(name)].to_vec();
                tensors.insert(name.clone(), (info["dtype"].as_str().unwrap().to_string(), shape, bytes));
            }
        }
        change(&mut tensors);
        (self.header, self.data) = (json!({}), Vec::new());
        for (name, (dtype, shape, bytes)) in tensors {
            let start = self.data.len();
            self.data.extend(bytes);
            self.header[name] =
                json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, self.data.len()] });
        }
    }
}

fn write_raw(path: &Path, header: &[u8], data: &[u8]) {
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header, data].concat()).unwrap();
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Parts)) {
    let mut parts = Parts::read(&path);
    change(&mut parts);
    parts.write(&path);
}

fn edit_json(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

/// Breaks a copy of a good checkpoint; the error must hold all of `words` on one line, and another checkpoint must open
/// as before.
fn refused(which: &str, words: &[&str], name: &str, damage: impl FnOnce(&Path)) {
    let dir = copy_of(which);
    damage(dir.path());
    let message = match open_and_bind(dir.path()) {
        Ok(_) => panic!("{name}: opened"),
        Err(e) => {
            assert_eq!(e.exit_code(), 1, "{name}");
            e.to_string()
        }
    };
    assert!(message.contains("expected ") && message.contains(", found "), "{name}: {message}");
    assert!(!message.contains('\n') && message.len() < 1000, "{name}: {message}");
    for word in words {
        assert!(message.contains(word), "{name}: `{word}` is not in: {message}");
    }
}

#[test]
fn good_ones_open_and_bind_completely() {
    for which in ["one", "many"] {
        let ck = open_and_bind(&GOOD.join(which)).unwrap();
        assert_eq!(ck.unbound(), [""; 0]);
        assert_eq!(ck.decoder_width().unwrap(), 16);
        assert!(Report::of(&ck).values(&ck).is_complete());
        let norm = ck.at("language_model.model").tensor("norm.weight", &[32]).unwrap();
        assert_eq!(values(&ck, &norm), synth::fill(NORM, 1, &[32]));
        let mapped = values(&ck, &norm).as_ptr();
        assert_eq!(values(&ck, &norm).as_ptr(), mapped, "no copies");
    }
}

#[test]
fn binding_says_what_was_implied_and_what_is_there() {
    let ck = Checkpoint::open_dir(&GOOD.join("one")).unwrap();
    let message = ck.tensor(ATTN, &[64, 64]).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains(ATTN), "{message}");
    assert!(
        message.ends_with("expected bf16 (64, 64) (implied by config.json), found bf16 (64, 32)"),
        "{message}"
    );
    let message = ck.at("mlp1").tensor("9.weight", &[1]).unwrap_err().to_string();
    assert!(message.contains("mlp1.9.weight") && message.contains("no tensor of that name"), "{message}");
    assert_eq!(ck.shape_of(ATTN), Some(&[64, 32][..]));
    assert!(ck.unbound().contains(&ATTN.to_string()));
    ck.tensor(ATTN, &[64, 32]).unwrap();
    assert!(!ck.unbound().contains(&ATTN.to_string()));
}

#[test]
fn broken_files() {
    type Case = (&'static str, &'static [&'static str], fn(&mut Parts));
    let file = |dir: &Path| dir.join("model.safetensors");
    let cases: &[Case] = &[
        ("missing tensor", &[ATTN, "bf16 (64, 32)", "no tensor of that name"], |p| {
            p.relayout(|t| drop(t.remove(ATTN)))
        }),
        ("missing bias", &["layers.1.attn.qkv.bias", "no tensor"], |p| {
            p.relayout(|t| drop(t.remove("vision_model.encoder.layers.1.attn.qkv.bias")))
        }),
        ("missing decoder width", &["res_decoder.text_down.weight", "(16, 32)", "no tensor"], |p| {
            p.relayout(|t| drop(t.remove("res_decoder.text_down.weight")))
        }),
        ("transposed", &[ATTN, "bf16 (64, 32)", "bf16 (32, 64)"], |p| {
            p.header[ATTN]["shape"] = json!([32, 64])
        }),
        ("flattened", &[ATTN, "bf16 (2048)"], |p| p.header[ATTN]["shape"] = json!([2048])),
        ("integers", &[ATTN, "i16 (64, 32)"], |p| p.header[ATTN]["dtype"] = json!("I16")),
        ("eight bits", &[ATTN, "f8_e4m3 (64, 64)"], |p| {
            (p.header[ATTN]["dtype"], p.header[ATTN]["shape"]) = (json!("F8_E4M3"), json!([64, 64]))
        }),
        ("unknown dtype", &[ATTN, "dtype", "BF17"], |p| p.header[ATTN]["dtype"] = json!("BF17")),
        ("dtype of another length", &[ATTN, "8192 bytes for f32 (64, 32)", "4096"], |p| {
            p.header[ATTN]["dtype"] = json!("F32")
        }),
        ("shape past the range", &[ATTN, "4160 bytes for bf16 (65, 32)"], |p| {
            p.header[ATTN]["shape"] = json!([65, 32])
        }),
        ("product overflows", &[ATTN, "addressed"], |p| {
            p.header[ATTN]["shape"] = json!([u64::MAX, u64::MAX, 0])
        }),
        ("bits overflow", &[ATTN, "addressed"], |p| p.header[ATTN]["shape"] = json!([1u64 << 61, 1])),
        ("negative extent", &[ATTN, "shape[0]", "-64"], |p| p.header[ATTN]["shape"] = json!([-64, 32])),
        ("fractional extent", &[ATTN, "shape[1]", "32.5"], |p| p.header[ATTN]["shape"] = json!([64, 32.5])),
        ("too many dimensions", &[ATTN, "at most 16 dimensions", "100"], |p| {
            p.header[ATTN]["shape"] = vec![1; 100].into()
        }),
        ("no shape", &[ATTN, "shape", "nothing"], |p| {
            drop(p.header[ATTN].as_object_mut().unwrap().remove("shape"))
        }),
        ("one offset", &[ATTN, "data_offsets"], |p| p.header[ATTN]["data_offsets"] = json!([0])),
        ("backward range", &[ATTN, "data_offsets 4096..0"], |p| {
            p.header[ATTN]["data_offsets"] = json!([4096, 0])
        }),
        ("range past the end", &[ATTN, "within the file"], |p| {
            p.header[ATTN]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 4096])
        }),
        ("range of another tensor", &["expected data_offsets from", "an overlap"], |p| {
            let start = p.range(ATTN).start;
            p.header[ATTN]["data_offsets"] = json!([start - 2, start - 2 + 4096])
        }),
        ("hole", &["a hole before it"], |p| drop(p.header.as_object_mut().unwrap().remove(ATTN))),
        ("bytes behind the last tensor", &["bytes of tensors behind the header"], |p| p.data.extend([0; 16])),
        ("truncated data", &["tensor `", "within the file"], |p| p.data.truncate(p.data.len() - 2)),
        ("no tensors", &["no tensor of that name"], |p| (p.header, p.data) = (json!({}), vec![])),
        ("a list", &["a safetensors header", "an object"], |p| p.header = json!([1, 2])),
        ("a tensor that is a number", &[ATTN, "found integer `7`"], |p| p.header[ATTN] = json!(7)),
        ("metadata of numbers", &["__metadata__", "a string"], |p| {
            p.header["__metadata__"] = json!({"a": 1})
        }),
        ("metadata in the name of a tensor", &["__metadata__"], |p| {
            p.header["__metadata__"] = p.header[ATTN].clone()
        }),
        ("NaN in a norm", &[NORM, "finite", "the first at element 5"], |p| {
            let at = p.range(NORM).start + 10;
            p.data[at..at + 2].copy_from_slice(&bf16::NAN.to_le_bytes())
        }),
        ("infinity in a norm", &[NORM, "1 NaN or infinite, the first at element 0"], |p| {
            let at = p.range(NORM).start;
            p.data[at..at + 2].copy_from_slice(&bf16::NEG_INFINITY.to_le_bytes())
        }),
        ("f32 norm past bf16", &[NORM, "32 NaN or infinite"], |p| {
            p.relayout(|t| {
                let norm = t.get_mut(NORM).unwrap();
                *norm = ("F32".into(), vec![32], [f32::MAX.to_le_bytes(); 32].concat())
            })
        }),
    ];
    for (name, words, damage) in cases {
        let words = [&["model.safetensors"][..], words].concat();
        let words = if words.iter().any(|w| w.starts_with("no tensor")) { &words[1..] } else { &words[..] };
        refused("one", words, name, |dir| edit(file(dir), damage));
    }
    assert!(cases.len() >= 30);
    good_ones_open_and_bind_completely();
}

#[test]
fn broken_bytes() {
    type Case = (&'static str, &'static [&'static str], fn(&Path));
    let cases: &[Case] = &[
        ("empty", &["at least 8 bytes", "0 bytes"], |f| std::fs::write(f, "").unwrap()),
        ("seven bytes", &["7 bytes"], |f| std::fs::write(f, [0; 7]).unwrap()),
        ("no header", &["valid JSON"], |f| std::fs::write(f, [0; 8]).unwrap()),
        ("huge header", &["at most 100000000 bytes", "18446744073709551615"], |f| {
            std::fs::write(f, [0xff; 64]).unwrap()
        }),
        ("header past the end", &["a header of 4096 bytes", "cut off"], |f| {
            std::fs::write(f, [&4096u64.to_le_bytes()[..], b"{}"].concat()).unwrap()
        }),
        ("cut in the header", &["cut off"], |f| {
            let file = std::fs::read(f).unwrap();
            std::fs::write(f, &file[..100]).unwrap()
        }),
        ("cut in the middle", &["within the file"], |f| {
            let file = std::fs::read(f).unwrap();
            std::fs::write(f, &file[..file.len() / 2]).unwrap()
        }),
        ("no JSON", &["valid JSON"], |f| write_raw(f, b"{\"a\": ", b"")),
        ("no UTF-8", &["valid JSON"], |f| write_raw(f, b"{\"\xff\": 1}", b"")),
        ("two objects", &["valid JSON", "trailing"], |f| write_raw(f, b"{} {}", b"")),
        ("deep nesting", &["valid JSON", "EOF"], |f| {
            write_raw(f, &[b"{\"a\":".repeat(9000), b"1".to_vec()].concat(), b"")
        }),
        ("same tensor twice", &["tensor `w`", "one entry", "several"], |f| {
            let w = r#"{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}"#;
            write_raw(f, format!("{{\"w\":{w},\"w\":{w}}}").as_bytes(), &[0; 2])
        }),
        ("same tensor twice, spelled in another way", &["tensor `w`", "several"], |f| {
            let w = r#"{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}"#;
            write_raw(f, format!("{{\"w\":{w},\"\\u0077\":{w}}}").as_bytes(), &[0; 2])
        }),
        ("same key twice in a tensor", &["tensor `w`", "shape"], |f| {
            write_raw(f, br#"{"w":{"dtype":"BF16","shape":[1],"shape":[2],"data_offsets":[0,2]}}"#, &[0; 2])
        }),
        ("metadata twice", &["__metadata__", "twice"], |f| {
            write_raw(f, br#"{"__metadata__":{},"__metadata__":{}}"#, b"")
        }),
        ("half a byte", &["tensor `w`", "addressed"], |f| {
            write_raw(f, br#"{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, &[0])
        }),
        ("a name of 1 MB", &["aaaa...`"], |f| {
            let name = "a".repeat(1 << 20);
            write_raw(f, format!("{{\"{name}\":7}}").as_bytes(), b"")
        }),
        ("a name of control characters", &["\\u{1b}[31m\\n"], |f| {
            write_raw(f, br#"{"\u001b[31m\n":7}"#, b"")
        }),
        ("a pickle", &["at most 100000000 bytes"], |f| std::fs::write(f, b"PK\x03\x04pickled....").unwrap()),
        ("a folder", &["a file", "something else"], |f| {
            std::fs::remove_file(f).unwrap();
            std::fs::create_dir(f).unwrap()
        }),
    ];
    for (name, words, damage) in cases {
        let words = [&["model.safetensors"][..], words].concat();
        refused("one", &words, name, |dir| damage(&dir.join("model.safetensors")));
    }
}

#[test]
fn broken_indices() {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "vision_model.embeddings.class_embedding";
    type Case = (&'static str, &'static [&'static str], fn(&mut Value));
    let cases: &[Case] = &[
        ("leaves the folder", &[INDEX, FIRST, "../one/model.safetensors"], |i| {
            i["weight_map"][FIRST] = json!("../one/model.safetensors")
        }),
        ("absolute", &[INDEX, FIRST, "/etc/passwd"], |i| i["weight_map"][FIRST] = json!("/etc/passwd")),
        ("in a folder", &[INDEX, FIRST, "sub/model.safetensors"], |i| {
            i["weight_map"][FIRST] = json!("sub/model.safetensors")
        }),
        ("dots", &[INDEX, "name of a file"], |i| i["weight_map"][FIRST] = json!("..")),
        ("nothing", &[INDEX, "name of a file"], |i| i["weight_map"][FIRST] = json!("")),
        ("NUL", &[INDEX, "name of a file", "\\u{0}"], |i| i["weight_map"][FIRST] = json!("a\0b")),
        ("missing file", &[INDEX, FIRST, "model-9.safetensors, which is not there"], |i| {
            i["weight_map"][FIRST] = json!("model-9.safetensors")
        }),
        ("no safetensors", &["config.json", "bytes"], |i| i["weight_map"][FIRST] = json!("config.json")),
        ("tensor in another file", &[FIRST, "-of-0000"], |i| {
            i["weight_map"][FIRST] = i["weight_map"]["mlp1.3.bias"].clone()
        }),
        ("tensor that is not there", &["`ghost`", "as the index says"], |i| {
            i["weight_map"]["ghost"] = i["weight_map"][FIRST].clone()
        }),
        ("tensor that is not listed", &[FIRST, "only tensors that the index places in this file"], |i| {
            drop(i["weight_map"].as_object_mut().unwrap().remove(FIRST))
        }),
        ("number", &[INDEX, FIRST, "expected a string", "`3`"], |i| i["weight_map"][FIRST] = json!(3)),
        ("no map", &[INDEX, "`weight_map`"], |i| drop(i.as_object_mut().unwrap().remove("weight_map"))),
        ("empty map", &[INDEX, "an empty one"], |i| i["weight_map"] = json!({})),
        ("a list", &[INDEX, "weight_map"], |i| i["weight_map"] = json!([])),
    ];
    for (name, words, damage) in cases {
        refused("many", words, name, |dir| edit_json(dir.join(INDEX), damage));
    }
    refused("many", &[INDEX, "`w`", "several"], "same tensor twice", |dir| {
        std::fs::write(dir.join(INDEX), r#"{"weight_map": {"w": "a", "w": "b"}}"#).unwrap()
    });
    refused("many", &[INDEX, "valid JSON"], "cut off", |dir| {
        std::fs::write(dir.join(INDEX), r#"{"weight_map": {"#).unwrap()
    });
    refused("many", &["cut off"], "a shard that is cut off", |dir| {
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join(INDEX)).unwrap()).unwrap();
        let shard = dir.join(index["weight_map"][ATTN].as_str().unwrap());
        std::fs::write(&shard, &std::fs::read(&shard).unwrap()[..64]).unwrap()
    });
}

#[test]
fn no_weights() {
    let both = ["model.safetensors.index.json", "neither"];
    refused("one", &both, "nothing", |dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    let convert = ["pytorch_model.bin", "tools/convert/to_safetensors.py"];
    refused("one", &convert, "pickled", |dir| {
        std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap()
    });
    refused("one", &convert, "pickled shards", |dir| {
        std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin.index.json")).unwrap()
    });
}

#[test]
fn absurd_configs() {
    type Case = (&'static str, Value, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        ("/vision_config/num_hidden_layers", json!(0), &["1 to 512", "found 0"]),
        ("/llm_config/num_hidden_layers", json!(1_000_000), &["1 to 512", "1000000"]),
        ("/vision_config/hidden_size", json!(1u64 << 40), &["1 to 65536"]),
        ("/vision_config/hidden_size", json!(17), &["multiple of num_attention_heads (2)", "17"]),
        ("/vision_config/num_attention_heads", json!(0), &["1 to 1024"]),
        ("/vision_config/image_size", json!(57), &["multiple of 2 * patch_size (28)"]),
        ("/vision_config/image_size", json!(0), &["28 to 4096"]),
        ("/vision_config/patch_size", json!(0), &["1 to 64"]),
        ("/vision_config/intermediate_size", json!(-1), &["`-1`", "usize"]),
        ("/vision_config/layer_norm_eps", json!(-1e-6), &["-1e-6"]),
        ("/vision_config/hidden_act", json!("quick_gelu"), &["gelu", "quick_gelu"]),
        ("/vision_config/norm_type", json!("rms_norm"), &["layer_norm", "rms_norm"]),
        ("/vision_config/qk_normalization", json!(true), &["false", "true"]),
        ("/vision_config/qkv_bias", json!(1), &["a boolean", "`1`"]),
        (
            "/llm_config/architectures",
            json!(["Qwen2ForCausalLM"]),
            &["InternLM2ForCausalLM", "not supported yet"],
        ),
        ("/llm_config/architectures", json!([]), &["[]"]),
        ("/llm_config/hidden_size", json!("4096"), &["string \"4096\"", "usize"]),
        ("/llm_config/hidden_size", json!(36), &["multiple of 2 * num_attention_heads (8)"]),
        (
            "/llm_config/num_key_value_heads",
            json!(3),
            &["num_attention_heads", "multiple of num_key_value_heads (3)"],
        ),
        ("/llm_config/num_key_value_heads", json!(8), &["1 to 4"]),
        ("/llm_config/num_attention_heads", json!(4.5), &["4.5"]),
        ("/llm_config/intermediate_size", json!(null), &["null"]),
        ("/llm_config/vocab_size", json!(u64::MAX), &["1 to 4194304"]),
        ("/llm_config/rope_theta", json!(0), &["1e0 to 1e12"]),
        ("/llm_config/rope_scaling/type", json!("yarn"), &["dynamic", "yarn"]),
        ("/llm_config/rope_scaling/factor", json!(0.5), &["5e-1"]),
        ("/llm_config/bias", json!(true), &["false"]),
        ("/llm_config/hidden_act", json!("relu"), &["silu"]),
        ("/llm_config/max_position_embeddings", json!(0), &["1 to"]),
        ("/force_image_size", json!(448), &["expected 56", "found 448"]),
        ("/downsample_ratio", json!(0.25), &["0.5", "0.25"]),
        ("/ps_version", json!("v1"), &["v2", "v1"]),
        ("/select_layer", json!(-4), &["-1", "-4"]),
        ("/template", json!("phi3-chat"), &["internvl2_5", "phi3-chat"]),
        ("/template", json!("x\u{1b}[2J\n"), &["x\\u{1b}[2J\\n"]),
        ("/min_dynamic_patch", json!(100), &["1 to 6", "100"]),
        ("/res_decoder/nhead", json!(0), &["1 to 1024"]),
        ("/res_decoder/nhead", json!(5), &["divisor", "(16)", "5"]),
        ("/res_decoder/groups", json!(3), &["divisor", "(16)", "3"]),
        ("/system_message", json!("a".repeat(1 << 17)), &["system_message", "131072"]),
        ("/vision_config", json!("large"), &["VisionConfig", "\"large\""]),
    ];
    for (at, value, words) in cases {
        let field = at.rsplit('/').next().unwrap();
        let mut words = [&["config.json"][..], words].concat();
        if !at.ends_with("key_value_heads") {
            words.push(field);
        }
        let name = format!("{at} = {value:.40}");
        refused("one", &words, &name, |dir| {
            edit_json(dir.join("config.json"), |c| *c.pointer_mut(at).unwrap() = value)
        });
    }
    let raw: [(&str, &[u8], &[&str]); 6] = [
        ("empty", b"", &["valid JSON", "EOF"]),
        ("no JSON", b"hidden_size: 4096", &["valid JSON"]),
        ("a list", b"[]", &["config.json"]),
        ("no UTF-8", b"{\"\xff\xfe\": 0}", &["config.json"]),
        ("too long", &[b' '; (1 << 20) + 1], &["at most 1048576 bytes", "1048577"]),
        ("infinite", b"{\"llm_config\": {\"architectures\": [\"a\"], \"x\": 1e999}}", &["config.json"]),
    ];
    for (name, text, words) in raw {
        refused("one", words, name, |dir| std::fs::write(dir.join("config.json"), text).unwrap());
    }
    refused("one", &["`vision_config.image_size / patch_size`", "2 to 256", "512"], "patches", |dir| {
        edit_json(dir.join("config.json"), |c| {
            c["force_image_size"] = json!(1024);
            c["vision_config"]["image_size"] = json!(1024);
            c["vision_config"]["patch_size"] = json!(2);
        })
    });
    refused("one", &["`vision_config.hidden_size`", "nothing"], "missing field", |dir| {
        edit_json(dir.join("config.json"), |c| {
            drop(c["vision_config"].as_object_mut().unwrap().remove("hidden_size"))
        })
    });
    refused("one", &["`template`", "twice"], "field twice", |dir| {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap().replacen('{', "{\"template\": \"a\",", 1);
        std::fs::write(path, text).unwrap()
    });
    let dir = copy_of("one");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(open_and_bind(dir.path()).err().unwrap().to_string().contains("config.json: cannot open"));
}

#[test]
fn other_floats_are_rounded_and_said_so() {
    let dir = copy_of("one");
    let attn = synth::fill(ATTN, 1, &[64, 32]);
    let shift = |v: &bf16| v.to_f32() * (1.0 + 2f32.powi(-12)); // rounds back to v
    edit(dir.path().join("model.safetensors"), |p| {
        p.relayout(|t| {
            let f32s = attn.iter().flat_map(|v| shift(v).to_le_bytes()).collect();
            t.insert(ATTN.into(), ("F32".into(), vec![64, 32], f32s));
            let f16s = synth::fill(NORM, 1, &[32])
                .iter()
                .flat_map(|v| f16::from_f32(v.to_f32()).to_le_bytes())
                .collect();
            t.insert(NORM.into(), ("F16".into(), vec![32], f16s));
            // One byte in front: all bf16 behind it lie at odd addresses.
            t.insert("a.byte".into(), ("U8".into(), vec![1], vec![1]));
        })
    });
    let ck = open_and_bind(dir.path()).unwrap();
    assert_eq!(values(&ck, &ck.tensor(ATTN, &[64, 32]).unwrap()), attn);
    assert_eq!(values(&ck, &ck.tensor(NORM, &[32]).unwrap()), synth::fill(NORM, 1, &[32]));
    let conv = "res_decoder.conv2.weight";
    assert_eq!(values(&ck, &ck.tensor(conv, &[1, 1, 5, 5]).unwrap()), synth::fill(conv, 1, &[1, 1, 5, 5]));
    let notes = ck.notes().join("\n");
    assert!(
        notes.contains("are f32: rounded") && notes.contains("are f16: rounded") && notes.contains("odd"),
        "{notes}"
    );
    assert_eq!(ck.unbound(), ["a.byte"]);
    assert_eq!(Report::of(&ck).unexpected, ["a.byte"]);
}

#[test]
fn reports_what_does_not_fit() {
    let dir = copy_of("one");
    edit(dir.path().join("model.safetensors"), |p| {
        p.header[ATTN]["shape"] = json!([32, 64]);
        let at = p.range("mlp1.1.weight").start + 2 * 700;
        p.data[at..at + 2].copy_from_slice(&bf16::NAN.to_le_bytes());
        p.data[at + 8..at + 10].copy_from_slice(&bf16::INFINITY.to_le_bytes());
        p.relayout(|t| {
            t.remove(NORM);
            let bias = t["mlp1.3.bias"].clone();
            t.insert("mlp1.9.bias".into(), bias);
        });
    });
    let ck = Checkpoint::open_dir(dir.path()).unwrap();
    let report = Report::of(&ck);
    assert!(!report.is_complete());
    assert_eq!((report.missing.len(), report.missing[0].name.as_str()), (1, NORM));
    assert_eq!((report.misshapen.len(), report.misshapen[0].found.as_str()), (1, "bf16 (32, 64)"));
    assert_eq!(report.unexpected, ["mlp1.9.bias"]);
    let parts: Vec<_> = report.parts.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(parts, ["vision_model", "mlp1", "language_model", "res_decoder"]);
    let bad = report.values(&ck).non_finite.unwrap();
    assert_eq!((bad.len(), bad[0].name.as_str(), bad[0].count, bad[0].first), (1, "mlp1.1.weight", 2, 700));
}

#[test]
fn chat_only_has_no_decoder() {
    let dir = copy_of("one");
    edit(dir.path().join("model.safetensors"), |p| {
        p.relayout(|t| t.retain(|name, _| !name.starts_with("res_decoder.")))
    });
    let ck = open_and_bind(dir.path()).unwrap();
    assert!(!ck.has_mask_decoder() && ck.decoder_width().is_err());
    assert!(Report::of(&ck).is_complete());
}

/// What must hold of every header that is accepted.
fn accepted(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(entries) = header::parse(Path::new("x"), file) else { return Ok(()) };
    let mut at = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for e in &entries {
        prop_assert_eq!(e.bytes.start, at);
        prop_assert_eq!(e.bytes.len() * 8, e.dtype.bitsize() * e.shape.iter().product::<usize>());
        at = e.bytes.end;
    }
    prop_assert_eq!(at, file.len());
    let mut names: Vec<_> = entries.iter().map(|e| &e.name).collect();
    names.sort();
    names.dedup();
    prop_assert_eq!(names.len(), entries.len());
    // The library reads the same.
    let theirs =
        safetensors::SafeTensors::deserialize(file).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(theirs.len(), entries.len());
    Ok(())
}

fn frame(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data]].concat()
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        accepted(&bytes)?;
        accepted(&frame(&bytes, 4))?;
    }

    #[test]
    fn any_header_is_read_or_refused(
        tensors in prop::collection::vec(("[a-c]", 0..4usize, prop::collection::vec(0..4usize, 0..3), 0..30usize, 0..30usize), 0..4),
        data in 0..40usize,
    ) {
        let entry = |(name, dtype, shape, begin, end): &(String, usize, Vec<usize>, usize, usize)| {
            let dtype = ["BF16", "F32", "U8", "F4"][*dtype];
            format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
        };
        let header = format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","));
        accepted(&frame(header.as_bytes(), data))?;
    }

    #[test]
    fn a_flipped_byte_is_read_or_refused(at in 0..6000usize, byte in any::<u8>()) {
        let mut file = std::fs::read(GOOD.join("one/model.safetensors")).unwrap();
        prop_assert_eq!(header::parse(Path::new("x"), &file).unwrap()[0].dtype, Dtype::I64);
        file[at] = byte;
        accepted(&file)?;
    }

    #[test]
    fn consistent_headers_are_accepted(
        tensors in prop::collection::btree_map("[a-z.]{1,8}", prop::collection::vec(0..5usize, 0..4), 0..6),
    ) {
        let mut end = 0;
        let mut header = json!({});
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header[name] = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        }
        let entries = header::parse(Path::new("x"), &frame(header.to_string().as_bytes(), end));
        prop_assert_eq!(entries.unwrap().len(), tensors.len());
    }

    #[test]
    fn any_config_is_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = mllmseg::checkpoint::config::Config::parse(Path::new("x"), &text);
    }
}
