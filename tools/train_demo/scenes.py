"""Drawn scenes, and expressions and questions about the things in them.

A scene is 2 to 6 coloured shapes that do not overlap, on a plain, graded, noisy or striped background. An *object* is a
dict: `shape`, `colour`, `size` (words), `x`, `y` (its centre, shares of width and height), `r` (its radius, share of the
shorter side), `box` [x0, y0, x1, y1] (shares of width and height).

Everything is drawn from the random generator that is passed in: the same generator gives the same scene, so the order in
which numbers are taken from it is part of the data.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (208, 32, 38),
    "orange": (247, 138, 22),
    "yellow": (250, 224, 40),
    "green": (32, 148, 62),
    "blue": (34, 74, 204),
    "purple": (136, 44, 160),
    "white": (247, 247, 247),
    "black": (20, 20, 22),
}
COLOUR_NAMES = list(COLOURS)
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
PLURALS = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
SIZES = ["small", "large"]
MAX_OBJECTS = 6
RADII = {"small": (0.075, 0.105), "large": (0.16, 0.21)}  # shares of the shorter side
MAX_TURN = {"circle": 0, "ring": 0, "square": 0.35, "triangle": 0.45, "star": 0.5, "cross": 0.35}  # radians
SUPERSAMPLING = 4


# Pictures


def _background(rng, width, height):
    """f32 (height, width, 3)."""

    def tone():
        gray = rng.uniform(95, 185)
        return np.clip(gray + rng.uniform(-18, 18, 3), 80, 200)

    kind = rng.choice(["plain", "gradient", "noise", "stripes"])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    first = tone()
    if kind in ("plain", "noise"):
        image = np.broadcast_to(first, (height, width, 3)).astype(np.float32)
        if kind == "noise":
            deviation = rng.uniform(5, 14)
            channels = 1 if rng.random() < 0.5 else 3
            image = image + rng.normal(0, deviation, (height, width, channels)).astype(np.float32)
    elif kind == "gradient":
        second, angle = tone(), rng.uniform(0, 2 * math.pi)
        along = math.cos(angle) * (x / width - 0.5) + math.sin(angle) * (y / height - 0.5)
        image = first + (second - first) * (along / 1.42 + 0.5)[..., None]
    else:
        second = np.clip(first + rng.uniform(10, 26) * rng.choice([-1, 1]), 70, 205)
        angle, period = rng.choice([0, math.pi / 2, math.pi / 4, -math.pi / 4]), rng.uniform(10, 40)
        wave = np.sin((math.cos(angle) * x + math.sin(angle) * y) * 2 * math.pi / period)
        image = first + (second - first) * (np.clip(wave * 4, -1, 1) * 0.5 + 0.5)[..., None]
    return np.ascontiguousarray(image, dtype=np.float32)


def _outline(shape):
    """Corners of a polygon shape of radius 1 around (0, 0)."""
    if shape == "square":
        k = 0.80
        return [(-k, -k), (k, -k), (k, k), (-k, k)]
    if shape == "triangle":
        return [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.45 for i in range(10)]
        return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]
    t, e = 0.30, 0.95  # cross: half the arm's width, its length
    return [(-t, -e), (t, -e), (t, -t), (e, -t), (e, t), (t, t), (t, e), (-t, e), (-t, t), (-e, t), (-e, -t), (-t, -t)]


def _coverage(shape, radius, angle, dx, dy):
    """Anti-aliased coverage f32 (2n + 1, 2n + 1) of a shape whose centre lies (dx, dy) after pixel (n, n); and n."""
    n = int(math.ceil(radius)) + 2
    side = (2 * n + 1) * SUPERSAMPLING
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    cx, cy, r = (n + dx) * SUPERSAMPLING, (n + dy) * SUPERSAMPLING, radius * SUPERSAMPLING
    if shape in ("circle", "ring"):
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)
        if shape == "ring":
            hole = r * 0.55
            draw.ellipse([cx - hole, cy - hole, cx + hole, cy + hole], fill=0)
    else:
        if shape == "triangle":
            cy += 0.15 * r
        c, s = math.cos(angle), math.sin(angle)
        draw.polygon([(cx + r * (c * x - s * y), cy + r * (s * x + c * y)) for x, y in _outline(shape)], fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / 255.0, n


def _place(rng, radius, width, height, objects):
    """A centre in pixels, clear of all objects (whose sizes are in pixels too); None after 40 tries."""
    for _ in range(40):
        x, y = rng.uniform(radius + 3, width - radius - 3), rng.uniform(radius + 3, height - radius - 3)
        gap = 0.02 * min(width, height)
        if all(math.hypot(x - o["x"], y - o["y"]) > radius + o["r"] + gap for o in objects):
            return x, y
    return None


def _paint(rng, image, shape, colour, x, y, radius):
    """Draws one shape into `image` (height, width, 3); returns the window (slices) it fills and where in it (bool)."""
    height, width = image.shape[:2]
    angle = rng.uniform(-MAX_TURN[shape], MAX_TURN[shape])
    ix, iy = int(math.floor(x)), int(math.floor(y))
    coverage, n = _coverage(shape, radius, angle, x - ix, y - iy)
    y0, y1, x0, x1 = max(iy - n, 0), min(iy + n + 1, height), max(ix - n, 0), min(ix + n + 1, width)
    coverage = coverage[y0 - (iy - n) : y1 - (iy - n), x0 - (ix - n) : x1 - (ix - n)]
    rgb = np.clip(np.array(COLOURS[colour]) + rng.uniform(-12, 12, 3), 0, 255)
    slope = rng.uniform(-0.10, 0.10, 2)  # a soft light over the shape
    grid_y, grid_x = np.mgrid[y0:y1, x0:x1]
    light = 1 + slope[0] * (grid_x - x) / radius + slope[1] * (grid_y - y) / radius
    fill = np.clip(rgb * light[..., None], 0, 255)
    window = np.s_[y0:y1, x0:x1]
    image[window] = image[window] * (1 - coverage[..., None]) + fill * coverage[..., None]
    return window, coverage >= 0.5


def render(rng):
    """A scene: picture (RGB, sides 160 to 480), owners u8 (height, width) (0: background, k: object k - 1), objects."""
    width = int(rng.integers(160, 481))
    height = int(np.clip(round(width * math.exp(rng.uniform(-0.36, 0.36))), 160, 480))
    shorter = min(width, height)
    image = _background(rng, width, height)
    owners = np.zeros((height, width), np.uint8)
    objects = []
    count = int(rng.choice([2, 3, 4, 5, 6], p=[0.12, 0.23, 0.25, 0.22, 0.18]))
    # Attributes repeat often, so that colour or shape alone is seldom enough.
    few_colours = rng.choice(COLOUR_NAMES, size=int(rng.integers(2, 5)), replace=False)
    few_shapes = rng.choice(SHAPES, size=int(rng.integers(2, 5)), replace=False)
    for _ in range(count):
        size = SIZES[int(rng.random() < 0.42)]
        shape = str(rng.choice(few_shapes if rng.random() < 0.75 else SHAPES))
        colour = str(rng.choice(few_colours if rng.random() < 0.75 else COLOUR_NAMES))
        radius = rng.uniform(*RADII[size]) * shorter
        centre = _place(rng, radius, width, height, objects)
        if centre is None:
            continue
        window, inside = _paint(rng, image, shape, colour, *centre, radius)
        objects.append(dict(shape=shape, colour=colour, size=size, x=centre[0], y=centre[1], r=radius))
        owners[window][inside] = len(objects)
    if rng.random() < 0.25:
        image = image + rng.normal(0, 3, image.shape)
    for k, o in enumerate(objects):
        ys, xs = np.nonzero(owners == k + 1)
        o["x"], o["y"], o["r"] = o["x"] / width, o["y"] / height, o["r"] / shorter
        x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        o["box"] = [float(x0) / width, float(y0) / height, float(x1) / width, float(y1) / height]
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)), owners, objects


def mirrored(objects):
    """The objects of the picture flipped left to right."""
    return [dict(o, x=1 - o["x"], box=[1 - o["box"][2], o["box"][1], 1 - o["box"][0], o["box"][3]]) for o in objects]


# Expressions. An expression is (text, indices of the objects it means, parse); no indices: the thing is not there.
# The parse (kind, colour, shape, size, side, and the colour and shape of what a relation refers to) trains helper heads.

ANY_SHAPE = ["shape", "object"]
SIDES = ["left", "right", "top", "bottom"]
RELATIONS = ["to the left of", "to the right of", "above", "below"]
CLEAR_GAP = (
    0.10  # how much further out an object must lie (share of a side) to be called the leftmost, or left of another
)
KINDS = [
    "cs",
    "s",
    "c",
    "zs",
    "zcs",
    "side",
    "rel",
    "all",
]  # by colour, shape, size (z); at a side; a relation; a group
KIND_SHARES = [0.32, 0.10, 0.07, 0.07, 0.10, 0.13, 0.08, 0.13]
ABSENT_SHARE = 0.22


def _find(objects, c=None, s=None, z=None):
    """Indices of the objects with this colour, shape and size (None: any)."""
    return [
        i
        for i, o in enumerate(objects)
        if (c is None or o["colour"] == c) and (s is None or o["shape"] == s) and (z is None or o["size"] == z)
    ]


def _noun_phrase(rng, c=None, s=None, z=None, plural=False):
    noun = s if s else str(rng.choice(ANY_SHAPE))
    if plural:
        noun = PLURALS.get(noun, noun + "s")
    return " ".join(word for word in (z, c, noun) if word)


def _parse(kind, c=None, s=None, z=None, side=None, c2=None, s2=None):
    return dict(kind=kind, c=c, s=s, z=z, side=side, c2=c2, s2=s2)


def _extreme(objects, candidates, side):
    """The candidate nearest to a side, where it is so clearly; else None."""
    key, sign = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}[side]
    order = sorted(candidates, key=lambda i: sign * objects[i][key])
    gap = sign * (objects[order[1]][key] - objects[order[0]][key])
    return order[0] if gap > CLEAR_GAP else None


def _holds(a, b, relation):
    """1: a stands in this relation to b; 0: clearly not; None: not clear."""
    dx, dy = a["x"] - b["x"], a["y"] - b["y"]
    along, across = {
        "to the left of": (-dx, dy),
        "to the right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]
    if along > CLEAR_GAP and along > 0.8 * abs(across):
        return 1
    return 0 if along < -0.03 else None


def _one(rng, objects, kind, absent, the, c, s, z):
    """An expression by colour, shape, size."""
    attributes = dict(c=c if "c" in kind else None, s=s if "s" in kind else None, z=z if "z" in kind else None)
    targets = _find(objects, **attributes)
    if len(targets) != (0 if absent else 1):
        return None
    if "z" in kind and not absent and rng.random() < 0.6:  # prefer sizes that matter
        if len(_find(objects, c=attributes["c"], s=attributes["s"])) == 1:
            return None
    return the + _noun_phrase(rng, **attributes), targets, _parse("one", **attributes)


def _side(rng, objects, absent, the, c, s):
    """An expression by position."""
    attributes = [dict(s=s), dict(c=c), dict(c=c, s=s), dict()][int(rng.choice(4, p=[0.5, 0.15, 0.15, 0.2]))]
    side = str(rng.choice(SIDES))
    targets = _find(objects, **attributes)
    if absent:
        attributes = dict(s=str(rng.choice(SHAPES)))
        if _find(objects, **attributes):
            return None
        targets = []
    else:
        if len(targets) < 2:
            return None
        nearest = _extreme(objects, targets, side)
        if nearest is None:
            return None
        targets = [nearest]
    noun = _noun_phrase(rng, **attributes)
    if rng.random() < 0.4:
        text = f"{the}{side} {noun}"
    else:
        text = f"{the}{noun} {'on' if side in ('left', 'right') else 'at'} the {side}"
    return text, targets, _parse("side", side=side, **attributes)


def _relation(rng, objects, absent, the, c, s):
    """An expression by another object, which is described by its colour and shape."""
    relation = str(rng.choice(RELATIONS))
    other = objects[int(rng.integers(len(objects)))]
    other_attributes = dict(c=other["colour"], s=other["shape"])
    others = _find(objects, **other_attributes)
    if len(others) != 1:
        return None
    attributes = dict(s=s) if rng.random() < 0.6 else dict(c=c, s=s)
    candidates = [i for i in _find(objects, **attributes) if i != others[0]]
    if not candidates:
        return None
    holds = [_holds(objects[i], other, relation) for i in candidates]
    if None in holds or sum(holds) != (0 if absent else 1):
        return None
    targets = [i for i, yes in zip(candidates, holds) if yes]
    text = f"{the}{_noun_phrase(rng, **attributes)} {relation} the {_noun_phrase(rng, **other_attributes)}"
    return text, targets, _parse("rel", side=relation, c2=other["colour"], s2=other["shape"], **attributes)


def _group(rng, objects, absent, c, s, z):
    """An expression for all objects that have something in common."""
    choices = [dict(s=s), dict(c=c), dict(z=z), dict(c=c, s=s), dict(z=z, s=s)]
    attributes = choices[int(rng.choice(5, p=[0.4, 0.25, 0.12, 0.13, 0.1]))]
    targets = _find(objects, **attributes)
    if absent != (not targets):
        return None
    if not absent and len(targets) < 2 and rng.random() < 0.7:
        return None
    the = "the " if rng.random() < 0.2 else ""
    return f"all {the}{_noun_phrase(rng, plural=True, **attributes)}", targets, _parse("all", **attributes)


def _attempt(rng, objects, kind, absent):
    """An expression of this kind about a random object, or None where there is none."""
    picked = objects[int(rng.integers(len(objects)))]
    c, s, z = picked["colour"], picked["shape"], picked["size"]
    the = "the " if rng.random() < 0.7 else ""
    if absent and kind in ("cs", "s", "c", "zs", "zcs", "all"):
        # Something is changed, so that nothing matches.
        if kind == "cs" and rng.random() < 0.6:  # both words occur in the picture, not together
            s = objects[int(rng.integers(len(objects)))]["shape"]
        elif kind in ("zs", "zcs"):
            z = SIZES[1 - SIZES.index(z)]
        else:
            if rng.random() < 0.5 and kind != "s":
                c = str(rng.choice(COLOUR_NAMES))
            else:
                s = str(rng.choice(SHAPES))
            if kind == "s":
                s = str(rng.choice(SHAPES))
    if kind == "side":
        return _side(rng, objects, absent, the, c, s)
    if kind == "rel":
        return _relation(rng, objects, absent, the, c, s)
    if kind == "all":
        return _group(rng, objects, absent, c, s, z)
    return _one(rng, objects, kind, absent, the, c, s, z)


def expression(rng, objects, absent_share=ABSENT_SHARE):
    """One expression about a scene."""
    absent = rng.random() < absent_share
    for _ in range(60):
        found = _attempt(rng, objects, str(rng.choice(KINDS, p=KIND_SHARES)), absent)
        if found:
            return found
    return expression(rng, objects, absent_share)


def several(rng, objects, n, absent_share=ABSENT_SHARE):
    """Up to n different expressions about one scene."""
    out, seen = [], set()
    for _ in range(20 * n):
        e = expression(rng, objects, absent_share)
        if e[0] not in seen:
            seen.add(e[0])
            out.append(e)
        if len(out) == n:
            break
    return out


# Chat


def chat(rng, objects):
    """(question, answer, kind): kind is "box" (thousandths of the sides), "count" or "colour"."""
    for _ in range(100):
        kind = str(rng.choice(["box", "count", "colour"], p=[0.4, 0.3, 0.3]))
        o = objects[int(rng.integers(len(objects)))]
        if kind == "box":
            if len(_find(objects, c=o["colour"], s=o["shape"])) == 1:
                box = [int(round(1000 * v)) for v in o["box"]]
                question = f"Where is the {o['colour']} {o['shape']}? Answer with a box."
                return question, "[[{}, {}, {}, {}]]".format(*box), kind
        elif kind == "count":
            attributes = dict(s=o["shape"]) if rng.random() < 0.7 else dict(c=o["colour"])
            if rng.random() < 0.2:
                attributes = dict(s=str(rng.choice(SHAPES)))
            question = f"How many {_noun_phrase(rng, plural=True, **attributes)} are there?"
            return question, str(len(_find(objects, **attributes))), kind
        elif len(_find(objects, s=o["shape"])) == 1:
            return f"What colour is the {o['shape']}?", o["colour"], kind
    return "How many shapes are there?", str(len(objects)), "count"
