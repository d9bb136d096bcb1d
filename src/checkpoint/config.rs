//! `config.json` as structs: every dimension of the model, checked before anything is computed from it.
//!
//! Field names are those of the file. Fields that do not matter to inference are ignored; values of those that do, but
//! that this engine does not compute (another activation, another LLM), are errors.

use super::json;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

/// Bytes that a `config.json` may have (the published ones have 5,000).
const MAX_BYTES: u64 = 1 << 20;

/// Patches on a side that a picture may have (the published models' have 32): attention takes the time of their fourth power.
const MAX_PATCHES: usize = 256;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Informative: the class that wrote the checkpoint.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Side of the square that the vision tower sees, in pixels.
    pub force_image_size: usize,
    /// Of the pixel shuffle: 0.5 makes one token of 2x2 patches.
    pub downsample_ratio: f64,
    /// Order of the pixel shuffle's output; "v2".
    pub ps_version: String,
    /// Which hidden state of the vision tower is used; -1 is the last.
    pub select_layer: i64,
    /// Name of the conversation template; "internvl2_5".
    pub template: String,
    /// Chat: cut the picture into tiles.
    #[serde(default)]
    pub dynamic_image_size: bool,
    /// Chat: append the whole picture as one more tile.
    #[serde(default)]
    pub use_thumbnail: bool,
    /// Chat: at least so many tiles.
    #[serde(default = "one")]
    pub min_dynamic_patch: usize,
    /// Chat: at most so many tiles.
    #[serde(default = "six")]
    pub max_dynamic_patch: usize,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// The language model.
    pub llm_config: LlmConfig,
    /// The mask decoder, as far as its tensors do not tell.
    #[serde(default)]
    pub res_decoder: ResDecoder,
    /// Instead of the template's system message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_message: Option<String>,
}

/// InternViT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// C, the width of a token.
    pub hidden_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// NH.
    pub num_attention_heads: usize,
    /// F, the width of the MLP.
    pub intermediate_size: usize,
    /// Side of the picture in pixels.
    pub image_size: usize,
    /// P, side of a patch in pixels.
    pub patch_size: usize,
    /// Added to a LayerNorm's variance.
    pub layer_norm_eps: f64,
    /// "gelu", the exact one (erf).
    pub hidden_act: String,
    /// "layer_norm".
    pub norm_type: String,
    /// Whether `attn.qkv.bias` is there.
    pub qkv_bias: bool,
    /// Norms of q and k; false.
    pub qk_normalization: bool,
}

/// InternLM2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlmConfig {
    /// `["InternLM2ForCausalLM"]`.
    pub architectures: Vec<String>,
    /// H, the width of the residual stream.
    pub hidden_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// NH, query heads.
    pub num_attention_heads: usize,
    /// NKV, heads of K and V; divides NH.
    pub num_key_value_heads: usize,
    /// F, the width of the MLP.
    pub intermediate_size: usize,
    /// Added to the mean square of an RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What happens past `max_position_embeddings`.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Positions that the rotary embedding was trained for.
    pub max_position_embeddings: usize,
    /// V, rows of the embedding, added tokens included.
    pub vocab_size: usize,
    /// Biases of the attention's projections; false.
    pub bias: bool,
    /// "silu".
    pub hidden_act: String,
}

/// Rotary embedding past the trained positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// "dynamic" (NTK).
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the scaling.
    pub factor: f64,
}

/// What the mask decoder's tensors do not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResDecoder {
    /// Heads of its attention.
    pub nhead: usize,
    /// Groups of DySample's channels.
    pub groups: usize,
}

impl Default for ResDecoder {
    fn default() -> Self {
        Self { nhead: 8, groups: 4 }
    }
}

fn one() -> usize {
    1
}

fn six() -> usize {
    6 // InternVLChatConfig's default
}

impl VisionConfig {
    /// HD: channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl LlmConfig {
    /// HD: channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The base of RoPE's frequencies for a sequence of `len` tokens: `rope_theta`, and past `max_position_embeddings`, with
    /// `rope_scaling`, `rope_theta * (factor * len / max - (factor - 1))^(HD / (HD - 2))`.
    ///
    /// Source: `InternLM2DynamicNTKScalingRotaryEmbedding`, modeling_internlm2.py.
    pub fn rope_theta_at(&self, len: usize) -> f64 {
        let (max, hd) = (self.max_position_embeddings, self.head_dim() as f64);
        match &self.rope_scaling {
            Some(s) if len > max => {
                let stretch = s.factor * len as f64 / max as f64 - (s.factor - 1.0);
                self.rope_theta * stretch.powf(hd / (hd - 2.0))
            }
            _ => self.rope_theta,
        }
    }
}

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for what is no file or too large; those of [`Config::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &json::read(path, MAX_BYTES)?)
    }

    /// Checks the text of a `config.json`; `path` is its name in errors.
    ///
    /// # Errors
    /// [`Error::File`] for what is no JSON object; [`Error::Field`] for a field that is missing, of another type, out of range, or a choice
    /// that is not supported.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        // An unsupported LLM has other fields: say that before missing a field of this one.
        #[derive(Deserialize)]
        struct Kind {
            llm_config: Architectures,
        }
        #[derive(Deserialize)]
        struct Architectures {
            architectures: Vec<String>,
        }
        let kind = json::parse::<Kind>(text).map_err(|m| m.at(path))?;
        check_llm(path, &kind.llm_config.architectures)?;

        let config = json::parse::<Self>(text).map_err(|m| m.at(path))?;
        config.check(path)?;
        Ok(config)
    }

    /// Patches on a side of the picture (32 at 448 pixels).
    pub fn patches(&self) -> usize {
        self.vision_config.image_size / self.vision_config.patch_size
    }

    /// Tokens of a tile in the language model (256 at 448 pixels).
    pub fn image_tokens(&self) -> usize {
        (self.patches() / 2).pow(2)
    }

    /// Every number within limits that no product of shapes can overflow, every choice one that is computed.
    fn check(&self, path: &Path) -> Result<()> {
        let (v, l) = (&self.vision_config, &self.llm_config);
        let c = Checks { path };

        c.number("vision_config.hidden_size", v.hidden_size, 1..=1 << 16)?;
        c.number("vision_config.num_hidden_layers", v.num_hidden_layers, 1..=512)?;
        c.number("vision_config.num_attention_heads", v.num_attention_heads, 1..=1024)?;
        c.multiple("vision_config.hidden_size", v.hidden_size, "num_attention_heads", v.num_attention_heads)?;
        c.number("vision_config.intermediate_size", v.intermediate_size, 1..=1 << 18)?;
        c.number("vision_config.patch_size", v.patch_size, 1..=64)?;
        c.number("vision_config.image_size", v.image_size, 2 * v.patch_size..=4096)?;
        c.multiple("vision_config.image_size", v.image_size, "2 * patch_size", 2 * v.patch_size)?;
        c.number("vision_config.image_size / patch_size", self.patches(), 2..=MAX_PATCHES)?;
        c.real("vision_config.layer_norm_eps", v.layer_norm_eps, 0.0..=1.0)?;
        c.one_of("vision_config.hidden_act", &v.hidden_act, "gelu")?;
        c.one_of("vision_config.norm_type", &v.norm_type, "layer_norm")?;
        c.one_of("vision_config.qk_normalization", v.qk_normalization, false)?;

        c.number("llm_config.hidden_size", l.hidden_size, 1..=1 << 16)?;
        c.number("llm_config.num_hidden_layers", l.num_hidden_layers, 1..=512)?;
        c.number("llm_config.num_attention_heads", l.num_attention_heads, 1..=1024)?;
        c.number("llm_config.num_key_value_heads", l.num_key_value_heads, 1..=l.num_attention_heads)?;
        c.multiple(
            "llm_config.hidden_size",
            l.hidden_size,
            "2 * num_attention_heads",
            2 * l.num_attention_heads,
        )?;
        let kv = ("num_key_value_heads", l.num_key_value_heads);
        c.multiple("llm_config.num_attention_heads", l.num_attention_heads, kv.0, kv.1)?;
        c.number("llm_config.intermediate_size", l.intermediate_size, 1..=1 << 18)?;
        c.number("llm_config.vocab_size", l.vocab_size, 1..=1 << 22)?;
        c.number("llm_config.max_position_embeddings", l.max_position_embeddings, 1..=1 << 24)?;
        c.real("llm_config.rms_norm_eps", l.rms_norm_eps, 0.0..=1.0)?;
        c.real("llm_config.rope_theta", l.rope_theta, 1.0..=1e12)?;
        if let Some(scaling) = &l.rope_scaling {
            c.one_of("llm_config.rope_scaling.type", &scaling.kind, "dynamic")?;
            c.real("llm_config.rope_scaling.factor", scaling.factor, 1.0..=1024.0)?;
        }
        c.one_of("llm_config.bias", l.bias, false)?;
        c.one_of("llm_config.hidden_act", &l.hidden_act, "silu")?;

        // The position embedding is used as it is, so the picture must have the size it was made for.
        c.one_of("force_image_size", self.force_image_size, v.image_size)?;
        // DySample doubles the map of the image tokens to that of the patches: one token is 2x2 patches.
        c.one_of("downsample_ratio", self.downsample_ratio, 0.5)?;
        c.one_of("ps_version", &self.ps_version, "v2")?;
        c.one_of("select_layer", self.select_layer, -1)?;
        c.one_of("template", &self.template, "internvl2_5")?;
        c.number("max_dynamic_patch", self.max_dynamic_patch, 1..=256)?;
        c.number("min_dynamic_patch", self.min_dynamic_patch, 1..=self.max_dynamic_patch)?;
        c.number("res_decoder.nhead", self.res_decoder.nhead, 1..=1024)?;
        c.number("res_decoder.groups", self.res_decoder.groups, 1..=1024)?;
        if let Some(text) = &self.system_message {
            c.number("system_message's bytes", text.len(), 0..=1 << 16)?;
        }
        Ok(())
    }
}

/// Makes [`Error::Field`]s.
struct Checks<'a> {
    path: &'a Path,
}

impl Checks<'_> {
    fn fail(&self, field: &str, expected: impl Into<String>, found: impl Display) -> Result<()> {
        let (path, found) = (self.path.into(), json::clip(&found.to_string()));
        Err(Error::Field { path, field: field.into(), expected: expected.into(), found })
    }

    fn number(&self, field: &str, found: usize, range: RangeInclusive<usize>) -> Result<()> {
        if range.contains(&found) {
            return Ok(());
        }
        self.fail(field, format!("{} to {}", range.start(), range.end()), found)
    }

    fn real(&self, field: &str, found: f64, range: RangeInclusive<f64>) -> Result<()> {
        if range.contains(&found) {
            return Ok(());
        }
        self.fail(field, format!("{:e} to {:e}", range.start(), range.end()), format_args!("{found:e}"))
    }

    fn multiple(&self, field: &str, found: usize, of: &str, unit: usize) -> Result<()> {
        if found.is_multiple_of(unit) {
            return Ok(());
        }
        self.fail(field, format!("a multiple of {of} ({unit})"), found)
    }

    fn one_of<T: Display + PartialEq<U>, U: Display>(&self, field: &str, found: T, known: U) -> Result<()> {
        if found == known {
            return Ok(());
        }
        self.fail(field, format!("{known} (the only one supported)"), found)
    }
}

/// InternLM2 only; the Qwen2.5 checkpoints (1B, 4B) are known and refused by name.
fn check_llm(path: &Path, architectures: &[String]) -> Result<()> {
    const KNOWN: &str = "InternLM2ForCausalLM";
    if architectures.len() == 1 && architectures[0] == KNOWN {
        return Ok(());
    }
    let mut found = json::clip(&format!("{architectures:?}"));
    if architectures.iter().any(|a| a.starts_with("Qwen")) {
        found.push_str(" (Qwen language models are not supported yet)");
    }
    let (field, expected) = ("llm_config.architectures".into(), format!("[\"{KNOWN}\"]"));
    Err(Error::Field { path: path.into(), field, expected, found })
}
