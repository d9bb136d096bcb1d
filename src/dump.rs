//! Every named value of one run, as the published code would show it: what golden tensors are compared with.

use crate::checkpoint::Checkpoint;
use crate::device::{self, Choice, Device, Values};
use crate::graph::{Tap, Window};
use crate::models::mllmseg::{Model, Segment, States, Whole, whole};
use crate::plan::Plan;
use crate::reference::{Precision, resize};
use crate::text::Tokenizer;
use crate::{Error, Result};
use regex::Regex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// One dumped tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Row-major extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Elements of a dumped tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

/// Ids of the tokens that a run has to know.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Tokens {
    pub img_context: u32,
    pub seg: Option<u32>,
    pub rej: Option<u32>,
}

impl Tokens {
    /// Of a checkpoint: its tokenizer's, or where it has none (a synthetic one), those in `added_tokens.json`.
    ///
    /// # Errors
    /// Those of [`Tokenizer::open`], if `added_tokens.json` does not help either.
    pub fn read(dir: &Path) -> Result<Self> {
        let tokenizer = match Tokenizer::open(dir) {
            Ok(tokenizer) => tokenizer,
            Err(why) => return Self::added(&dir.join("added_tokens.json")).ok_or(why),
        };
        let ids = tokenizer.special();
        Ok(Self { img_context: ids.img_context, seg: ids.seg, rej: ids.rej })
    }

    fn added(path: &Path) -> Option<Self> {
        let ids: HashMap<String, u32> = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let id = |token: &str| ids.get(token).copied();
        Some(Self { img_context: id("<IMG_CONTEXT>")?, seg: id("[SEG]"), rej: id("[REJ]") })
    }
}

/// One prompt about one picture.
pub struct Input {
    /// `(1, 3, S, S)`, normalised.
    pub pixel_values: Vec<f32>,
    /// The whole prompt's tokens.
    pub input_ids: Vec<u32>,
    /// What stands for `[REJ]` when the masks are made: `[SEG]`, in a second run (the published inference), or with `false` nothing: only
    /// the `[SEG]`s get masks (the published training branch).
    pub reevaluate: bool,
    /// Height and width to which the mask is resized as well.
    pub resized: Option<(usize, usize)>,
}

impl Data {
    /// As safetensors writes it.
    pub fn bytes(&self) -> (safetensors::Dtype, &[u8]) {
        match self {
            Data::F32(v) => (safetensors::Dtype::F32, bytemuck::cast_slice(v)),
            Data::I32(v) => (safetensors::Dtype::I32, bytemuck::cast_slice(v)),
            Data::U8(v) => (safetensors::Dtype::U8, v),
        }
    }
}

/// Runs the whole prompt with nothing shared and nothing left out; the values whose names match `names`, by name.
///
/// A prompt that holds `[REJ]` is run a second time, see [`Input::reevaluate`]: `logits_prev` and `pass1.llm.norm` are the first run's,
/// everything else is the second's. Nodes' own outputs (`llm.0.wqkv`) are written only when `names` is given and matches them.
///
/// # Errors
/// [`Error::Shape`] for pixel values of another size, an unknown token id, another number of `<IMG_CONTEXT>` than the image has tokens, no
/// `[SEG]` or `[REJ]`.
pub fn dump(
    checkpoint: &Arc<Checkpoint>,
    special: &Tokens,
    input: &Input,
    names: Option<&Regex>,
    choice: Choice,
) -> Result<BTreeMap<String, Value>> {
    let (model, weights) = Model::bind(checkpoint)?;
    let mut device = device::open(choice, weights, Precision::F32, &mut |_, _| ())?;
    let mut run =
        |ids: &[u32], slots: &[usize]| run(&model, device.as_mut(), special, input, ids, slots, names);
    let at = |wanted: &[Option<u32>]| -> Vec<usize> {
        (0..input.input_ids.len()).filter(|&p| wanted.contains(&Some(input.input_ids[p]))).collect()
    };
    let (label, seg) = (at(&[special.seg, special.rej]), at(&[special.seg]));
    let mut out = run(&input.input_ids, &label)?;
    let mut text = label.clone();
    if seg.len() < label.len() {
        let mut first = std::mem::take(&mut out);
        if input.reevaluate {
            let mut ids = input.input_ids.clone();
            label.iter().for_each(|&p| ids[p] = special.seg.unwrap_or(ids[p]));
            out = run(&ids, &label)?;
            out.extend(first.remove("llm.norm").map(|v| ("pass1.llm.norm".into(), v)));
        } else {
            out = run(&input.input_ids, &seg)?;
            text = seg;
        }
        out.extend(
            ["logits_prev", "logits_prev_argmax"].into_iter().filter_map(|name| first.remove_entry(name)),
        );
    }
    if let Some(Value { data: Data::I32(tokens), .. }) = out.get("logits_prev_argmax") {
        let mut ids: Vec<i32> = input.input_ids.iter().map(|&id| id as i32).collect();
        for (&p, &token) in label.iter().zip(tokens) {
            let rejected = special.rej.is_some_and(|rej| rej as i32 == token);
            ids[p] = if rejected { special.rej } else { special.seg }.map_or(token, |id| id as i32);
        }
        out.insert("output_ids".into(), ints(ids));
    }
    let before = |p: &[usize]| ints(p.iter().map(|&p| p as i32 - 1).collect());
    out.insert("positions_label".into(), ints(label.iter().map(|&p| p as i32).collect()));
    out.insert("positions_text".into(), before(&text));
    out.insert("positions_img".into(), before(&at(&[Some(special.img_context)])));
    out.insert("input_ids".into(), ints(input.input_ids.iter().map(|&id| id as i32).collect()));
    let size = model.config.force_image_size;
    let pixels = Value { shape: vec![3, size, size], data: Data::F32(input.pixel_values.clone()) };
    out.insert("pixel_values".into(), pixels);
    if let Some(names) = names {
        out.retain(|name, _| names.is_match(name));
    }
    Ok(out)
}

fn ints(data: Vec<i32>) -> Value {
    Value { shape: vec![data.len()], data: Data::I32(data) }
}

/// One pass over `ids`, a mask for each position of `slots`.
fn run(
    model: &Model,
    device: &mut dyn Device,
    special: &Tokens,
    input: &Input,
    ids: &[u32],
    slots: &[usize],
    names: Option<&Regex>,
) -> Result<BTreeMap<String, Value>> {
    let config = &model.config;
    let (t, vocab) = (ids.len(), config.llm_config.vocab_size);
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::shape("input_ids", format!("token ids below {vocab}"), id.to_string()));
    }
    let (mut rows, mut read) = (Vec::new(), Vec::new());
    for (p, &id) in ids.iter().enumerate() {
        if id == special.img_context {
            rows.push(-1 - read.len() as i32);
            read.push(p as i32 - 1);
        } else {
            rows.push(id as i32);
        }
    }
    let slots: Vec<i32> = slots.iter().map(|&p| p as i32 - 1).collect();
    if read.iter().chain(&slots).any(|&p| p < 0) {
        return Err(Error::shape("input_ids", "a token before the first image token or slot", "none"));
    }
    let expected = config.image_tokens();
    if read.len() != expected {
        return Err(Error::shape("input_ids", format!("{expected} image tokens"), read.len().to_string()));
    }
    if slots.is_empty() {
        return Err(Error::shape("input_ids", "a [SEG] or [REJ]", "none"));
    }
    let q = slots.len();
    let mut states = States::default();
    let (graph, io) = whole(model, &mut states, t, q)?;
    states.tensors.iter().try_for_each(|t| device.allocate(t))?;
    fill(device, &io, input, &rows, &read, &slots)?;

    let wanted = |name: &str| names.is_none_or(|n| n.is_match(name));
    let plan = Plan::new(graph, device.act_bytes())?;
    let mut out = BTreeMap::new();
    device.run(&plan, true, &mut |i, node, _, values| {
        for tap in plan.graph.taps.iter().filter(|t| t.after == i && wanted(&t.name)) {
            out.insert(tap.name.clone(), tapped(tap, values)?);
        }
        if let (true, [y]) = (names.is_some_and(|n| n.is_match(&node.name)), node.op.writes().as_slice())
            && matches!(y.dtype, crate::graph::DType::Act | crate::graph::DType::F32)
        {
            out.insert(node.name.clone(), Value { shape: y.shape.clone(), data: Data::F32(values.f32(y)?) });
        }
        Ok(())
    })?;
    out.insert("logits_prev_argmax".into(), ints(device.read_i32(&io.token)?));
    let (size, mask) = (config.force_image_size, device.f32(&io.probability)?);
    let mut resized = Vec::new();
    for (i, mask) in mask.chunks_exact(size * size).enumerate() {
        out.insert(format!("dec.mask_bits.{i}"), bits(mask));
        if let Some((h, w)) = input.resized {
            let at = resized.len();
            resized.resize(at + h * w, 0.0);
            resize(&mut resized[at..], mask, size, h, w);
            out.insert(format!("dec.mask_resized_bits.{i}"), bits(&resized[at..]));
        }
    }
    if let Some((h, w)) = input.resized {
        out.insert("dec.mask_resized".into(), Value { shape: vec![q, h, w], data: Data::F32(resized) });
    }
    Ok(out)
}

fn fill(
    device: &mut dyn Device,
    io: &Whole,
    input: &Input,
    ids: &[i32],
    read: &[i32],
    slots: &[i32],
) -> Result<()> {
    let t = ids.len();
    let positions: Vec<i32> = (0..t as i32).collect();
    device.write_f32(&io.pixel_values, &input.pixel_values)?;
    device.write_i32(&io.rows.ids, ids)?;
    device.write_i32(&io.rows.positions, &positions)?;
    device.write_i32(&io.rows.kv_rows, &positions)?;
    device.write_i32(&io.rows.segments, &Segment { rows: (0, t), seen: [(0, 0); 2], kv: 0 }.fields())?;
    device.write_i32(&io.read, read)?;
    device.write_i32(&io.slot_rows, slots)?;
    device.write_i32(&io.slots.slots, &(0..slots.len() as i32).collect::<Vec<_>>())?;
    device.write_i32(&io.slots.image_of, &vec![0i32; slots.len()])
}

/// `value >= 0.5`, packed 8 a byte, most significant bit first.
fn bits(values: &[f32]) -> Value {
    let byte = |c: &[f32]| c.iter().enumerate().fold(0u8, |b, (i, &v)| b | (u8::from(v >= 0.5) << (7 - i)));
    let data: Vec<u8> = values.chunks(8).map(byte).collect();
    Value { shape: vec![data.len()], data: Data::U8(data) }
}

/// A tap's value in its published layout.
fn tapped(tap: &Tap, values: &dyn Values) -> Result<Value> {
    published(&tap.value, &tap.shape, tap.channels_first, values)
}

/// The rows of a window in a published shape, channels before pixels if asked for; see [`Tap`].
///
/// # Errors
/// Those of [`Values::window`].
pub fn published(
    value: &Window,
    shape: &[usize],
    channels_first: bool,
    values: &dyn Values,
) -> Result<Value> {
    let v = values.window(value)?;
    let data = if channels_first {
        let pixels: usize = shape[shape.len() - 2..].iter().product();
        let mut data = vec![0.0; shape.iter().product()];
        for (n, row) in v.chunks_exact(value.width).enumerate() {
            let (item, pixel) = (n / pixels, n % pixels);
            for (c, &v) in row.iter().enumerate() {
                data[(item * value.width + c) * pixels + pixel] = v;
            }
        }
        data
    } else {
        v
    };
    Ok(Value { shape: shape.to_vec(), data: Data::F32(data) })
}
