"""`mllmseg eval`, and the files that batches become, beside pycocotools, NumPy and pyarrow.

    python -m venv v && v/bin/pip install -r tools/data/requirements.txt
    v/bin/python tools/check_eval.py target/release/mllmseg

Runs the demo model on the data sets of tests/data/eval and compares every figure that is printed with a plain computation from the
same masks (tools/data/eval_metrics.py); loads an instances file and a Parquet file of results and compares the masks. Prints what
was compared; ends with 1 if something differs.
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow.parquet as pq
from pycocotools import mask as coco
from pycocotools.coco import COCO

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "data"))
from eval_metrics import metrics  # noqa: E402

program, root = os.path.abspath(sys.argv[1]), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(root)
data = "tests/data/eval"
model = ["--model", "assets/demo/model"]


def run(*args):
    subprocess.run([program, *args], check=True, stdout=subprocess.PIPE)


def same(found, expected):
    if isinstance(found, list):
        return all(same(f, e) for f, e in zip(found, expected, strict=True))
    # The last digit printed is 1e-4 of a share.
    return found == expected or abs(found - expected) < 1e-12


with tempfile.TemporaryDirectory() as out:
    figures = 0
    for dataset, protocols in [("refcoco", "upstream,deploy"), ("refcoco+", "upstream,deploy"), ("refcocog", "upstream,deploy"), ("grefcoco", "upstream,deploy,rela")]:
        place = os.path.join(out, dataset)
        run("eval", *model, "--data", data, "--images", "assets/demo/images", "--dataset", dataset, "--protocol", protocols, "--out", place)
        for row in json.load(open(os.path.join(place, "eval.json")))["figures"]:
            how = "joint" if row["protocol"] == "upstream" else "single"
            where = [row["dataset"], row["split_by"], row["split"]]
            results = os.path.join(place, "_".join([*where, how]), "results.jsonl")
            expected = metrics(data, *where, row["protocol"], results)
            assert row["failed"] == 0, row
            for key, value in expected.items():
                assert same(row["metrics"][key], value), (where, row["protocol"], key, row["metrics"][key], value)
                figures += 1
    print(figures, "figures are equal")

    manifest = os.path.join(out, "manifest.jsonl")
    with open(manifest, "w") as f:
        for line in open("assets/demo/scenes.jsonl"):
            scene = json.loads(line)
            item = {"id": scene["id"], "image": os.path.join(root, "assets/demo", scene["image"]), "exprs": [e["text"] for e in scene["expressions"]]}
            f.write(json.dumps(item) + "\n")
    place = os.path.join(out, "batch")
    instances, table = os.path.join(out, "coco.json"), os.path.join(out, "results.parquet")
    run("batch", manifest, *model, "--out", place, "--coco", instances, "--parquet", table)
    records = [json.loads(line) for line in open(os.path.join(place, "results.jsonl"))]
    masks = [coco.decode(r["segmentation"]) for r in records]

    loaded = COCO(instances)
    annotations = loaded.loadAnns(loaded.getAnnIds())
    some = [(r, m) for r, m in zip(records, masks) if m.any()]
    assert len(annotations) == len(some), (len(annotations), len(some))
    for annotation, (record, mask) in zip(annotations, some):
        assert (loaded.annToMask(annotation) == mask).all(), record
        assert loaded.loadImgs(annotation["image_id"])[0]["file_name"] == record["image"]
        assert annotation["attributes"]["expression"] == record["expr"] and annotation["area"] == mask.sum()
        x, y, w, h = annotation["bbox"]
        assert mask.sum() == mask[y : y + h, x : x + w].sum() and w * h > 0
    print(len(annotations), "annotations of the instances file are equal")

    rows = pq.read_table(table).to_pylist()
    assert len(rows) == len(records)
    for row, record, mask in zip(rows, records, masks):
        found = coco.decode({"size": [row["height"], row["width"]], "counts": row["counts"]})
        assert (found == mask).all() and row["expr"] == record["expr"] and json.loads(row["id"]) == record["id"]
        assert row["no_target"] == record["no_target"] and np.isclose(row["score"], record["score"]) and row["error"] is None
        assert [row["bbox_x"], row["bbox_y"], row["bbox_width"], row["bbox_height"]] == record["bbox"]
    print(len(rows), "rows of the Parquet file are equal")
