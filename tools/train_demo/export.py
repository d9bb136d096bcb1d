"""Writes a training checkpoint as config.json, generation_config.json and a bf16 model.safetensors.

    python export.py CHECKPOINT MODEL_DIR

MODEL_DIR holds the tokenizer already. The helper heads of the training are left out.
"""

import copy
import json
import sys
from pathlib import Path

import torch

import model
from text import SYSTEM, Text


def main(checkpoint, folder):
    text = Text(folder)
    config = copy.deepcopy(model.DEMO)
    config["llm_config"]["vocab_size"] = text.size
    config["system_message"] = SYSTEM
    net = model.MLLMSeg(config)
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["net"])
    model.save(net, folder)
    generation = dict(
        _from_model_config=True, bos_token_id=1, eos_token_id=[2, text.im_end], pad_token_id=2, do_sample=False
    )
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
