"""Makes tests/data/parquet/: pictures with expressions, as data sets on the Hugging Face hub and others have them.

    python -m venv v && v/bin/pip install pyarrow==26.0.1 pillow==13.0.0
    v/bin/python tools/data/parquet_vectors.py tests/data/parquet
"""

import io
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(i):
    with io.BytesIO() as f:
        Image.new("RGB", (8, 6), (40 * i, 90, 200)).save(f, "PNG")
        return f.getvalue()


out = sys.argv[1]
os.makedirs(out, exist_ok=True)
string, binary = pa.string(), pa.binary()
picture = pa.struct([("bytes", binary), ("path", string)])

# As `datasets` pushes them to the hub: a struct, Snappy, dictionaries; two row groups.
hub = pa.table(
    {
        "image_path": pa.array(["unused"] * 5),
        "image": pa.array(
            [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)] + [{"bytes": None, "path": "3.png"}, None], picture
        ),
        "captions": pa.array([["the left one", "näher"], ["the left one"], [], ["x"], ["y"]], pa.list_(string)),
        "id": pa.array([10, 11, 12, 13, 14], pa.int64()),
    }
)
pq.write_table(hub, os.path.join(out, "hub.parquet"), compression="snappy", row_group_size=3)

# Plain columns, Zstandard.
plain = pa.table({"text": ["one", None], "image": pa.array([png(5), png(6)], binary), "id": ["a", "b"]})
pq.write_table(plain, os.path.join(out, "plain.parquet"), compression="zstd", use_dictionary=False)

# Sentences as RefCOCO has them, gzip, the newer data pages.
sentence = pa.struct([("raw", string), ("sent", string), ("sent_id", pa.int64()), ("tokens", pa.list_(string))])
rows = [[{"raw": "The Dog.", "sent": "the dog", "sent_id": 1, "tokens": ["the", "dog"]}, {"raw": "It", "sent": None, "sent_id": 2, "tokens": []}]]
sentences = pa.table({"image": pa.array([{"bytes": png(7), "path": None}], picture), "sentences": pa.array(rows, pa.list_(sentence))})
pq.write_table(sentences, os.path.join(out, "sentences.parquet"), compression="gzip", data_page_version="2.0")

pq.write_table(pa.table({"a": [1]}), os.path.join(out, "other.parquet"))
