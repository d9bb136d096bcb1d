//! Golden tensors (tests/data/golden) and the synthetic checkpoint that they were made with.

use mllmseg::checkpoint::{Checkpoint, synth};
use mllmseg::dump::{Data, Value};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file)
}

/// The tiny synthetic checkpoint that the golden cases were made with, seed 1; written once a test program.
pub fn tiny() -> Arc<Checkpoint> {
    static TINY: OnceLock<Arc<Checkpoint>> = OnceLock::new();
    let write = || {
        let dir = super::folder_for_all().join("tiny");
        let spec = synth::Spec::read("tiny").unwrap();
        synth::write(&spec, &dir, &synth::Options::default(), &mut |_, _| {}).unwrap();
        Arc::new(Checkpoint::open_dir(&dir).unwrap())
    };
    Arc::clone(TINY.get_or_init(write))
}

/// One golden file.
pub struct Golden {
    case: String,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
    names: Vec<String>,
}

/// An f32 golden tensor: all its values, or every `stride`-th.
pub struct Strided {
    pub data: Vec<f32>,
    pub shape: Vec<usize>,
    pub stride: usize,
    pub l2: f64,
}

impl Golden {
    pub fn open(case: &str) -> Self {
        let bytes = std::fs::read(data(&format!("golden/{case}.safetensors"))).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let mut names: Vec<String> = header.tensors().into_keys().collect();
        names.sort();
        Self { case: case.into(), bytes, metadata, names }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub fn metadata(&self, key: &str) -> &str {
        &self.metadata[key]
    }

    fn raw(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        self.raw(name).chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.raw(name)
    }

    pub fn f32(&self, name: &str) -> Strided {
        let about: serde_json::Value = serde_json::from_str(&self.metadata[&format!("t:{name}")]).unwrap();
        Strided {
            data: self.raw(name).chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
            shape: about["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect(),
            stride: about["stride"].as_u64().unwrap() as usize,
            l2: about["l2"].as_f64().unwrap(),
        }
    }

    /// Same shape; relative L2 distance of the stored values, and of the whole tensor's norm, below `bound`.
    pub fn expect_close(&self, name: &str, found: &Value, bound: f64) {
        let Data::F32(values) = &found.data else { panic!("{name}: expected f32") };
        let g = self.f32(name);
        assert_eq!(found.shape, g.shape, "{} {name}: shape", self.case);
        let (mut error, mut norm, mut worst) = (0.0, 0.0, (0, 0.0));
        for (i, &expected) in g.data.iter().enumerate() {
            let e = f64::from(values[i * g.stride]) - f64::from(expected);
            error += e * e;
            norm += f64::from(expected).powi(2);
            if e.abs() > worst.1 {
                worst = (i * g.stride, e.abs());
            }
        }
        let (relative, l2) =
            ((error / norm).sqrt(), values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt());
        eprintln!("{} {name}: {relative:.1e}", self.case);
        assert!(
            relative < bound && (l2 / g.l2 - 1.0).abs() < bound,
            "{} {name}: relative L2 {relative:.2e}, norm {l2} for {}, bound {bound:.0e}; worst at {}: {} off by {}",
            self.case,
            g.l2,
            worst.0,
            values[worst.0],
            worst.1
        );
    }
}

/// The dump's name of a golden tensor that belongs to prompt `suffix` (empty, or `.k`); `None` for another prompt's, and for `conv1`'s result,
/// whose values are those of `map448`, which is dumped, in another order.
pub fn name_in_one_case(name: &str, suffix: &str) -> Option<String> {
    if name.ends_with(".conv1") {
        return None;
    }
    let Some(k) = suffix.strip_prefix('.') else { return Some(name.into()) };
    if let Some(rest) = name.strip_prefix(&format!("dec{k}.")) {
        return Some(format!("dec.{rest}"));
    }
    name.strip_suffix(suffix).filter(|n| !n.starts_with("dec")).map(Into::into)
}
