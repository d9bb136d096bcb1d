"""Segments a data set with Ray Data: python -m mllmseg_ray SOURCE --model DIR --out DIR

SOURCE: a manifest of JSON lines (`*.jsonl`, as `mllmseg batch` takes it), Parquet files with the columns image and exprs (`*.parquet` or a
folder of them), or WebDataset shards (`*.tar`) whose samples have a picture and a `txt` or a `json` with `exprs` or `expr`.
"""

import argparse
import glob
import json
import os

import ray

from . import Segmenter


def manifest(path):
    """Rows of id (as JSON text), image and exprs."""
    folder = os.path.dirname(os.path.abspath(path))

    def row(line):
        item = json.loads(line["text"])
        image = os.path.join(folder, item["image"])
        return {"id": json.dumps(item.get("id")), "image": image, "exprs": item.get("exprs") or [item["expr"]]}

    return ray.data.read_text(path).map(row)


def webdataset(paths):
    """Rows of id (the sample's key), image and exprs."""

    def row(sample):
        image = next(sample[k] for k in ("jpg", "jpeg", "png", "webp") if k in sample)
        asked = sample.get("json", {})
        if isinstance(asked, (bytes, str)):
            asked = json.loads(asked)
        text = sample.get("txt", b"")
        text = text.decode() if isinstance(text, bytes) else text
        return {"id": sample["__key__"], "image": image, "exprs": asked.get("exprs") or [asked.get("expr") or text.strip()]}

    return ray.data.read_webdataset(paths, decoder=None).map(row)


def main():
    parser = argparse.ArgumentParser(prog="mllmseg_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, help="folder for Parquet files, a row an expression")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    paths = sorted(glob.glob(args.source)) or [args.source]
    if paths[0].endswith((".jsonl", ".json")):
        ds = manifest(paths[0])
    elif paths[0].endswith(".tar"):
        ds = webdataset(paths)
    else:
        ds = ray.data.read_parquet(paths)
    ds.map_batches(
        Segmenter,
        fn_constructor_kwargs={"model": args.model},
        batch_size=args.batch_size,
        num_gpus=args.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
    ).write_parquet(args.out)


if __name__ == "__main__":
    main()
