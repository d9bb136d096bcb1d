"""Renders the training scenes once, at the model's input size, into arrays that are memory-mapped in training.

    python prepare.py CACHE FIRST COUNT

Scene number n is drawn by the generator seeded with (SEED, n). Training uses numbers below 1,000,000, evaluation starts
at 2,000,000, so no scene occurs twice.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import scenes

SEED = 20250
SIDE = 224


def scene(n):
    """Scene number n, as `scenes.render` gives it."""
    return scenes.render(np.random.default_rng([SEED, n]))


def main(cache, first, count):
    """Writes images.N.npy u8 (count, SIDE, SIDE, 3), owners.N.npy u8 (count, SIDE, SIDE), objects.N.json."""
    cache.mkdir(parents=True, exist_ok=True)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    all_owners = np.empty((count, SIDE, SIDE), np.uint8)
    all_objects = []
    for i in range(count):
        picture, owners, objects = scene(first + i)
        pictures[i] = np.asarray(picture.resize((SIDE, SIDE), Image.BICUBIC))
        all_owners[i] = np.asarray(Image.fromarray(owners).resize((SIDE, SIDE), Image.NEAREST))
        all_objects.append(objects)
    np.save(cache / f"images.{first:07d}.npy", pictures)
    np.save(cache / f"owners.{first:07d}.npy", all_owners)
    (cache / f"objects.{first:07d}.json").write_text(json.dumps(all_objects))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
