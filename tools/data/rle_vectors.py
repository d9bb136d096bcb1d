"""Makes tests/data/rle.json: masks and what pycocotools gives for each.

    python -m venv v && v/bin/pip install pycocotools==2.0.11 numpy==2.4.6
    v/bin/python tools/data/rle_vectors.py tests/data/rle.json

A mask is written as its rows, packed eight pixels to a byte (the first in the highest bit), in hexadecimal.
"""

import importlib.metadata
import json
import sys

import numpy as np
from pycocotools import mask as coco

rng = np.random.default_rng(11)
masks = []
sizes = [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (3, 5), (8, 8), (7, 31), (32, 17), (1, 300), (300, 1)]
for h, w in sizes:
    masks += [np.zeros((h, w)), np.ones((h, w))]
    checkers = np.indices((h, w)).sum(0) % 2
    masks += [checkers, 1 - checkers]
    for corner in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        one = np.zeros((h, w))
        one[corner] = 1
        masks += [one, 1 - one]
    stripes = np.indices((h, w)) % 2
    masks += [stripes[0], stripes[1]]
for _ in range(120):
    h, w = rng.integers(1, 60, 2)
    masks.append(rng.random((h, w)) < rng.random())
# Blobs, whose runs differ little from those two before: negative and small differences.
for _ in range(60):
    h, w = rng.integers(20, 140, 2)
    y, x = np.mgrid[0:h, 0:w]
    disc = lambda: np.hypot(y - rng.integers(0, h), x - rng.integers(0, w)) < rng.integers(2, 50)
    masks.append(disc() ^ disc() if rng.random() < 0.5 else disc())
# Runs of more than 2^15 and 2^20 pixels: numbers of several groups.
big = np.zeros((1500, 900))
big[700:, 850:] = 1
masks += [big, 1 - big]

cases = []
for m in masks:
    m = np.asfortranarray(m.astype(np.uint8))
    rle = coco.encode(m)
    bits = None if m.size > 100_000 else np.packbits(m.reshape(-1, order="C")).tobytes().hex()
    cases.append({
        "size": rle["size"], "counts": rle["counts"].decode(), "area": int(coco.area(rle)),
        "bbox": [int(v) for v in coco.toBbox(rle)], "bits": bits,
    })
with open(sys.argv[1], "w") as f:
    note = {"pycocotools": importlib.metadata.version("pycocotools"), "cases": cases}
    f.write(json.dumps(note).replace('{"size"', '\n{"size"') + "\n")
print(len(cases), "masks")
