"""Ray Data over `mllmseg worker`: 200 items through a pool of two actors, one killed in the middle, 200 unique results, each the one that a
worker gives without Ray. Usage: test_ray.py MLLMSEG ASSETS"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import ray

from mllmseg_ray import Segmenter, Worker

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


def main():
    program, assets = sys.argv[1], Path(sys.argv[2])
    scenes = [json.loads(line) for line in (assets / "scenes.jsonl").read_text().splitlines()]
    asked = [(str(assets / s["image"]), s["expressions"][0]["text"]) for s in scenes]
    kwargs = {"model": str(assets / "model"), "device": "cpu", "program": program}
    with Worker(**kwargs) as worker:
        futures = [worker.submit(image, [expr]) for image, expr in asked]
        expected = [f.result(timeout=300)[0]["segmentation"]["counts"] for f in futures]
        bad = worker.submit("/gone.png", ["a", "b"]).result(timeout=300)
        assert [r["error"]["kind"] for r in bad] == ["permanent"] * 2, bad
        assert "/gone.png" in bad[0]["error"]["message"], bad
        chat = scenes[0]["chat"][0]
        [said] = worker.submit(asked[0][0], questions=[chat["question"]]).result(timeout=300)
        assert (said["question"], said["answer"], said["finish"]) == (chat["question"], chat["got"], "stop"), said

    with tempfile.TemporaryDirectory() as folder:
        killed = os.path.join(folder, "killed")
        here = str(Path(__file__).parent)
        # Actors import the package from here; the dashboard and usage statistics are of no use in a test.
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": here}}, logging_level="warning")
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
        ray.shutdown()
    print(f"{ITEMS} items, one of two actors killed: {len(rows)} unique results, the masks of a worker without Ray")


if __name__ == "__main__":
    main()
