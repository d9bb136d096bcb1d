"""MLLMSeg in plain PyTorch, every size from the config.

Names and layouts of the state dict are those of the published checkpoints, so what is trained here loads wherever those
load. Letters in shapes: B images, N patches (side x side), D vision width, T tokens, H language width, Q expressions,
S the input's side in pixels, P a patch's.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

DEMO = dict(
    architectures=["MLLMSeg"],
    model_type="internvl_chat",
    downsample_ratio=0.5,
    ps_version="v2",
    select_layer=-1,
    template="internvl2_5",
    force_image_size=224,
    dynamic_image_size=False,
    use_thumbnail=False,
    min_dynamic_patch=1,
    max_dynamic_patch=1,
    pad2square=False,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    vision_config=dict(
        architectures=["InternVisionModel"],
        model_type="intern_vit_6b",
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        image_size=224,
        patch_size=14,
        num_channels=3,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        norm_type="layer_norm",
        qkv_bias=True,
        qk_normalization=False,
        initializer_factor=1.0,
        initializer_range=0.02,
        drop_path_rate=0.0,
        dropout=0.0,
        attention_dropout=0.0,
        use_flash_attn=False,
        torch_dtype="bfloat16",
    ),
    llm_config=dict(
        architectures=["InternLM2ForCausalLM"],
        model_type="internlm2",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=512,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        rope_theta=1000000,
        rope_scaling=dict(type="dynamic", factor=2.0),
        max_position_embeddings=32768,
        bias=False,
        vocab_size=768,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.02,
        tie_word_embeddings=False,
        use_cache=True,
        attn_implementation="eager",
        torch_dtype="bfloat16",
    ),
    res_decoder=dict(nhead=2, groups=4),
)


def attend(q, k, v, mask, scale):
    """softmax(q k^T * scale + mask) v, the softmax in f32; for small heads on a CPU faster than the fused kernel."""
    scores = torch.matmul(q * scale, k.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


# InternViT


class VitAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.qkv = nn.Linear(d, 3 * d, bias=c["qkv_bias"])
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, None, (d // self.heads) ** -0.5)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class VitMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.fc2 = nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class VitLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, eps = c["hidden_size"], c["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=eps), nn.LayerNorm(d, eps=eps)
        self.attn, self.mlp = VitAttention(c), VitMlp(c)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))

    def forward(self, x):
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class VitEmbeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, p = c["hidden_size"], c["patch_size"]
        self.class_embedding = nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.patch_embedding = nn.Conv2d(3, d, p, stride=p)
        self.position_embedding = nn.Parameter(waves(c["image_size"] // p, d))

    def forward(self, pixels):
        """(B, 3, S, S) -> (B, 1 + N, D)."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(x), -1, -1), x], 1) + self.position_embedding


class VitEncoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(VitLayer(c) for _ in range(c["num_hidden_layers"]))


class Vit(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings, self.encoder = VitEmbeddings(c), VitEncoder(c)

    def forward(self, pixels):
        """(B, 3, S, S) -> (B, 1 + N, D), the class token first."""
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return x


def waves(side, d):
    """A start for the position embedding, (1, 1 + side^2, d): waves along x and y; the class token's is zero."""
    n = d // 4
    frequency = 1.6 / (20.0 ** (torch.arange(n) / n))
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    table = [f(axis.reshape(-1, 1) * frequency) for axis in (x, y) for f in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, d), torch.cat(table, 1)])[None]


def pixel_shuffle(x, side):
    """(B, side^2, C) -> (B, (side/2)^2, 4C): joins patches (0,0), (0,1), (1,0), (1,1) of every 2x2 block."""
    b, _, c = x.shape
    blocks = x.view(b, side // 2, 2, side // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, side * side // 4, 4 * c)


# InternLM2


class RmsNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rope_table(positions, head_size, theta):
    """cos and sin, each (len(positions), head_size)."""
    inverse = 1.0 / (theta ** (torch.arange(0, head_size, 2).float() / head_size))
    angles = positions.float()[:, None] * inverse
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class LlmAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, d = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
        self.head_size = d // self.heads
        self.wqkv = nn.Linear(d, (self.heads + 2 * self.kv_heads) * self.head_size, bias=c["bias"])
        self.wo = nn.Linear(d, d, bias=c["bias"])

    def forward(self, x, cos, sin, mask, past=None):
        """x (B, T, H) -> the output (B, T, H) and (keys, values) of `past` and these tokens."""
        b, t, _ = x.shape
        group = self.heads // self.kv_heads
        # By key/value head: its queries, then its key, then its value.
        y = self.wqkv(x).view(b, t, self.kv_heads, group + 2, self.head_size)
        q = y[:, :, :, :group].reshape(b, t, self.heads, self.head_size).transpose(1, 2)
        k, v = y[:, :, :, group].transpose(1, 2), y[:, :, :, group + 1].transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        all_k, all_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = attend(q, all_k, all_v, mask, 1 / math.sqrt(self.head_size))
        return self.wo(out.transpose(1, 2).reshape(b, t, -1)), (k, v)


class LlmMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.w1, self.w3 = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.w2 = nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlmLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.attention, self.feed_forward = LlmAttention(c), LlmMlp(c)
        self.attention_norm, self.ffn_norm = RmsNorm(d, eps), RmsNorm(d, eps)

    def forward(self, x, cos, sin, mask, past=None):
        a, kv = self.attention(self.attention_norm(x), cos, sin, mask, past)
        x = x + a
        return x + self.feed_forward(self.ffn_norm(x)), kv


class LlmModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.tok_embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(LlmLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])


class Llm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.model = c, LlmModel(c)
        self.output = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def rope(self, positions):
        return rope_table(positions, self.c["hidden_size"] // self.c["num_attention_heads"], self.c["rope_theta"])

    def forward(self, x, positions, mask, past=None):
        """Embeddings (B, T, H) -> states after the last norm (B, T, H), and (keys, values) a layer.

        `positions` (T); `mask` is added to the scores, broadcast to (.., T, T + past), or None.
        """
        cos, sin = self.rope(positions)
        kept = []
        for i, layer in enumerate(self.model.layers):
            x, kv = layer(x, cos, sin, mask, past[i] if past else None)
            kept.append(kv)
        return self.model.norm(x), kept


# Mask decoder


class MultiheadAttention(nn.Module):
    """Multi-head attention; parameters named as nn.MultiheadAttention names them."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x, memory):
        """x (B, N, D), memory (B, M, D) -> (B, N, D); (B, 1, D) where M is 1, as every row is then the same."""
        b, n, d = x.shape
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        if memory.shape[1] == 1:  # one key: its weight is 1 whatever the query
            return self.out_proj(F.linear(memory, wv, bv))

        def heads(t):
            return t.view(b, -1, self.heads, d // self.heads).transpose(1, 2)

        q, k, v = heads(F.linear(x, wq, bq)), heads(F.linear(memory, wk, bk)), heads(F.linear(memory, wv, bv))
        out = attend(q, k, v, None, (d // self.heads) ** -0.5)
        return self.out_proj(out.transpose(1, 2).reshape(b, n, d))


class DecoderLayer(nn.Module):
    def __init__(self, d, heads, ffn):
        super().__init__()
        self.self_attn, self.multihead_attn = MultiheadAttention(d, heads), MultiheadAttention(d, heads)
        self.linear1, self.linear2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def before_memory(self, x):
        return self.norm1(x + self.self_attn(x, x))

    def after_memory(self, x, memory):
        x = self.norm2(x + self.multihead_attn(x, memory))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class DecoderStack(nn.Module):
    def __init__(self, d, heads, ffn):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(d, heads, ffn)])
        self.norm = nn.LayerNorm(d)


class Decoder(nn.Module):
    """One transformer decoder layer, in two halves: only the second one sees the memory."""

    def __init__(self, d, heads, ffn):
        super().__init__()
        self.decoder = DecoderStack(d, heads, ffn)

    def before_memory(self, x):
        return self.decoder.layers[0].before_memory(x)

    def after_memory(self, x, memory):
        return self.decoder.norm(self.decoder.layers[0].after_memory(x, memory))


class DySample(nn.Module):
    """Learnt upsampling by 2."""

    def __init__(self, d, groups):
        super().__init__()
        self.groups = groups
        self.offset = nn.Conv2d(d, 2 * groups * 4, 1)
        # Channel (axis, group, i, j) starts at the centre of sub-cell (i, j): x by j, y by i.
        start = torch.empty(2, groups, 2, 2)
        start[0] = torch.tensor([[-0.25, 0.25], [-0.25, 0.25]])
        start[1] = torch.tensor([[-0.25, -0.25], [0.25, 0.25]])
        self.register_buffer("init_pos", start.reshape(1, -1, 1, 1))

    def forward(self, x):
        """(B, D, h, w) -> f32 (B, D, 2h, 2w)."""
        b, d, h, w = x.shape
        g = self.groups
        offset = (0.25 * self.offset(x).float() + self.init_pos.float()).view(b, 2, g, 2, 2, h, w)
        centre_x = torch.arange(w).float().view(1, 1, w) + 0.5
        centre_y = torch.arange(h).float().view(1, h, 1) + 0.5
        sample_x = 2 * (offset[:, 0] + centre_x) / w - 1
        sample_y = 2 * (offset[:, 1] + centre_y) / h - 1
        # (b, g, i, j, h, w, xy) -> rows (h, i), columns (w, j)
        grid = torch.stack([sample_x, sample_y], -1).permute(0, 1, 4, 2, 5, 3, 6).reshape(b * g, 2 * h, 2 * w, 2)
        parts = x.float().reshape(b * g, d // g, h, w)
        out = F.grid_sample(parts, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out.view(b, d, 2 * h, 2 * w)


class ResDecoder(nn.Module):
    def __init__(self, d, hidden, heads, groups, patch):
        super().__init__()
        self.patch = patch
        self.img_llm_down, self.text_down = nn.Linear(hidden, d), nn.Linear(hidden, d)
        self.text_out_adapter = nn.Linear(3 * d, d)
        self.ca_layer_v2l, self.ca_layer_vl = Decoder(d, heads, d), Decoder(d, heads, d)
        self.upsample_adapter_l = DySample(d, groups)
        channels = patch * patch
        self.conv1 = nn.Sequential(nn.Conv2d(d, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.conv2 = nn.Conv2d(1, 1, 5, padding=2)

    def image(self, f_vit, f_llm):
        """All that does not depend on the expression: f_vit (B, N, D), f_llm (B, N/4, H) -> (B, N, D)."""
        b, n, d = f_vit.shape
        side = math.isqrt(n)
        coarse = self.img_llm_down(f_llm)
        v2l = self.ca_layer_v2l.after_memory(self.ca_layer_v2l.before_memory(f_vit), coarse)
        coarse = coarse.transpose(1, 2).reshape(b, d, side // 2, side // 2)
        up = self.upsample_adapter_l(coarse).flatten(2).transpose(1, 2)
        return self.ca_layer_vl.before_memory(self.text_out_adapter(torch.cat([v2l.float(), f_vit.float(), up], -1)))

    def expression(self, image, text, one_tap=False):
        """Mask logits (Q, S, S) from the image part (Q, N, D) and text states (Q, H).

        `one_tap` uses only the centre of the last 5x5 kernel: much cheaper, for most of the training.
        """
        q, n, d = image.shape
        side, p = math.isqrt(n), self.patch
        y = self.ca_layer_vl.after_memory(image, self.text_down(text)[:, None])
        y = self.conv1(y.transpose(1, 2).reshape(q, d, side, side))
        pixels = y.view(q, p, p, side, side).permute(0, 3, 1, 4, 2).reshape(q, 1, side * p, side * p)
        if one_tap:
            return (pixels.float() * self.conv2.weight[0, 0, 2, 2] + self.conv2.bias)[:, 0]
        return self.conv2(pixels)[:, 0]


# The whole


class MLLMSeg(nn.Module):
    def __init__(self, config=DEMO):
        super().__init__()
        self.c = config
        vision, llm, decoder = config["vision_config"], config["llm_config"], config["res_decoder"]
        d, h = vision["hidden_size"], llm["hidden_size"]
        self.side = vision["image_size"] // vision["patch_size"]
        self.image_tokens = self.side * self.side // 4
        self.vision_model = Vit(vision)
        self.mlp1 = nn.Sequential(nn.LayerNorm(4 * d), nn.Linear(4 * d, h), nn.GELU(), nn.Linear(h, h))
        self.language_model = Llm(llm)
        self.res_decoder = ResDecoder(d, h, decoder["nhead"], decoder["groups"], vision["patch_size"])
        self.start()

    def start(self):
        """Initial values that let so small a model learn in minutes."""
        for name, p in self.named_parameters():
            if p.dim() == 2 and "tok_embeddings" not in name:
                nn.init.xavier_uniform_(p)
            if name.endswith("bias"):
                nn.init.zeros_(p)
        # Queries equal to keys: vision attention starts out looking at near and like patches.
        for layer in self.vision_model.encoder.layers:
            q, k, _ = layer.attn.qkv.weight.data.chunk(3)
            k.copy_(q)
        depth = math.sqrt(2 * self.c["llm_config"]["num_hidden_layers"])
        for name, p in self.named_parameters():
            if name.endswith(("wo.weight", "w2.weight")):
                p.data.div_(depth)
        nn.init.normal_(self.language_model.model.tok_embeddings.weight, std=0.3)
        nn.init.normal_(self.language_model.output.weight, std=0.02)
        nn.init.normal_(self.res_decoder.upsample_adapter_l.offset.weight, std=0.001)
        last = self.res_decoder.conv2
        nn.init.zeros_(last.weight)
        last.weight.data[0, 0, 2, 2] = 2.0
        nn.init.constant_(last.bias, -2.0)

    def project(self, f_vit):
        """Patch states (B, N, D) -> image tokens (B, N/4, H)."""
        return self.mlp1(pixel_shuffle(f_vit, self.side))

    def patches(self, pixels):
        """(B, 3, S, S) -> patch states (B, N, D)."""
        return self.vision_model(pixels)[:, 1:]


MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def normalise(pixels):
    """u8 (B, S, S, 3) -> f32 (B, 3, S, S)."""
    return ((pixels.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def save(model, folder):
    """config.json, and bf16 weights under the published names (the batch norm's counter stays an integer, as there)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (v if v.dtype == torch.int64 else v.detach().to(torch.bfloat16)).contiguous()
        for name, v in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.c, indent=2, ensure_ascii=False))


def load(folder):
    """A model folder, its weights widened to f32, for inference."""
    folder = Path(folder)
    model = MLLMSeg(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: v if v.dtype == torch.int64 else v.float() for name, v in weights.items()})
    return model.eval()
