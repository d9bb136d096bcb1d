"""Makes tests/data/images: picture files of many kinds, and what Pillow gives for each.

    python -m venv v && v/bin/pip install pillow==11.3.0 numpy==2.4.6
    v/bin/python tools/data/image_vectors.py tests/data/images

`index.json` maps each file to Pillow's mode, its size, and the sha256 of `Image.open(f).convert("RGB")`.
"""

import hashlib
import io
import json
import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

warnings.simplefilter("ignore", DeprecationWarning)
assert Image.__version__ == "11.3.0", Image.__version__
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)
random.seed(7)
index = {}


def noise(w, h, *channels):
    return rng.integers(0, 256, (h, w, *channels), dtype=np.uint8)


def scene(w, h):
    """Smooth colours, a hard edge and a little noise: what codecs round differently."""
    y, x = np.mgrid[0:h, 0:w] / 40.0
    a = np.stack([np.sin(x + c) * np.cos(y * (c + 1)) * 90 + 128 for c in range(3)], -1)
    a[h // 3 : h // 2, w // 4 : w // 2] = (230, 20, 40)
    return Image.fromarray(np.clip(a + rng.normal(0, 4, a.shape), 0, 255).astype(np.uint8))


def record(name):
    im = Image.open(out / name)
    mode = im.mode
    rgb = im.convert("RGB")
    index[name] = {"mode": mode, "size": rgb.size, "rgb_sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}


def save(name, im, **options):
    im.save(out / name, **options)
    record(name)


def write(name, data):
    (out / name).write_bytes(data)
    record(name)


# JPEG: sizes around the 8 and 16 pixel blocks, all of Pillow's subsamplings, baseline and progressive.
sides = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 50, 71]
for i in range(72):
    w, h = random.choice(sides), random.choice(sides)
    im = scene(w, h) if i % 3 else Image.fromarray(noise(w, h, 3))
    options = {"quality": random.choice([1, 10, 50, 75, 90, 95, 100]), "progressive": i % 4 == 1}
    kind = ["420", "422", "444", "420", "422", "444", "gray", "cmyk", "rgb"][i % 9]
    if kind.isdigit():
        options["subsampling"] = {"444": 0, "422": 1, "420": 2}[kind]
    elif kind == "gray":
        im = im.convert("L")
    elif kind == "cmyk":
        im = Image.fromarray(np.dstack([np.asarray(im), noise(w, h)]), "CMYK")
    else:
        options["keep_rgb"] = True
    if i % 5 == 0:
        options["restart_marker_blocks"] = 1 + i % 7
    save(f"{i:02}-{kind}.jpg", im, **options)

# What Pillow's own writers make.
photo, small = scene(90, 61), Image.fromarray(noise(29, 17, 3))
rgba, la = Image.fromarray(noise(29, 17, 4), "RGBA"), Image.fromarray(noise(29, 17, 2), "LA")
gray, bilevel, palette = photo.convert("L"), photo.convert("1"), photo.quantize(40)
gray16 = Image.fromarray(rng.integers(0, 300, (17, 29)).astype(np.uint16))
int32 = Image.fromarray(rng.integers(-100, 400, (17, 29)).astype(np.int32))
floats = Image.fromarray((rng.random((17, 29)) * 300 - 20).astype(np.float32))
cmyk = Image.fromarray(noise(29, 17, 4), "CMYK")
kinds = dict(rgb=photo, noise=small, rgba=rgba, la=la, palette=palette, bilevel=bilevel, gray=gray)
kinds |= dict(gray16=gray16, int32=int32, float=floats, cmyk=cmyk)
for kind, im in kinds.items():
    if im.mode not in ("F", "I", "CMYK"):
        save(f"{kind}.png", im)
    if im.mode not in ("F", "I", "CMYK", "I;16"):
        save(f"{kind}.webp", im, quality=60)
    if im.mode in ("RGB", "RGBA", "P", "1", "L"):
        save(f"{kind}.bmp", im)
        save(f"{kind}.gif", im)
    for compression in [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        save(f"{kind}-{compression or 'plain'}.tif", im, compression=compression)
save("bilevel-group4.tif", bilevel, compression="group4")
for q in [1, 30, 80, 100]:
    save(f"photo-q{q}.webp", photo, quality=q)
save("lossless.webp", rgba, lossless=True, exact=True)
turned = [photo.rotate(90), photo.rotate(180)]
for ext in ["webp", "png", "gif"]:
    save(f"animated.{ext}", photo, save_all=True, append_images=turned, duration=100)
for ext in ["png", "gif"]:
    save(f"palette-transparent.{ext}", palette, transparency=5)
save("gray-transparent.png", gray, transparency=100)
save("rgb-transparent.png", photo, transparency=(1, 2, 3))
save("interlaced.gif", palette, interlace=1)
exif = Image.Exif()
exif[274] = 6
for ext in ["jpg", "png", "webp", "tif"]:
    save(f"exif6.{ext}", photo, exif=exif)


# What they do not make.
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, w, h, depth, color, extra=b"", interlace=0):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x0, y0, dx, dy in passes:
        n = -(-max(0, w - x0) // dx)
        for _ in range(y0, h if n else y0, dy):
            rows += bytes([0]) + rng.bytes((n * channels * depth + 7) // 8)
    head = struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, interlace)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    write(name, b"\x89PNG\r\n\x1a\n" + body)


for interlace in [0, 1]:
    for color, depths in {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}.items():
        for depth in depths:
            colors = chunk(b"PLTE", rng.bytes(3 << depth)) if color == 3 else b""
            png(f"type{color}-{depth}bit{'-interlaced' * interlace}.png", 21, 9, depth, color, colors, interlace)
png("palette-alpha.png", 21, 9, 4, 3, chunk(b"PLTE", rng.bytes(48)) + chunk(b"tRNS", bytes(range(16))))
png("palette-short.png", 21, 9, 4, 3, chunk(b"PLTE", rng.bytes(9)))


def bmp(name, w, h, bits, top_down=False):
    data = rng.bytes((w * bits + 31) // 32 * 4 * h)
    colors = rng.bytes(4 << bits) if bits <= 8 else b""
    at = 54 + len(colors)
    head = struct.pack("<IiiHHIIiiII", 40, w, -h if top_down else h, 1, bits, 0, len(data), 0, 0, 0, 0)
    write(name, b"BM" + struct.pack("<IHHI", at + len(data), 0, 0, at) + head + colors + data)


for bits in [1, 4, 8, 24, 32]:
    bmp(f"{bits}bit.bmp", 13, 7, bits)
    bmp(f"{bits}bit-top-down.bmp", 13, 7, bits, True)


def gif(name, canvas, frame, background=0, transparent=None, local=False):
    x, y, w, h = frame
    im = Image.fromarray(rng.integers(0, 4, (h, w), dtype=np.uint8), "P")
    im.putpalette(bytes(range(10, 22)))
    file = io.BytesIO()
    im.save(file, "GIF")
    file = file.getvalue()
    lzw = file[file.index(b",", 13) + 10 :]
    colors = bytes(range(10, 22))
    data = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0 if local else 0x81, background, 0)
    data += b"" if local else colors
    if transparent is not None:
        data += b"!\xf9\x04" + bytes([1, 0, 0, transparent, 0])
    data += b"," + struct.pack("<HHHHB", x, y, w, h, 0x81 if local else 0)
    write(name, data + (colors if local else b"") + lzw)


gif("part.gif", (20, 15), (3, 4, 10, 8), background=2)
gif("part-transparent.gif", (20, 15), (3, 4, 10, 8), background=2, transparent=1)
gif("part-local.gif", (20, 15), (3, 4, 10, 8), background=2, transparent=2, local=True)
gif("over-the-edge.gif", (10, 8), (5, 5, 10, 8))


def tif(name, w, h, bits, photometric, data, samples=1, extra=None, big=False, format=None, colors=None, turn=None):
    order = ">" if big else "<"
    tags = {256: [w], 257: [h], 258: [bits] * samples, 259: [1], 262: [photometric], 273: [0], 277: [samples]}
    tags |= {278: [h], 279: [len(data)]}
    optional = {274: turn and [turn], 320: colors, 338: extra, 339: format and [format] * samples}
    tags |= {tag: value for tag, value in optional.items() if value}
    entries, values = b"", b""
    at = 8 + 2 + 12 * len(tags) + 4
    size = sum(2 * len(v) for v in tags.values() if len(v) > 2)
    tags[273] = [at + size]
    for tag, v in sorted(tags.items()):
        wide = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(f"{order}{len(v)}{'I' if wide else 'H'}", *v)
        if len(packed) > 4:
            entries += struct.pack(order + "HHII", tag, 3, len(v), at + len(values))
            values += packed
        else:
            entries += struct.pack(order + "HHI", tag, 4 if wide else 3, len(v)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, len(tags))
    write(name, head + entries + bytes(4) + values + data)


for big in [False, True]:
    e = "-big-endian" if big else ""
    for photometric, kind in [(0, "white-is-0"), (1, "black-is-0")]:
        for bits in [1, 2, 4, 8] + [16] * photometric:
            tif(f"{kind}-{bits}bit{e}.tif", 16, 9, bits, photometric, rng.bytes(18 * bits), big=big)
    for bits in [8, 16]:
        tif(f"rgb-{bits}bit{e}.tif", 16, 9, bits, 2, rng.bytes(54 * bits), 3, big=big)
        for extra, kind in [(0, "unspecified"), (1, "premultiplied"), (2, "alpha")]:
            tif(f"rgb-{kind}-{bits}bit{e}.tif", 16, 9, bits, 2, rng.bytes(72 * bits), 4, [extra], big=big)
    tif(f"cmyk{e}.tif", 16, 9, 8, 5, rng.bytes(576), 4, big=big)
    tif(f"gray-alpha{e}.tif", 16, 9, 8, 1, rng.bytes(288), 2, [2], big=big)
    for bits in [4, 8]:
        colors = [int(v) for v in rng.integers(0, 65536, 3 << bits)]
        tif(f"palette-{bits}bit{e}.tif", 16, 9, bits, 3, rng.bytes(18 * bits), colors=colors, big=big)
    values = (rng.random(144) * 300 - 20).astype(">f4" if big else "<f4")
    tif(f"float{e}.tif", 16, 9, 32, 1, values.tobytes(), format=3, big=big)
for turn in range(1, 9):
    tif(f"orientation{turn}.tif", 16, 9, 8, 2, rng.bytes(432), 3, turn=turn)

note = {"pillow": Image.__version__, "libjpeg_turbo": features.version("libjpeg_turbo"), "files": index}
(out / "index.json").write_text(json.dumps(note, indent=0) + "\n")
print(len(index), "files", sum(f.stat().st_size for f in out.iterdir()), "bytes")
