#!/usr/bin/env python3
"""Convert a checkpoint of pickled weights (pytorch_model.bin, or its shards) to safetensors.

    python3 tools/convert/to_safetensors.py MODEL_DIR OUT_DIR

Pickles can run code when they are loaded. Here one is read by an unpickler that knows tensors, their storages and dicts, and
refuses to look up anything else, so neither PyTorch nor any other package is needed. Dtypes are kept as they are, tensors that
share memory are written apart, shards have at most --shard-gb gigabytes, and the other files (config, tokenizer) are copied.
Memory: the largest tensor. Files of torch.save before PyTorch 1.6, which are no zip archives, are refused.
"""

import argparse
import collections
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

COPIED = (".json", ".model", ".txt", ".md", ".jinja")
# Name of PyTorch's storage class -> (safetensors' dtype, bytes of an element)
DTYPES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}


def fail(message):
    sys.exit(f"to_safetensors: {message}")


Storage = collections.namedtuple("Storage", "kind key numel")
Tensor = collections.namedtuple("Tensor", "storage offset shape stride")  # in elements


class Unpickler(pickle.Unpickler):
    """Makes tensors of what torch.save wrote; any other global is refused."""

    def find_class(self, module, name):
        if module == "torch" and name in DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, stride, *_: Tensor(
                storage, offset, tuple(shape), tuple(stride)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid):
        tag, kind, key, _device, numel = pid
        if tag != "storage" or kind not in DTYPES:
            raise pickle.UnpicklingError(f"{tag} {kind}")
        return Storage(kind, key, numel)


def is_count(n):
    return type(n) is int and n >= 0


class Weights:
    """One pickled file: its tensors by name, and their bytes."""

    def __init__(self, path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
            found = [n for n in self.zip.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
            if len(found) != 1:
                fail(f"{path}: expected an archive of torch.save with one data.pkl, found {len(found)}")
            self.root = found[0].removesuffix("data.pkl")
            with self.zip.open(found[0]) as file:
                state = Unpickler(file).load()
        except pickle.UnpicklingError as e:
            fail(f"{path}: expected tensors and nothing else, found {e} (nothing of it was run)")
        except zipfile.BadZipFile:
            fail(f"{path}: expected a zip archive as torch.save writes it, found something else")
        except Exception as e:  # whatever a damaged pickle provokes
            fail(f"{path}: expected what torch.save writes, found a damaged file ({type(e).__name__}: {e})")
        order = self.root + "byteorder"
        if order in self.zip.namelist() and self.zip.read(order) != b"little":
            fail(f"{path}: expected little-endian values, found {self.zip.read(order)!r}")
        for wrapper in ("state_dict", "module"):  # of a training checkpoint
            if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
                state = state[wrapper]
        if not isinstance(state, dict):
            fail(f"{path}: expected a dict of tensors, found {type(state).__name__}")
        self.tensors = {name: self.check(name, tensor) for name, tensor in state.items()}

    def check(self, name, t):
        """The tensor, if its elements lie inside its storage and that inside the archive."""
        if not isinstance(name, str) or not isinstance(t, Tensor):
            fail(f"{self.path}: {name!r}: expected a tensor, found {type(t).__name__}")
        s = t.storage
        if (
            not isinstance(s, Storage)
            or not isinstance(s.key, str)
            or len(t.shape) != len(t.stride)
            or not all(map(is_count, (s.numel, t.offset, *t.shape, *t.stride)))
        ):
            fail(f"{self.path}: {name}: expected a tensor's storage, shape and strides, found {t}")
        last = t.offset + sum((n - 1) * step for n, step in zip(t.shape, t.stride))
        if 0 not in t.shape and last >= s.numel:
            fail(f"{self.path}: {name}: expected elements inside its storage of {s.numel}, found one at {last}")
        try:
            size = self.zip.getinfo(f"{self.root}data/{s.key}").file_size
        except KeyError:
            fail(f"{self.path}: {name}: expected its storage data/{s.key} in the archive, found nothing")
        if size != s.numel * DTYPES[s.kind][1]:
            fail(f"{self.path}: {name}: expected {s.numel * DTYPES[s.kind][1]} bytes of storage, found {size}")
        return t

    def bytes(self, name):
        """The tensor's elements in row-major order."""
        t = self.tensors[name]
        size = DTYPES[t.storage.kind][1]
        try:
            data = self.zip.read(f"{self.root}data/{t.storage.key}")
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as e:
            fail(f"{self.path}: {name}: expected its storage, found damage ({e})")

        def rows(at, shape, stride):
            if 0 in shape:
                return b""
            step = 1
            for n, s in zip(reversed(shape), reversed(stride)):
                if n != 1 and s != step:
                    return b"".join(rows(at + i * stride[0], shape[1:], stride[1:]) for i in range(shape[0]))
                step *= n
            return data[at * size : (at + step) * size]

        return rows(t.offset, t.shape, t.stride)


def length(t):
    """Bytes of a tensor."""
    count = DTYPES[t.storage.kind][1]
    for n in t.shape:
        count *= n
    return count


def inputs(model):
    """The pickled files, in order."""
    index = model / "pytorch_model.bin.index.json"
    single = model / "pytorch_model.bin"
    if single.is_file():
        return [single]
    if not index.is_file():
        fail(f"{model}: expected pytorch_model.bin or pytorch_model.bin.index.json, found neither")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        fail(f"{index}: expected an object whose weight_map names files, found something else")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            fail(f"{index}: expected names of files in this folder, found {name!r}")
        if not (model / name).is_file():
            fail(f"{index}: expected {name} in this folder, found nothing")
    return [model / name for name in names]


def write(path, shard):
    """A safetensors file of `shard`, (name, Weights) pairs."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, file in shard:
        t = file.tensors[name]
        end = at + length(t)
        header[name] = {"dtype": DTYPES[t.storage.kind][0], "shape": t.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, file in shard:
            out.write(file.bytes(name))


def convert(model, out, shard_bytes):
    shards, size, total, seen = [[]], 0, 0, {}
    for file in map(Weights, inputs(model)):
        for name, t in file.tensors.items():
            if name in seen:
                fail(f"{file.path}: {name}: expected one tensor of that name, found several")
            if size and size + length(t) > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append((name, file))
            seen[name] = len(shards) - 1
            size += length(t)
            total += length(t)
    if not seen:
        fail(f"{model}: expected tensors, found none")
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    )
    out.mkdir(parents=True, exist_ok=True)
    temporary = [out / f"{name}.tmp" for name in names]
    try:
        for path, shard in zip(temporary, shards):
            write(path, shard)
            print(f"{path.stem}: {len(shard)} tensors", file=sys.stderr)
        for path in temporary:
            os.replace(path, path.with_suffix(""))
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
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
    convert(args.model, args.out, int(args.shard_gb * 1e9))


if __name__ == "__main__":
    main()
