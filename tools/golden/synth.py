"""Deterministic synthetic weights by the formula in tests/data/golden/SYNTH.md. Pure numpy."""

import math
import re

import numpy as np

M64 = (1 << 64) - 1
GOLD = 0x9E3779B97F4A7C15


def fnv1a64(s: str) -> int:
    h = 0xCBF29CE484222325
    for b in s.encode("utf-8"):
        h = ((h ^ b) * 0x100000001B3) & M64
    return h


def stream_state(name: str, seed: int) -> int:
    return fnv1a64(name) ^ ((seed * GOLD) & M64)


def unit(name: str, seed: int, start: int, n: int) -> np.ndarray:
    """v_i for i in [start, start + n): f32 in [-1, 1)."""
    h = np.uint64(stream_state(name, seed))
    with np.errstate(over="ignore"):
        i = np.arange(start + 1, start + n + 1, dtype=np.uint64)
        z = h + i * np.uint64(GOLD)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return np.float32(2) * u - np.float32(1)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    b = x.view(np.uint32)
    return ((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def fill(name: str, seed: int, shape, base: float, amp: float) -> np.ndarray:
    """bf16 bit patterns (u16), row-major."""
    n = int(np.prod(shape)) if len(shape) else 1
    out = np.empty(n, np.uint16)
    base = np.float32(base)
    amp = np.float32(amp)
    C = 1 << 21
    for s in range(0, n, C):
        m = min(C, n - s)
        v = unit(name, seed, s, m)
        out[s : s + m] = bf16_bits(base + amp * v)
    return out.reshape(shape)


# gain table for tensors with ndim >= 2: first match wins
GAINS = [
    (r"attn\.qkv\.weight$", 1.5),
    (r"attn\.proj\.weight$", 2.0),
    (r"mlp\.fc1\.weight$", 1.5),
    (r"mlp\.fc2\.weight$", 2.0),
    (r"mlp1\.3\.weight$", 1.5),
    (r"attention\.wqkv\.weight$", 1.5),
    (r"attention\.wo\.weight$", 1.25),
    (r"feed_forward\.w1\.weight$", 1.5),
    (r"feed_forward\.w2\.weight$", 2.0),
    (r"language_model\.output\.weight$", 4.0),
    (r"upsample_adapter_l\.offset\.weight$", 3.0),
    (r"out_proj\.weight$", 1.5),
    (r"linear2\.weight$", 1.5),
    (r"conv1\.0\.weight$", 1.5),
    (r"conv2\.weight$", 2.0),
]


def rule(name: str, shape):
    """(base, amp) of a tensor, or None where the published code computes its own value (init_pos, num_batches_tracked)."""
    if name.endswith(".init_pos") or name.endswith(".num_batches_tracked"):
        return None
    if name.endswith(".running_mean"):
        return 0.0, 0.1
    if name.endswith(".running_var"):
        return 1.0, 0.25
    if name.endswith(".ls1") or name.endswith(".ls2"):
        return 0.5, 0.1
    if name.endswith("class_embedding") or name.endswith("position_embedding"):
        return 0.0, 0.5
    if name.endswith("tok_embeddings.weight"):
        return 0.0, 1.0
    if len(shape) == 1:
        if name.endswith(".weight"):
            return 1.0, 0.1
        return 0.0, 0.02
    gain = 1.0
    for pat, g in GAINS:
        if re.search(pat, name):
            gain = g
            break
    fan_in = int(np.prod(shape[1:]))
    return 0.0, math.sqrt(3.0 / fan_in) * gain


def tensor(name: str, shape, seed: int):
    """bf16 bit patterns of a tensor of the state dict, or None where `rule` has none."""
    r = rule(name, shape)
    if r is None:
        return None
    return fill(name, seed, tuple(shape), *r)
