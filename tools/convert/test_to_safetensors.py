#!/usr/bin/env python3
"""Tests of to_safetensors.py: the demo's weights there and back, sharing and strides, and files that lie or would run code.

    python3 tools/convert/test_to_safetensors.py            pickles as torch.save writes them, made with plain Python
    python3 tools/convert/test_to_safetensors.py --torch    and those that torch itself writes
"""

import collections
import io
import json
import pickle
import struct
import subprocess
import sys
import tempfile
import types
import unittest
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "assets/demo/model"
WITH_TORCH = "--torch" in sys.argv
STORAGES = {"F32": "FloatStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}


def fake(module, name, value):
    """`value` as the global module.name, for pickles that name it."""
    value.__module__, value.__qualname__ = module, name
    return value


def rebuild(*args):
    raise AssertionError("only its name is pickled")


# Globals of PyTorch, by name alone; torch itself is imported by no test that uses them.
GLOBALS = types.SimpleNamespace(
    torch=types.ModuleType("torch"),
    utils=types.ModuleType("torch._utils"),
    rebuild=fake("torch._utils", "_rebuild_tensor_v2", rebuild),
    storages={k: fake("torch", k, type(k, (), {})) for k in STORAGES.values()},
)
GLOBALS.utils._rebuild_tensor_v2 = GLOBALS.rebuild
for kind, cls in GLOBALS.storages.items():
    setattr(GLOBALS.torch, kind, cls)


class Value:
    """A tensor to be pickled: storage (key, kind, elements), offset, shape, stride."""

    def __init__(self, storage, offset, shape, stride):
        self.args = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return GLOBALS.rebuild, self.args


class Pickler(pickle._Pickler):  # the plain one, whose saving of globals can be overridden
    def persistent_id(self, x):
        if isinstance(x, tuple) and len(x) == 3 and x[1] in GLOBALS.storages:
            return ("storage", GLOBALS.storages[x[1]], x[0], "cpu", x[2])
        return None


def archive(path, state, storages, order=b"little"):
    """What torch.save writes: a pickle of `state` and the storages, {key: bytes}."""
    saved = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": GLOBALS.torch, "torch._utils": GLOBALS.utils})
    try:
        data = io.BytesIO()
        Pickler(data, 2).dump(state)
    finally:
        for name, module in saved.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("pytorch_model/data.pkl", data.getvalue())
        out.writestr("pytorch_model/byteorder", order)
        for key, value in storages.items():
            out.writestr(f"pytorch_model/data/{key}", value)


def read(path):
    """A safetensors file: name -> (dtype, shape, bytes)."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    part = lambda t: data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]]
    return {name: (t["dtype"], t["shape"], part(t)) for name, t in header.items()}


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


class Attack:
    """Runs a command when it is unpickled by a trusting reader."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Convert(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)
        self.model, self.out = self.dir / "model", self.dir / "out"
        self.model.mkdir()
        self.file = self.model / "pytorch_model.bin"

    def run_it(self, *more):
        command = [sys.executable, HERE / "to_safetensors.py", self.model, self.out, *more]
        return subprocess.run(command, capture_output=True, text=True)

    def converted(self, *more):
        done = self.run_it(*more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {name: t for file in sorted(self.out.glob("*.safetensors")) for name, t in read(file).items()}

    def refused(self, *parts):
        done = self.run_it()
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)
        self.assertFalse(self.out.exists() and any(self.out.iterdir()))

    def test_the_demo_comes_back_bit_for_bit(self):
        tensors = {}
        for file in DEMO.glob("*.safetensors"):
            tensors.update(read(file))
        self.assertGreater(len(tensors), 50)
        state, storages = collections.OrderedDict(), {}
        for i, (name, (dtype, shape, data)) in enumerate(tensors.items()):
            stride = [1] * len(shape)
            for d in range(len(shape) - 1, 0, -1):
                stride[d - 1] = stride[d] * shape[d]
            count = len(data) // {"F32": 4, "BF16": 2, "I64": 8}[dtype]
            storages[str(i)] = data
            state[name] = Value((str(i), STORAGES[dtype], count), 0, tuple(shape), tuple(stride))
        archive(self.file, state, storages)
        (self.model / "config.json").write_text("{}")
        self.assertEqual(self.converted("--shard-gb", "0.0005"), tensors)
        self.assertTrue((self.out / "config.json").is_file())
        index = json.loads((self.out / "model.safetensors.index.json").read_text())
        self.assertEqual(set(index["weight_map"]), set(tensors))
        self.assertGreater(len(set(index["weight_map"].values())), 1)
        self.assertEqual(index["metadata"]["total_size"], sum(len(t[2]) for t in tensors.values()))

    def test_shared_and_strided_tensors_are_written_apart(self):
        s = ("0", "FloatStorage", 6)
        state = {
            "state_dict": {
                "a": Value(s, 0, (2, 3), (3, 1)),
                "transposed": Value(s, 0, (3, 2), (1, 3)),
                "column": Value(s, 1, (2, 1), (3, 1)),
                "repeated": Value(s, 5, (2, 2), (0, 0)),
                "scalar": Value(s, 4, (), ()),
                "empty": Value(s, 0, (0, 3), (3, 1)),
            }
        }
        archive(self.file, state, {"0": floats(0, 1, 2, 3, 4, 5)})
        found = {name: (shape, data) for name, (_, shape, data) in self.converted().items()}
        expected = {
            "a": ([2, 3], floats(0, 1, 2, 3, 4, 5)),
            "transposed": ([3, 2], floats(0, 3, 1, 4, 2, 5)),
            "column": ([2, 1], floats(1, 4)),
            "repeated": ([2, 2], floats(5, 5, 5, 5)),
            "scalar": ([], floats(4)),
            "empty": ([0, 3], b""),
        }
        self.assertEqual(found, expected)

    def test_code_is_refused_and_not_run(self):
        mark = self.dir / "ran"
        archive(self.file, {"w": Attack(mark)}, {})
        self.refused("pytorch_model.bin", "tensors and nothing else", "eval")
        self.assertFalse(mark.exists())
        pickle.loads(pickle.dumps(Attack(mark))).close()  # so it would have
        self.assertTrue(mark.exists())

    def test_lies_are_refused(self):
        s = ("0", "FloatStorage", 4)
        whole = {"0": floats(1, 2, 3, 4)}
        cases = [
            ("past the storage", {"w": Value(s, 1, (4,), (1,))}, whole, ["w: expected elements inside", "at 4"]),
            ("strides past it", {"w": Value(s, 0, (2, 2), (3, 1))}, whole, ["at 4"]),
            ("negative stride", {"w": Value(s, 3, (4,), (-1,))}, whole, ["w: expected a tensor's storage"]),
            ("shape of text", {"w": Value(s, 0, "ab", (1, 1))}, whole, ["w: expected a tensor's storage"]),
            ("no storage", {"w": Value(s, 0, (4,), (1,))}, {}, ["data/0", "found nothing"]),
            ("short storage", {"w": Value(s, 0, (4,), (1,))}, {"0": b"abc"}, ["16 bytes of storage, found 3"]),
            ("no tensor", {"w": 3}, {}, ["'w': expected a tensor, found int"]),
            ("a name that is none", {5: Value(s, 0, (4,), (1,))}, whole, ["5: expected a tensor"]),
            ("a list", [Value(s, 0, (4,), (1,))], whole, ["a dict of tensors, found list"]),
            ("nothing", {}, {}, ["expected tensors, found none"]),
        ]
        for what, state, storages, parts in cases:
            with self.subTest(what):
                archive(self.file, state, storages)
                self.refused(*parts)
        archive(self.file, {"w": Value(s, 0, (4,), (1,))}, whole, b"big")
        self.refused("little-endian")

    def test_damaged_files_are_refused(self):
        s = ("0", "FloatStorage", 64)
        archive(self.file, {"w": Value(s, 0, (64,), (1,))}, {"0": bytes(range(256))})
        data = self.file.read_bytes()
        for cut in range(0, len(data), 61):
            self.file.write_bytes(data[:cut])
            with self.subTest(cut=cut):
                self.refused("pytorch_model.bin")
        flipped = data.replace(bytes(range(100, 200)), bytes(100))
        self.assertNotEqual(flipped, data)
        self.file.write_bytes(flipped)
        self.refused("w: expected its storage, found damage")

    def test_shards_stay_in_the_folder(self):
        index = self.model / "pytorch_model.bin.index.json"
        for names in (["../x.bin"], ["/etc/passwd"], [".."], [3], ["missing.bin"], "text"):
            index.write_text(json.dumps({"weight_map": dict(enumerate(names)) if names != "text" else names}))
            with self.subTest(names):
                self.refused("index.json", "expected")
        index.unlink()
        self.refused("expected pytorch_model.bin")

    @unittest.skipUnless(WITH_TORCH, "without --torch")
    def test_what_torch_writes(self):
        import torch

        torch.manual_seed(1)
        base = torch.randn(5, 7)
        state = {
            "f32": base,
            "view": base.t(),
            "bf16": base.bfloat16(),
            "f16": base.half(),
            "i64": torch.arange(9).view(3, 3)[:, 1:],
            "bool": base > 0,
            "parameter": torch.nn.Parameter(base[1:3]),
        }
        torch.save(state, self.file)
        found = self.converted()
        self.assertEqual(set(found), set(state))
        for name, t in state.items():
            raw = bytes(t.detach().contiguous().view(torch.uint8).flatten().tolist())
            self.assertEqual(found[name][1:], (list(t.shape), raw), name)


if __name__ == "__main__":
    unittest.main(argv=[a for a in sys.argv if a != "--torch"])
