"""What `mllmseg eval` reports, computed plainly with pycocotools from the same results: the numbers to compare with.

    python -m venv v && v/bin/pip install pycocotools==2.0.11 numpy==2.4.6
    v/bin/python tools/data/eval_metrics.py ROOT DATASET SPLIT_BY SPLIT PROTOCOL RESULTS.jsonl

Written from the published scripts' description, on whole masks, with none of the project's code: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO.
"""

import json
import os
import pickle
import sys

import numpy as np
from pycocotools import mask as coco


def refs_of(root, dataset, split_by, split):
    """Refs of a split, grouped by picture in the order of the refs: [(image, [ref, ...]), ...], and the annotations."""
    folder = os.path.join(root, dataset)
    prefix = "grefs" if dataset == "grefcoco" else "refs"
    path = os.path.join(folder, f"{prefix}({split_by}).p")
    if os.path.exists(path):
        with open(path, "rb") as f:
            refs = pickle.load(f, encoding="latin1")
    else:
        with open(path[:-1] + "json") as f:
            refs = json.load(f)
    with open(os.path.join(folder, "instances.json")) as f:
        instances = json.load(f)
    images = {i["id"]: i for i in instances["images"]}
    annotations = {a["id"]: a for a in instances["annotations"]}
    grouped = {}
    for ref in refs:
        if dataset == "grefcoco":
            inside = ref["split"] == split
        elif split in ("testA", "testB", "testC"):
            inside = split[-1] in ref["split"]
        elif split == "test":
            inside = "test" in ref["split"]
        else:
            inside = ref["split"] == split
        if inside:
            grouped.setdefault(ref["image_id"], []).append(ref)
    return [(images[i], refs) for i, refs in grouped.items()], annotations


def mask_of(annotation, height, width):
    segmentation = annotation["segmentation"]
    if len(segmentation) == 0:
        return np.zeros((height, width), bool)
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco.frPyObjects(segmentation, height, width)
        return coco.decode(segmentation).astype(bool)
    if isinstance(segmentation[0], dict):
        return coco.decode(segmentation).any(2)
    polygons = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
    return coco.decode(coco.frPyObjects(polygons, height, width)).any(2)


def truth_of(ref, annotations, height, width):
    """Mask and, for a single annotation, box."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    if ids == [-1]:
        return np.zeros((height, width), bool), None
    masks = [mask_of(annotations[i], height, width) for i in ids]
    return np.any(masks, 0), annotations[ids[0]]["bbox"] if len(ids) == 1 else None


def box_of(mask):
    """Corners of the first and the last pixel."""
    ys, xs = np.nonzero(mask)
    return None if len(ys) == 0 else (xs.min(), ys.min(), xs.max(), ys.max())


def box_iou(a, b):
    """Of [x0, y0, x1, y1]."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = lambda c: (c[2] - c[0]) * (c[3] - c[1])
    return w * h / (area(a) + area(b) - w * h)


def finds_box(mask, box, protocol):
    found = box_of(mask)
    if found is None:
        return False
    if protocol == "upstream":
        box = np.array(box, np.float64).astype(np.float16).astype(np.float32)
        found = np.array(found, np.float32)
    else:
        found = (found[0], found[1], found[2] + 1, found[3] + 1)
    return bool(box_iou(found, (box[0], box[1], box[0] + box[2], box[1] + box[3])) > 0.5)


def metrics(root, dataset, split_by, split, protocol, results):
    pictures, annotations = refs_of(root, dataset, split_by, split)
    by_picture = {}
    for line in open(results, encoding="utf-8"):
        record = json.loads(line)
        by_picture.setdefault(record["index"], []).append(record)
    general = dataset == "grefcoco"
    intersections = unions = 0
    ious, picture_ious, with_target, boxes = [], [], [], []
    rejected = {True: [], False: []}  # by whether there is no target
    for index, (image, refs) in enumerate(pictures):
        height, width = image["height"], image["width"]
        records = iter(by_picture[index])
        here = []
        for ref in refs:
            truth, box = truth_of(ref, annotations, height, width)
            for sentence in ref["sentences"]:
                record = next(records)
                assert record["expr"] == sentence["sent"], (record["expr"], sentence["sent"])
                mask = coco.decode(record["segmentation"]).astype(bool)
                no = record["no_target"]
                rejected[not truth.any()].append(no)
                if protocol == "deploy" and no:
                    mask = np.zeros_like(mask)
                both, either = int((mask & truth).sum()), int((mask | truth).sum())
                if general and not truth.any():
                    iou = 1.0 if no else 0.0
                    unions += 0 if no else either
                else:
                    if protocol == "rela" and no:
                        both = 0
                    iou = 1.0 if either == 0 else both / either
                    intersections += both
                    unions += either
                    if truth.any():
                        with_target.append(iou)
                if box is not None and not general:
                    empty = protocol == "rela" and no
                    boxes.append(not empty and finds_box(mask, box, protocol))
                here.append(iou)
        ious += here
        picture_ious.append(np.mean(here))
        assert next(records, None) is None
    mean = lambda values: float(np.mean(values)) if len(values) else None
    return {
        "expressions": len(ious),
        "no_target": len(rejected[True]),
        "pictures": len(pictures),
        "ciou": intersections / unions,
        "giou": mean(picture_ious) if protocol == "upstream" and not general else mean(ious),
        "precision": [mean([i >= t for i in with_target]) for t in (0.5, 0.6, 0.7, 0.8, 0.9)],
        "rec": mean(boxes),
        "n_acc": mean(rejected[True]),
        "t_acc": mean([not r for r in rejected[False]]) if general else None,
    }


if __name__ == "__main__":
    print(json.dumps(metrics(*sys.argv[1:7]), indent=1))
