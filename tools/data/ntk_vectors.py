"""Makes tests/data/ntk.json: RoPE past `max_position_embeddings` by the published formula, and a whole run of the tiny model there.

    python -m venv v && v/bin/pip install -r tools/golden/requirements.txt
    v/bin/python tools/data/ntk_vectors.py tests/data/ntk.json

The formula is that of InternLM2DynamicNTKScalingRotaryEmbedding (modeling_internlm2.py), in its types: the base in f64, the frequencies in f32.
The model is computed plainly, in f32: a prompt longer than the maximum with the frequencies of its length, then token by token, each with those
of the length that it makes; keys keep the frequencies that they were rotated by. Shares no code with the engine.
"""

import json
import math
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "golden"))
from numpy_check import W, f4, rms, silu, softmax  # noqa: E402


def inv_freq(theta, dim, factor, maximum, length):
    base = theta
    if length > maximum:
        base = theta * ((factor * length / maximum) - (factor - 1)) ** (dim / (dim - 2))
    return (f4(1) / f4(base) ** (np.arange(0, dim, 2, dtype=f4) / f4(dim))).astype(f4)


def rotate(x, positions, inv):
    a = np.outer(positions.astype(f4), inv).astype(f4)
    c, s, half = np.cos(a), np.sin(a), x.shape[-1] // 2
    return np.concatenate([x[:, :half] * c - x[:, half:] * s, x[:, half:] * c + x[:, :half] * s], -1)


SEED, V, H, NH, NKV, F, HD, LAYERS = 1, 2048, 512, 4, 2, 768, 128, 2
G = NH // NKV


class Tiny:
    def __init__(self, maximum):
        self.maximum = maximum
        w = lambda name, *shape: W("language_model." + name, shape, SEED)
        self.embeddings, self.norm, self.output = (
            w("model.tok_embeddings.weight", V, H),
            w("model.norm.weight", H),
            w("output.weight", V, H),
        )
        at = lambda l: lambda name, *shape: w(f"model.layers.{l}.{name}.weight", *shape)
        self.layers = [
            dict(
                attention_norm=at(l)("attention_norm", H),
                wqkv=at(l)("attention.wqkv", (NH + 2 * NKV) * HD, H),
                wo=at(l)("attention.wo", H, NH * HD),
                ffn_norm=at(l)("ffn_norm", H),
                w1=at(l)("feed_forward.w1", F, H),
                w3=at(l)("feed_forward.w3", F, H),
                w2=at(l)("feed_forward.w2", H, F),
                k=[np.empty((0, HD), f4)] * NKV,
                v=[np.empty((0, HD), f4)] * NKV,
            )
            for l in range(LAYERS)
        ]

    def logits(self, ids):
        """The rows `ids` behind those before; the logits of the last."""
        start = len(self.layers[0]["k"][0])
        end = start + len(ids)
        positions, inv = np.arange(start, end), inv_freq(1e6, HD, 2.0, self.maximum, end)
        hidden = np.arange(end)[None] > positions[:, None]
        x = self.embeddings[ids]
        for w in self.layers:
            qkv = (rms(x, w["attention_norm"], 1e-5) @ w["wqkv"].T).reshape(len(ids), NKV, G + 2, HD)
            out = np.empty((len(ids), NH, HD), f4)
            for g in range(NKV):
                w["k"][g] = np.concatenate([w["k"][g], rotate(qkv[:, g, G], positions, inv)])
                w["v"][g] = np.concatenate([w["v"][g], qkv[:, g, G + 1]])
                for j in range(G):
                    scores = rotate(qkv[:, g, j], positions, inv) @ w["k"][g].T / f4(math.sqrt(HD))
                    scores[hidden] = -np.inf
                    out[:, g * G + j] = softmax(scores) @ w["v"][g]
            x = x + out.reshape(len(ids), NH * HD) @ w["wo"].T
            n = rms(x, w["ffn_norm"], 1e-5)
            x = x + (silu(n @ w["w1"].T) * (n @ w["w3"].T)) @ w["w2"].T
        return rms(x[-1:], self.norm, 1e-5)[0] @ self.output.T


if __name__ == "__main__":
    frequencies = []
    for theta, dim, factor, maximum, length in [
        (1e6, 128, 2.0, 32768, 32768),
        (1e6, 128, 2.0, 32768, 32769),
        (1e6, 128, 2.0, 32768, 40000),
        (1e6, 128, 2.0, 32768, 99999),
        (1e4, 64, 4.0, 2048, 5000),
    ]:
        inv = inv_freq(theta, dim, factor, maximum, length)
        case = dict(theta=theta, head_dim=dim, factor=factor, max=maximum, length=length)
        frequencies.append(dict(case, every=9, inv_freq=[float(v) for v in inv[::9]]))
    maximum, stride, tokens, logits = 64, 61, [], []
    model = Tiny(maximum)
    prompt = [(7 * i * i + 3 * i) % 1500 + 46 for i in range(100)]
    ids = prompt
    for _ in range(6):
        row = model.logits(ids)
        tokens.append(int(row.argmax()))
        second = np.partition(row, -2)[-2]
        logits.append(dict(margin=float(row.max() - second), values=[float(f"{v:.9g}") for v in row[::stride]]))
        ids = tokens[-1:]
    run = dict(max=maximum, prompt=prompt, stride=stride, tokens=tokens, logits=logits)
    with open(sys.argv[1], "w") as f:
        json.dump(dict(frequencies=frequencies, run=run), f, separators=(",", ":"))
        f.write("\n")
