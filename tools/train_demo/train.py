"""Trains the demo model on rendered scenes, on a few CPU cores. README.md has the commands.

    python train.py --cache CACHE --model MODEL_DIR --out CHECKPOINT (--minutes M | --steps N) [--init CHECKPOINT] ...

Processes with one thread each share every batch (on a small shared machine that beats one process with their threads);
gradients are averaged once a step. Matrix products run in bf16 (autocast), weights and optimiser stay in f32. Letters in
shapes as in model.py; R is the rows of text in a batch (one an image), K the slots ([SEG] or [REJ]) in all of them.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import model
import scenes
from text import Text, phrase_turn, seg_turn

IGNORE = -100
PARSE_KINDS = ["one", "side", "rel", "all"]
PLACES = scenes.SIDES + scenes.RELATIONS
# Classes of a colour, a shape, a size; class 0 is "none".
N_COLOUR, N_SHAPE, N_SIZE = len(scenes.COLOURS) + 1, len(scenes.SHAPES) + 1, len(scenes.SIZES) + 1
ATTRIBUTES = (N_COLOUR, N_SHAPE, N_SIZE)
PARSE = (len(PARSE_KINDS), *ATTRIBUTES, len(PLACES) + 1, N_COLOUR, N_SHAPE)
STATISTICS = ["loss", "patch", "colour", "shape", "seg", "rej", "words", "where", "parse", "iou"]


def class_of(names, name):
    """1 + the name's index; 0 for None."""
    return 0 if name is None else names.index(name) + 1


def attribute_classes(o):
    return [
        class_of(scenes.COLOUR_NAMES, o["colour"]),
        class_of(scenes.SHAPES, o["shape"]),
        class_of(scenes.SIZES, o["size"]),
    ]


class Cache:
    """The rendered scenes of prepare.py, each also mirrored."""

    def __init__(self, folder):
        files = sorted(Path(folder).glob("objects.*.json"))
        if not files:
            raise SystemExit(f"{folder}: expected what prepare.py writes, found no objects.*.json")
        self.parts = []
        for file in files:
            number = file.name.split(".")[1]
            pictures = np.load(file.with_name(f"images.{number}.npy"), mmap_mode="r")
            owners = np.load(file.with_name(f"owners.{number}.npy"), mmap_mode="r")
            self.parts.append((pictures, owners, json.loads(file.read_text())))
        self.ends = np.cumsum([len(objects) for _, _, objects in self.parts])

    def batch(self, rng, size):
        """Pictures u8 (B, S, S, 3), owners u8 (B, S, S), the objects of each."""
        pictures, owners, objects = [], [], []
        for i in rng.integers(self.ends[-1], size=size):
            part = int(np.searchsorted(self.ends, i, side="right"))
            picture, owner, objs = (p[i - self.ends[part]] for p in self.parts[part])
            if rng.random() < 0.5:
                picture, owner, objs = picture[:, ::-1], owner[:, ::-1], scenes.mirrored(objs)
            pictures.append(picture)
            owners.append(owner)
            objects.append(objs)
        return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(owners)), objects


class Helpers(nn.Module):
    """Heads that exist only while training."""

    def __init__(self, d, h, side, patch):
        super().__init__()
        self.patch = nn.Linear(d, sum(ATTRIBUTES) + 6)  # what a patch shows: its attributes, centre and box
        self.fine = nn.Linear(d, patch * patch)  # which of a patch's pixels belong to any shape
        self.where = nn.Linear(h, side * side)  # which patches the expression of a slot covers
        self.parse = nn.Linear(h, sum(PARSE))  # what a slot's expression says


def cells(owners, side):
    """owners (B, S, S) -> (B, side, S/side, side, S/side): the pixels of each patch."""
    b, s, _ = owners.shape
    return owners.view(b, side, s // side, side, s // side)


def cover_by_object(owners, side):
    """The share of each patch that each object covers, (B, side^2, MAX_OBJECTS)."""
    parts = cells(owners, side)
    shares = [(parts == k).float().mean((2, 4)) for k in range(1, scenes.MAX_OBJECTS + 1)]
    return torch.stack(shares, -1).flatten(1, 2)


def per_object(objects, describe, width):
    """describe(object) for each of the objects, (B, MAX_OBJECTS, width), zeros where there is none."""
    table = torch.zeros(len(objects), scenes.MAX_OBJECTS, width)
    for i, objs in enumerate(objects):
        for k, o in enumerate(objs):
            table[i, k] = torch.tensor(describe(o))
    return table


def patch_loss(helpers, f_vit, owners, objects, side, stat):
    """The vision tower says, patch by patch, what it looks at. f_vit (B, N, D)."""
    cover = cover_by_object(owners, side)
    best, which = cover.max(-1)
    shown, bare = best > 0.25, cover.sum(-1) < 0.03
    width = len(ATTRIBUTES) + 6
    table = per_object(objects, lambda o: attribute_classes(o) + [o["x"], o["y"], *o["box"]], width)
    target = torch.gather(table, 1, which[..., None].expand(-1, -1, width))
    y = helpers.patch(f_vit).float()
    *logits, place = y.split([*ATTRIBUTES, 6], -1)
    loss = 0.0
    for j, (name, part) in enumerate(zip(("colour", "shape", None), logits)):
        label = target[..., j].long()
        label = torch.where(shown, label, torch.where(bare, 0, IGNORE))
        weight = torch.ones(part.shape[-1])
        weight[0] = 0.3
        loss = loss + F.cross_entropy(part.flatten(0, 1), label.flatten(), weight=weight, ignore_index=IGNORE)
        if name:
            stat[name] = ((part.argmax(-1) == label) & shown).float().sum() / shown.float().sum()
    pixels = (cells(owners, side) > 0).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2).float()
    loss = loss + 2 * F.binary_cross_entropy_with_logits(helpers.fine(f_vit).float(), pixels)
    loss = loss + 8 * F.smooth_l1_loss(place[shown], target[..., len(ATTRIBUTES) :][shown], beta=0.05)
    stat["patch"] = loss.detach()
    return loss


class TextBatch:
    """Questions about some images: one packed row an image, its questions side by side behind the shared prefix.

    `ids`, `positions` (R, T); `mask` (R, 1, T, T), added to the scores; `words`: (row, position, token, weight) to
    predict; `slots`: (row, position, objects meant, parse) of every [SEG] or [REJ]. Positions are those of the state that
    predicts: one before the token.
    """

    def __init__(self, rng, text, objects, image_tokens, turns, absent_share):
        self.rng, self.text, self.absent_share = rng, text, absent_share
        self.prefix = text.prefix(image_tokens)
        self.words, self.slots = [], []
        rows = [self.row(r, objs, turns) for r, objs in enumerate(objects)]
        longest = max(len(ids) for ids, _, _ in rows)

        def padded(column, value):
            return torch.tensor([row[column] + [value] * (longest - len(row[column])) for row in rows])

        self.ids, turn, self.positions = padded(0, 2), padded(1, -1), padded(2, 0)
        # A token sees the prefix (turn 0) and what stands before it in its own turn.
        i = torch.arange(longest)
        sees = ((turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None])) & (i[None, :] <= i[:, None])
        self.mask = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))[:, None]

    def row(self, r, objects, turns):
        """Token ids, number of the turn, positions."""
        n = len(self.prefix)
        ids, turn_of, positions = list(self.prefix), [0] * n, list(range(n))
        for turn in range(turns):
            question, shown, true, expressions, weight = self.turn(objects, last=turn == turns - 1)
            question_ids, shown_ids = self.text.turn(question, shown)
            true_ids = self.text.turn(question, true)[1]
            start, head, slot = len(ids) + len(question_ids), self.text.head(), 0
            for j, token in enumerate(true_ids):
                if token in (self.text.seg, self.text.rej):
                    _, targets, parse = expressions[slot]
                    self.slots.append((r, start + j - 1, targets, parse))
                    self.words.append((r, start + j - 1, token, 1.0))
                    slot += 1
                elif head <= j < len(true_ids) - 1:
                    self.words.append((r, start + j - 1, token, weight))
            ids += question_ids + shown_ids
            length = len(question_ids) + len(shown_ids)
            turn_of += [turn + 1] * length
            positions += range(n, n + length)
        return ids, turn_of, positions

    def turn(self, objects, last):
        """Question, the answer that is shown, the true answer, its expressions, the weight of its words.

        75 % of the answers with slots show [SEG] in every one, as inference does; the label is always the true token.
        """
        rng = self.rng
        if rng.random() < (0.5 if last else 0.05):
            question, answer, kind = scenes.chat(rng, objects)
            return "\n" + question, answer, answer, [], 1.0 if kind == "box" else 3.0
        count, make = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.2, 0.25, 0.25])), seg_turn
        if rng.random() < 0.12:
            count, make = 1, phrase_turn
        expressions = scenes.several(rng, objects, count, self.absent_share)
        names, present = [e[0] for e in expressions], [bool(e[1]) for e in expressions]
        question, true = make(names, present)
        shown = make(names, present if rng.random() < 0.25 else None)[1]
        return question, shown, true, expressions, 0.06


def language_states(net, image_tokens, batch, image_context):
    """States after the last norm and after layer 1, (R, T, H) each; and the position of the first image token."""
    llm = net.language_model
    x = llm.model.tok_embeddings(batch.ids)
    first = batch.prefix.index(image_context)
    x = torch.cat([x[:, :first], image_tokens.float(), x[:, first + image_tokens.shape[1] :]], 1)
    cos, sin = llm.rope(torch.arange(int(batch.positions.max()) + 1))
    cos, sin = cos[batch.positions][:, None], sin[batch.positions][:, None]
    for i, layer in enumerate(llm.model.layers):
        x, _ = layer(x, cos, sin, batch.mask)
        if i == 1:
            early = x
    return llm.model.norm(x), early, first


def word_loss(net, text, states, words, opt, stat):
    """Cross-entropy on slots and on the words of answers."""
    rows, positions, tokens, weights = zip(*words)
    logits = net.language_model.output(states[list(rows), list(positions)]).float()
    tokens, weights = torch.tensor(tokens), torch.tensor(weights)
    each = F.cross_entropy(logits, tokens, reduction="none")
    rejected = tokens == text.rej
    slot = (tokens == text.seg) | rejected
    plain = (each * weights)[~slot].sum() / weights[~slot].sum().clamp_min(1)
    right = logits.argmax(-1) == tokens
    stat["seg"] = right[tokens == text.seg].float().mean()
    stat["rej"] = right[rejected].float().mean() if rejected.any() else torch.tensor(1.0)
    stat["words"] = plain.detach()
    return opt.w_slot * each[slot].mean() + opt.w_words * plain


def where_loss(helpers, slot_states, cover, side, stat):
    """A slot says which patches its expression covers. slot_states (K, H), cover (K, S, S)."""
    target = F.avg_pool2d(cover[:, None], cover.shape[1] // side).flatten(1)
    y = helpers.where(slot_states).float()
    loss = F.binary_cross_entropy_with_logits(y, target, pos_weight=torch.tensor(3.0))
    found, wanted = y > 0, target > 0.4
    stat["where"] = ((found & wanted).sum(1) / (found | wanted).sum(1).clamp_min(1)).float().mean()
    return 4 * loss


def parse_loss(helpers, early_slots, early_image, parses, owners, objects, stat):
    """A slot says what its expression says; the same rows read the attributes of things off the image tokens, so that
    question and picture speak one language. early_slots (K, H), early_image (B, N/4, H)."""
    labels = torch.tensor(
        [
            [
                PARSE_KINDS.index(p["kind"]),
                class_of(scenes.COLOUR_NAMES, p["c"]),
                class_of(scenes.SHAPES, p["s"]),
                class_of(scenes.SIZES, p["z"]),
                class_of(PLACES, p["side"]),
                class_of(scenes.COLOUR_NAMES, p["c2"]),
                class_of(scenes.SHAPES, p["s2"]),
            ]
            for p in parses
        ]
    )
    loss, right = 0.0, torch.ones(len(labels), dtype=torch.bool)
    for j, logits in enumerate(helpers.parse(early_slots).float().split(PARSE, -1)):
        loss = loss + F.cross_entropy(logits, labels[:, j])
        right &= logits.argmax(-1) == labels[:, j]
    stat["parse"] = right.float().mean()

    best, which = cover_by_object(owners, math.isqrt(early_image.shape[1])).max(-1)
    shown = best > 0.2
    table = per_object(objects, attribute_classes, len(ATTRIBUTES)).long()
    labels = torch.gather(table, 1, which[..., None].expand(-1, -1, len(ATTRIBUTES)))[shown]
    read = helpers.parse(early_image[shown]).float().split(PARSE, -1)
    for j in range(len(ATTRIBUTES)):
        loss = loss + F.cross_entropy(read[1 + j], labels[:, j])
    return loss


def mask_loss(logits, target, stat):
    """BCE, focal loss and dice. logits, target (Q, S, S)."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    p, target = logits.sigmoid().flatten(1), target.flatten(1)
    focal = (bce * (p - target).abs().pow(2)).mean(1)
    dice = 1 - (2 * (p * target).sum(1) + 20) / (p.sum(1) + target.sum(1) + 20)
    found, wanted = p.detach() >= 0.5, target > 0.5
    stat["iou"] = ((found & wanted).sum(1) / (found | wanted).sum(1).clamp_min(1)).mean()
    return (bce.mean(1) * 2 + focal * 10 + dice).mean()


def text_loss(net, helpers, text, rng, f_vit, owners, objects, opt, stat):
    """All that needs the language model. f_vit (B, N, D)."""
    batch = TextBatch(rng, text, objects, net.image_tokens, opt.turns, opt.absent)
    states, early, first = language_states(net, net.project(f_vit), batch, text.image_context)
    loss = word_loss(net, text, states, batch.words, opt, stat)
    rows, positions, targets, parses = zip(*batch.slots)
    rows, positions = torch.tensor(rows), torch.tensor(positions)
    slot_states = states[rows, positions]
    cover = torch.stack(
        [sum((owners[r] == k + 1).float() for k in objs) if objs else torch.zeros(owners.shape[1:])
         for r, objs in zip(rows.tolist(), targets)]
    )  # fmt: skip
    present = torch.tensor([bool(objs) for objs in targets])
    if opt.w_where and present.any():
        loss = loss + opt.w_where * where_loss(helpers, slot_states[present], cover[present], net.side, stat)
    if opt.w_parse:
        early_image = early[:, first : first + net.image_tokens]
        loss = loss + opt.w_parse * parse_loss(
            helpers, early[rows, positions], early_image, parses, owners, objects, stat
        )
    picked = torch.nonzero(present)[:, 0]
    picked = picked[torch.from_numpy(rng.permutation(len(picked)))[: int(opt.masks * len(objects))]]
    if len(picked):
        # As published, the image is read one position early: from <img> up to the last image token but one.
        image = net.res_decoder.image(f_vit, states[:, first - 1 : first - 1 + net.image_tokens])
        logits = net.res_decoder.expression(image[rows[picked]], slot_states[picked], one_tap=opt.one_tap)
        loss = loss + opt.w_mask * mask_loss(logits.float(), cover[picked], stat)
    return loss


def parameter_groups(net, helpers, opt):
    """Groups for the optimiser: matrices with weight decay, the rest without; the vision tower has its own rate."""
    named = list(net.named_parameters()) + [("helpers." + n, p) for n, p in helpers.named_parameters()]
    groups = {}
    for name, p in named:
        vision = name.startswith("vision_model")
        if opt.parts == "vit" and not (vision or name.startswith(("helpers.patch", "helpers.fine"))):
            p.requires_grad_(False)
            continue
        decays = p.dim() > 1 and "embed" not in name
        groups.setdefault((decays, vision), []).append(p)
    return [
        dict(params=params, weight_decay=opt.decay if decays else 0.0, scale=opt.vit_scale if vision else 1.0)
        for (decays, vision), params in groups.items()
    ]


def exchange(params, progress, stat, ranks):
    """Averages gradients over the processes, in place; returns their norm, the mean progress and the mean statistics."""
    numbers = torch.tensor([progress] + [float(stat.get(name, 0.0)) for name in STATISTICS])
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]
    flat = torch.cat([*gradients, numbers])
    dist.all_reduce(flat)
    flat /= ranks
    gradient, (progress, *row) = flat[: -len(numbers)], flat[-len(numbers) :].tolist()
    for p, part in zip(params, gradient.split([p.numel() for p in params])):
        p.grad = part.view_as(p)
    return float(gradient.norm()), progress, row


def work(rank, opt):
    """One process of the training."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(opt.port))
    dist.init_process_group("gloo", rank=rank, world_size=opt.ranks)
    torch.manual_seed(opt.seed)
    rng = np.random.default_rng([opt.seed, rank])
    cache, text = Cache(opt.cache), Text(opt.model)
    config = copy.deepcopy(model.DEMO)
    vision, llm = config["vision_config"], config["llm_config"]
    llm["vocab_size"] = text.size
    net = model.MLLMSeg(config)
    helpers = Helpers(vision["hidden_size"], llm["hidden_size"], net.side, vision["patch_size"])
    if opt.init:
        checkpoint = torch.load(opt.init, weights_only=True)
        net.load_state_dict(checkpoint["net"])
        helpers.load_state_dict(checkpoint["helpers"])
    groups = parameter_groups(net, helpers, opt)
    adam = torch.optim.AdamW(groups, lr=opt.lr, betas=(0.9, 0.98), fused=True)
    params = [p for group in groups for p in group["params"]]
    batch_norm = net.res_decoder.conv1[1]
    batch_norm.momentum = 0.02
    net.train()
    begin = saved = time.time()
    step, history, progress = 0, [], 0.0
    while progress < 1.0:
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        rate = opt.lr * min(1.0, (step + 1) / opt.warmup) * (opt.floor + (1 - opt.floor) * cosine)
        for group in adam.param_groups:
            group["lr"] = rate * group["scale"]
        if progress >= opt.freeze_bn:
            batch_norm.eval()
        pictures, owners, objects = cache.batch(rng, opt.batch)
        stat = {}
        with torch.autocast("cpu", torch.bfloat16):
            f_vit = net.patches(model.normalise(pictures))
            loss = opt.w_patch * patch_loss(helpers, f_vit, owners, objects, net.side, stat)
            if opt.parts == "all":
                loss = loss + text_loss(net, helpers, text, rng, f_vit, owners, objects, opt, stat)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        stat["loss"] = loss.detach()
        step += 1
        done = step / opt.steps if opt.steps else (time.time() - begin) / (60 * opt.minutes)
        norm, progress, row = exchange(params, done, stat, opt.ranks)
        if math.isfinite(norm):
            for p in params:
                p.grad *= min(1.0, opt.clip / (norm + 1e-6))
            adam.step()
        history.append(row)
        if rank == 0 and (step % opt.every == 0 or progress >= 1.0):
            means = np.mean(history[-opt.every :], 0)
            shown = " ".join(f"{name} {v:.3f}" for name, v in zip(STATISTICS, means) if v)
            print(f"step {step} {time.time() - begin:6.0f}s lr {rate:.1e} |g| {norm:.2f} {shown}", flush=True)
        if rank == 0 and (time.time() - saved > 90 or progress >= 1.0):
            saved = time.time()
            torch.save(dict(net=net.state_dict(), helpers=helpers.state_dict(), step=step), opt.out + ".tmp")
            os.replace(opt.out + ".tmp", opt.out)
    dist.destroy_process_group()


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", required=True, help="folder that prepare.py wrote")
    p.add_argument("--model", required=True, help="folder with the tokenizer")
    p.add_argument("--out", required=True, help="checkpoint to write, every 90 s and at the end")
    p.add_argument("--init", help="checkpoint to start from")
    p.add_argument("--parts", choices=["vit", "all"], default="all", help="vit: the vision tower alone")
    length = p.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--steps", type=int)
    p.add_argument("--ranks", type=int, default=2, help="processes")
    p.add_argument("--port", type=int, default=29511)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--batch", type=int, default=8, help="images a process and step")
    p.add_argument("--turns", type=int, default=3, help="questions an image")
    p.add_argument("--masks", type=float, default=1.5, help="masks an image that are learnt from")
    p.add_argument("--one-tap", action="store_true", help="only the centre of the mask decoder's last kernel")
    p.add_argument("--freeze-bn", type=float, default=2.0, help="share of the run after which batch norm is frozen")
    p.add_argument("--absent", type=float, default=scenes.ABSENT_SHARE, help="share of expressions without a target")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--vit-scale", type=float, default=1.0, help="the vision tower's learning rate, of --lr")
    p.add_argument("--floor", type=float, default=0.05, help="the last learning rate, of --lr")
    p.add_argument("--warmup", type=int, default=50, help="steps")
    p.add_argument("--decay", type=float, default=0.02)
    p.add_argument("--clip", type=float, default=5.0, help="largest norm of the gradient")
    p.add_argument("--every", type=int, default=20, help="steps between lines")
    for name, weight in dict(patch=1.0, slot=1.0, words=0.5, where=1.0, parse=0.1, mask=1.0).items():
        p.add_argument(f"--w-{name}", type=float, default=weight, help=f"weight of the {name} loss")
    return p.parse_args()


if __name__ == "__main__":
    opt = options()
    torch.multiprocessing.spawn(work, (opt,), nprocs=opt.ranks)
