"""Makes tests/data/pickle/: one value in every protocol, as Python 3 and as Python 2 write it.

    python tools/data/pickle_vectors.py tests/data/pickle
"""

import json
import os
import pickle
import sys

sys.path.insert(0, os.path.dirname(__file__))
from eval_vectors import write_pickle  # noqa: E402

shared = ["a", "b"]
value = {
    "none": None,
    "yes": True,
    "no": False,
    "ints": [0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1],
    "floats": [1.5, -0.0, 1e300],
    "text": ["plain", "n\xe4her", "\u8fd1\u3044 \U0001f600", "quote ' and \" and \\ and \n", "\\u0041 \\\\u0041", "x" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "twice": [shared, shared],
    "empty": [{}, []],
    "many": list(range(1005)),  # more than one APPENDS
}
out = sys.argv[1]
os.makedirs(out, exist_ok=True)
with open(os.path.join(out, "value.json"), "w") as f:
    json.dump(value, f)
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    write_pickle(os.path.join(out, f"python3_{protocol}.p"), value, protocol, False)
for protocol in range(3):
    write_pickle(os.path.join(out, f"python2_{protocol}.p"), value, protocol, True)
