"""Segments a data set with Ray Data: python -m mllmseg_ray SOURCE --model DIR --out DIR

SOURCE, or a glob of them: manifests of JSON lines (`*.jsonl`) or WebDataset shards (`*.tar`), both as `mllmseg batch` takes them, or Parquet
files with the columns image and exprs (`*.parquet` or a folder of them). Files are read on any node, so all must see them.
"""

import argparse
import base64
import glob
import itertools
import json
import os

import pyarrow as pa
import ray

from . import Segmenter

# What a source becomes. An image has bytes, a path, or an error: why there is none; there are expressions or questions.
SCHEMA = pa.schema(
    {
        "id": pa.string(),  # JSON
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string(), "error": pa.string()}),
        "exprs": pa.list_(pa.string()),
        "questions": pa.list_(pa.string()),
    }
)
# Rows that are read together.
ROWS = 32


def manifest(paths):
    """Items of manifests (src/batch/manifest.rs). A line that is none is a row that fails, not the end of the run."""

    def rows(batch):
        for path in batch["path"]:
            with open(path, "rb") as file:
                lines = (line_item(line, path, number) for number, line in enumerate(file, 1) if line.strip())
                while some := list(itertools.islice(lines, ROWS)):
                    yield pa.Table.from_pylist(some, SCHEMA)

    files = [{"path": os.path.abspath(p)} for p in paths]
    return ray.data.from_items(files, override_num_blocks=len(files)).map_batches(rows, batch_size=1)


def line_item(line, path, number):
    item, asked = {}, {}
    try:
        item = parse(line, "a JSON object with `image` or `image_b64`, and `exprs`, `expr`, `questions` or `question`", dict)
        asked, image = asked_by(item), picture_of(item, os.path.dirname(path))
    except ValueError as e:
        image = {"error": f"{path}:{number}: {e}"}
    return {"id": as_json(item.get("id")), "image": image, **asked}


def expected(what, found):
    return ValueError(f"expected {what}, found {found}")


def parse(text, what, kind=object):
    try:
        item = json.loads(text)
        as_json(item).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as e:
        raise expected(what, e) from None
    if not isinstance(item, kind):
        raise expected(what, type(item).__name__)
    return item


def as_json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def asked_by(item):
    names = ("exprs", "expr", "questions", "question")
    found = [(name, item[name]) for name in names if item.get(name) is not None]
    if len(found) > 1:
        raise expected("one of `exprs`, `expr`, `questions` and `question`", len(found))
    if not found or found[0][1] == []:
        raise expected("at least one expression or question in `exprs`, `expr`, `questions` or `question`", "none")
    [(name, texts)] = found
    if name in ("expr", "question"):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise expected(f"text in `{name}`", as_json(item[name]))
    return {"exprs": texts} if name in ("exprs", "expr") else {"questions": texts}


def picture_of(item, folder):
    found = [name for name in ("image", "image_b64") if item.get(name) is not None]
    if len(found) != 1:
        raise expected("one of `image` and `image_b64`" if found else "`image` or `image_b64`", "both" if found else "neither")
    text = item[found[0]]
    if not isinstance(text, str):
        raise expected(f"text in `{found[0]}`", as_json(text))
    if found == ["image"]:
        return {"path": os.path.join(folder, text)}
    try:
        return {"bytes": base64.b64decode(text, validate=True)}
    except ValueError as e:
        raise expected("a picture file in base64 in `image_b64`", e) from None


PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
# Names under which data sets keep their expressions, the better one first (src/batch/shards.rs); and their questions.
EXPRESSIONS = "exprs expr expressions expression captions caption sentences sentence text query".split()
QUESTIONS = ("questions", "question")


def webdataset(paths):
    """Items of WebDataset shards (src/batch/tar.rs)."""

    def rows(batch):
        samples = (dict(zip(batch, values)) for values in zip(*batch.values()))
        return pa.Table.from_pylist([sample_item(s) for s in samples], SCHEMA)

    return ray.data.read_webdataset(paths, decoder=None).map_batches(rows, batch_size=ROWS)


def sample_item(sample):
    key = sample["__key__"]
    members = {kind.lower(): data for kind, data in sample.items() if isinstance(data, bytes)}
    item, asked = {}, {}
    try:
        found = parse(members.get("json", b"{}"), "JSON")
        item = found if isinstance(found, dict) else {}
        asked = asked_of(item, members)
        image = next(({"bytes": members[kind]} for kind in PICTURES if kind in members), None)
        if not image:
            raise expected(f"a picture ({', '.join(PICTURES)})", "none")
        if not asked:
            raise expected("at least one expression or question", "none")
    except ValueError as e:
        image = {"error": f"{sample['__url__']}#{key}: {e}"}
    return {"id": as_json(key if item.get("id") is None else item["id"]), "image": image, **asked}


def asked_of(item, members):
    def named(names):
        return next(filter(None, (strings(item.get(n)) for n in names)), None)

    def text(kind):
        return members.get(kind, b"").decode(errors="replace")

    if exprs := named(EXPRESSIONS):
        return {"exprs": exprs}
    if questions := named(QUESTIONS):
        return {"questions": questions}
    if lines := list(filter(None, map(str.strip, text("txt").split("\n")))):
        return {"exprs": lines}
    name = text("cls").strip()
    try:
        float(name)  # a number is no name
    except ValueError:
        return {"exprs": [name]} if name else {}
    return {}


def strings(value):
    """A string, or the strings of a list, or those of a list of objects with `sent` or `raw` in them."""
    if isinstance(value, str):
        return [value]
    found = []
    for v in value if isinstance(value, list) else ():
        texts = [v.get("sent"), v.get("raw")] if isinstance(v, dict) else [v]
        found += [t for t in texts if isinstance(t, str)][:1]
    return found


def main(args=None):
    parser = argparse.ArgumentParser(prog="mllmseg_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, help="folder for Parquet files, a row an expression or question")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args(args)
    paths = sorted(glob.glob(args.source)) or [args.source]
    kinds = {".json" if p.endswith((".jsonl", ".json")) else ".tar" if p.endswith(".tar") else ".parquet" for p in paths}
    if len(kinds) > 1:
        parser.error(f"{args.source}: expected files of one kind, found {', '.join(sorted(kinds))}")
    [kind] = kinds
    ds = {".json": manifest, ".tar": webdataset, ".parquet": ray.data.read_parquet}[kind](paths)
    ds.map_batches(
        Segmenter,
        fn_constructor_kwargs={"model": args.model, "questions": None if kind == ".parquet" else "questions"},
        batch_size=args.batch_size,
        num_gpus=args.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
    ).write_parquet(args.out)


if __name__ == "__main__":
    main()
