"""Makes tests/data/rle_digests.json: what pycocotools gives for 3,000 masks and 3,000 polygons, as digests.

    python -m venv v && v/bin/pip install pycocotools==2.0.11 numpy==2.4.6
    v/bin/python tools/data/rle_digests.py tests/data/rle_digests.json

The masks and polygons are made from numbers alone, here and in tests/image_rle.rs in the same way, so that only a digest of
what pycocotools says of each hundred has to be kept.
"""

import hashlib
import importlib.metadata
import json
import sys

import numpy as np
from pycocotools import mask as coco

MASK64 = 2**64 - 1


class Random:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return (z ^ (z >> 31)) % n


def mask(i):
    r = Random(i)
    kind = i % 10
    h, w = 1 + r.below(60), 1 + r.below(60)
    if kind == 0:
        h, w = [(1, 1 + h * w), (1 + h * w, 1)][r.below(2)]
    a, b, c = r.below(h), r.below(w), r.below(h + w)
    density = r.below(101)
    m = np.zeros((h, w), np.uint8)
    for y in range(h):
        for x in range(w):
            m[y, x] = {
                1: lambda: 0,
                2: lambda: 1,
                3: lambda: (x + y) % 2,
                4: lambda: y % (1 + a) == 0,
                5: lambda: x % (1 + b) == 0,
                6: lambda: (y - a) ** 2 + (x - b) ** 2 <= c * c // 4,
                7: lambda: (y, x) == (a, b),
                8: lambda: (y, x) != (a, b),
            }.get(kind, lambda: r.below(100) < density)()
    return m


def polygon(i):
    """Height, width and corners; coordinates are whole pixels, halves, tenths or hundredths, some outside the picture."""
    r = Random(1_000_000 + i)
    h, w = 1 + r.below(90), 1 + r.below(90)
    unit = [1, 2, 10, 100][i % 4]
    corners = 3 + r.below([1, 4, 9, 30][r.below(4)])
    spread = [1, 2, 3][r.below(3)]  # how far outside
    xy = []
    for _ in range(corners):
        for side in (w, h):
            xy.append((r.below(spread * side * unit + 1) - (spread - 1) * side * unit // 2) / unit)
    return h, w, xy


def digests(lines):
    return [hashlib.sha256("".join(lines[i : i + 100]).encode()).hexdigest() for i in range(0, len(lines), 100)]


masks = [coco.encode(np.asfortranarray(mask(i))) for i in range(3000)]
polygons = []
for i in range(3000):
    h, w, xy = polygon(i)
    [rle] = coco.frPyObjects([xy], h, w)
    polygons.append(rle)
unions = []
for i in range(0, 3000, 3):
    h, w, _ = polygon(i)
    parts = [polygon(i + k)[2] for k in range(3)]
    merged = coco.merge(coco.frPyObjects(parts, h, w))
    # As the published code unites polygons: the sum of the decoded masks, not `merge`. Equal, but compared.
    united = coco.encode(np.asfortranarray(coco.decode(coco.frPyObjects(parts, h, w)).any(2).astype(np.uint8)))
    assert (coco.decode(merged) == coco.decode(united)).all()
    unions.append(united)
line = lambda rle: f"{rle['size'][0]} {rle['size'][1]} {rle['counts'].decode()} {coco.area(rle)}\n"
result = {
    "pycocotools": importlib.metadata.version("pycocotools"),
    "masks": digests([line(m) for m in masks]),
    "polygons": digests([line(p) for p in polygons]),
    "unions": digests([line(u) for u in unions]),
    # For whoever looks for what differs.
    "first": {"mask": line(masks[9]), "polygon": line(polygons[0]), "union": line(unions[0])},
}
with open(sys.argv[1], "w") as f:
    json.dump(result, f, indent=1)
    f.write("\n")
