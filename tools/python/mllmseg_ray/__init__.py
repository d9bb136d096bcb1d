"""mllmseg on Ray Data.

    import ray
    from mllmseg_ray import Segmenter

    ds = ray.data.read_parquet("s3://bucket/pictures/")           # columns: image (bytes or paths), exprs (list of str)
    masks = ds.map_batches(
        Segmenter, fn_constructor_kwargs={"model": "org/MLLMSeg_InternVL2_5_8B_RES"},
        batch_size=32, num_gpus=1, compute=ray.data.ActorPoolStrategy(size=8))
    masks.write_parquet("out/")

Each actor owns one engine process, and several batches are in flight in it, so that its GPU does not wait between them. Rows
out: one an expression, with the other columns of its picture's row.
"""

import asyncio
import os

import numpy as np

from .worker import Worker, WorkerError

__all__ = ["Segmenter", "Worker", "WorkerError", "rows_of"]


class Segmenter:
    """For `Dataset.map_batches` with an actor pool.

    model      as for `Worker`; so are program and args
    device     default: cuda:0, the GPU that Ray gave the actor, if it gave one; else cpu
    image      the column of pictures: paths, encoded bytes, or dicts with `bytes` or `path` (as data sets on the hub have them), or with
               `error`, why there is none: the row fails with that
    exprs      the column of expressions: a string or a list of strings
    questions  the column of questions, if there is one: the same. A row has either expressions or questions
    """

    def __init__(self, model, device=None, image="image", exprs="exprs", program=None, args=(), questions=None):
        if device is None:
            device = "cuda:0" if os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() else "cpu"
        self._worker = Worker(model, device, program, args)
        self._image, self._exprs, self._questions = image, exprs, questions

    async def __call__(self, batch):
        """`batch`: a dict of columns. Ray runs several of these at once in an actor; their pictures go to the engine together."""
        images = batch[self._image]
        exprs, questions = (map(_texts, batch.get(name, [None] * len(images))) for name in (self._exprs, self._questions))
        records = await asyncio.gather(*map(self._records, images, exprs, questions))
        yield rows_of(batch, records, {self._image, self._exprs, self._questions}, self._questions is not None)

    async def _records(self, image, exprs, questions):
        if isinstance(image, dict) and image.get("error"):
            asked = [{"question": q} for q in questions] or [{"expr": e} for e in exprs] or [{}]
            return [{**a, "error": {"kind": "permanent", "message": image["error"]}} for a in asked]
        return await asyncio.wrap_future(self._worker.submit(_picture(image), exprs, questions=questions))


def _texts(cell):
    return [] if cell is None else [cell] if isinstance(cell, str) else list(cell)


def _picture(image):
    if isinstance(image, dict):
        return image["bytes"] if image.get("bytes") is not None else image.get("path")
    return image


def rows_of(batch, records, without=(), questions=False):
    """Columns of one row a record: the batch's (but those `without`) repeated, and the record's.

    expr str; height, width int64, the picture's; counts str, COCO's compressed RLE; bbox (N, 4) int64 x, y, width, height; area
    int64; score float32; no_target bool; error str and error_kind str ("permanent", "transient"), empty where there is a mask or
    an answer; with `questions` question, answer and finish (why it ended) str.
    """
    counts = [len(r) for r in records]
    flat = [r for item in records for r in item]
    rows = {name: np.repeat(np.asarray(column), counts, axis=0) for name, column in batch.items() if name not in without}

    def column(dtype, value):
        return np.array([value(r) for r in flat], dtype=dtype)

    size = [r.get("segmentation", {}).get("size", [0, 0]) for r in flat]
    rows["expr"] = column(object, lambda r: r.get("expr", ""))
    rows["height"], rows["width"] = (np.array([s[i] for s in size], dtype=np.int64) for i in (0, 1))
    rows["counts"] = column(object, lambda r: r.get("segmentation", {}).get("counts", ""))
    rows["bbox"] = column(np.int64, lambda r: r.get("bbox", [0] * 4)).reshape(-1, 4)
    rows["area"] = column(np.int64, lambda r: r.get("area", 0))
    rows["score"] = column(np.float32, lambda r: r.get("score", 0))
    rows["no_target"] = column(bool, lambda r: r.get("no_target", False))
    rows["error"] = column(object, lambda r: r.get("error", {}).get("message", ""))
    rows["error_kind"] = column(object, lambda r: r.get("error", {}).get("kind", ""))
    for name in ("question", "answer", "finish") if questions else ():
        rows[name] = column(object, lambda r, name=name: r.get(name, ""))
    return rows
