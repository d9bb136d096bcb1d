"""The real-width pieces in PyTorch and in this engine, turn by turn on one machine: a record for benches/records/.

    python3 -m venv target/torch && target/torch/bin/pip install torch==2.5.1 numpy safetensors
    cargo build --release && cargo bench --bench pieces --no-run
    target/torch/bin/python tools/bench_torch.py [--rounds 3] [--record benches/records/NAME.json]
    target/torch/bin/python tools/bench_torch.py --request DIR --depths 4 12 [--precision bf16|f32] [--rounds 3] [--record ...]

The PyTorch side computes what the published code computes, with torch's own layers and random weights: eager attention, every
expression through the whole mask decoder. Each round runs PyTorch's pieces, then the engine's; the medians over the rounds are compared.
`request_3q` is a request of three expressions composed of the pieces: 24 vision layers, the projector, 32 language model layers over the
320 tokens of a joint prompt, the mask decoder for three.

With --request both sides run whole requests of three expressions to one synthetic checkpoint: the 8B model with fewer language model layers
(`mllmseg synth --config FILE --tokenizer tests/data/tokenizer/8b`, FILE a copy of src/checkpoint/presets/8b.json with `num_hidden_layers` 12),
so that both fit beside each other. PyTorch runs the published request: every token of the joint prompt with its system message through all
layers, the logits of all tokens, the mask decoder for each expression, nothing kept from an earlier request; picture decoding and
resizing are not in it. The engine runs `Engine::segment`, picture resizing included. Each is timed at two depths, and the time at 32 layers
is on the line through them. First the masks of both are compared, in f32 with two layers.
"""
import argparse
import contextlib
import datetime
import glob
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class VitLayer(nn.Module):
    """x (1, T, C) -> (1, T, C), 16 heads."""

    def __init__(self, c=1024, f=4096, heads=16):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.fc1, self.fc2 = nn.Linear(c, f), nn.Linear(f, c)
        self.ls1, self.ls2 = nn.Parameter(torch.full((c,), 0.5)), nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.proj((a @ v).transpose(1, 2).reshape(b, t, c)) * self.ls1
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.ls2


class LlmLayer(nn.Module):
    """x (1, T, H) -> (1, T, H), 32 query and 8 K/V heads of 128, causal."""

    def __init__(self, h=4096, f=14336, heads=32, kv=8):
        super().__init__()
        self.heads, self.kv, self.hd = heads, kv, h // heads
        self.norm1, self.norm2 = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.wqkv, self.wo = nn.Linear(h, (heads + 2 * kv) * self.hd, bias=False), nn.Linear(h, h, bias=False)
        self.w1, self.w3, self.w2 = (nn.Linear(a, b, bias=False) for a, b in ((h, f), (h, f), (f, h)))

    @staticmethod
    def norm(x, w):
        y = x.float()
        return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def forward(self, x):
        b, t, h = x.shape
        g = self.heads // self.kv
        qkv = self.wqkv(self.norm(x, self.norm1)).view(b, t, self.kv, g + 2, self.hd)
        q, k, v = qkv[..., :g, :].reshape(b, t, self.heads, self.hd), qkv[..., g, :], qkv[..., g + 1, :]
        freq = 1.0 / 1e6 ** (torch.arange(0, self.hd, 2) / self.hd)
        angle = torch.outer(torch.arange(t), freq).repeat(1, 2)
        cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
        turn = lambda y: y * cos + torch.cat((-y[..., self.hd // 2 :], y[..., : self.hd // 2]), -1) * sin
        q, k = turn(q).transpose(1, 2), turn(k).transpose(1, 2).repeat_interleave(g, 1)
        v = v.transpose(1, 2).repeat_interleave(g, 1)
        scores = q @ k.transpose(2, 3) / self.hd**0.5 + torch.full((t, t), float("-inf"), dtype=x.dtype).triu(1)
        x = x + self.wo((scores.float().softmax(-1).to(x.dtype) @ v).transpose(1, 2).reshape(b, t, h))
        n = self.norm(x, self.norm2)
        return x + self.w2(F.silu(self.w1(n)) * self.w3(n))


class MaskDecoder(nn.Module):
    """f_vit (1, 1024, D), f_llm (1, 256, H), t (Q, 1, H) -> (Q, 1, 448, 448); everything once an expression, as published."""

    def __init__(self, d=1024, h=4096):
        super().__init__()
        layer = lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(d, 8, d, 0.0, batch_first=True), 1, nn.LayerNorm(d))
        self.img_llm_down, self.text_down = nn.Linear(h, d), nn.Linear(h, d)
        self.v2l, self.vl = layer(), layer()
        self.offset, self.text_out_adapter = nn.Conv2d(d, 32, 1), nn.Linear(3 * d, d)
        self.conv1 = nn.Sequential(nn.Conv2d(d, 196, 3, padding=1), nn.BatchNorm2d(196), nn.ReLU())
        self.conv2 = nn.Conv2d(1, 1, 5, padding=2)
        self.init_pos = nn.Parameter(torch.zeros(1, 32, 1, 1))

    def upsample(self, x):
        """(B, D, 16, 16) -> (B, D, 32, 32), DySample with 4 groups."""
        b, d, r, s = x.shape
        offset = (self.offset(x) * 0.25 + self.init_pos).view(b, 2, 4, 4, r, s)
        offset = F.pixel_shuffle(offset.reshape(b * 8, 4, r, s), 2).view(b, 2, 4, 2 * r, 2 * s).transpose(1, 2)
        grid = torch.stack(torch.meshgrid(torch.arange(2 * s), torch.arange(2 * r), indexing="xy")).to(x.dtype)
        at = (grid // 2 + 0.5) + offset
        at = (2 * at / torch.tensor([s, r], dtype=x.dtype).view(2, 1, 1) - 1).permute(0, 1, 3, 4, 2).reshape(b * 4, 2 * r, 2 * s, 2)
        # grid_sample has no bf16 on the CPU
        y = F.grid_sample(x.reshape(b * 4, d // 4, r, s).float(), at.float(), "bilinear", "border", False)
        return y.to(x.dtype).view(b, d, 2 * r, 2 * s)

    def forward(self, f_vit, f_llm, t):
        q = t.shape[0]
        f_vit, f_llm = f_vit.expand(q, -1, -1), f_llm.expand(q, -1, -1)
        f16, t = self.img_llm_down(f_llm), self.text_down(t)
        v2l = self.v2l(f_vit, f16)
        up = self.upsample(f16.transpose(1, 2).reshape(q, -1, 16, 16)).flatten(2).transpose(1, 2)
        y = self.vl(self.text_out_adapter(torch.cat((v2l, f_vit, up), -1)), t)
        p = self.conv1(y.transpose(1, 2).reshape(q, -1, 32, 32))
        m = p.view(q, 14, 14, 32, 32).permute(0, 3, 1, 4, 2).reshape(q, 1, 448, 448)
        return self.conv2(m).sigmoid()


class Projector(nn.Module):
    """f_vit (1, 1024, C) -> (256, H): the pixel shuffle, then LayerNorm and two linear layers."""

    def __init__(self, c=1024, h=4096):
        super().__init__()
        self.mlp1 = nn.Sequential(nn.LayerNorm(4 * c), nn.Linear(4 * c, h), nn.GELU(), nn.Linear(h, h))

    def forward(self, f_vit):
        c = f_vit.shape[-1]
        x = f_vit.view(32, 16, 2 * c).transpose(0, 1).reshape(16, 16, 4 * c).transpose(0, 1)
        return self.mlp1(x.reshape(256, 4 * c))


# How often a request of three expressions runs each piece.
REQUEST = {"vit_layer_1025": 24, "mlp1": 1, "llm_layer_320": 32, "res_decoder_3q": 1}


def torch_pieces(dtype):
    """name -> median of five runs, ms"""
    torch.manual_seed(1)
    decoder = MaskDecoder()
    f_vit, f_llm = torch.randn(1, 1024, 1024), torch.randn(1, 256, 4096)
    pieces = {
        "vit_layer_1025": (VitLayer(), (torch.randn(1, 1025, 1024),)),
        "llm_layer_320": (LlmLayer(), (torch.randn(1, 320, 4096),)),
        "mlp1": (Projector(), (f_vit,)),
        "res_decoder_1q": (decoder, (f_vit, f_llm, torch.randn(1, 1, 4096))),
        "res_decoder_3q": (decoder, (f_vit, f_llm, torch.randn(3, 1, 4096))),
    }
    out = {}
    for name, (module, inputs) in pieces.items():
        module, inputs = module.eval().to(dtype), [x.to(dtype) for x in inputs]
        times = []
        with torch.no_grad():
            for _ in range(6):
                start = time.perf_counter()
                module(*inputs)
                times.append((time.perf_counter() - start) * 1e3)
        out[name] = statistics.median(times[1:])
    return out


def run_engine(binary, *args):
    """The lines that the engine's bench prints."""
    run = subprocess.run([binary, "--bench", *args], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return [json.loads(line) for line in run.stdout.splitlines()]


def engine_pieces(binary):
    """(name, precision) -> median ms"""
    return {(r["piece"], r["precision"]): r["median_ms"] for r in run_engine(binary)}


class Request:
    """The published request, on the weights of a checkpoint."""

    def __init__(self, folder, dtype, layers):
        with open(f"{folder}/model.safetensors.index.json") as f:
            places = json.load(f)["weight_map"]
        files = {name: safe_open(f"{folder}/{name}", "pt") for name in set(places.values())}
        self.tensor = lambda name: files[places[name]].get_tensor(name).to(dtype)

        def bind(kind, prefix, names={}):
            """A module with the checkpoint's tensors, which may have other names."""
            with torch.device("meta"):
                module, state = kind(), {}
            for name in module.state_dict():
                first, _, rest = name.partition(".")
                full = prefix + names.get(first, first) + ("." + rest if rest else "")
                if full in places:
                    state[name] = self.tensor(full)
                elif not name.endswith("num_batches_tracked"):
                    raise SystemExit(f"{folder}: expected the tensor {full}, found none")
            module.load_state_dict(state, strict=False, assign=True)
            return module.eval()

        vit = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        llm = {"norm1": "attention_norm.weight", "norm2": "ffn_norm.weight"}
        llm |= {w: f"attention.{w}" for w in ("wqkv", "wo")} | {w: f"feed_forward.{w}" for w in ("w1", "w2", "w3")}
        decoder = {"v2l": "ca_layer_v2l.decoder", "vl": "ca_layer_vl.decoder"}
        decoder |= {n: f"upsample_adapter_l.{n}" for n in ("offset", "init_pos")}
        self.vit = [bind(VitLayer, f"vision_model.encoder.layers.{l}.", vit) for l in range(24)]
        self.projector = bind(Projector, "")
        self.llm = [bind(LlmLayer, f"language_model.model.layers.{l}.", llm) for l in range(layers)]
        self.decoder = bind(MaskDecoder, "res_decoder.", decoder)
        embeddings = "vision_model.embeddings."
        self.patch = [self.tensor(f"{embeddings}patch_embedding.{n}") for n in ("weight", "bias")]
        self.cls, self.position = (self.tensor(f"{embeddings}{n}_embedding") for n in ("class", "position"))
        self.embed, self.output = self.tensor("language_model.model.tok_embeddings.weight"), self.tensor("language_model.output.weight")
        self.norm = self.tensor("language_model.model.norm.weight")

    @torch.no_grad()
    def run(self, ids, pixels, size, context, seg):
        """Masks (Q, 448, 448) for ids (T) and pixels (1, 3, 448, 448); stage -> ms"""
        times, since = {}, time.perf_counter()

        def stage(name):
            nonlocal since
            now = time.perf_counter()
            times[name], since = (now - since) * 1e3, now

        x = F.conv2d(pixels, *self.patch, stride=14).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls, x), 1) + self.position
        for layer in self.vit:
            x = layer(x)
        stage("vision")
        f_vit = x[:, 1:].contiguous()
        h = self.embed[ids]
        h[ids == context] = self.projector(f_vit)
        stage("projector")
        h = h[None]
        for layer in self.llm:
            h = layer(h)
        h = LlmLayer.norm(h, self.norm)
        stage("language_model")
        logits = F.linear(h, self.output).float()
        stage("logits")
        before = lambda token: h[0, (ids == token).nonzero()[:, 0] - 1]
        masks = self.decoder(f_vit, before(context)[None], before(seg)[:, None])
        stage("decoder")
        F.interpolate(masks.float(), size, mode="bilinear", align_corners=False) >= 0.5
        stage("resize")
        assert logits.isfinite().all()
        return masks[:, 0], times


@contextlib.contextmanager
def shallow(folder, layers):
    """The checkpoint as one of fewer language model layers."""
    with tempfile.TemporaryDirectory() as to:
        for name in os.listdir(folder):
            os.symlink(os.path.abspath(f"{folder}/{name}"), f"{to}/{name}")
        with open(f"{folder}/config.json") as f:
            config = json.load(f)
        config["llm_config"]["num_hidden_layers"] = layers
        os.remove(f"{to}/config.json")
        with open(f"{to}/config.json", "w") as f:
            json.dump(config, f)
        yield to


def agreement(folder, ids, pixels, context, seg):
    """Relative L2 between the masks here and those of `mllmseg dump`, f32, two language model layers."""
    with shallow(folder, 2) as two, tempfile.TemporaryDirectory() as to:
        masks, _ = Request(two, torch.float32, 2).run(ids, pixels, (480, 640), context, seg)
        save_file({"pixel_values": pixels, "input_ids": ids.to(torch.int32)}, f"{to}/in")
        dump = [f"{ROOT}/target/release/mllmseg", "dump", "--model", two, "--inputs", f"{to}/in", "--nodes", "^dec.mask$", "--out", f"{to}/out"]
        subprocess.run(dump, check=True)
        ours = load_file(f"{to}/out")["dec.mask"].reshape(masks.shape)
    return ((ours - masks).norm() / masks.norm()).item()


def requests(args, binary):
    """The record of whole requests."""
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.precision]
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 448, 448)
    with open(f"{args.request}/added_tokens.json") as f:
        added = json.load(f)
    special = added["<IMG_CONTEXT>"], added["[SEG]"]
    torch_ms, engine_ms, apart = {d: [] for d in args.depths}, {d: [] for d in args.depths}, None
    for _ in range(args.rounds):
        for depth in args.depths:
            with shallow(args.request, depth) as folder:
                line = run_engine(binary, "request", folder, args.precision)[0]
            ids = torch.tensor(line.pop("ids"))
            engine_ms[depth].append(line)
            if apart is None:
                apart = agreement(args.request, ids, pixels, *special)
                assert apart < 1e-4, f"the masks of PyTorch and of the engine differ by {apart}"
            published, times = Request(args.request, dtype, depth), []
            for _ in range(4):
                start = time.perf_counter()
                _, stages = published.run(ids, pixels.to(dtype), (480, 640), *special)
                times.append((sum(stages.values()), stages))
            del published
            torch_ms[depth].append(sorted(times[1:], key=lambda t: t[0])[1])
    (a, b), middle = args.depths, statistics.median
    at_32 = lambda f: f(a) + (32 - a) / (b - a) * (f(b) - f(a))
    published = lambda d: middle(t[0] for t in torch_ms[d])
    engine = {
        "joint": lambda d: middle(e["runs"]["joint"]["median_ms"] for e in engine_ms[d]),
        "joint_with_system": lambda d: middle(e["runs"]["joint"]["median_ms"] + e["system_ms"] for e in engine_ms[d]),
        "single": lambda d: middle(e["runs"]["single"]["median_ms"] for e in engine_ms[d]),
    }
    rows = []
    for name, f in engine.items():
        row = {"engine": name, "engine_32_layers_ms": round(at_32(f)), "torch_32_layers_ms": round(at_32(published))}
        row |= {f"engine_{d}_layers_ms": round(f(d), 1) for d in args.depths}
        row |= {f"torch_{d}_layers_ms": round(published(d), 1) for d in args.depths}
        row["torch_over_engine"] = round(at_32(published) / at_32(f), 2)
        rows.append(row)
        print(row)
    return {
        "what": "whole requests of three expressions, PyTorch as published and engine turn by turn, medians; 32 layers by the line through two depths",
        "precision": args.precision,
        "tokens": len(ids),
        "masks_relative_l2_f32_two_layers": apart,
        "requests": rows,
        "torch_stages_ms": {d: [t[1] for t in torch_ms[d]] for d in args.depths},
        "engine_runs": engine_ms,
    }


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.processor())


def pieces(args, binary):
    """The record of the pieces."""
    rounds = []
    for _ in range(args.rounds):
        times = {("torch", "f32"): torch_pieces(torch.float32), ("torch", "bf16"): torch_pieces(torch.bfloat16)}
        for (name, precision), ms in engine_pieces(binary).items():
            times.setdefault(("engine", precision), {})[name] = ms
        rounds.append(times)
    for r in rounds:
        for times in r.values():
            times["request_3q"] = sum(n * times[piece] for piece, n in REQUEST.items())
    rows = []
    for name in rounds[0]["torch", "f32"]:
        row = {"piece": name}
        for key in sorted({k for r in rounds for k in r}):
            row["_".join(key) + "_ms"] = round(statistics.median(r[key][name] for r in rounds), 1)
        row["torch_over_engine_f32"] = round(row["torch_f32_ms"] / row["engine_f32_ms"], 2)
        best = row.get("engine_bf16_ms", row["engine_f32_ms"])
        row["torch_over_engine_bf16"] = round(row["torch_bf16_ms"] / best, 2)
        rows.append(row)
        print(row)
    return {
        "what": "real-width pieces, PyTorch and engine turn by turn, medians",
        "avx512_bf16": ("engine", "bf16") in rounds[0],
        "pieces": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record")
    parser.add_argument("--request", metavar="DIR")
    parser.add_argument("--depths", type=int, nargs=2, default=(4, 12))
    parser.add_argument("--precision", choices=("bf16", "f32"), default="bf16")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    built = [f for f in glob.glob(f"{ROOT}/target/release/deps/pieces-*") if not f.endswith(".d")]
    if not built:
        raise SystemExit("target/release/deps/pieces-*: expected the bench's program (cargo bench --bench pieces --no-run), found none")
    binary = max(built, key=os.path.getmtime)
    about = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": threads,
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        "rounds": args.rounds,
    }
    record = about | (requests(args, binary) if args.request else pieces(args, binary))
    if args.record:
        with open(args.record, "w") as f:
            json.dump(record, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
