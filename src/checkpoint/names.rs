//! The names and shapes of all tensors that a config implies: the state dict of the published model.

use super::config::Config;

/// Every tensor of the checkpoint, in the state dict's order.
///
/// `decoder_width` is D, the mask decoder's width; `None` leaves the decoder out (a chat-only checkpoint).
/// All are bf16 but `*.num_batches_tracked`, an i64 scalar that inference does not read.
///
/// Letters: C, F, P, L of the vision tower; H, V, F of the language model; `QKV = (NH + 2*NKV)*HD`.
pub fn expected(cfg: &Config, decoder_width: Option<usize>) -> Vec<(String, Vec<usize>)> {
    let mut names = Names(Vec::new());
    vision_model(&mut names, cfg);
    language_model(&mut names, cfg);
    projector(&mut names, cfg);
    if let Some(d) = decoder_width {
        mask_decoder(&mut names, cfg, d);
    }
    names.0
}

struct Names(Vec<(String, Vec<usize>)>);

impl Names {
    fn push(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    /// `{at}.weight` (N, K) and `{at}.bias` (N).
    fn linear(&mut self, at: String, n: usize, k: usize) {
        self.push(format!("{at}.weight"), &[n, k]);
        self.push(format!("{at}.bias"), &[n]);
    }

    /// `{at}.weight` (C) and `{at}.bias` (C).
    fn norm(&mut self, at: String, c: usize) {
        self.push(format!("{at}.weight"), &[c]);
        self.push(format!("{at}.bias"), &[c]);
    }
}

fn vision_model(names: &mut Names, cfg: &Config) {
    let v = &cfg.vision_config;
    let (c, f, p) = (v.hidden_size, v.intermediate_size, v.patch_size);
    let at = "vision_model.embeddings";
    names.push(format!("{at}.class_embedding"), &[1, 1, c]);
    names.push(format!("{at}.position_embedding"), &[1, cfg.patches().pow(2) + 1, c]);
    names.push(format!("{at}.patch_embedding.weight"), &[c, 3, p, p]);
    names.push(format!("{at}.patch_embedding.bias"), &[c]);
    for l in 0..v.num_hidden_layers {
        let at = format!("vision_model.encoder.layers.{l}");
        names.push(format!("{at}.ls1"), &[c]);
        names.push(format!("{at}.ls2"), &[c]);
        names.push(format!("{at}.attn.qkv.weight"), &[3 * c, c]);
        if v.qkv_bias {
            names.push(format!("{at}.attn.qkv.bias"), &[3 * c]);
        }
        names.linear(format!("{at}.attn.proj"), c, c);
        names.linear(format!("{at}.mlp.fc1"), f, c);
        names.linear(format!("{at}.mlp.fc2"), c, f);
        names.norm(format!("{at}.norm1"), c);
        names.norm(format!("{at}.norm2"), c);
    }
}

fn language_model(names: &mut Names, cfg: &Config) {
    let l = &cfg.llm_config;
    let (h, f, v) = (l.hidden_size, l.intermediate_size, l.vocab_size);
    let qkv = (l.num_attention_heads + 2 * l.num_key_value_heads) * l.head_dim();
    names.push("language_model.model.tok_embeddings.weight".into(), &[v, h]);
    for l in 0..l.num_hidden_layers {
        let at = format!("language_model.model.layers.{l}");
        names.push(format!("{at}.attention.wqkv.weight"), &[qkv, h]);
        names.push(format!("{at}.attention.wo.weight"), &[h, h]);
        names.push(format!("{at}.feed_forward.w1.weight"), &[f, h]);
        names.push(format!("{at}.feed_forward.w3.weight"), &[f, h]);
        names.push(format!("{at}.feed_forward.w2.weight"), &[h, f]);
        names.push(format!("{at}.attention_norm.weight"), &[h]);
        names.push(format!("{at}.ffn_norm.weight"), &[h]);
    }
    names.push("language_model.model.norm.weight".into(), &[h]);
    names.push("language_model.output.weight".into(), &[v, h]);
}

fn projector(names: &mut Names, cfg: &Config) {
    let (c4, h) = (4 * cfg.vision_config.hidden_size, cfg.llm_config.hidden_size);
    names.norm("mlp1.0".into(), c4);
    names.linear("mlp1.1".into(), h, c4);
    names.linear("mlp1.3".into(), h, h);
}

fn mask_decoder(names: &mut Names, cfg: &Config, d: usize) {
    let (h, cell) = (cfg.llm_config.hidden_size, cfg.vision_config.patch_size.pow(2));
    let offsets = 8 * cfg.res_decoder.groups; // (x, y) of 2x2 output cells, for each group
    names.linear("res_decoder.img_llm_down".into(), d, h);
    names.linear("res_decoder.text_down".into(), d, h);
    names.linear("res_decoder.text_out_adapter".into(), d, 3 * d);
    decoder_layer(names, "res_decoder.ca_layer_v2l.decoder", d);
    let at = "res_decoder.upsample_adapter_l";
    names.push(format!("{at}.init_pos"), &[1, offsets, 1, 1]);
    names.push(format!("{at}.offset.weight"), &[offsets, d, 1, 1]);
    names.push(format!("{at}.offset.bias"), &[offsets]);
    decoder_layer(names, "res_decoder.ca_layer_vl.decoder", d);
    names.push("res_decoder.conv1.0.weight".into(), &[cell, d, 3, 3]);
    names.push("res_decoder.conv1.0.bias".into(), &[cell]);
    names.norm("res_decoder.conv1.1".into(), cell);
    names.push("res_decoder.conv1.1.running_mean".into(), &[cell]);
    names.push("res_decoder.conv1.1.running_var".into(), &[cell]);
    names.push("res_decoder.conv1.1.num_batches_tracked".into(), &[]);
    names.push("res_decoder.conv2.weight".into(), &[1, 1, 5, 5]);
    names.push("res_decoder.conv2.bias".into(), &[1]);
}

/// A `torch.nn.TransformerDecoder` of one layer, and its last norm.
fn decoder_layer(names: &mut Names, at: &str, d: usize) {
    for attn in ["self_attn", "multihead_attn"] {
        names.push(format!("{at}.layers.0.{attn}.in_proj_weight"), &[3 * d, d]);
        names.push(format!("{at}.layers.0.{attn}.in_proj_bias"), &[3 * d]);
        names.linear(format!("{at}.layers.0.{attn}.out_proj"), d, d);
    }
    names.linear(format!("{at}.layers.0.linear1"), d, d);
    names.linear(format!("{at}.layers.0.linear2"), d, d);
    for n in 1..=3 {
        names.norm(format!("{at}.layers.0.norm{n}"), d);
    }
    names.norm(format!("{at}.norm"), d);
}
