"""Draws scenes that training never saw and runs a checkpoint on them: f32 arithmetic with the bf16 weights.

    python evaluate.py MODEL_DIR OUT FIRST COUNT [--maps N]

Writes OUT/images/*, OUT/masks/* (the masks found, 1-bit PNG at the picture's size), OUT/scenes.jsonl,
OUT/probabilities.safetensors (the raw (Q, S, S) maps of the first N scenes) and OUT/summary.json. Every picture is written
first and read back, so the model sees what anybody who opens the file sees.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import model
import prepare
import scenes
from text import Text, phrase_turn, seg_turn

NOTE = (
    "f32, weights rounded to bf16; every slot holds [SEG]; mean_iou is over expressions whose target exists, whatever the "
    "[REJ] decision; rej_accuracy over all slots; ciou's union counts the masks of absent targets that were not rejected"
)


def causal(n):
    return torch.full((n, n), float("-inf")).triu(1)[None, None]


class Runner:
    """A model folder at work."""

    def __init__(self, folder):
        self.net, self.text = model.load(folder), Text(folder)
        self.side = self.net.c["force_image_size"]

    @torch.no_grad()
    def look(self, picture):
        """Patch states (1, N, D) and image tokens (1, N/4, H)."""
        pixels = np.array(picture.convert("RGB").resize((self.side, self.side), Image.BICUBIC))
        f_vit = self.net.patches(model.normalise(torch.from_numpy(pixels)[None]))
        return f_vit, self.net.project(f_vit)

    def prompt(self, question, answer, image_tokens):
        """Token ids, their embeddings (1, T, H), the positions of the image tokens."""
        ids = self.text.prefix(self.net.image_tokens) + sum(self.text.turn(question, answer), [])
        x = self.net.language_model.model.tok_embeddings(torch.tensor([ids]))
        at = [i for i, token in enumerate(ids) if token == self.text.image_context]
        x[0, at] = image_tokens[0]
        return ids, x, at

    @torch.no_grad()
    def segment(self, seen, question, answer):
        """With [SEG] in every slot of the answer: ids, probabilities (Q, S, S), [SEG] - [REJ] (Q), rejected (Q)."""
        f_vit, image_tokens = seen
        net, text = self.net, self.text
        ids, x, at = self.prompt(question, answer, image_tokens)
        states = net.language_model(x, torch.arange(len(ids)), causal(len(ids)))[0][0]
        slots = [i - 1 for i, token in enumerate(ids) if token == text.seg]
        logits = net.language_model.output(states[slots])
        # As published, the image is read one position early: from <img> up to the last image token but one.
        image = net.res_decoder.image(f_vit, states[[i - 1 for i in at]][None])
        maps = net.res_decoder.expression(image.expand(len(slots), -1, -1), states[slots]).sigmoid()
        return ids, maps, logits[:, text.seg] - logits[:, text.rej], logits.argmax(-1) == text.rej

    @torch.no_grad()
    def chat(self, seen, question, limit=40):
        """The greedy answer: text, ids of the prompt, ids of the answer."""
        llm, text = self.net.language_model, self.text
        ids, x, _ = self.prompt("\n" + question, None, seen[1])
        states, past = llm(x, torch.arange(len(ids)), causal(len(ids)))
        out = []
        while len(out) < limit:
            out.append(int(llm.output(states[0, -1]).argmax()))
            if out[-1] == text.im_end:
                break
            x = llm.model.tok_embeddings(torch.tensor([out[-1:]]))
            states, past = llm(x, torch.tensor([len(ids) + len(out) - 1]), None, past)
        return text.decode(out[:-1] if out[-1] == text.im_end else out), ids, out


def at_size(maps, width, height):
    """Probabilities (Q, S, S) -> masks (Q, height, width): bilinear, then >= 0.5."""
    resized = F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return (resized[:, 0] >= 0.5).numpy()


def rle(mask):
    """Uncompressed COCO run lengths: column by column, zeros first."""
    flat = mask.T.reshape(-1).astype(np.uint8)
    cuts = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], cuts, [len(flat)]])).tolist()
    return dict(size=list(mask.shape), counts=([0] if flat[0] else []) + runs)


def overlap(a, b):
    """Pixels in both masks, and in either."""
    return int((a & b).sum()), int((a | b).sum())


def ratio(intersection, union):
    return 1.0 if union == 0 else intersection / union


def box_iou(answer, wanted):
    """IoU of two boxes as chat writes them; 0 for an answer that is none."""
    found = re.fullmatch(r"\[\[(\d+), (\d+), (\d+), (\d+)\]\]", answer)
    if not found:
        return 0.0
    a, b = [int(v) for v in found.groups()], json.loads(wanted)[0]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    return both / max(area(a) + area(b) - both, 1)


class Tally:
    """Figures over all expressions that were asked in one way."""

    def __init__(self):
        self.ious, self.strict, self.generalised, self.present, self.absent = [], [], [], [], []
        self.intersection = self.union = 0

    def add(self, present, rejected, mask, truth):
        """Returns the IoU."""
        intersection, union = overlap(mask, truth)
        iou = ratio(intersection, union)
        if present:
            self.ious.append(iou)
            self.strict.append(0.0 if rejected else iou)
            self.intersection += intersection
            self.union += union
            self.present.append(not rejected)
            self.generalised.append(iou)
        else:
            self.absent.append(rejected)
            self.union += 0 if rejected else int(mask.sum())
            self.generalised.append(float(rejected))
        return iou

    def summary(self):
        return dict(
            mean_iou=mean(self.ious),
            share_above_half=mean([iou > 0.5 for iou in self.ious]),
            mean_iou_rejected_as_zero=mean(self.strict),
            ciou=round(self.intersection / max(self.union, 1), 4),
            giou=mean(self.generalised),
            n_acc=mean(self.absent),
            t_acc=mean(self.present),
            rej_accuracy=mean(self.absent + self.present),
        )


def mean(values):
    return round(float(np.mean(values)), 4) if len(values) else None


def kind_name(parse):
    """ "one+c+s" for an expression by colour and shape, "side", "rel", "all"."""
    used = [a for a in ("z", "c", "s") if parse[a]] if parse["kind"] == "one" else []
    return "+".join([parse["kind"], *used])


def main(opt):
    torch.set_num_threads(opt.threads)
    runner = Runner(opt.model)
    for folder in ("images", "masks"):
        (opt.out / folder).mkdir(parents=True, exist_ok=True)
    joint, alone, phrase, by_kind, chat = Tally(), Tally(), Tally(), defaultdict(list), defaultdict(list)
    rows, kept_maps = [], {}
    for k in range(opt.count):
        number = opt.first + k
        picture, owners, objects = prepare.scene(number)
        rng = np.random.default_rng([prepare.SEED, number, 7])
        name = f"images/{k:03d}." + ("jpg" if k % 3 == 2 else "png")
        picture.save(opt.out / name, **(dict(quality=92) if name.endswith("jpg") else {}))
        picture = Image.open(opt.out / name).convert("RGB")
        width, height = picture.size
        expressions = scenes.several(rng, objects, int(rng.choice([1, 2, 3, 4], p=[0.15, 0.25, 0.3, 0.3])))
        seen = runner.look(picture)
        ids, maps, margins, rejected = runner.segment(seen, *seg_turn([e[0] for e in expressions]))
        masks = at_size(maps, width, height)
        if k < opt.maps:
            kept_maps[f"{k:03d}"] = maps.contiguous()
        row = dict(id=f"{k:03d}", image=name, width=width, height=height, objects=objects, prompt_ids=ids)
        row |= dict(expressions=[], chat=[])
        for j, (text, targets, parse) in enumerate(expressions):
            truth, present = np.isin(owners, [i + 1 for i in targets]), bool(targets)
            _, own_map, own_margin, own_rejected = runner.segment(seen, *seg_turn([text]))
            ways = dict(
                joint=(joint, masks[j], margins[j], rejected[j]),
                alone=(alone, at_size(own_map, width, height)[0], own_margin[0], own_rejected[0]),
            )
            record = dict(text=text, kind=parse["kind"], present=present, objects=targets, gt=rle(truth))
            for way, (tally, mask, margin, reject) in ways.items():
                iou = tally.add(present, bool(reject), mask, truth)
                file = f"masks/{k:03d}_{j}_{way}.png"
                Image.fromarray(mask).convert("1").save(opt.out / file)
                record[way] = dict(
                    reject=bool(reject),
                    seg_minus_rej=round(float(margin), 4),
                    iou=round(iou, 5),
                    area=int(mask.sum()),
                    mask=file,
                )
            if present:
                by_kind[kind_name(parse)].append(joint.ious[-1])
                _, phrase_map, _, phrase_rejected = runner.segment(seen, *phrase_turn([text]))
                phrase.add(True, bool(phrase_rejected[0]), at_size(phrase_map, width, height)[0], truth)
            row["expressions"].append(record)
        for _ in range(2):
            question, answer, kind = scenes.chat(rng, objects)
            got, prompt_ids, got_ids = runner.chat(seen, question)
            record = dict(question=question, answer=answer, kind=kind, got=got, got_ids=got_ids, prompt_ids=prompt_ids)
            if kind == "box":
                record["iou"] = round(box_iou(got, answer), 4)
            chat[kind].append(record["iou"] if kind == "box" else got == answer)
            row["chat"].append(record)
        rows.append(row)
    summary = dict(
        scenes=opt.count,
        expressions=len(joint.generalised),
        present=len(joint.present),
        absent=len(joint.absent),
        joint=joint.summary(),
        one_expression=alone.summary(),
        phrase_template=dict(mean_iou=mean(phrase.ious)),
        chat=dict(
            count=mean(chat["count"]),
            colour=mean(chat["colour"]),
            box_mean_iou=mean(chat["box"]),
            box_above_half=mean([iou > 0.5 for iou in chat["box"]]),
        ),
        mean_iou_by_kind={kind: [mean(ious), len(ious)] for kind, ious in sorted(by_kind.items())},
        note=NOTE,
    )
    with open(opt.out / "scenes.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if kept_maps:
        save_file(kept_maps, opt.out / "probabilities.safetensors")
    (opt.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, metavar="MODEL_DIR")
    p.add_argument("out", type=Path)
    p.add_argument("first", type=int, help="number of the first scene; the demo's is 2000000")
    p.add_argument("count", type=int)
    p.add_argument("--maps", type=int, default=4, metavar="N")
    p.add_argument("--threads", type=int, default=2)
    main(p.parse_args())
