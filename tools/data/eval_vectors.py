"""Makes tests/data/eval/: data sets in the files that RefCOCO and its like are published as, results for them, and their metrics.

    python -m venv v && v/bin/pip install pycocotools==2.0.11 numpy==2.4.6
    v/bin/python tools/data/eval_vectors.py assets/demo/scenes.jsonl tests/data/eval

The pictures are the demo's; what is drawn there is outlined roughly: polygons, several polygons, RLE. The pickles are as Python 2 wrote them
(protocol 2 and 0, `str` being bytes) and as Python 3 does (protocol 4). The results are the ground truth moved about at random,
some of it rejected at random: no model has made them.
"""

import io
import json
import math
import os
import pickle
import struct
import sys

import numpy as np
from pycocotools import mask as coco

sys.path.insert(0, os.path.dirname(__file__))
from eval_metrics import metrics, refs_of, truth_of  # noqa: E402


class Python2Pickler(pickle._Pickler):
    """Writes `str` as Python 2 did: bytes, whatever they mean."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, text):
        try:
            data = text.encode("latin-1")
        except UnicodeEncodeError:
            return pickle._Pickler.save_str(self, text)
        if not self.bin:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        elif len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = save_str


def write_pickle(path, value, protocol, python2):
    with io.BytesIO() as f:
        (Python2Pickler if python2 else pickle._Pickler)(f, protocol).dump(value)
        data = f.getvalue()
    with open(path, "wb") as f:
        f.write(data)


def outline(shape, box, height, width):
    """A segmentation of an object in `box` [x0, y0, x1, y1]."""
    x0, y0, x1, y1 = box
    cx, cy, rx, ry = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    corners = lambda n, r=1: [
        round(v, 2)
        for k in range(n)
        for v in (cx + r * rx * math.sin(2 * math.pi * k / n), cy - r * ry * math.cos(2 * math.pi * k / n))
    ]
    flat = lambda *points: [round(v, 2) for point in points for v in point]
    if shape == "square":
        return [flat((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
    if shape == "triangle":
        return [flat((cx, y0), (x1, y1), (x0, y1))]
    if shape == "cross":  # two bars, which overlap
        return [
            flat((x0, cy - ry / 3), (x1, cy - ry / 3), (x1, cy + ry / 3), (x0, cy + ry / 3)),
            flat((cx - rx / 3, y0), (cx + rx / 3, y0), (cx + rx / 3, y1), (cx - rx / 3, y1)),
        ]
    if shape == "star":
        points = [(corners(10)[2 * k : 2 * k + 2], corners(10, 0.45)[2 * k : 2 * k + 2]) for k in range(10)]
        return [flat(*(points[k][k % 2] for k in range(10)))]
    if shape == "ring":  # a hole, which polygons cannot have
        outer, inner = coco.frPyObjects([corners(24), corners(24, 0.55)], height, width)
        hole = coco.decode(outer).astype(bool) & ~coco.decode(inner).astype(bool)
        rle = coco.encode(np.asfortranarray(hole.astype(np.uint8)))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    return [corners(16)]


def runs(rle):
    """Uncompressed."""
    flat = coco.decode(rle).reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": rle["size"], "counts": [int(n) for n in np.diff(np.concatenate([[0], edges]))]}


def instances(scenes):
    images, annotations, by_object = [], [], {}
    for scene in scenes:
        number = int(scene["id"])
        height, width = scene["height"], scene["width"]
        images.append({"id": 500000 + number, "file_name": os.path.basename(scene["image"]), "height": height, "width": width, "license": 1})
        for k, o in enumerate(scene["objects"]):
            x0, y0, x1, y1 = (v * s for v, s in zip(o["box"], (width, height, width, height)))
            segmentation = outline(o["shape"], (x0, y0, x1, y1), height, width)
            if isinstance(segmentation, dict) and k % 2:
                segmentation = runs(segmentation)
            annotation = 9000 + 10 * number + k
            by_object[number, k] = annotation
            annotations.append({
                "id": annotation, "image_id": 500000 + number, "category_id": 1 + len(o["shape"]), "iscrowd": 0,
                "area": round((x1 - x0) * (y1 - y0), 3), "segmentation": segmentation,
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            })
    categories = [{"id": 1 + n, "name": f"shape of {n} letters", "supercategory": "shape"} for n in range(4, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, by_object


def sentences(texts, first):
    return [
        {"sent_id": first + k, "sent": text, "raw": text.strip().capitalize() + ".", "tokens": text.split()}
        for k, text in enumerate(texts)
    ]


def refs(scenes, by_object, splits):
    """One ref an object, with two sentences or three."""
    found = []
    for scene in scenes:
        number = int(scene["id"])
        for k, o in enumerate(scene["objects"][:3]):
            name = f"{o['colour']} {o['shape']}"
            texts = [name, f" The {o['size']} {name}. "] + (["näher dran, 近い"] if (number + k) % 5 == 0 else [])
            first = 100 * number + 10 * k
            found.append({
                "ref_id": 70000 + first, "ann_id": by_object[number, k], "category_id": 1 + len(o["shape"]),
                "image_id": 500000 + number, "split": splits[number % len(splits)], "sentences": sentences(texts, first),
                "sent_ids": [first + i for i in range(len(texts))],
                "file_name": f"COCO_train2014_{500000 + number:012d}_{k}.png",
            })
    # As published: refs of a picture need not stand together.
    return found[::2] + found[1::2]


def grefs(scenes, by_object, splits):
    """One ref an expression of the demo: none, one or several objects."""
    found = []
    for scene in scenes:
        number = int(scene["id"])
        for k, e in enumerate(scene["expressions"]):
            first = 100 * number + 10 * k
            ids = [by_object[number, o] for o in e["objects"]] or [-1]
            found.append({
                "ref_id": 80000 + first, "ann_id": ids, "category_id": [1] * len(ids), "image_id": 500000 + number,
                "split": splits[number % len(splits)], "no_target": ids == [-1], "file_name": scene["image"],
                "sentences": sentences([e["text"]], first), "sent_ids": [first],
            })
    return found


def results(root, dataset, split_by, split, path, rng):
    """A results.jsonl as `mllmseg batch` writes it."""
    pictures, annotations = refs_of(root, dataset, split_by, split)
    with open(path, "w", encoding="utf-8") as f:
        for index, (image, refs) in enumerate(pictures):
            for ref in refs:
                for sentence in ref["sentences"]:
                    height, width = image["height"], image["width"]
                    mask, _ = truth_of(ref, annotations, height, width)
                    if not mask.any() or rng.random() < 0.1:
                        y, x = np.mgrid[0:height, 0:width]
                        mask = np.hypot(y - rng.integers(0, height), x - rng.integers(0, width)) < rng.integers(1, 30)
                    mask = np.roll(mask, rng.integers(-9, 10, 2), (0, 1)) if rng.random() < 0.7 else mask
                    if rng.random() < 0.06:
                        mask = np.zeros_like(mask)
                    right = 0.6 if ref["ann_id"] == [-1] else 0.2
                    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
                    record = {
                        "index": index, "id": image["id"], "image": image["file_name"], "expr": sentence["sent"],
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        "bbox": [int(v) for v in coco.toBbox(rle)], "area": int(coco.area(rle)),
                        "score": round(float(rng.random()), 3), "no_target": bool(rng.random() < right),
                    }
                    f.write(json.dumps(record, ensure_ascii=False) + "\n")


def main(scenes, out):
    scenes = [json.loads(line) for line in open(scenes, encoding="utf-8")]
    rng = np.random.default_rng(2)
    sets = [  # data set, who split it, scenes, splits
        ("refcoco", "unc", scenes[:9], ["val", "testA", "testB", "train", "val", "testAB"], (2, True)),
        ("refcoco+", "unc", scenes[9:12], ["val", "testA", "testB"], (0, True)),
        ("refcocog", "umd", scenes[12:16], ["val", "test"], (4, False)),
        ("refcocog", "google", scenes[12:14], ["val", "train"], (2, True)),
        ("grefcoco", "unc", scenes[8:], ["val", "testA", "testB", "val"], None),
    ]
    expected = []
    for dataset, split_by, some, splits, how in sets:
        folder = os.path.join(out, dataset)
        os.makedirs(folder, exist_ok=True)
        all_instances, by_object = instances(some if split_by != "google" else scenes[12:16])
        if dataset == "grefcoco":
            all_refs = grefs(some, by_object, splits)
            # A polygon of two points, as a few of COCO's annotations have: it is left out.
            next(a for a in all_instances["annotations"] if isinstance(a["segmentation"], list))["segmentation"].append([3, 4, 5, 6])
            with open(os.path.join(folder, f"grefs({split_by}).json"), "w") as f:
                json.dump(all_refs, f, separators=(",", ":"))
        else:
            all_refs = refs(some, by_object, splits)
            if how[0] == 0:  # what Latin-1 has and UTF-8 would not read
                all_refs[0]["sentences"][0]["sent"] = "caf\xe9 ol\xe9"
            write_pickle(os.path.join(folder, f"refs({split_by}).p"), all_refs, *how)
        with open(os.path.join(folder, "instances.json"), "w") as f:
            json.dump(all_instances, f, separators=(",", ":"))
        for split in {"google": ["val"], "umd": ["val", "test"]}.get(split_by, ["val", "testA", "testB"]):
            path = os.path.join(out, "results", f"{dataset}_{split_by}_{split}.jsonl")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            results(out, dataset, split_by, split, path, rng)
            for protocol in ["upstream", "deploy"] + (["rela"] if dataset == "grefcoco" else []):
                numbers = metrics(out, dataset, split_by, split, protocol, path)
                what = {"dataset": dataset, "split_by": split_by, "split": split, "protocol": protocol}
                expected.append(what | {"metrics": numbers})
    with open(os.path.join(out, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")
    print(len(expected), "rows")


if __name__ == "__main__":
    main(*sys.argv[1:3])
