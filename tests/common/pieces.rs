//! The real-width pieces of the 8B model, one layer each, with the golden weights and inputs (tests/data/golden/layer8b.safetensors):
//! each a plan of its own.

use mllmseg::checkpoint::{Checkpoint, synth};
use mllmseg::device::{self, Choice, Device};
use mllmseg::dump::{Value, published};
use mllmseg::graph::{DType, Graph, Tensor};
use mllmseg::models::llm::{self, Llm, Read, Rows};
use mllmseg::models::mask_decoder::{self, MaskDecoder};
use mllmseg::models::mllmseg::{Segment, States, write_rows};
use mllmseg::models::projector::{Projector, projector};
use mllmseg::models::vit::{self, Vit};
use mllmseg::models::{Binder, Bound};
use mllmseg::plan::Plan;
use mllmseg::reference::Precision;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Real widths, one layer of each tower, a small vocabulary.
const CONFIG: &str = r#"{
    "architectures": ["MLLMSeg"], "template": "internvl2_5", "ps_version": "v2", "downsample_ratio": 0.5, "select_layer": -1,
    "force_image_size": 448,
    "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 1,
        "image_size": 448, "patch_size": 14, "norm_type": "layer_norm", "qkv_bias": true, "qk_normalization": false,
        "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "llm_config": {"architectures": ["InternLM2ForCausalLM"], "vocab_size": 64, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "num_hidden_layers": 1, "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "bias": false,
        "hidden_act": "silu"}
}"#;

/// The checkpoint's weights, bound.
pub struct Pieces {
    vit: Vit,
    projector: Projector,
    llm: Llm,
    decoder: MaskDecoder,
    checkpoint: Arc<Checkpoint>,
    weights: Bound,
    device: Choice,
}

/// A piece that is ready to run.
pub struct Piece {
    pub plan: Plan,
    pub device: Box<dyn Device>,
    inputs: Vec<(Tensor, Vec<f32>)>,
}

impl Piece {
    /// Runs on what the last call, or [`write`](Self::write), left in the inputs (some are updated in place).
    pub fn run(&mut self) {
        self.device.run(&self.plan, false, &mut |_, _, _, _| Ok(())).unwrap();
    }

    #[allow(dead_code)] // the bench only runs
    /// Runs; every tap, and the outputs of the nodes called in `nodes`, by name.
    pub fn values(&mut self, nodes: &[&str]) -> BTreeMap<String, Value> {
        self.write();
        let mut out = BTreeMap::new();
        let plan = &self.plan;
        let seen: device::Seen = &mut |i, node, _, values| {
            for t in plan.graph.taps.iter().filter(|t| t.after == i) {
                out.insert(t.name.clone(), published(&t.value, &t.shape, t.channels_first, values)?);
            }
            if nodes.contains(&node.name.as_str()) {
                let y = node.op.writes()[0];
                out.insert(node.name.clone(), published(&y.all(), &y.shape, false, values)?);
            }
            Ok(())
        };
        self.device.run(plan, true, seen).unwrap();
        out
    }

    /// Writes the inputs.
    pub fn write(&mut self) {
        for (t, values) in &self.inputs {
            self.device.write_f32(t, values).unwrap();
        }
    }
}

/// Writes the checkpoint (0.7 GB) into `dir`.
pub fn checkpoint(dir: &Path) -> Checkpoint {
    let (config, out) = (dir.join("pieces.json"), dir.join("pieces"));
    std::fs::write(&config, CONFIG).unwrap();
    let spec = synth::Spec::read(&config.to_string_lossy()).unwrap();
    synth::write(&spec, &out, &synth::Options::default(), &mut |_, _| {}).unwrap();
    Checkpoint::open_dir(&out).unwrap()
}

/// A golden input by its formula (tests/data/golden/SYNTH.md).
fn input(name: &str, len: usize, amp: f32) -> Vec<f32> {
    let mut values = vec![half::bf16::ZERO; len];
    synth::fill_with(&format!("golden.input.{name}"), 1, 0.0, amp, &mut values);
    values.iter().map(|v| v.to_f32()).collect()
}

impl Pieces {
    /// Writes the checkpoint (0.7 GB) into `dir` and binds it.
    pub fn new(dir: &Path, device: Choice) -> Self {
        let checkpoint = Arc::new(checkpoint(dir));
        let c = &checkpoint.config;
        let mut b = Binder::new(&checkpoint);
        let vit = Vit::bind(&mut b, &c.vision_config, c.patches()).unwrap();
        let projector = Projector::bind(&b, c).unwrap();
        let llm = Llm::bind(&mut b, &c.llm_config).unwrap();
        let decoder = MaskDecoder::bind(&mut b, c).unwrap();
        let weights = b.finish(Arc::clone(&checkpoint));
        Self { vit, projector, llm, decoder, checkpoint, weights, device }
    }

    fn piece(
        &self,
        graph: Graph,
        states: States,
        inputs: Vec<(Tensor, Vec<f32>)>,
        precision: Precision,
    ) -> Piece {
        let mut device = device::open(self.device, self.weights.clone(), precision, &mut |_, _| ()).unwrap();
        states.tensors.iter().for_each(|t| device.allocate(t).unwrap());
        let plan = Plan::new(graph, device.act_bytes()).unwrap();
        Piece { plan, device, inputs }
    }

    /// One vision layer over 1025 tokens.
    pub fn vit_layer(&self, precision: Precision) -> Piece {
        let (mut g, mut states) = (Graph::new(), States::default());
        let h = states.make("h", DType::Act, [1, 1025, 1024]);
        vit::layers(&mut g, &self.vit, &self.checkpoint.config.vision_config, &h).unwrap();
        self.piece(g, states, vec![(h, input("vit_layer", 1025 * 1024, 1.5))], precision)
    }

    /// One language model layer over `t` tokens.
    pub fn llm_layer(&self, t: usize, precision: Precision) -> Piece {
        let (mut g, mut states) = (Graph::new(), States::default());
        let config = &self.checkpoint.config;
        let h = states.make("h", DType::Act, [t, 4096]);
        let kv = states.kv_cache(config, t);
        let rows = Rows::new(t, 1, &mut |name, dtype, shape| states.make(name, dtype, shape));
        llm::layers(&mut g, &self.llm, &config.llm_config, &rows, h.clone(), &kv, Read::All).unwrap();
        let mut piece = self.piece(g, states, vec![(h, input("llm_layer", t * 4096, 1.5))], precision);
        write_rows(
            piece.device.as_mut(),
            &rows,
            &vec![0; t],
            &[Segment { rows: (0, t), seen: [(0, 0); 2], kv: 0 }],
        )
        .unwrap();
        piece
    }

    /// The projector over the 256 image tokens, from its LayerNorm's input on.
    pub fn mlp1(&self, precision: Precision) -> Piece {
        let (mut g, mut states) = (Graph::new(), States::default());
        let f_vit = states.make("f_vit", DType::Act, [1024, 1024]);
        let tokens = g.act("tokens", [256, 4096]);
        projector(&mut g, &self.projector, &tokens, &f_vit, 32, false).unwrap();
        // The golden input stands behind the pixel shuffle: here before it, so shuffled back.
        let (shuffled, mut map) = (input("mlp1", 256 * 4096, 2.0), vec![0.0; 1024 * 1024]);
        for (i, row) in shuffled.chunks(1024).enumerate() {
            let (cell, part) = (i / 4, i % 4);
            let pixel = (2 * (cell / 16) + part / 2) * 32 + 2 * (cell % 16) + part % 2;
            map[pixel * 1024..(pixel + 1) * 1024].copy_from_slice(row);
        }
        self.piece(g, states, vec![(f_vit, map)], precision)
    }

    /// The mask decoder for `q` expressions, once-an-image part included.
    pub fn decoder(&self, q: usize, fold: bool, precision: Precision) -> Piece {
        let (mut g, mut states) = (Graph::new(), States::default());
        let f_vit = states.make("f_vit", DType::Act, [1024, 1024]);
        let f_llm = states.make("f_llm", DType::Act, [256, 4096]);
        let t_q = states.make("t_q", DType::Act, [q, 4096]);
        let image_of = states.make("image_of", DType::I32, [q]);
        let mask = states.make("mask", DType::F32, [q, 448, 448]);
        let sa = g.act("sa", [1, 1024, 1024]);
        mask_decoder::image(&mut g, &self.decoder, &sa.reshape([1024, 1024]), &f_vit, &f_llm, 32).unwrap();
        let pixels =
            mask_decoder::expressions(&mut g, &self.decoder, &sa, &image_of, &t_q, 32, fold).unwrap();
        mask_decoder::probabilities(&mut g, &self.decoder, &mask, &pixels).unwrap();
        let inputs = vec![
            (f_vit, input("dec.img_vit", 1024 * 1024, 2.0)),
            (f_llm, input("dec.img_llm", 256 * 4096, 1.7)),
            (t_q, input("dec.text_src", q * 4096, 1.7)),
        ];
        let mut piece = self.piece(g, states, inputs, precision);
        piece.device.write_i32(&image_of, &vec![0; q]).unwrap();
        piece
    }
}
