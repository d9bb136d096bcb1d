"""Draws scenes for `mllmseg batch`: python manifest.py OUT [--scenes 2000] [--expressions 3] [--seed 1]

OUT/images/NNNNNN.png and OUT/manifest.jsonl, a line a scene; needs numpy and pillow. The same arguments give the same files.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import scenes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--expressions", type=int, default=3, help="most of one scene")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    with open(args.out / "manifest.jsonl", "w") as manifest:
        for i in range(args.scenes):
            rng = np.random.default_rng([args.seed, i])
            picture, _, objects = scenes.render(rng)
            name = f"images/{i:06}.png"
            picture.save(args.out / name)
            exprs = [e[0] for e in scenes.several(rng, objects, args.expressions)]
            manifest.write(json.dumps({"id": i, "image": name, "exprs": exprs}) + "\n")


if __name__ == "__main__":
    main()
