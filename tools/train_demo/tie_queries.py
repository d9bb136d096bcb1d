"""Starts the first query head of the upper two language layers from the keys, 0.7 of them.

    python tie_queries.py IN OUT

Attention there then begins as "look at what resembles you", which is what a question word has to learn about the picture.
Done once, early in the training, when these layers have learnt little else.
"""

import sys

import torch

from model import DEMO


def main(source, target):
    checkpoint = torch.load(source, weights_only=True)
    c = DEMO["llm_config"]
    heads, kv_heads, layers = c["num_attention_heads"], c["num_key_value_heads"], c["num_hidden_layers"]
    group, head_size = heads // kv_heads, c["hidden_size"] // heads
    for i in range(layers - 2, layers):
        wqkv = checkpoint["net"][f"language_model.model.layers.{i}.attention.wqkv.weight"]
        by_head = wqkv.view(kv_heads, group + 2, head_size, -1)
        by_head[:, 0] = 0.7 * by_head[:, group]
    torch.save(checkpoint, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
