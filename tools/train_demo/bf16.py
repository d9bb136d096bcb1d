"""How far plain PyTorch in bf16 is from its own f32 run on the demo's scenes: the yardstick for kernels that compute in bf16.

    python bf16.py ../../assets/demo ../../tests/data/demo > ../../tests/data/demo/bf16.json

For every expression asked alone: IoU of the bf16 run's mask with the f32 run's (masks/ID_K_alone.png). Fails where the two runs decide
[REJ] differently.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from evaluate import Runner, at_size, overlap, ratio
from text import seg_turn


class Bf16Runner(Runner):
    def __init__(self, folder):
        super().__init__(folder)
        self.net.to(torch.bfloat16)
        # What the model widens (pixels, sampled values) is narrowed again before the next layer with weights.
        narrow = lambda _, args: tuple(a.bfloat16() for a in args)
        for module in self.net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
                module.register_forward_pre_hook(narrow)


def main(assets, published):
    runner = Bf16Runner(assets / "model")
    found = {}
    for line in (assets / "scenes.jsonl").read_text().splitlines():
        scene = json.loads(line)
        picture = Image.open(assets / scene["image"]).convert("RGB")
        seen = runner.look(picture)
        for k, e in enumerate(scene["expressions"]):
            _, maps, _, rejected = runner.segment(seen, *seg_turn([e["text"]]))
            name = f"{scene['id']}_{k}_alone"
            exact = np.asarray(Image.open(published / "masks" / f"{name}.png")).astype(bool)
            mask = at_size(maps.float(), *picture.size)[0]
            assert bool(rejected[0]) == e["alone"]["reject"], f"{name}: another decision"
            found[name] = round(ratio(*overlap(mask, exact)), 5)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
