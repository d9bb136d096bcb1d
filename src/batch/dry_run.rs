//! What a run would do: every record, every picture's header, every expression's tokens are looked at, and nothing is computed.

use super::item::{Ask, Failure, Item, Picture};
use super::models::Models;
use super::pipeline::{Settings, WINDOW};
use crate::engine::MAX_IMAGES;
use crate::ops::PAGE;
use crate::{Error, Result};
use serde::Serialize;

/// Problems that are kept to be shown.
const SHOWN: usize = 100;
/// Masks of one run, for the memory plan.
const MASKS: usize = 16;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DryRun {
    /// Items that a run would do.
    pub items: u64,
    /// Their expressions.
    pub expressions: u64,
    /// Their questions.
    pub questions: u64,
    /// Tokens of the longest prompt of a question, the picture's included.
    pub most_tokens: usize,
    /// Rows of text of all expressions, and of the item with the most.
    pub rows: u64,
    #[allow(missing_docs)]
    pub most_rows: usize,
    /// Pixels of the largest picture.
    pub most_pixels: u64,
    /// Items that would fail.
    pub failing: u64,
    /// The first of them, by index.
    pub problems: Vec<(u64, Failure)>,
    /// Bytes on the device by what they are for.
    pub device_bytes: Vec<(&'static str, u64)>,
    /// Most bytes of files, pictures and masks in flight on the host.
    pub host_bytes: u64,
}

/// Looks at the wanted items of a source. Opens no device but the CPU's memory, to say what a run needs.
///
/// # Errors
/// Those of the source, of the model's prompts, and of opening the model.
pub fn dry_run(
    models: &mut Models,
    source: impl Iterator<Item = Result<Item>>,
    wanted: impl Fn(u64) -> bool,
    settings: &Settings,
) -> Result<DryRun> {
    let mut found = DryRun::default();
    for item in source {
        let item = item?;
        if !wanted(item.index) {
            continue;
        }
        found.items += 1;
        let n = item.texts.len() as u64;
        *if item.ask == Ask::Questions { &mut found.questions } else { &mut found.expressions } += n;
        if let Err(failure) = look(models, &item, settings, &mut found) {
            found.failing += 1;
            if found.problems.len() < SHOWN {
                found.problems.push((item.index, failure));
            }
        }
    }
    if found.expressions > 0 {
        // A run: as many pictures as are taken together, as much text as they have on average or the largest item.
        let average = (found.rows as usize).div_ceil(found.items.max(1) as usize);
        let rows = (MAX_IMAGES * average).max(found.most_rows).clamp(1, 2048);
        let pixels = (MASKS as u64 * found.most_pixels).clamp(1, 256 << 20).max(found.most_pixels) as usize;
        let engine = models.engine()?;
        found.device_bytes.push(("weights", engine.weights_bytes()));
        found.device_bytes.extend(engine.memory_plan([MAX_IMAGES, rows, MASKS, pixels])?);
    }
    if found.questions > 0 {
        let checkpoint = models.host().checkpoint();
        let weights = checkpoint.all_tensors().filter(|t| !t.name.starts_with("res_decoder."));
        found.device_bytes.push(("weights for questions", weights.map(|t| t.bytes as u64).sum()));
        let c = &checkpoint.config.llm_config;
        let row = c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim();
        let tokens = models.cache_tokens().next_multiple_of(PAGE);
        found.device_bytes.push(("K/V cache of questions (f32)", (tokens * row * size_of::<f32>()) as u64));
    }
    let item = found.most_pixels * (3 + MASKS as u64);
    found.host_bytes = settings.bytes.min(item.saturating_mul(WINDOW as u64)).max(item);
    Ok(found)
}

fn look(models: &Models, item: &Item, settings: &Settings, found: &mut DryRun) -> Result<(), Failure> {
    let name = item.picture.name();
    let size = match &item.picture {
        Picture::Bad(failure) => return Err(failure.clone()),
        Picture::Path { path, .. } => {
            item.picture.regular()?;
            let bytes =
                std::fs::metadata(path).map_err(Error::io(path, "open")).map_err(|e| Failure::from(&e))?;
            if bytes.len() > settings.limits.max_bytes {
                let (most, bytes) = (settings.limits.max_bytes, bytes.len());
                return Err(Failure::permanent(format!(
                    "{name}: expected at most {most} bytes, found {bytes}"
                )));
            }
            imagesize::size(path)
        }
        Picture::Bytes { bytes, .. } => imagesize::blob_size(bytes),
    };
    let size = size.map_err(|e| Failure::permanent(format!("{name}: expected a picture file, found {e}")))?;
    let pixels = size.width as u64 * size.height as u64;
    if pixels == 0 || pixels > settings.limits.max_pixels {
        let (most, found) = (settings.limits.max_pixels, format!("{}x{}", size.width, size.height));
        return Err(Failure::permanent(format!("{name}: expected 1 to {most} pixels, found {found}")));
    }
    found.most_pixels = found.most_pixels.max(pixels);
    let (rows, unusable) =
        models.host().rows(item, [size.width, size.height], settings).map_err(|e| Failure::from(&e))?;
    if item.ask != Ask::Questions {
        found.rows += rows as u64;
        found.most_rows = found.most_rows.max(rows);
    } else {
        found.most_tokens = found.most_tokens.max(rows);
        let most = models.cache_tokens();
        if rows >= most {
            return Err(Failure::permanent(format!(
                "{name}: expected fewer tokens in a prompt than the K/V cache holds ({most}: --cache-tokens), found {rows}"
            )));
        }
    }
    unusable.map_or(Ok(()), Err)
}

impl std::fmt::Display for DryRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        writeln!(
            f,
            "{} items, {} expressions, {} rows of text ({} in the largest item), {:.1} megapixels in the largest picture",
            self.items,
            self.expressions,
            self.rows,
            self.most_rows,
            self.most_pixels as f64 / 1e6
        )?;
        if self.questions > 0 {
            writeln!(f, "{} questions, {} tokens in the longest prompt", self.questions, self.most_tokens)?;
        }
        writeln!(f, "{} items would fail", self.failing)?;
        let total: u64 = self.device_bytes.iter().map(|b| b.1).sum();
        let parts: Vec<String> =
            self.device_bytes.iter().map(|(what, bytes)| format!("{what} {:.1}", mb(*bytes))).collect();
        writeln!(f, "device: {:.1} MB ({})", mb(total), parts.join(", "))?;
        writeln!(f, "host: at most {:.1} MB of files, pictures and masks in flight", mb(self.host_bytes))
    }
}
