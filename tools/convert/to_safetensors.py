#!/usr/bin/env python3
"""Convert a checkpoint of pickled weights (pytorch_model.bin, or its shards) to safetensors.

    python3 tools/convert/to_safetensors.py MODEL_DIR OUT_DIR

Pickles can run code when they are loaded; these are loaded with weights_only=True, which refuses all but tensors. Dtypes
are kept as they are, tensors that share memory are written apart, shards have at most --shard-gb gigabytes, and the
other files (config, tokenizer) are copied. Input shards are read one at a time, so the memory needed is that of the
largest one plus one output shard. Needs torch and safetensors (pip install torch safetensors).
"""

import argparse
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

COPIED = (".json", ".model", ".txt", ".md", ".jinja")


def fail(message):
    sys.exit(f"to_safetensors: {message}")


def inputs(model):
    """The pickled files, in order."""
    index = model / "pytorch_model.bin.index.json"
    single = model / "pytorch_model.bin"
    if single.is_file():
        return [single]
    if not index.is_file():
        fail(f"{model}: expected pytorch_model.bin or pytorch_model.bin.index.json, found neither")
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            fail(f"{index}: expected names of files in this folder, found {name!r}")
        if not (model / name).is_file():
            fail(f"{index}: expected {name} in this folder, found nothing")
    return [model / name for name in names]


def load(path):
    """Name -> tensor; a training checkpoint's wrapper (`state_dict`, `module`) is taken off."""
    import torch

    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old format without a zip cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its own message advises to load the file without the safeguard
        fail(f"{path}: expected tensors and nothing else, found other objects (nothing of it was run)")
    except (RuntimeError, EOFError):
        fail(f"{path}: expected what torch.save writes, found a damaged file")
    for wrapper in ("state_dict", "module"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        fail(f"{path}: expected a dict of tensors, found {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not torch.is_tensor(tensor):
            fail(f"{path}: {name!r}: expected a tensor, found {type(tensor).__name__}")
    return state


def convert(model, out, shard_bytes):
    from safetensors.torch import save_file

    seen, shards = {}, []  # name -> number of shard; files written so far under temporary names
    batch, size, total = {}, 0, 0

    def flush():
        nonlocal batch, size
        if batch:
            path = out / f"shard-{len(shards)}.tmp"
            save_file(batch, path, metadata={"format": "pt"})
            seen.update(dict.fromkeys(batch, len(shards)))
            shards.append(path)
            print(f"{len(shards)}: {len(batch)} tensors, {size / 1e9:.2f} GB", file=sys.stderr)
        batch, size = {}, 0

    for path in inputs(model):
        for name, tensor in load(path).items():
            if name in seen or name in batch:
                fail(f"{path}: {name}: expected one tensor of that name, found several")
            tensor = tensor.contiguous().clone()  # out of the map, and apart from what shares its memory
            bytes_ = tensor.numel() * tensor.element_size()
            if size and size + bytes_ > shard_bytes:
                flush()
            batch[name] = tensor
            size += bytes_
            total += bytes_
    flush()
    if not shards:
        fail(f"{model}: expected tensors, found none")

    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    )
    for tmp, name in zip(shards, names):
        os.replace(tmp, out / name)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {t: names[n] for t, n in seen.items()}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in sorted(model.iterdir()):
        if file.is_file() and file.suffix in COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    print(f"{out}: {len(seen)} tensors, {total / 1e9:.2f} GB", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder with pytorch_model.bin")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write, new or empty")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="most gigabytes in a file (default 5)")
    args = parser.parse_args()
    if not args.shard_gb > 0:
        parser.error(f"--shard-gb: expected a positive number, found {args.shard_gb}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        fail(f"{args.out}: expected a new or empty folder")
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as e:
        fail(f"{e} (pip install torch safetensors)")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        convert(args.model, args.out, int(args.shard_gb * 1e9))
    finally:
        for leftover in args.out.glob("shard-*.tmp"):
            leftover.unlink()


if __name__ == "__main__":
    main()
