//! MLLMSeg whole: which parts run once a model, once an image, once a batch of expressions.
//!
//! | graph | runs | fills |
//! | --- | --- | --- |
//! | [`system`] | once a model | K/V of the system prompt and `<img>`, the hidden state that predicts an image's first token |
//! | [`pictures`] | once an image | the image's patches, from its source's bytes |
//! | [`image`] | once an image | what the vision tower makes of it: its features, and its tokens for the language model |
//! | [`text`] | once a batch of sequences | the hidden state and the token of each slot; the first batch about an image takes the image's own rows along, so that the language model's weights are read once for both, and fills its K/V and the mask decoder's part that no expression touches |
//! | [`masks`] | once a batch of slots | masks and their scores |
//! | [`whole`] | once a prompt | the same in one piece, nothing shared or left out: what the published code does, and what a dump shows |
//!
//! Shapes are fixed when a graph is built; what changes from request to request is the contents of its input buffers.

use super::llm::{Llm, Read, Rows, best_token, llm, next_token};
use super::mask_decoder::{self, MaskDecoder};
use super::projector::{Projector, projector};
use super::vit::{self, Vit};
use super::{Binder, Bound, bind_parts};
use crate::Result;
use crate::checkpoint::{Checkpoint, config::Config};
use crate::device::Device;
use crate::graph::{DType, Graph, Place, Tensor};
use crate::image::{Rgb, resize_table};
use crate::ops::{
    DESCRIPTOR, KvCache, PICTURE, SEGMENT, STATS, copy, drop_cls, embed, gather_rows, preprocess,
};
use std::sync::Arc;

/// The exact savings that the model's algebra allows; each can be switched off to show that nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savings {
    /// K/V of the system prompt are computed once a model; off: once an image.
    pub system_once: bool,
    /// Everything about the image is computed once an image; off: once an expression's sequence.
    pub image_once: bool,
    /// The last LLM layer runs only for the rows that are read later.
    pub last_layer_rows: bool,
    /// The cross-attention over one text token is one vector an expression.
    pub fold_cross_attention: bool,
    /// The sequences of an image stand in one token matrix; off: one after another.
    pub packed: bool,
}

impl Savings {
    /// Names of the savings, as the command line spells them.
    pub const NAMES: [&str; 5] =
        ["system-once", "image-once", "last-layer-rows", "fold-cross-attention", "packed"];

    /// All of them.
    pub const ALL: Self = Self::new(true);
    /// None of them: what the published code computes.
    pub const NONE: Self = Self::new(false);

    const fn new(on: bool) -> Self {
        Self { system_once: on, image_once: on, last_layer_rows: on, fold_cross_attention: on, packed: on }
    }

    /// Switches the saving called `name` off; `None` for an unknown name.
    pub fn without(mut self, name: &str) -> Option<Self> {
        let flags = [
            &mut self.system_once,
            &mut self.image_once,
            &mut self.last_layer_rows,
            &mut self.fold_cross_attention,
            &mut self.packed,
        ];
        let i = Self::NAMES.iter().position(|n| *n == name)?;
        *flags.into_iter().nth(i)? = false;
        Some(self)
    }
}

/// The model's weights, bound and checked.
pub struct Model {
    /// `config.json`.
    pub config: Config,
    vit: Vit,
    projector: Projector,
    llm: Llm,
    decoder: MaskDecoder,
}

impl Model {
    /// Binds every tensor that the config implies.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for one that is missing, misshapen or of another type; those of
    /// [`Checkpoint::decoder_width`].
    pub fn bind(checkpoint: &Arc<Checkpoint>) -> Result<(Self, Bound)> {
        let config = checkpoint.config.clone();
        let mut b = Binder::new(checkpoint);
        let (vit, projector, llm) = bind_parts(&mut b, &config)?;
        let decoder = MaskDecoder::bind(&mut b, &config)?;
        let model = Self { config, vit, projector, llm, decoder };
        Ok((model, b.finish(Arc::clone(checkpoint))))
    }
}

/// Makes state buffers, each with a number of its own.
#[derive(Default)]
pub struct States {
    /// All of them, by number.
    pub tensors: Vec<Tensor>,
}

impl States {
    /// A new buffer.
    pub fn make(&mut self, name: &str, dtype: DType, shape: impl Into<Vec<usize>>) -> Tensor {
        let t = Tensor::new(name, dtype, shape, Place::State(self.tensors.len() as u32));
        self.tensors.push(t.clone());
        t
    }

    /// A K/V cache of `cap` rows.
    pub fn kv_cache(&mut self, config: &Config, cap: usize) -> KvCache {
        let c = &config.llm_config;
        let kv = KvCache::new(
            self.tensors.len() as u32,
            c.num_hidden_layers,
            c.num_key_value_heads,
            cap,
            c.head_dim(),
        );
        self.tensors.extend([kv.k.clone(), kv.v.clone()]);
        kv
    }

    fn rows(&mut self, t: usize, segments: usize) -> Rows {
        Rows::new(t, segments, &mut |name, dtype, shape| self.make(name, dtype, shape))
    }
}

/// Input and result buffers of [`system`].
pub struct System {
    /// The system prompt's tokens, `<img>` last.
    pub rows: Rows,
    /// `(1)`: the row of `<img>`.
    pub read: Tensor,
    /// `(1, H)`, result: the hidden state of `<img>`, which predicts the first token of every image.
    pub img: Tensor,
}

/// The system prompt's graph: its `len` rows.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn system(
    m: &Model,
    states: &mut States,
    kv: &KvCache,
    len: usize,
    savings: Savings,
) -> Result<(Graph, System)> {
    let mut g = Graph::new();
    let io = System {
        rows: states.rows(len, 1),
        read: states.make("img_row", DType::I32, [1]),
        img: states.make("img", DType::Act, [1, m.config.llm_config.hidden_size]),
    };
    let read = Read::Some { rows: &io.read, early: savings.last_layer_rows };
    let h =
        llm(&mut g, &m.llm, &m.config.llm_config, &io.rows, None, kv, read)?.expect("a row was asked for");
    g.push("img", copy(&io.img.all(), &h)?);
    Ok((g, io))
}

/// What must have room for some pictures: bytes of their sources, i32s of their resize tables, lines of their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PictureRoom {
    /// Multiples of 16 for each.
    pub bytes: usize,
    /// For width and height of each.
    pub tables: usize,
    /// All lines together, multiples of 4 for each.
    pub lines: usize,
}

impl PictureRoom {
    /// For `b` pictures of `width` x `height` pixels that are resized to `size` x `size`.
    pub fn of(b: usize, [width, height]: [usize; 2], size: usize) -> Self {
        let tables = [width, height].map(|n| resize_table(n, size).0.len()).iter().sum::<usize>();
        let bytes = (3 * width * height).next_multiple_of(16);
        Self { bytes: b * bytes, tables: b * tables, lines: b * height.next_multiple_of(4) }
    }
}

/// Input buffers of [`pictures`].
pub struct Pictures {
    source: Tensor,
    tables: Tensor,
    pictures: Tensor,
}

/// Pictures as their bytes and tables stand in the buffers of [`pictures`].
pub struct PictureData {
    source: Vec<u8>,
    tables: Vec<i32>,
    pictures: Vec<i32>,
    lines: usize,
}

impl PictureData {
    /// `pictures` of any size, to be resized to `size`.
    pub fn new<'a>(pictures: impl IntoIterator<Item = &'a Rgb>, size: usize) -> Self {
        let mut all = Self { source: Vec::new(), tables: Vec::new(), pictures: Vec::new(), lines: 0 };
        for p in pictures {
            all.pictures.extend([all.source.len() / 16, p.height, p.width, all.lines].map(|v| v as i32));
            all.source.extend_from_slice(&p.data);
            all.source.resize(all.source.len().next_multiple_of(16), 0);
            all.lines += p.height.next_multiple_of(4);
            for n in [p.width, p.height] {
                let (table, quads) = resize_table(n, size);
                all.pictures.extend([all.tables.len(), quads].map(|v| v as i32));
                all.tables.extend(table);
            }
        }
        all
    }

    /// What they need.
    pub fn room(&self) -> PictureRoom {
        PictureRoom { bytes: self.source.len(), tables: self.tables.len(), lines: self.lines }
    }

    /// Writes them into buffers that have room for them.
    ///
    /// # Errors
    /// Those of [`Device::write_u8`] and [`Device::write_i32`].
    pub fn write(mut self, device: &mut dyn Device, to: &Pictures) -> Result<()> {
        self.source.resize(to.source.len(), 0);
        self.tables.resize(to.tables.len(), 0);
        device.write_u8(&to.source, &self.source)?;
        device.write_i32(&to.tables, &self.tables)?;
        device.write_i32(&to.pictures, &self.pictures)
    }
}

/// The graph of `b` pictures, `room` for them: resized and normalised into `patches` `(B*P, K)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn pictures(
    m: &Model,
    states: &mut States,
    patches: &Tensor,
    b: usize,
    room: PictureRoom,
) -> Result<(Graph, Pictures)> {
    let (mut g, size) = (Graph::new(), m.config.force_image_size);
    let io = Pictures {
        source: states.make("source", DType::U8, [room.bytes]),
        tables: states.make("resize_tables", DType::I32, [room.tables]),
        pictures: states.make("pictures", DType::I32, [b, PICTURE]),
    };
    let lines = g.buffer("vit.lines", DType::U8, [room.lines, size, 3]);
    g.scope("vit.embeddings");
    let patch = m.config.vision_config.patch_size;
    g.push("preprocess", preprocess(patches, &lines, &io.source, &io.tables, &io.pictures, patch)?); // (B*P, K)
    Ok((g, io))
}

/// Input and result buffers of [`image`], and what [`text`] makes of the images with their rows.
pub struct Image {
    /// `(B*P, K)`: normalised pixels as rows of patches.
    pub patches: Tensor,
    /// `(B*P, C)`, result: the vision tower's features.
    pub f_vit: Tensor,
    /// `(B*P/4, H)`, result: the image tokens.
    pub tokens: Tensor,
    /// `(B*P/4)`, for [`text`]: what predicts each image token, 0 for `<img>`, `-1 - r` for the hidden state of the image token `r`.
    pub before: Tensor,
    /// `(B, P, D)`, result of [`text`]: the mask decoder's part that no expression touches.
    pub sa: Tensor,
}

/// The graph of `b` images.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn image(m: &Model, states: &mut States, b: usize) -> Result<(Graph, Image)> {
    let mut g = Graph::new();
    let (side, tokens, c) = (m.config.patches(), b * m.config.image_tokens(), &m.config);
    let patches = [b * side * side, vit::patch_columns(&c.vision_config)];
    let io = Image {
        patches: states.make("patches", DType::Act, patches),
        f_vit: states.make("f_vit", DType::Act, [b * side * side, c.vision_config.hidden_size]),
        tokens: states.make("image_tokens", DType::Act, [tokens, c.llm_config.hidden_size]),
        before: states.make("before", DType::I32, [tokens]),
        sa: states.make("sa", DType::Act, [b, side * side, m.decoder.width()]),
    };
    look_at(&mut g, c, &m.vit, &m.projector, &io.patches, [&io.f_vit, &io.tokens], false)?;
    Ok((g, io))
}

/// Images whose rows stand before those of a run's sequences.
#[derive(Clone, Copy)]
pub struct Along<'a> {
    /// The images.
    pub image: &'a Image,
    /// Rows of the system prompt before each image's tokens, where it is not shared.
    pub system: usize,
    /// [`System::img`], where it is.
    pub img: Option<&'a Tensor>,
}

/// Input and result buffers of [`text`].
pub struct Text {
    /// The images' rows, if they come along; the sequences' tokens, from `</img>` on.
    pub rows: Rows,
    /// `(B*P/4 + Q)`: the rows whose hidden states the images need (with a shared system prompt its tokens, else what predicts them);
    /// those that predict a slot.
    pub read: Tensor,
    /// `(Q)` i32, result: the most likely token at the slot.
    pub token: Tensor,
    /// `(Q, H)`, result: the slots' hidden states.
    pub t_q: Tensor,
}

/// The graph of `segments` sequences, `t` rows and `q` slots together, behind the K/V rows of their images, which come `along` the first time.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn text(
    m: &Model,
    states: &mut States,
    kv: &KvCache,
    along: Option<Along>,
    [t, segments, q]: [usize; 3],
    savings: Savings,
) -> Result<(Graph, Text)> {
    let mut g = Graph::new();
    let (b, n) = along.map_or((0, 0), |a| (a.image.sa.shape[0], a.image.tokens.shape[0]));
    let of_images = n + along.map_or(0, |a| b * a.system);
    let width = m.config.llm_config.hidden_size;
    let io = Text {
        rows: states.rows(of_images + t, b + segments),
        read: states.make("read", DType::I32, [n + q]),
        token: states.make("token", DType::I32, [q]),
        t_q: states.make("t_q", DType::Act, [q, width]),
    };
    let read = Read::Some { rows: &io.read, early: savings.last_layer_rows };
    let tokens = along.map(|a| &a.image.tokens);
    let h = llm(&mut g, &m.llm, &m.config.llm_config, &io.rows, tokens, kv, read)?;
    let h = h.expect("rows were asked for");
    let slots = h.rows(n..n + q);
    best_token(&mut g, &m.llm, &io.token, &slots)?;
    g.push("t_q", copy(&io.t_q.all(), &slots)?);
    if let Some(Along { image, img, .. }) = along {
        let mut f_llm = h.rows(0..n);
        g.scope("dec");
        if let Some(img) = img {
            let h = std::mem::replace(&mut f_llm, g.act("f_llm", [n, width]));
            g.push("f_llm", embed(&f_llm, &image.before, img, Some(&h))?); // <img>'s state, then those of all image tokens but the last
        }
        let side = m.config.patches();
        let sa = image.sa.reshape([b * side * side, m.decoder.width()]);
        mask_decoder::image(&mut g, &m.decoder, &sa, &image.f_vit, &f_llm, side)?;
    }
    Ok((g, io))
}

/// Input buffers of `Q` slots.
pub struct Slots {
    /// `(Q)`: the slots' rows of `t_q`.
    pub slots: Tensor,
    /// `(Q)`: the slot's image among those of `sa`.
    pub image_of: Tensor,
}

impl Slots {
    fn new(states: &mut States, q: usize) -> Self {
        Self {
            slots: states.make("slots", DType::I32, [q]),
            image_of: states.make("image_of", DType::I32, [q]),
        }
    }

    /// The mask decoder for the slots, up to the pixels `(Q, S, S)` that its last convolution reads.
    fn push(&self, g: &mut Graph, m: &Model, t_q: &Tensor, sa: &Tensor, fold: bool) -> Result<Tensor> {
        let picked = g.act("dec.t_q", [self.slots.len(), t_q.shape[1]]);
        g.scope("dec");
        g.push("t_q", gather_rows(&picked, t_q, &self.slots)?); // (Q, H)
        let side = m.config.patches();
        mask_decoder::expressions(g, &m.decoder, sa, &self.image_of, &picked, side, fold)
    }
}

/// Input and result buffers of [`masks`].
pub struct Masks {
    /// Which slots.
    pub slots: Slots,
    /// `(Q, DESCRIPTOR)`: where each mask goes and its source's size.
    pub masks: Tensor,
    /// i32, result: the masks at their sources' sizes, 32 pixels a word, lines of whole words.
    pub bits: Tensor,
    /// `(Q, STATS)` i32, result: area, box, sum of probabilities.
    pub stats: Tensor,
    /// `(Q, S, S)` f32, result if it is asked for: probabilities at the model's input size.
    pub probability: Option<Tensor>,
}

/// The graph of `q` masks about the images of `sa` from the hidden states `t_q`; room for `words` words of masks.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn masks(
    m: &Model,
    states: &mut States,
    sa: &Tensor,
    t_q: &Tensor,
    q: usize,
    words: usize,
    probabilities: bool,
    savings: Savings,
) -> Result<(Graph, Masks)> {
    let (mut g, size) = (Graph::new(), m.config.force_image_size);
    let io = Masks {
        slots: Slots::new(states, q),
        masks: states.make("masks", DType::I32, [q, DESCRIPTOR]),
        bits: states.make("bits", DType::I32, [words]),
        stats: states.make("stats", DType::I32, [q, STATS]),
        probability: probabilities.then(|| states.make("probability", DType::F32, [q, size, size])),
    };
    let pixels = io.slots.push(&mut g, m, t_q, sa, savings.fold_cross_attention)?;
    mask_decoder::masks(
        &mut g,
        &m.decoder,
        [&io.bits, &io.stats, &io.masks],
        io.probability.as_ref(),
        &pixels,
    )?;
    Ok((g, io))
}

/// Input and result buffers of [`whole`].
pub struct Whole {
    /// `(1, 3, S, S)` f32.
    pub pixel_values: Tensor,
    /// The whole prompt.
    pub rows: Rows,
    /// `(P/4)`: rows whose hidden states predict the image tokens.
    pub read: Tensor,
    /// `(Q)`: rows whose hidden states predict a slot.
    pub slot_rows: Tensor,
    /// `(Q)` i32, result: the most likely token at the slot.
    pub token: Tensor,
    /// The slots.
    pub slots: Slots,
    /// `(Q, S, S)` f32, result: each slot's probabilities.
    pub probability: Tensor,
}

/// One prompt of `t` tokens about one image, `q` slots, every row of every layer computed, the cross-attention as written.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn whole(m: &Model, states: &mut States, t: usize, q: usize) -> Result<(Graph, Whole)> {
    let mut g = Graph::new();
    let (side, size, d) = (m.config.patches(), m.config.force_image_size, m.decoder.width());
    let kv = states.kv_cache(&m.config, t);
    let io = Whole {
        pixel_values: states.make("pixel_values", DType::F32, [1, 3, size, size]),
        rows: states.rows(t, 1),
        read: states.make("read", DType::I32, [m.config.image_tokens()]),
        slot_rows: states.make("slot_rows", DType::I32, [q]),
        token: states.make("token", DType::I32, [q]),
        slots: Slots::new(states, q),
        probability: states.make("probability", DType::F32, [q, size, size]),
    };
    let (f_vit, images) = look(&mut g, &m.config, &m.vit, &m.projector, &io.pixel_values, true)?;
    let h = llm(&mut g, &m.llm, &m.config.llm_config, &io.rows, Some(&images), &kv, Read::All)?
        .expect("all rows");
    let (f_llm, t_q) = (g.act("f_llm", [io.read.len(), h.shape[1]]), g.act("t_q", [q, h.shape[1]]));
    g.scope("dec");
    g.push("f_llm", gather_rows(&f_llm, &h, &io.read)?);
    g.push("t_q", gather_rows(&t_q, &h, &io.slot_rows)?);
    let sa = g.act("sa", [1, side * side, d]);
    mask_decoder::image(&mut g, &m.decoder, &sa.reshape([side * side, d]), &f_vit, &f_llm, side)?;
    next_token(&mut g, &m.llm, &io.token, &t_q)?;
    let pixels = io.slots.push(&mut g, m, &t_q, &sa, false)?;
    mask_decoder::probabilities(&mut g, &m.decoder, &io.probability, &pixels)?;
    Ok((g, io))
}

/// Vision tower and projector, from `pixel_values` `(B, 3, S, S)` f32 on: `F_vit` `(B*P, C)` and the image tokens `(B*P/4, H)`;
/// `steps`: as in [`projector`].
pub(super) fn look(
    g: &mut Graph,
    config: &Config,
    w: &Vit,
    mlp1: &Projector,
    pixel_values: &Tensor,
    steps: bool,
) -> Result<(Tensor, Tensor)> {
    let patches = vit::patches(g, &config.vision_config, pixel_values)?;
    let f_vit = g.act("f_vit", [patches.shape[0], config.vision_config.hidden_size]);
    let tokens = g.act("mlp1.tokens", [patches.shape[0] / 4, config.llm_config.hidden_size]);
    look_at(g, config, w, mlp1, &patches, [&f_vit, &tokens], steps)?;
    Ok((f_vit, tokens))
}

/// The same from `patches` `(B*P, K)` on.
fn look_at(
    g: &mut Graph,
    config: &Config,
    w: &Vit,
    mlp1: &Projector,
    patches: &Tensor,
    [f_vit, tokens]: [&Tensor; 2],
    steps: bool,
) -> Result<()> {
    let side = config.patches();
    let x = vit::vit(g, w, &config.vision_config, patches, patches.shape[0] / (side * side))?;
    g.scope("vit");
    g.push("f_vit", drop_cls(&f_vit.all(), &x)?);
    projector(g, mlp1, tokens, f_vit, side, steps)
}

/// One sequence in a packed matrix: its rows and the K/V ranges that it sees.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First row and number of rows in the matrix.
    pub rows: (usize, usize),
    /// Earlier K/V ranges, each seen in full: first row, length.
    pub seen: [(usize, usize); 2],
    /// First K/V row of its own.
    pub kv: usize,
}

impl Segment {
    /// As the kernels read it.
    pub fn fields(&self) -> [i32; SEGMENT] {
        let [(a, an), (b, bn)] = self.seen;
        [self.rows.0, self.rows.1, a, an, b, bn, self.kv].map(|v| v as i32)
    }

    /// Position of its first row: as many tokens stand before it as it sees.
    pub fn position(&self) -> usize {
        self.seen.iter().map(|r| r.1).sum()
    }
}

/// Fills the buffers that say what each row is; K/V rows and positions follow from the segments.
///
/// # Errors
/// Those of [`Device::write_i32`]; ids and segments must fill the buffers.
pub fn write_rows(device: &mut dyn Device, rows: &Rows, ids: &[i32], segments: &[Segment]) -> Result<()> {
    let each = |first: fn(&Segment) -> usize| -> Vec<i32> {
        segments.iter().flat_map(|s| (first(s)..first(s) + s.rows.1).map(|v| v as i32)).collect()
    };
    device.write_i32(&rows.ids, ids)?;
    device.write_i32(&rows.positions, &each(Segment::position))?;
    device.write_i32(&rows.kv_rows, &each(|s| s.kv))?;
    device.write_i32(&rows.segments, &segments.iter().flat_map(Segment::fields).collect::<Vec<_>>())
}
