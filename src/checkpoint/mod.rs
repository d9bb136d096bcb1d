//! Checkpoints: config.json as structs, mapped safetensors, the Hugging Face cache, synthetic weights.
//!
//! Files are strangers': whatever is in them, the answer is a tensor or an error that names file, tensor, what was
//! expected and what was found. They are mapped, so they must not be cut short while they are in use (the system
//! would end the process with SIGBUS).

mod cache;
pub mod config;
pub mod header;
pub(crate) mod json;
pub mod names;
mod report;
pub mod synth;

pub use report::{Misshapen, Missing, Part, Report};

use crate::graph::{DType, Place, Tensor};
use crate::{Error, Result};
use config::Config;
use half::{bf16, f16};
use header::{Entry, kind};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that a `model.safetensors.index.json` may have.
const MAX_INDEX: u64 = 100_000_000;

/// An opened checkpoint: its config, and its tensors in mapped files.
pub struct Checkpoint {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: Config,
    files: Vec<Shard>,
    weights: Vec<Weight>,
    by_name: HashMap<String, u32>,
    notes: Vec<String>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
}

struct Weight {
    entry: Entry,
    /// Number in `Checkpoint::files`.
    file: usize,
    bound: AtomicBool,
    /// What `Checkpoint::weight` answers if the mapped bytes are no aligned bf16.
    owned: OnceLock<Vec<bf16>>,
}

/// What [`Checkpoint::all_tensors`] says of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// In the state dict.
    pub name: &'a str,
    /// In the file.
    pub dtype: Dtype,
    /// Row-major extents.
    pub shape: &'a [usize],
    /// The file that holds it.
    pub file: &'a Path,
    /// What it takes there.
    pub bytes: usize,
}

/// Infinities and NaNs in a tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NonFinite {
    /// The tensor.
    pub name: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// How many of its elements are not finite.
    pub count: usize,
    /// The first of them, in row-major order.
    pub first: usize,
}

impl NonFinite {
    /// [`Error::Tensor`].
    pub fn error(self) -> Error {
        let found = format!("{} NaN or infinite, the first at element {}", self.count, self.first);
        Error::Tensor { path: self.file, tensor: self.name, expected: "finite values".into(), found }
    }
}

/// The folder of `model`: a folder, or `ORG/NAME` in the Hugging Face cache; see [`Checkpoint::open`].
///
/// # Errors
/// [`Error::File`] for a model that is neither a folder nor in the cache, or whose snapshot is not there; [`Error::Io`] if `refs/main` cannot
/// be read.
pub fn locate(model: &str) -> Result<PathBuf> {
    cache::locate(model, |name| std::env::var_os(name))
}

impl Checkpoint {
    /// Opens a folder, or `ORG/NAME` in the Hugging Face cache (`$HF_HUB_CACHE`, `$HF_HOME/hub`,
    /// `~/.cache/huggingface/hub`; nothing is downloaded).
    ///
    /// Checks the config, the files' structure, and that norms, biases and other 1-D tensors are finite. Whether
    /// each tensor is there in the implied shape is checked when it is bound ([`Checkpoint::tensor`]).
    ///
    /// # Errors
    /// Those of [`locate`] and of [`Checkpoint::open_dir`].
    pub fn open(model: &str) -> Result<Self> {
        Self::open_dir(&locate(model)?)
    }

    /// [`Checkpoint::open`] of a folder.
    ///
    /// # Errors
    /// Those of [`Config::read`] and of [`header::parse`]; [`Error::Io`], [`Error::File`], [`Error::Field`] for weight files or an index that are
    /// missing or damaged; [`Error::Tensor`] where files and index differ, and for a 1-D tensor that is not finite.
    pub fn open_dir(dir: &Path) -> Result<Self> {
        let config = Config::read(&dir.join("config.json"))?;
        let (mut files, mut weights) = (Vec::new(), Vec::new());
        let mut by_name = HashMap::new();
        for (name, listed) in weight_files(dir)? {
            let shard = Shard::open(dir.join(&name))?;
            let entries = header::parse(&shard.path, &shard.map)?;
            if let Some(listed) = listed {
                compare(&shard.path, &listed, &entries)?;
            }
            for entry in entries {
                by_name.insert(entry.name.clone(), weights.len() as u32);
                let (bound, owned) = (AtomicBool::new(false), OnceLock::new());
                weights.push(Weight { entry, file: files.len(), bound, owned });
            }
            files.push(shard);
        }
        let mut ck = Self { dir: dir.into(), config, files, weights, by_name, notes: Vec::new() };
        ck.notes = ck.conversions();
        match ck.non_finite_of(|e| e.shape.len() == 1).into_iter().next() {
            Some(bad) => Err(bad.error()),
            None => Ok(ck),
        }
    }

    /// Binds a weight: bf16 (f16 and f32 are rounded to it, see [`Checkpoint::notes`]) and of exactly this shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none of that name, or one of another shape or that is no f32, f16 or bf16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let expected = || format!("{} (implied by config.json)", kind(Dtype::BF16, shape));
        let fail = |path: &Path, found: String| Error::Tensor {
            path: path.into(),
            tensor: name.into(),
            expected: expected(),
            found,
        };
        let Some(&id) = self.by_name.get(name) else {
            return Err(fail(&self.dir, "no tensor of that name".into()));
        };
        let w = &self.weights[id as usize];
        if w.entry.shape != shape || !is_float(w.entry.dtype) {
            return Err(fail(&self.files[w.file].path, kind(w.entry.dtype, &w.entry.shape)));
        }
        w.bound.store(true, Ordering::Relaxed);
        Ok(Tensor::new(name, DType::Bf16, shape, Place::Weight(id)))
    }

    /// The tensors under `prefix.`.
    pub fn at(&self, prefix: impl Into<String>) -> Scope<'_> {
        Scope { ck: self, prefix: prefix.into() }
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The shape of a tensor as the file has it.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.by_name.get(name).map(|&id| &self.weights[id as usize].entry.shape[..])
    }

    /// Whether this checkpoint can segment; one for chat only has no `res_decoder.*`.
    pub fn has_mask_decoder(&self) -> bool {
        self.weights.iter().any(|w| w.entry.name.starts_with("res_decoder."))
    }

    /// D, the mask decoder's width: the rows of `res_decoder.text_down.weight`. It is also C of the vision tower,
    /// whose map the decoder reads, and a multiple of its heads and groups.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`]; [`Error::Field`] for heads or groups that do not divide the width.
    pub fn decoder_width(&self) -> Result<usize> {
        const NAME: &str = "res_decoder.text_down.weight";
        let (c, h) = (self.config.vision_config.hidden_size, self.config.llm_config.hidden_size);
        let d = self.tensor(NAME, &[c, h])?.shape[0];
        let decoder = &self.config.res_decoder;
        for (field, n) in [("res_decoder.nhead", decoder.nhead), ("res_decoder.groups", decoder.groups)] {
            if !d.is_multiple_of(n) {
                let path = self.dir.join("config.json");
                let expected = format!("a divisor of the mask decoder's width ({d})");
                return Err(Error::Field { path, field: field.into(), expected, found: n.to_string() });
            }
        }
        Ok(d)
    }

    /// The values of a bound weight (`Place::Weight(id)`), row-major: the mapped file itself if it holds aligned
    /// bf16, else a copy that the first call makes. Empty for a tensor that is no f32, f16 or bf16.
    pub fn weight(&self, id: u32) -> &[bf16] {
        let w = &self.weights[id as usize];
        let bytes = self.bytes(w);
        if w.entry.dtype == Dtype::BF16
            && let Ok(values) = bytemuck::try_cast_slice(bytes)
        {
            return values;
        }
        w.owned.get_or_init(|| to_bf16(w.entry.dtype, bytes))
    }

    /// What a person should know of this checkpoint: conversions.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The ids of the tensors that were bound so far.
    pub fn bound(&self) -> Vec<u32> {
        (0..).zip(&self.weights).filter(|(_, w)| w.bound.load(Ordering::Relaxed)).map(|(id, _)| id).collect()
    }

    /// The tensors that nothing has bound so far, but those that inference never reads.
    pub fn unbound(&self) -> Vec<String> {
        let unbound = |w: &&Weight| !w.bound.load(Ordering::Relaxed) && !never_read(&w.entry.name);
        self.weights.iter().filter(unbound).map(|w| w.entry.name.clone()).collect()
    }

    /// Every tensor, file by file, in the order of the data.
    pub fn all_tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.weights.iter().map(|w| self.describe(w))
    }

    /// The tensor of that name.
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.by_name.get(name).map(|&id| self.describe(&self.weights[id as usize]))
    }

    fn describe<'a>(&'a self, w: &'a Weight) -> TensorInfo<'a> {
        TensorInfo {
            name: &w.entry.name,
            dtype: w.entry.dtype,
            shape: &w.entry.shape,
            file: &self.files[w.file].path,
            bytes: w.entry.bytes.len(),
        }
    }

    /// The files that hold the tensors, and their bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.files.iter().map(|f| (f.path.as_path(), f.map.len()))
    }

    /// Reads every weight (all of the files) and finds those that are not finite.
    pub fn non_finite(&self) -> Vec<NonFinite> {
        self.non_finite_of(|_| true)
    }

    fn non_finite_of(&self, which: impl Fn(&Entry) -> bool) -> Vec<NonFinite> {
        let scan = |w: &Weight| {
            let (count, first) = count_non_finite(w.entry.dtype, self.bytes(w))?;
            let (name, file) = (w.entry.name.clone(), self.files[w.file].path.clone());
            Some(NonFinite { name, file, count, first })
        };
        self.weights.iter().filter(|w| which(&w.entry)).filter_map(scan).collect()
    }

    fn bytes(&self, w: &Weight) -> &[u8] {
        &self.files[w.file].map[w.entry.bytes.clone()]
    }

    /// A line for each kind of tensor that is not used as it lies in the file.
    fn conversions(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |what: &str, which: &dyn Fn(&Weight) -> bool| {
            let chosen: Vec<_> = self.weights.iter().filter(|w| which(w)).collect();
            if let Some(first) = chosen.first() {
                notes.push(format!(
                    "{}: {} tensors ({}, ...) are {what}",
                    self.dir.display(),
                    chosen.len(),
                    first.entry.name
                ));
            }
        };
        note("f32: rounded to bf16, in memory, when first used", &|w| w.entry.dtype == Dtype::F32);
        note("f16: rounded to bf16, in memory, when first used", &|w| w.entry.dtype == Dtype::F16);
        note("bf16 at odd addresses: copied when first used", &|w| {
            w.entry.dtype == Dtype::BF16 && !w.entry.bytes.start.is_multiple_of(2)
        });
        notes
    }
}

/// The tensors under a prefix: `scope.tensor("attention.wqkv.weight", &[..])`.
pub struct Scope<'a> {
    ck: &'a Checkpoint,
    prefix: String,
}

impl Scope<'_> {
    /// [`Checkpoint::tensor`] of `{prefix}.{name}`.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.ck.tensor(&format!("{}.{name}", self.prefix), shape)
    }

    /// Whether there is `{prefix}.{name}`.
    pub fn has(&self, name: &str) -> bool {
        self.ck.has(&format!("{}.{name}", self.prefix))
    }

    /// The tensors under `{prefix}.{name}.`.
    pub fn at(&self, name: &str) -> Self {
        Scope { ck: self.ck, prefix: format!("{}.{name}", self.prefix) }
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io(&path, "open"))?;
        if !file.metadata().map_err(Error::io(&path, "read"))?.is_file() {
            return Err(Error::file(&path, "a file", "something else"));
        }
        // SAFETY: the map is read-only and private to this process's view; the module's docs ask that the file is not
        // changed while it is mapped. Every bit pattern is a valid bf16, so a changed file changes numbers, not types.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path, "map"))?;
        Ok(Self { path, map })
    }
}

/// BatchNorm's counter of training steps, an i64.
pub fn never_read(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// The tensors that an index places in a file; `None` without an index.
type Listed = Option<HashSet<String>>;

/// The names of the files in `dir` that hold the tensors.
fn weight_files(dir: &Path) -> Result<Vec<(String, Listed)>> {
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    if dir.join(SINGLE).exists() {
        return Ok(vec![(SINGLE.into(), None)]);
    }
    if dir.join(INDEX).exists() {
        return read_index(&dir.join(INDEX));
    }
    let expected = format!("{SINGLE} or {INDEX}");
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    let found = match pickled.iter().find(|name| dir.join(name).exists()) {
        Some(name) => {
            format!("{name} (convert it: python3 tools/convert/to_safetensors.py {} OUT)", dir.display())
        }
        None => "neither".into(),
    };
    Err(Error::file(dir, expected, found))
}

/// `weight_map`: tensor name -> file name, turned around. Files must lie in the index's own folder.
fn read_index(path: &Path) -> Result<Vec<(String, Listed)>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: json::Pairs<String>,
    }
    let index: Index = json::parse(&json::read(path, MAX_INDEX)?).map_err(|m| m.at(path))?;
    let fail = |tensor: &str, expected: &str, found: String| {
        let tensor = json::clip(tensor);
        Error::Tensor { path: path.into(), tensor, expected: expected.into(), found }
    };
    if let Some(name) = index.weight_map.repeated() {
        return Err(fail(name, "one entry in weight_map", "several".into()));
    }
    let mut files = BTreeMap::<String, HashSet<String>>::new();
    for (tensor, file) in index.weight_map.0 {
        if !cache::plain_name(&file) {
            return Err(fail(&tensor, "the name of a file in this folder", json::clip(&file)));
        }
        if !files.contains_key(&file) && !path.with_file_name(&file).is_file() {
            return Err(fail(
                &tensor,
                "a file of this folder",
                format!("{}, which is not there", json::clip(&file)),
            ));
        }
        files.entry(file).or_default().insert(tensor);
    }
    if files.is_empty() {
        return Err(Error::file(path, "a weight_map with tensors", "an empty one"));
    }
    Ok(files.into_iter().map(|(file, listed)| (file, Some(listed))).collect())
}

/// The index and a file's header must say the same.
fn compare(path: &Path, listed: &HashSet<String>, entries: &[Entry]) -> Result<()> {
    let fail = |tensor: &str, expected: &str, found: &str| {
        let (tensor, expected, found) = (json::clip(tensor), expected.into(), found.into());
        Err(Error::Tensor { path: path.into(), tensor, expected, found })
    };
    if let Some(e) = entries.iter().find(|e| !listed.contains(&e.name)) {
        return fail(&e.name, "only tensors that the index places in this file", "this one");
    }
    let here: HashSet<_> = entries.iter().map(|e| &e.name).collect();
    match listed.iter().filter(|name| !here.contains(name)).min() {
        Some(name) => fail(name, "it in this file, as the index says", "nothing of that name"),
        None => Ok(()),
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32)
}

/// Little-endian bytes of a float tensor, rounded to nearest even; nothing for another dtype.
fn to_bf16(dtype: Dtype, bytes: &[u8]) -> Vec<bf16> {
    match dtype {
        Dtype::BF16 => bytes.as_chunks().0.par_iter().map(|&b| bf16::from_le_bytes(b)).collect(),
        Dtype::F16 => {
            bytes.as_chunks().0.par_iter().map(|&b| bf16::from_f32(f16::from_le_bytes(b).to_f32())).collect()
        }
        Dtype::F32 => {
            bytes.as_chunks().0.par_iter().map(|&b| bf16::from_f32(f32::from_le_bytes(b))).collect()
        }
        _ => Vec::new(),
    }
}

/// How many elements are NaN or infinite *as bf16* (an f32 past its range becomes infinite), and the first.
fn count_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, usize)> {
    /// Elements a task looks at.
    const BLOCK: usize = 1 << 16;
    fn scan<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> bf16 + Sync) -> Option<(usize, usize)> {
        let values = bytes.as_chunks::<N>().0;
        let blocks = values.par_chunks(BLOCK).enumerate().map(|(n, block)| {
            let bad = |v: &[u8; N]| !value(*v).is_finite();
            let count = block.iter().filter(|v| bad(v)).count();
            let first = if count > 0 { block.iter().position(bad)? } else { return None };
            Some((count, n * BLOCK + first))
        });
        blocks.flatten().reduce_with(|a, b| (a.0 + b.0, a.1.min(b.1)))
    }
    match dtype {
        Dtype::BF16 => scan(bytes, bf16::from_le_bytes),
        Dtype::F16 => scan(bytes, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
        Dtype::F32 => scan(bytes, |b| bf16::from_f32(f32::from_le_bytes(b))),
        _ => None,
    }
}
