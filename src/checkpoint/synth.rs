//! Synthetic checkpoints: real shapes, weights from a formula, so that anyone has the same bits without a download.
//!
//! All integers are modulo 2^64, `seed` and the name choose the stream, `i` counts elements in row-major order:
//! ```text
//! h   = fnv1a64(name) XOR seed * GOLDEN
//! z_i = splitmix64's output i from the initial state h
//! v_i = 2 * (z_i >> 40) * 2^-24 - 1                 in [-1, 1), exact in f32
//! w_i = bf16(base + amp * v_i)                      f32, each step rounded (no fused multiply-add)
//! ```
//! `base` and `amp` follow from name and shape such that activations keep a sane scale through all layers ([`fill`]).
//! The mask decoder's `init_pos` is the constant of the published model; `num_batches_tracked` is 0.

use super::config::Config;
use super::{json, names};
use crate::{Error, Result};
use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// 2^64 divided by the golden ratio: splitmix64's step.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Elements of a piece that is computed while the one before is written (32 MB).
const PIECE: usize = 1 << 24;

/// Files that a tokenizer's folder may have.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
];

/// What to make: a config, and the ids of its special tokens if they are given.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Checked.
    pub config: Config,
    /// What becomes `config.json`.
    published: Value,
    /// What becomes `added_tokens.json` (text -> id).
    added_tokens: Map<String, Value>,
}

impl Spec {
    /// `tiny`, `2b`, `8b`, or a file: a `config.json`, or an object of `config` and `special_ids`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for what is no file or too large; [`Error::Field`] for a special id that is none; those of
    /// [`Config::parse`].
    pub fn read(what: &str) -> Result<Self> {
        let path = Path::new(what);
        match what {
            "tiny" => Self::parse(path, include_bytes!("presets/tiny.json")),
            "2b" => Self::parse(path, include_bytes!("presets/2b.json")),
            "8b" => Self::parse(path, include_bytes!("presets/8b.json")),
            _ => Self::parse(path, &json::read(path, 1 << 20)?),
        }
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let mut file: Value = json::parse(text).map_err(|m| m.at(path))?;
        let mut added_tokens = Map::new();
        if let Some(config) = file.get_mut("config").map(Value::take) {
            for (name, id) in file.get("special_ids").and_then(Value::as_object).into_iter().flatten() {
                if id.as_u64().is_none_or(|id| u32::try_from(id).is_err()) {
                    let field = json::clip(&format!("special_ids.{name}"));
                    let (expected, found) = ("a token's id".into(), json::clip(&id.to_string()));
                    return Err(Error::Field { path: path.into(), field, expected, found });
                }
                if let Some((_, token)) = SPECIAL.iter().find(|(n, _)| n == name) {
                    added_tokens.insert(token.to_string(), id.clone());
                }
            }
            file = config;
        }
        let mut config = Config::parse(path, file.to_string().as_bytes())?;
        if config.architectures.is_empty() {
            config.architectures = vec!["MLLMSeg".into()];
        }
        let mut published = serde_json::to_value(&config).unwrap_or_default();
        overlay(&mut published, file);
        published["torch_dtype"] = "bfloat16".into();
        Ok(Self { config, published, added_tokens })
    }
}

/// Names in `special_ids`, and the tokens' text.
const SPECIAL: [(&str, &str); 17] = [
    ("plugin", "<|plugin|>"),
    ("interpreter", "<|interpreter|>"),
    ("action_end", "<|action_end|>"),
    ("action_start", "<|action_start|>"),
    ("im_end", "<|im_end|>"),
    ("im_start", "<|im_start|>"),
    ("img", "<img>"),
    ("img_end", "</img>"),
    ("img_context", "<IMG_CONTEXT>"),
    ("quad", "<quad>"),
    ("quad_end", "</quad>"),
    ("ref", "<ref>"),
    ("ref_end", "</ref>"),
    ("box", "<box>"),
    ("box_end", "</box>"),
    ("seg", "[SEG]"),
    ("rej", "[REJ]"),
];

/// Puts `top`'s fields over `base`'s, object by object.
fn overlay(base: &mut Value, top: Value) {
    match (base, top) {
        (Value::Object(base), Value::Object(top)) => {
            for (key, value) in top {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, top) => *base = top,
    }
}

/// How [`write()`] writes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of all streams.
    pub seed: u64,
    /// Bytes of weights that one file may have.
    pub shard_bytes: u64,
    /// A folder whose tokenizer files are copied in.
    pub tokenizer: Option<PathBuf>,
}

impl Default for Options {
    /// Seed 1, 5 GB a file as the published checkpoints have, no tokenizer.
    fn default() -> Self {
        Self { seed: 1, shard_bytes: 5_000_000_000, tokenizer: None }
    }
}

/// Writes a checkpoint into `dir`, which must be empty or not there yet. Needs 64 MB of memory, whatever the size.
///
/// Every file is written under a temporary name, synced and renamed, `config.json` last.
/// `progress` hears the bytes of weights written so far and the bytes there will be.
///
/// # Errors
/// [`Error::File`] for a folder that is not empty, or a tokenizer's folder without one; [`Error::Io`] if a file cannot be read or written.
pub fn write(spec: &Spec, dir: &Path, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let tokenizer_files = match &options.tokenizer {
        Some(from) => TOKENIZER_FILES.iter().map(|f| from.join(f)).filter(|f| f.is_file()).collect(),
        None => Vec::new(),
    };
    if let Some(from) = &options.tokenizer
        && !tokenizer_files.iter().any(|f| f.ends_with("tokenizer.model") || f.ends_with("tokenizer.json"))
    {
        return Err(Error::file(from, "a folder with tokenizer.model or tokenizer.json", "neither"));
    }
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
    let inside = std::fs::read_dir(dir).map_err(Error::io(dir, "read"))?.count();
    if inside > 0 {
        return Err(Error::file(dir, "a new or empty folder", format!("one with {inside} entries")));
    }

    let width = spec.config.vision_config.hidden_size;
    let shards = shards(names::expected(&spec.config, Some(width)), options.shard_bytes);
    let total = shards.iter().flatten().map(Planned::bytes).sum();
    let mut done = 0;
    let mut weight_map = Map::new();
    for (n, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_string(),
            count => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
        };
        replace(&dir.join(&file), |out| write_shard(out, shard, options.seed, &mut done, total, progress))?;
        weight_map.extend(shard.iter().map(|t| (t.name.clone(), file.clone().into())));
    }
    if shards.len() > 1 {
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    for from in &tokenizer_files {
        let Some(name) = from.file_name() else { continue };
        let mut from = File::open(from).map_err(Error::io(from, "open"))?;
        replace(&dir.join(name), |out| std::io::copy(&mut from, out).map(drop))?;
    }
    let added = dir.join("added_tokens.json");
    if !spec.added_tokens.is_empty() && !added.exists() {
        write_json(&added, &Value::Object(spec.added_tokens.clone()))?;
    }
    write_json(&dir.join("config.json"), &spec.published)
}

/// The synthetic weights `name` of `shape`, row-major.
///
/// | name | base | amp |
/// |---|---|---|
/// | `*.running_mean` | 0 | 0.1 |
/// | `*.running_var` | 1 | 0.25 |
/// | `*.ls1`, `*.ls2` | 0.5 | 0.1 |
/// | `*class_embedding`, `*position_embedding` | 0 | 0.5 |
/// | `*tok_embeddings.weight` | 0 | 1 |
/// | another 1-D `*.weight` (norms) | 1 | 0.1 |
/// | another 1-D tensor (biases) | 0 | 0.02 |
/// | the others | 0 | `sqrt(3 / fan_in) * gain`, `fan_in` = product of all extents but the first |
pub fn fill(name: &str, seed: u64, shape: &[usize]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; shape.iter().product()];
    Values::of(name, seed, shape).write(0, &mut out);
    out
}

/// The same stream with another `base` and `amp`: `out[i] = bf16(base + amp * v_i)`.
pub fn fill_with(name: &str, seed: u64, base: f32, amp: f32, out: &mut [bf16]) {
    Values::Uniform { state: stream(name, seed), base, amp }.write(0, out);
}

/// What the elements of a tensor are.
#[derive(Clone, Copy)]
enum Values {
    Uniform {
        state: u64,
        base: f32,
        amp: f32,
    },
    /// DySample's sampling grid: the cell centres of 2x2 cells, x of all groups, then y.
    InitPos {
        len: usize,
    },
    Zero,
}

impl Values {
    fn of(name: &str, seed: u64, shape: &[usize]) -> Self {
        let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
        if ends(&[".init_pos"]) {
            return Self::InitPos { len: shape.iter().product() };
        }
        if ends(&[".num_batches_tracked"]) {
            return Self::Zero;
        }
        let (base, amp) = if ends(&[".running_mean"]) {
            (0.0, 0.1)
        } else if ends(&[".running_var"]) {
            (1.0, 0.25)
        } else if ends(&[".ls1", ".ls2"]) {
            (0.5, 0.1)
        } else if ends(&["class_embedding", "position_embedding"]) {
            (0.0, 0.5)
        } else if ends(&["tok_embeddings.weight"]) {
            (0.0, 1.0)
        } else if shape.len() == 1 {
            if ends(&[".weight"]) { (1.0, 0.1) } else { (0.0, 0.02) }
        } else {
            let fan_in: usize = shape.iter().skip(1).product();
            let gain = GAINS.iter().find(|(suffix, _)| name.ends_with(suffix)).map_or(1.0, |g| g.1);
            (0.0, (3.0 / fan_in as f64).sqrt() * gain)
        };
        Self::Uniform { state: stream(name, seed), base, amp: amp as f32 }
    }

    /// Elements `start..start + out.len()`, on all cores.
    fn write(self, start: usize, out: &mut [bf16]) {
        /// Elements of a task.
        const BLOCK: usize = 1 << 16;
        out.par_chunks_mut(BLOCK).enumerate().for_each(|(n, out)| {
            let at = start + n * BLOCK;
            match self {
                Self::Uniform { state, base, amp } => uniform(state, at, base, amp, out),
                Self::InitPos { len } => {
                    for (i, w) in (at..).zip(out) {
                        let positive = if i < len / 2 { i % 2 == 1 } else { i % 4 >= 2 };
                        *w = bf16::from_f32(if positive { 0.25 } else { -0.25 });
                    }
                }
                Self::Zero => out.fill(bf16::ZERO),
            }
        });
    }
}

/// First match wins.
const GAINS: [(&str, f64); 15] = [
    ("attn.qkv.weight", 1.5),
    ("attn.proj.weight", 2.0),
    ("mlp.fc1.weight", 1.5),
    ("mlp.fc2.weight", 2.0),
    ("mlp1.3.weight", 1.5),
    ("attention.wqkv.weight", 1.5),
    ("attention.wo.weight", 1.25),
    ("feed_forward.w1.weight", 1.5),
    ("feed_forward.w2.weight", 2.0),
    ("language_model.output.weight", 4.0),
    ("upsample_adapter_l.offset.weight", 3.0),
    ("out_proj.weight", 1.5),
    ("linear2.weight", 1.5),
    ("conv1.0.weight", 1.5),
    ("conv2.weight", 2.0),
];

/// The initial state of a tensor's stream.
fn stream(name: &str, seed: u64) -> u64 {
    let fnv1a = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a) ^ seed.wrapping_mul(GOLDEN)
}

fn uniform(state: u64, start: usize, base: f32, amp: f32, out: &mut [bf16]) {
    let mut s = state.wrapping_add((start as u64).wrapping_mul(GOLDEN));
    for w in out {
        s = s.wrapping_add(GOLDEN);
        let z = (s ^ (s >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let u = ((z ^ (z >> 31)) >> 40) as i32 as f32 * (-24f32).exp2(); // 24 bits: exact
        let x = base + amp * (2.0 * u - 1.0);
        let bits = x.to_bits(); // finite: rounding to nearest even cannot pass NaN
        *w = bf16::from_bits(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16);
    }
}

/// A tensor that a file will hold.
struct Planned {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Planned {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (self.elements() * self.dtype.bitsize() / 8) as u64
    }
}

/// Fills files in the state dict's order up to `limit` bytes; in a file, the widest dtype comes first (so that all are
/// aligned), then names in order, as the `safetensors` library does.
fn shards(tensors: Vec<(String, Vec<usize>)>, limit: u64) -> Vec<Vec<Planned>> {
    let mut shards = vec![Vec::<Planned>::new()];
    let mut size = 0;
    for (name, shape) in tensors {
        let dtype = if super::never_read(&name) { Dtype::I64 } else { Dtype::BF16 };
        let tensor = Planned { name, shape, dtype };
        if size + tensor.bytes() > limit && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    for shard in &mut shards {
        shard.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.name.cmp(&b.name)));
    }
    shards
}

fn write_shard(
    out: &mut File,
    shard: &[Planned],
    seed: u64,
    done: &mut u64,
    total: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> std::io::Result<()> {
    let mut end = 0;
    let info = |t: &Planned| {
        let start = end;
        end += t.bytes() as usize;
        (t.name.clone(), TensorInfo { dtype: t.dtype, shape: t.shape.clone(), data_offsets: (start, end) })
    };
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header =
        Metadata::new(Some(metadata), shard.iter().map(info).collect()).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;

    // One piece is written while the next is computed.
    let (mut ready, mut next) = (Vec::<bf16>::new(), Vec::new());
    for t in shard {
        let values = Values::of(&t.name, seed, &t.shape);
        let len = t.bytes() as usize / 2; // in bf16s: the zero of an i64 is four of them
        for start in (0..len).step_by(PIECE) {
            next.resize(PIECE.min(len - start), bf16::ZERO);
            let (written, ()) = rayon::join(
                || out.write_all(bytemuck::cast_slice(&ready)),
                || values.write(start, &mut next),
            );
            written?;
            *done += 2 * ready.len() as u64;
            progress(*done, total);
            std::mem::swap(&mut ready, &mut next);
        }
    }
    out.write_all(bytemuck::cast_slice(&ready))?;
    *done += 2 * ready.len() as u64;
    progress(*done, total);
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    replace(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}

/// Writes a file under a temporary name, syncs it and renames it; nothing is left of one that fails.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let tmp = PathBuf::from(name);
    let run = || {
        let mut out = File::create_new(&tmp)?;
        write(&mut out)?;
        out.sync_all()?;
        std::fs::rename(&tmp, path)
    };
    run().map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        Error::io(path, "write")(e)
    })
}
