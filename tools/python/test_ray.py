"""Ray Data over `mllmseg worker`: 200 items through a pool of two actors, one killed in the middle, 200 unique results, each the one that a
worker gives without Ray; and `python -m mllmseg_ray` on manifests and shards beside `mllmseg batch`. Usage: test_ray.py MLLMSEG ASSETS"""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import ray

from mllmseg_ray import Segmenter, Worker
from mllmseg_ray.__main__ import as_json
from mllmseg_ray.__main__ import main as segment

ITEMS = 200
DIES_AT = 111


class Dies(Segmenter):
    """Whose first actor that gets item DIES_AT is killed, as by the kernel when memory is short."""

    def __init__(self, killed, **kwargs):
        super().__init__(**kwargs)
        self._killed = killed

    async def __call__(self, batch):
        if DIES_AT in batch["id"]:
            try:
                os.close(os.open(self._killed, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        async for rows in super().__call__(batch):
            yield rows


# What must be equal of a row of `python -m mllmseg_ray` and a line of `mllmseg batch`.
COLUMNS = ("id", "expr", "counts", "question", "answer", "finish", "error_kind")


def as_batch(program, model, folder, pattern):
    """Rows of `python -m mllmseg_ray` on files, which must be those of `mllmseg batch` on each of them."""
    out = folder / "rows"
    segment([str(folder / pattern), "--model", model, "--out", str(out), "--batch-size", "4"])
    rows = pq.read_table(out).to_pylist()
    expected = []
    for source in sorted(folder.glob(pattern)):
        results = source.with_suffix(".results")
        run = subprocess.run([program, "batch", source, "--model", model, "--out", results], stderr=subprocess.PIPE, text=True)
        assert run.returncode in (0, 3), run.stderr
        for r in map(json.loads, (results / "results.jsonl").read_text().splitlines()):
            r |= {"id": as_json(r["id"]), "counts": r.get("segmentation", {}).get("counts"), "error_kind": r.get("error", {}).get("kind")}
            expected.append([r.get(c) or "" for c in COLUMNS])
    found = [[r[c] for c in COLUMNS] for r in rows]
    assert sorted(found) == sorted(expected), f"found {sorted(found)}, expected {sorted(expected)}"
    return rows


def sources(program, model, asked, chat):
    (path, expr), (other, _) = asked[:2]
    picture = Path(other).read_bytes()
    question = chat["question"]

    def errors(rows):
        return sorted(r["error"] for r in rows if r["error"])

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "beside.png").write_bytes(picture)
        items = [
            {"id": 1, "image": path, "exprs": [expr, "a red cat"]},
            {"id": "b64", "image_b64": base64.b64encode(picture).decode(), "expr": expr},
            {"id": ["a", 2], "image": path, "question": question},
            {"id": None, "image": "beside.png", "questions": [question, "Is there a ring?"]},
            {"id": 5, "image": "gone.png", "exprs": ["a", "b"]},
        ]
        bad = ["no JSON", "5", '{"id": "\\ud800"}', '{"id": 6, "image": "beside.png"}', '{"id": 7, "image": "beside.png", "exprs": []}']
        bad += ['{"id": 8, "image": "beside.png", "expr": "a", "question": "b"}', '{"id": 9, "expr": "a"}']
        bad += ['{"id": 10, "image_b64": "?", "expr": "a"}', '{"id": 11, "image": "a", "image_b64": "", "expr": "a"}']
        (folder / "a.jsonl").write_text("".join(json.dumps(i) + "\n\n" for i in items))
        (folder / "b.jsonl").write_text("\n".join([*bad, json.dumps({"id": "é", "image": path, "expr": expr})]))
        rows = as_batch(program, model, folder, "*.jsonl")
        assert len(rows) == 8 + len(bad) + 1, rows
        [said] = [r for r in rows if r["id"] == '["a",2]']
        assert said["answer"] == chat["got"], said
        assert f"{folder}/b.jsonl:1: expected a JSON object" in "\n".join(errors(rows)), errors(rows)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shards = {
            "a.tar": {
                "0/two.png": picture,
                "0/two.txt": f"{expr}\r\n\n  a red cat\n",
                "0/named.PNG": picture,
                "0/named.json": json.dumps({"id": 7, "sentences": [{"sent": expr}, {"raw": "a ring"}]}),
                "0/named.txt": "not looked at",
            },
            "b.tar": {
                "asked.png": picture,
                "asked.json": json.dumps({"question": question}),
                "class.png": picture,
                "class.cls": "ring\n",
                "number.png": picture,
                "number.cls": "3",
                "list.png": picture,
                "list.json": "[1]",
                "list.txt": expr,
                "text.txt": "no picture\nhere",
                "broken.png": picture,
                "broken.json": "{",
            },
        }
        for name, members in shards.items():
            with tarfile.open(folder / name, "w") as shard:
                for member, data in members.items():
                    data = data.encode() if isinstance(data, str) else data
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    shard.addfile(info, io.BytesIO(data))
        rows = as_batch(program, model, folder, "*.tar")
        assert sorted(r["expr"] for r in rows if r["id"] == '"0/two"') == sorted([expr, "a red cat"]), rows
        assert len(errors(rows)) == 4, errors(rows)
    print("manifests and shards: the rows of mllmseg batch")


def main():
    program, assets = sys.argv[1], Path(sys.argv[2])
    scenes = [json.loads(line) for line in (assets / "scenes.jsonl").read_text().splitlines()]
    asked = [(str(assets / s["image"]), s["expressions"][0]["text"]) for s in scenes]
    kwargs = {"model": str(assets / "model"), "device": "cpu", "program": program}
    with Worker(**kwargs) as worker:
        futures = [worker.submit(image, [expr]) for image, expr in asked]
        expected = [f.result(timeout=300)[0]["segmentation"]["counts"] for f in futures]
        bad = worker.submit("/gone.png", ["a", "b"]).result(timeout=300)
        assert [r["error"]["kind"] for r in bad] == ["transient"] * 2, bad
        assert "/gone.png" in bad[0]["error"]["message"], bad
        chat = scenes[0]["chat"][0]
        [said] = worker.submit(asked[0][0], questions=[chat["question"]]).result(timeout=300)
        assert (said["question"], said["answer"], said["finish"]) == (chat["question"], chat["got"], "stop"), said

    with tempfile.TemporaryDirectory() as folder:
        killed = os.path.join(folder, "killed")
        here = str(Path(__file__).parent)
        # Actors import the package from here; the dashboard and usage statistics are of no use in a test.
        env = {"PYTHONPATH": here, "MLLMSEG": program}
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": env}, logging_level="warning")
        items = []
        for i in range(ITEMS):
            image, expr = asked[i % len(asked)]
            items.append({"id": i, "image": Path(image).read_bytes(), "exprs": [expr]})
        rows = (
            ray.data.from_items(items, override_num_blocks=10)
            .map_batches(
                Dies,
                fn_constructor_kwargs={"killed": killed, **kwargs},
                batch_size=5,
                compute=ray.data.ActorPoolStrategy(size=2),
            )
            .take_all()
        )
        assert os.path.exists(killed), "no actor was killed"
        assert len(rows) == ITEMS and {r["id"] for r in rows} == set(range(ITEMS)), sorted(r["id"] for r in rows)
        for r in rows:
            i = r["id"] % len(asked)
            assert r["error"] == "" and r["expr"] == asked[i][1], r
            assert r["counts"] == expected[i], f"item {r['id']}: another mask than without Ray"
    print(f"{ITEMS} items, one of two actors killed: {len(rows)} unique results, the masks of a worker without Ray")
    sources(program, kwargs["model"], asked, chat)
    ray.shutdown()


if __name__ == "__main__":
    main()
