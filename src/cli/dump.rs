//! `mllmseg dump`: every named value of one run, for comparison with other implementations.

use super::{PromptingArg, size};
use mllmseg::checkpoint::Checkpoint;
use mllmseg::device::Choice;
use mllmseg::dump::{Input, Tokens, dump};
use mllmseg::image::{Limits, normalize, read, resize_bicubic, write_file};
use mllmseg::text::{Prompts, Tokenizer, UserText};
use mllmseg::{Error, Result};
use regex::Regex;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Run one prompt about one picture and write its named values
///
/// Nothing is shared and nothing left out: these are the values that the published code computes, in f32, under the
/// names and in the shapes of the golden files (vit.layer0, llm.norm, logits_prev, dec.mask, ...). With --nodes, the
/// outputs of nodes that match (llm.0.wqkv) are written too.
///
/// Example: mllmseg dump --model DIR --image cats.jpg --expr "the left cat" --out values.safetensors
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// safetensors file with `pixel_values` (1, 3, S, S) f32 and `input_ids` (T) i32 or i64
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    inputs: Option<PathBuf>,
    /// A picture instead, with --expr
    #[arg(long, value_name = "FILE", conflicts_with = "inputs", requires = "expr")]
    image: Option<PathBuf>,
    /// Expressions, in one joint prompt unless --prompting says otherwise
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    expr: Vec<String>,
    /// The prompt's template
    #[arg(long, value_enum, default_value_t = PromptingArg::Joint)]
    prompting: PromptingArg,
    /// Only values whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    nodes: Option<Regex>,
    /// Also resize the masks to this size (with --image, the picture's)
    #[arg(long, value_name = "HxW", value_parser = size)]
    size: Option<(usize, usize)>,
    /// Leave [REJ] in the prompt: masks for [SEG] alone
    #[arg(long)]
    no_reevaluate: bool,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to run: cpu, cuda:N, or sim (the CUDA kernels on the simulated driver)
    #[arg(long, default_value = "cpu")]
    device: Choice,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let tokens = Tokens::read(&checkpoint.dir)?;
    let input = match (&args.inputs, &args.image) {
        (Some(path), _) => from_file(path, &args, checkpoint.config.force_image_size)?,
        (None, Some(path)) => from_picture(path, &args, &checkpoint)?,
        (None, None) => return Err(Error::usage("dump", "--inputs or --image", "neither")),
    };
    let values = dump(&checkpoint, &tokens, &input, args.nodes.as_ref(), args.device)?;
    let views: Vec<(&String, TensorView)> = values
        .iter()
        .map(|(name, v)| {
            let (dtype, bytes) = v.data.bytes();
            let view = TensorView::new(dtype, v.shape.clone(), bytes);
            view.map(|view| (name, view))
                .map_err(|e| Error::shape(name, "elements for its shape", e.to_string()))
        })
        .collect::<Result<_>>()?;
    let count = views.len();
    let file = safetensors::serialize(views, None)
        .map_err(|e| Error::file(&args.out, "tensors that fit a safetensors file", e.to_string()))?;
    write_file(&args.out, &file)?;
    eprintln!("{}: {count} tensors", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn from_file(path: &Path, args: &Args, size: usize) -> Result<Input> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::file(path, "a safetensors file", e.to_string()))?;
    let wrong = |name: &str, found: String| {
        let expected = match name {
            "input_ids" => "i32 or i64 (T), token ids".into(),
            _ => format!("f32 (1, 3, {size}, {size})"),
        };
        Error::Tensor { path: path.into(), tensor: name.into(), expected, found }
    };
    let tensor =
        |name: &'static str| file.tensor(name).map_err(|_| wrong(name, "no tensor of that name".into()));
    let (pixels, ids) = (tensor("pixel_values")?, tensor("input_ids")?);
    if pixels.dtype() != Dtype::F32 || pixels.shape() != [1, 3, size, size] {
        return Err(wrong("pixel_values", format!("{:?} {:?}", pixels.dtype(), pixels.shape())));
    }
    if ids.shape().len() != 1 {
        return Err(wrong("input_ids", format!("{:?} {:?}", ids.dtype(), ids.shape())));
    }
    let pixel_values = pixels.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let ids: Option<Vec<u32>> = match ids.dtype() {
        Dtype::I32 => {
            ids.data().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).try_into().ok()).collect()
        }
        Dtype::I64 => {
            ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b).try_into().ok()).collect()
        }
        other => return Err(wrong("input_ids", format!("{other:?}"))),
    };
    let input_ids = ids.ok_or_else(|| wrong("input_ids", "a negative or huge id".into()))?;
    Ok(Input { pixel_values, input_ids, reevaluate: !args.no_reevaluate, resized: args.size })
}

fn from_picture(path: &Path, args: &Args, checkpoint: &Checkpoint) -> Result<Input> {
    let config = &checkpoint.config;
    let picture = read(path, &Limits::default(), false)?;
    let size = config.force_image_size;
    let pixel_values = normalize(&resize_bicubic(&picture, size, size)?);
    let tokenizer = Tokenizer::open(&checkpoint.dir)?;
    let prompts =
        Prompts::new(&tokenizer, config.system_message.as_deref(), config.image_tokens(), UserText::Plain)?;
    let expressions: Vec<&str> = args.expr.iter().map(String::as_str).collect();
    let sequence = match (args.prompting, expressions.as_slice()) {
        (PromptingArg::Joint, all) => prompts.joint(all)?,
        (PromptingArg::Single, [e]) => prompts.single(e)?,
        (PromptingArg::Phrase, [e]) => prompts.phrase(e)?,
        (PromptingArg::Reasoning, [e]) => prompts.reasoning(e)?,
        (_, many) => {
            return Err(Error::usage("--expr", "one expression for this prompting", many.len().to_string()));
        }
    };
    let input_ids = [prompts.prefix(), prompts.image(), sequence.ids].concat();
    let resized = args.size.or(Some((picture.height, picture.width)));
    Ok(Input { pixel_values, input_ids, reevaluate: !args.no_reevaluate, resized })
}
