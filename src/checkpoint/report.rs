//! What a checkpoint holds, compared with what its config implies.

use super::{Checkpoint, NonFinite, header::kind, is_float, names, never_read};
use safetensors::Dtype;
use serde::Serialize;

/// Parameters by part, and whatever does not fit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `vision_model`, `language_model`, `mlp1`, `res_decoder`, as far as they are there, and `other`.
    pub parts: Vec<Part>,
    /// Implied by the config, but not there.
    pub missing: Vec<Missing>,
    /// There, with another shape or with a dtype that cannot be used.
    pub misshapen: Vec<Misshapen>,
    /// There, but not implied by the config.
    pub unexpected: Vec<String>,
    /// Tensors with NaNs or infinities, if [`Report::values`] has looked for them.
    pub non_finite: Option<Vec<NonFinite>>,
}

/// The tensors whose names begin alike.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Part {
    /// The first component of their names.
    pub name: String,
    /// How many.
    pub tensors: usize,
    /// Elements of all of them.
    pub parameters: usize,
    /// What they take in the files.
    pub bytes: usize,
}

/// A tensor that is not there.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// `bf16 (6144, 4096)`.
    pub expected: String,
}

/// A tensor of another shape or dtype.
#[derive(Clone, Debug, Serialize)]
pub struct Misshapen {
    /// Its name.
    pub name: String,
    /// `bf16 (6144, 4096)`.
    pub expected: String,
    /// `bf16 (4096, 4096)`.
    pub found: String,
}

impl Report {
    /// Compares names, shapes and dtypes; reads no weights.
    pub fn of(ck: &Checkpoint) -> Self {
        let mut report = Self::default();
        for t in ck.all_tensors() {
            let first = t.name.split('.').next().unwrap_or_default();
            let known = ["vision_model", "language_model", "mlp1", "res_decoder"].contains(&first);
            let name = if known { first } else { "other" };
            let at = report.parts.iter().position(|p| p.name == name).unwrap_or_else(|| {
                report.parts.push(Part { name: name.into(), ..Part::default() });
                report.parts.len() - 1
            });
            let part = &mut report.parts[at];
            part.tensors += 1;
            part.parameters += t.shape.iter().product::<usize>();
            part.bytes += t.bytes;
        }
        let order = |p: &Part| {
            ["vision_model", "mlp1", "language_model", "res_decoder"].iter().position(|n| *n == p.name)
        };
        report.parts.sort_by_key(|p| order(p).unwrap_or(usize::MAX));

        let width = ck.has_mask_decoder().then_some(ck.config.vision_config.hidden_size);
        let mut unexpected: std::collections::BTreeSet<&str> = ck.all_tensors().map(|t| t.name).collect();
        for (name, shape) in names::expected(&ck.config, width) {
            unexpected.remove(name.as_str());
            if never_read(&name) {
                continue;
            }
            let expected = kind(Dtype::BF16, &shape);
            match ck.info(&name) {
                None => report.missing.push(Missing { name, expected }),
                Some(t) if t.shape != shape || !is_float(t.dtype) => {
                    report.misshapen.push(Misshapen { name, expected, found: kind(t.dtype, t.shape) });
                }
                Some(_) => {}
            }
        }
        report.unexpected = unexpected.into_iter().map(Into::into).collect();
        report
    }

    /// Reads all weights and notes those that are not finite.
    pub fn values(mut self, ck: &Checkpoint) -> Self {
        self.non_finite = Some(ck.non_finite());
        self
    }

    /// Whether the model can run: nothing missing, misshapen or known to be not finite.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
            && self.misshapen.is_empty()
            && self.non_finite.as_ref().is_none_or(|bad| bad.is_empty())
    }
}
