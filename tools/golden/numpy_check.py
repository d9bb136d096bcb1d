"""The whole model in plain numpy, checked against the golden data: the specification in executable form.

    python numpy_check.py GOLDEN_DIR [CASE]...

Weights are synthesised (synth.py), so nothing is loaded but the golden tensors. Every stage must be within 1e-4 relative L2;
it reaches 3e-6. Prints a line a stage; exits with 1 when one is off. Sizes are those of the tiny cases and of `layer8b`.
"""

import json
import math
import sys

import numpy as np
from safetensors import safe_open
import synth

f4 = np.float32


def load(path):
    f = safe_open(path, "numpy")
    return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()


def W(name, shape, seed):
    b = synth.tensor(name, shape, seed)
    return (b.astype(np.uint32) << 16).view(np.float32)


def INP(name, shape, amp, seed):
    return (synth.fill(name, seed, shape, 0.0, amp).astype(np.uint32) << 16).view(np.float32)


_erf = np.vectorize(math.erf, otypes=[np.float32])
gelu = lambda x: x * f4(0.5) * (1 + _erf(x * f4(2**-0.5)))
silu = lambda x: x / (1 + np.exp(-x))


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def ln(x, w, b, eps):
    x64 = x.astype(np.float64)
    m = x64.mean(-1, keepdims=True)
    v = ((x64 - m) ** 2).mean(-1, keepdims=True)
    return (((x64 - m) / np.sqrt(v + eps)) * w + b).astype(f4)


def rms(x, w, eps):
    return (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps)).astype(f4) * w


def vit_layer(x, p, seed, inter, D=1024, H=16):
    w = lambda n, *s: W(p + n, s, seed)
    h = ln(x, w("norm1.weight", D), w("norm1.bias", D), 1e-6)
    qkv = h @ w("attn.qkv.weight", 3 * D, D).T + w("attn.qkv.bias", 3 * D)
    o = np.empty_like(x)
    d = D // H
    for i in range(H):
        q, k, v = (qkv[:, j * D + i * d : j * D + (i + 1) * d] for j in range(3))
        o[:, i * d : (i + 1) * d] = softmax((q * f4(d**-0.5)) @ k.T) @ v
    x = x + (o @ w("attn.proj.weight", D, D).T + w("attn.proj.bias", D)) * w("ls1", D)
    h = ln(x, w("norm2.weight", D), w("norm2.bias", D), 1e-6)
    h = gelu(h @ w("mlp.fc1.weight", inter, D).T + w("mlp.fc1.bias", inter)) @ w("mlp.fc2.weight", D, inter).T + w(
        "mlp.fc2.bias", D
    )
    return x + h * w("ls2", D)


def rope(x, pos, theta=1e6):
    d = x.shape[-1]
    inv = (1.0 / theta ** (np.arange(0, d, 2, dtype=np.float32) / f4(d))).astype(f4)
    a = np.outer(pos.astype(f4), inv).astype(f4)
    c, s = np.cos(a), np.sin(a)
    x1, x2 = x[:, : d // 2], x[:, d // 2 :]
    return np.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], -1)


def llm_layer(x, p, seed, H, KV, inter, hd=128):
    D = x.shape[1]
    T = x.shape[0]
    G = H // KV
    w = lambda n, *s: W(p + n, s, seed)
    h = rms(x, w("attention_norm.weight", D), 1e-5)
    qkv = h @ w("attention.wqkv.weight", (H + 2 * KV) * hd, D).T
    qkv = qkv.reshape(T, KV, G + 2, hd)  # per kv head: G queries, then k, then v
    pos = np.arange(T)
    mask = np.triu(np.ones((T, T), bool), 1)
    o = np.empty((T, H * hd), f4)
    for g in range(KV):
        k = rope(qkv[:, g, G], pos)
        v = qkv[:, g, G + 1]
        for j in range(G):
            a = rope(qkv[:, g, j], pos) @ k.T / f4(math.sqrt(hd))
            a[mask] = -np.inf
            o[:, (g * G + j) * hd : (g * G + j + 1) * hd] = softmax(a) @ v
    x = x + o @ w("attention.wo.weight", D, H * hd).T
    h = rms(x, w("ffn_norm.weight", D), 1e-5)
    a = silu(h @ w("feed_forward.w1.weight", inter, D).T) * (h @ w("feed_forward.w3.weight", inter, D).T)
    return x + a @ w("feed_forward.w2.weight", D, inter).T


def pixel_shuffle_v2(x):  # 32x32xC -> 16x16x4C
    n, c = 32, x.shape[-1]
    x = x.reshape(n, n // 2, 2 * c).transpose(1, 0, 2)
    x = np.ascontiguousarray(x).reshape(n // 2, n // 2, 4 * c)
    return x.transpose(1, 0, 2).reshape(256, 4 * c)


def mha(q, kv, w, p, H=8, D=1024):
    wi, bi = w(p + "in_proj_weight", 3 * D, D), w(p + "in_proj_bias", 3 * D)
    Q = q @ wi[:D].T + bi[:D]
    K = kv @ wi[D : 2 * D].T + bi[D : 2 * D]
    V = kv @ wi[2 * D :].T + bi[2 * D :]
    o = np.empty_like(Q)
    d = D // H
    for i in range(H):
        s = slice(i * d, (i + 1) * d)
        o[:, s] = softmax(Q[:, s] @ K[:, s].T / f4(math.sqrt(d))) @ V[:, s]
    return o @ w(p + "out_proj.weight", D, D).T + w(p + "out_proj.bias", D)


def mha_single_key(kv, w, p, D=1024):
    """one key: softmax = 1, so the output is out_proj(v) for every query row"""
    v = kv @ w(p + "in_proj_weight", 3 * D, D)[2 * D :].T + w(p + "in_proj_bias", 3 * D)[2 * D :]
    return v @ w(p + "out_proj.weight", D, D).T + w(p + "out_proj.bias", D)


def dec_layer(tgt, mem, w, p, D=1024, sa=None):
    L = p + "decoder.layers.0."
    n = lambda x, q: ln(x, w(q + ".weight", D), w(q + ".bias", D), 1e-5)
    if sa is None:
        sa = n(tgt + mha(tgt, tgt, w, L + "self_attn."), L + "norm1")
    x = sa
    c = mha_single_key(mem, w, L + "multihead_attn.") if mem.shape[0] == 1 else mha(x, mem, w, L + "multihead_attn.")
    x = n(x + c, L + "norm2")
    h = np.maximum(x @ w(L + "linear1.weight", D, D).T + w(L + "linear1.bias", D), 0) @ w(
        L + "linear2.weight", D, D
    ).T + w(L + "linear2.bias", D)
    x = n(x + h, L + "norm3")
    return n(x, p + "decoder.norm"), sa


def dysample(x, w, p):
    """x 1024x16x16 -> 1024x32x32"""
    C, H, Wd = x.shape
    g = 4
    off = (
        np.einsum("oc,chw->ohw", w(p + "offset.weight", 32, C, 1, 1).reshape(32, C), x)
        + w(p + "offset.bias", 32)[:, None, None]
    )
    off = off.reshape(2, g, 2, 2, H, Wd) * f4(0.25)
    out = np.empty((C, 2 * H, 2 * Wd), f4)
    ys, xs = np.arange(H) + 0.5, np.arange(Wd) + 0.5
    for k in range(g):
        for i in range(2):
            for j in range(2):
                ox = off[0, k, i, j] + f4((-0.25, 0.25)[j])
                oy = off[1, k, i, j] + f4((-0.25, 0.25)[i])
                px = np.clip(xs[None, :] + ox - 0.5, 0, Wd - 1).astype(f4)
                py = np.clip(ys[:, None] + oy - 0.5, 0, H - 1).astype(f4)
                x0 = np.floor(px).astype(int)
                y0 = np.floor(py).astype(int)
                x1 = np.minimum(x0 + 1, Wd - 1)
                y1 = np.minimum(y0 + 1, H - 1)
                fx = px - x0
                fy = py - y0
                c = x[k * (C // g) : (k + 1) * (C // g)]
                out[k * (C // g) : (k + 1) * (C // g), i::2, j::2] = (
                    c[:, y0, x0] * (1 - fx) * (1 - fy)
                    + c[:, y0, x1] * fx * (1 - fy)
                    + c[:, y1, x0] * (1 - fx) * fy
                    + c[:, y1, x1] * fx * fy
                )
    return out


def conv2d(x, wt, b, pad):
    co, ci, kh, kw = wt.shape
    H, Wd = x.shape[1:]
    xp = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    o = np.zeros((co, H, Wd), f4) + b[:, None, None]
    for i in range(kh):
        for j in range(kw):
            o += np.tensordot(wt[:, :, i, j], xp[:, i : i + H, j : j + Wd], (1, 0))
    return o


def res_decoder(img_vit, img_llm, texts, seed):
    cache = {}
    T = img_llm.shape[1]

    def w(n, *s):
        if n not in cache:
            cache[n] = W("res_decoder." + n, s, seed)
        return cache[n]

    r = {}
    il = img_llm @ w("img_llm_down.weight", 1024, T).T + w("img_llm_down.bias", 1024)
    r["img_llm_down"] = il
    v2l, _ = dec_layer(img_vit, il, w, "ca_layer_v2l.")
    r["ca_layer_v2l"] = v2l
    dy = dysample(il.reshape(16, 16, 1024).transpose(2, 0, 1), w, "upsample_adapter_l.")
    r["dysample"] = dy
    cat = np.concatenate([v2l, img_vit, dy.reshape(1024, 1024).T], 1)
    oi = cat @ w("text_out_adapter.weight", 1024, 3072).T + w("text_out_adapter.bias", 1024)
    r["text_out_adapter"] = oi
    sa = None
    vl = []
    c1 = []
    pre = []
    m448 = []
    td = []
    for t in texts:
        tx = t[None] @ w("text_down.weight", 1024, T).T + w("text_down.bias", 1024)
        td.append(tx)
        x, sa = dec_layer(oi, tx, w, "ca_layer_vl.", sa=sa)  # the self attention part is shared between the queries
        vl.append(x)
        c = conv2d(x.T.reshape(1024, 32, 32), w("conv1.0.weight", 196, 1024, 3, 3), w("conv1.0.bias", 196), 1)
        s = w("conv1.1.weight", 196) / np.sqrt(w("conv1.1.running_var", 196) + f4(1e-5))
        c = np.maximum(
            (c - w("conv1.1.running_mean", 196)[:, None, None]) * s[:, None, None]
            + w("conv1.1.bias", 196)[:, None, None],
            0,
        )
        c1.append(c)
        m = c.transpose(1, 2, 0).reshape(32, 32, 14, 14).transpose(0, 2, 1, 3).reshape(1, 448, 448)
        m448.append(m)
        pre.append(conv2d(m, w("conv2.weight", 1, 1, 5, 5), w("conv2.bias", 1), 2))
    r.update(
        text_down=np.stack(td),
        ca_layer_vl=np.stack(vl),
        conv1=np.stack(c1),
        map448=np.stack(m448),
        pre_sigmoid=np.stack(pre),
        mask=1 / (1 + np.exp(-np.stack(pre)[:, 0])),
    )
    return r


def bilinear(m, h, w):
    H, Wd = m.shape

    def idx(o, n):
        s = np.maximum((np.arange(o, dtype=f4) + f4(0.5)) * f4(n / o) - f4(0.5), 0)
        i = s.astype(int)
        return i, np.minimum(i + 1, n - 1), (s - i).astype(f4)

    y0, y1, fy = idx(h, H)
    x0, x1, fx = idx(w, Wd)
    t = m[y0][:, x0] * (1 - fx) + m[y0][:, x1] * fx
    b = m[y1][:, x0] * (1 - fx) + m[y1][:, x1] * fx
    return t * (1 - fy)[:, None] + b * fy[:, None]


BAD = 0


def cmp(name, x, t, md, tol=1e-4):
    global BAD
    i = json.loads(md["t:" + name])
    ref = t[name]
    x = np.asarray(x, f4)
    if list(x.shape) != i["shape"]:
        x = x.reshape(i["shape"])
    v = x.reshape(-1)[:: i["stride"]] if i["stride"] > 1 else x
    e = np.abs(v.astype(np.float64) - ref).max()
    rel = np.linalg.norm(v.astype(np.float64).ravel() - ref.ravel()) / np.linalg.norm(ref)
    l2 = abs(np.sqrt((x.astype(np.float64) ** 2).sum()) / i["l2"] - 1)
    ok = rel < tol and l2 < tol
    BAD += not ok
    print(
        f"  {name:28s} rel_l2 {rel:.2e} max_abs {e:.2e} (absmax {i['absmax']:.2f}) norm {l2:.1e} {'ok' if ok else 'BAD'}",
        flush=True,
    )


def tiny(path, seed, case):
    t, md = load(path)
    two = case == "tiny-2prompts"
    MEAN = np.array((0.485, 0.456, 0.406), f4)
    STD = np.array((0.229, 0.224, 0.225), f4)
    for k in range(2 if two else 1):
        s = f".{k}" if two else ""
        print(case, "seed", seed, "prompt", k)
        img = t["image"] if not two else load(path.replace("tiny-2prompts", json.loads(md["images"])[k]))[0]["image"]
        ids = t["input_ids" + s].copy()
        pv = ((img.astype(f4) / f4(255)) - MEAN) / STD
        cmp("pixel_values" + s, pv.transpose(2, 0, 1), t, md, 1e-7)
        pat = pv.reshape(32, 14, 32, 14, 3).transpose(0, 2, 4, 1, 3).reshape(1024, 588)
        x = pat @ W("vision_model.embeddings.patch_embedding.weight", (1024, 3, 14, 14), seed).reshape(1024, 588).T + W(
            "vision_model.embeddings.patch_embedding.bias", (1024,), seed
        )
        x = (
            np.concatenate([W("vision_model.embeddings.class_embedding", (1, 1, 1024), seed)[0], x])
            + W("vision_model.embeddings.position_embedding", (1, 1025, 1024), seed)[0]
        )
        cmp("vit.embeddings" + s, x, t, md)
        for l in range(2):
            x = vit_layer(x, f"vision_model.encoder.layers.{l}.", seed, 512)
            cmp(f"vit.layer{l}" + s, x, t, md)
        vit = x[1:]
        ps = pixel_shuffle_v2(vit)
        cmp("pixel_shuffle" + s, ps, t, md)
        h = ln(ps, W("mlp1.0.weight", (4096,), seed), W("mlp1.0.bias", (4096,), seed), 1e-5)
        h = gelu(h @ W("mlp1.1.weight", (512, 4096), seed).T + W("mlp1.1.bias", (512,), seed)) @ W(
            "mlp1.3.weight", (512, 512), seed
        ).T + W("mlp1.3.bias", (512,), seed)
        cmp("mlp1" + s, h, t, md)
        reeval = json.loads(md["reeval"]) if md["reeval"] in ("true", "false") else False
        emb = W("language_model.model.tok_embeddings.weight", (2048, 512), seed)

        def llm(ids, check):
            e = emb[ids].copy()
            e[ids == 2039] = h
            if check:
                cmp("llm.in.inputs_embeds" + s, e, t, md)
            for l in range(2):
                e = llm_layer(e, f"language_model.model.layers.{l}.", seed, 4, 2, 768)
                if check:
                    cmp(f"llm.layer{l}" + s, e, t, md)
            return rms(e, W("language_model.model.norm.weight", (512,), seed), 1e-5)

        pos = t["positions_label" + s] - 1
        n1 = llm(ids, not reeval)
        lg = n1[pos] @ W("language_model.output.weight", (2048, 512), seed).T
        cmp("logits_prev" + s, lg, t, md)
        assert (lg.argmax(-1) == t["logits_prev_argmax" + s]).all()
        if reeval:
            cmp("pass1.llm.norm", n1, t, md)
            ids[ids == 2047] = 2046
            n1 = llm(ids, True)
        cmp("llm.norm" + s, n1, t, md)
        pi = t["positions_img" + s]
        pt = t["positions_text" + s]
        assert pi[0] == np.where(ids == 2037)[0][0] and len(pi) == 256 and (ids[pt + 1] == 2046).all()
        r = res_decoder(vit, n1[pi], n1[pt], seed)
        p = f"dec{k}." if two else "dec."
        for q in (
            "text_down",
            "img_llm_down",
            "ca_layer_v2l",
            "dysample",
            "text_out_adapter",
            "ca_layer_vl",
            "conv1",
            "map448",
            "pre_sigmoid",
            "mask",
        ):
            cmp(p + q, r[q], t, md)
        rz = np.stack([bilinear(m, 427, 640) for m in r["mask"]])
        cmp(p + "mask_resized", rz, t, md)
        for q in range(len(rz)):
            b = np.unpackbits(t[p + f"mask_resized_bits.{q}"])[: 427 * 640].reshape(427, 640).astype(bool)
            print("   threshold flips", int((b != (rz[q] >= 0.5)).sum()), "of", b.size)


def big(path, seed):
    t, md = load(path)
    info = json.loads(md["info"])
    print("layer8b seed", seed)
    cmp(
        "vit_layer.out",
        vit_layer(INP("golden.input.vit_layer", (1025, 1024), 1.5, seed), "vision_model.encoder.layers.0.", seed, 4096),
        t,
        md,
    )
    cmp(
        "llm_layer.out",
        llm_layer(
            INP("golden.input.llm_layer", (info["tokens"], 4096), 1.5, seed),
            "language_model.model.layers.0.",
            seed,
            32,
            8,
            14336,
        ),
        t,
        md,
    )
    h = ln(
        INP("golden.input.mlp1", (256, 4096), 2.0, seed),
        W("mlp1.0.weight", (4096,), seed),
        W("mlp1.0.bias", (4096,), seed),
        1e-5,
    )
    cmp(
        "mlp1.out",
        gelu(h @ W("mlp1.1.weight", (4096, 4096), seed).T + W("mlp1.1.bias", (4096,), seed))
        @ W("mlp1.3.weight", (4096, 4096), seed).T
        + W("mlp1.3.bias", (4096,), seed),
        t,
        md,
    )
    n = info["queries"]
    r = res_decoder(
        INP("golden.input.dec.img_vit", (1024, 1024), 2.0, seed),
        INP("golden.input.dec.img_llm", (256, 4096), 1.7, seed),
        INP("golden.input.dec.text_src", (n, 4096), 1.7, seed),
        seed,
    )
    for q in (
        "text_down",
        "img_llm_down",
        "ca_layer_v2l",
        "dysample",
        "text_out_adapter",
        "ca_layer_vl",
        "conv1",
        "map448",
        "pre_sigmoid",
        "mask",
    ):
        cmp("dec." + q, r[q], t, md)


if __name__ == "__main__":
    seed, d = 1, sys.argv[1]
    for c in sys.argv[2:] or ("tiny-1seg", "tiny-3seg", "tiny-rej", "tiny-2prompts", "layer8b"):
        if c == "layer8b":
            big(f"{d}/layer8b.safetensors", seed)
        else:
            tiny(f"{d}/{c}.safetensors", seed, c)
    sys.exit(f"{BAD} stages are off" if BAD else 0)
