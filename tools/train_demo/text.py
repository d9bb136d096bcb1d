"""The tokenizer and the prompts.

    python text.py MODEL_DIR        trains the tokenizer and writes its four files

The pieces come from a sentencepiece BPE model with the same switches as InternLM2's; the chat and image tokens stand after
the pieces as added tokens. Text is cut at added tokens first and each stretch between them is encoded on its own, as the
Hugging Face slow tokenizer does.
"""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import sentencepiece as spm

import scenes

PIECES = 755
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
PUBLISHED_TOKENS = ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "[SEG]", "[REJ]"]
ADDED = CHAT_TOKENS + PUBLISHED_TOKENS
SYSTEM = "You are a tiny model that finds shapes."

# Beside the scenes' own sentences, so that other words too get pieces of more than one letter.
ENGLISH = """
A picture is a grid of small squares of colour. We look at it and see things: a red circle, a blue square, a star.
This is a demonstration of a very small model. It knows about circles, squares, triangles, stars, crosses and rings, and about eight colours.
Please show me where the object is. Which of them is the largest? What is in the picture? Describe the image in one word.
The model reads an image and a sentence, and answers with a mask for each thing that was named, or says that it is not there.
Every pixel belongs to the background or to one of the shapes. Shapes never touch, and each has one colour and one size.
Left and right, top and bottom, above and below: these words say where things stand. Small and large say how big they are.
How many are there? None, one, two, three, four, five or six. Is there a green ring? Yes, there is. No, there is not.
Answer with a number. Answer with a colour. Answer with a box. Answer with yes or no. Segment the largest shape, then the smallest one.
You can ask for anything, but it was trained with drawings only, so it will not find a cat, a dog, a person, a car, a tree or a house.
The quick brown fox jumps over the lazy dog, while the five boxing wizards judge my vow of quartz.
Hello, who are you? I am a tiny model that finds shapes. What can you do? I can find shapes by colour, size and position.
Find the person on the left with the white shirt. Find the man near the window, the woman in the middle, the child behind the table.
the left cat, the dog that is sleeping on the sofa, a bottle of water next to the plate, the second car from the right, both people
the sky, the ground, the road, the wall, the food, the bus, the train, the horse, the bird, the boat, the chair, the bed, the cup
which one can be used to drink water? which part of the picture would break first? something that you could sit on
""".strip().split("\n")


def corpus(seed=1, rounds=6000):
    """The sentences that the tokenizer is trained on."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        objects = _random_objects(rng)
        expressions = scenes.several(rng, objects, int(rng.integers(1, 5)))
        question, answer = seg_turn([e[0] for e in expressions])
        yield question.strip()
        yield answer
        question, answer, _ = scenes.chat(rng, objects)
        yield question
        yield answer
    for _ in range(60):
        yield SYSTEM
        yield from ("user", "assistant", "system")
    for _ in range(40):
        yield from ENGLISH


def _random_objects(rng):
    """Objects of a scene that is never drawn."""
    objects = []
    for _ in range(int(rng.integers(2, 7))):
        x, y = rng.uniform(0.1, 0.9, 2)
        shape, colour = str(rng.choice(scenes.SHAPES)), str(rng.choice(scenes.COLOUR_NAMES))
        size, box = str(rng.choice(scenes.SIZES)), list(rng.uniform(0, 1, 4))
        objects.append(dict(shape=shape, colour=colour, size=size, x=x, y=y, box=box))
    return objects


# Prompts: (question, answer). The answers are teacher-forced; `present` None puts [SEG] into every slot, as inference does.


def _plain(expression):
    return expression.strip().lower().strip(".")


def _slot(present):
    return "[SEG]" if present else "[REJ]"


def seg_turn(expressions, present=None):
    """The published joint question. The missing space before "in this image" is the published code's."""
    expressions = [_plain(e) for e in expressions]
    present = present or [True] * len(expressions)
    question = "\n What are " + ", ".join(expressions) + "in this image? Please output segmentation masks."
    return question, "Sure," + ", ".join(f"{e}:{_slot(p)}" for e, p in zip(expressions, present)) + "."


def phrase_turn(expressions, present=None):
    """The published question about one expression."""
    (expression,) = expressions
    question = f"\n What is {_plain(expression)} in this image? Please output segmentation mask."
    return question, _slot(present is None or present[0])


class Text:
    """The tokenizer of a model folder."""

    def __init__(self, folder):
        self.pieces = spm.SentencePieceProcessor(model_file=str(Path(folder) / "tokenizer.model"))
        self.added = json.loads((Path(folder) / "added_tokens.json").read_text())
        self.special = self.added | {"<unk>": 0, "<s>": 1, "</s>": 2}
        self.special_text = {i: token for token, i in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.cut = re.compile("(" + "|".join(re.escape(token) for token in longest_first) + ")")
        self.size = self.pieces.get_piece_size() + len(self.added)
        self.im_end, self.image_context = self.special["<|im_end|>"], self.special["<IMG_CONTEXT>"]
        self.seg, self.rej = self.special["[SEG]"], self.special["[REJ]"]

    def encode(self, text):
        """Token ids; the text of a special token becomes that token."""
        ids = []
        for part in self.cut.split(text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self.pieces.encode(part)
        return ids

    def decode(self, ids):
        """The text of token ids, special tokens written out."""
        out, run = "", []
        for i in ids:
            if i in self.special_text:
                out += self.pieces.decode(run) + self.special_text[i]
                run = []
            else:
                run.append(int(i))
        return out + self.pieces.decode(run)

    def prefix(self, image_tokens):
        """Ids up to and including </img>: the same for every question about an image."""
        image = "<img>" + "<IMG_CONTEXT>" * image_tokens + "</img>"
        return self.encode(f"<s><|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{image}")

    def turn(self, question, answer):
        """Ids of the rest of the user's turn, and of the assistant's; `answer` None leaves that one open."""
        closed = "" if answer is None else f"{answer}<|im_end|>\n"
        return self.encode(question + "<|im_end|>\n"), self.encode(f"<|im_start|>assistant\n{closed}")

    def head(self):
        """How many tokens the assistant's turn has before its answer."""
        return len(self.encode("<|im_start|>assistant\n"))


def train(folder):
    """Trains the tokenizer and writes tokenizer.model and the three files that go with it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    added = {token: pieces + i for i, token in enumerate(ADDED)}

    def entry(token):
        return dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False)

    def write(name, value):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False))

    ids = {0: "<unk>", 1: "<s>", 2: "</s>"} | {i: token for token, i in added.items()}
    named = dict(bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    write("added_tokens.json", dict(sorted(added.items())))
    write(
        "tokenizer_config.json",
        dict(
            add_bos_token=True,
            add_eos_token=False,
            added_tokens_decoder={str(i): entry(token) | dict(special=True) for i, token in ids.items()},
            additional_special_tokens=ADDED,
            auto_map={"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            clean_up_tokenization_spaces=False,
            model_max_length=8192,
            tokenizer_class="InternLM2Tokenizer",
            **named,
        ),
    )
    tokens = {name: entry(token) for name, token in named.items()}
    write("special_tokens_map.json", dict(additional_special_tokens=[entry(t) for t in ADDED], **tokens))
    print(f"{pieces} pieces, vocabulary {pieces + len(ADDED)}")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
