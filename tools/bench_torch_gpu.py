#!/usr/bin/env python3
"""PyTorch on a GPU at the shapes of `cargo bench --bench gpu`, timed the same way: median of 20, L2 flushed before each, events around it.

    tools/bench_torch_gpu.py --device cuda:0 BENCH.jsonl OUT.jsonl

BENCH.jsonl is what the bench printed; OUT.jsonl gets a line a shape: op, shape, microseconds, and PyTorch's time over ours.
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F

RUNS = 20


def work(op, shape, device):
    """A function that does the op once."""
    new = lambda *s: torch.rand(*s, device=device, dtype=torch.bfloat16) * 2 - 1
    if op == "matmul":
        m, n, k = shape
        x, w = new(m, k), new(n, k)
        return lambda: F.linear(x, w)
    if op == "attention":
        batch, heads, hd, tq, tk = shape
        q, k, v = new(batch, heads, tq, hd), new(batch, heads, tk, hd), new(batch, heads, tk, hd)
        return lambda: F.scaled_dot_product_attention(q, k, v)
    if op == "attention_causal":
        nh, nkv, hd, t = shape
        q, k, v = new(1, nh, t, hd), new(1, nkv, t, hd), new(1, nkv, t, hd)
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    n, c = shape
    x, w, b = new(n, c), new(c), new(c)
    if op == "rmsnorm":
        return lambda: F.rms_norm(x, (c,), w, 1e-5)
    if op == "layernorm":
        return lambda: F.layer_norm(x, (c,), w, b, 1e-6)
    raise SystemExit(f"no counterpart of {op} in PyTorch")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("bench")
    parser.add_argument("out")
    args = parser.parse_args()
    torch.cuda.set_device(args.device)
    flush = torch.empty(128 << 20, dtype=torch.uint8, device=args.device)
    with open(args.bench) as bench, open(args.out, "w") as out:
        for line in bench:
            ours = json.loads(line)
            run = work(ours["op"], ours["shape"], args.device)
            times = []
            for _ in range(RUNS + 1):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                flush.zero_()
                start.record()
                run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) * 1e3)
            us = statistics.median(times[1:])
            row = {"op": ours["op"], "shape": ours["shape"], "torch": torch.__version__, "torch_us": us, "torch_over_ours": us / ours["us"]}
            out.write(json.dumps(row) + "\n")


main()
