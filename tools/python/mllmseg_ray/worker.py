"""`mllmseg worker --stdio` as a Python object: pictures and expressions in, records out. Standard library only."""

import base64
import collections
import json
import os
import subprocess
import threading
from concurrent.futures import Future


class WorkerError(RuntimeError):
    """The worker ended; what was asked of it and not answered is lost."""


class Worker:
    """One engine in a process of its own. Threads may share it; any number of pictures may be asked for at once.

    model    a checkpoint's folder, or ORG/NAME in the Hugging Face cache
    device   cpu, cuda:N or sim
    program  the command `mllmseg`: a path, or else $MLLMSEG, or else the one in $PATH
    args     more of `mllmseg worker`'s arguments, such as "--prompting=joint"
    """

    def __init__(self, model, device="cpu", program=None, args=()):
        program = program or os.environ.get("MLLMSEG", "mllmseg")
        command = [program, "worker", "--stdio", "--model", model, "--device", device, *args]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()  # of what follows
        self._waiting = {}
        self._next = 0
        self._error = None
        self._writing = threading.Lock()
        ready = self._process.stdout.readline()
        if not ready.startswith(b'{"ready"'):
            raise WorkerError(f"{' '.join(command)}: expected a worker that is ready, found exit code {self._process.wait()}")
        threading.Thread(target=self._read, daemon=True).start()

    def submit(self, image, exprs=(), id=None, questions=()):
        """Asks about one picture. `image` is a path or the bytes of a JPEG, PNG, ... file; `exprs` a list of expressions, or
        `questions` one of questions. What is missing or one too many is an error of the worker's, in the records.

        Returns a Future of the records, one dict an expression or question in their order: those of results.jsonl, that is `expr` with
        `segmentation` (COCO RLE), `bbox`, `area`, `score`, `no_target`; `question` with `answer`, `finish`, `tokens`; or with `error`
        (`kind`, `message`).
        """
        request = {"id": id}
        for name, texts in ("exprs", exprs), ("questions", questions):
            if texts:
                request[name] = [str(t) for t in texts]
        if isinstance(image, (bytes, bytearray, memoryview)):
            request["image_b64"] = base64.b64encode(image).decode()
        elif image is not None:
            request["image"] = os.fspath(image)
        future = Future()
        with self._lock:
            if self._error:
                raise WorkerError(self._error)
            request["index"] = self._next
            self._waiting[self._next] = future
            self._next += 1
        line = json.dumps(request).encode() + b"\n"
        try:
            with self._writing:  # lines must not mix; the worker takes them as it can
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except OSError:
            pass  # its end is seen by the reader, which fails every future
        return future

    def _read(self):
        records = collections.defaultdict(list)
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if "done" not in record:
                records[record["index"]].append(record)
                continue
            with self._lock:
                future = self._waiting.pop(record["done"], None)
            if future:
                future.set_result(records.pop(record["done"], []))
        with self._lock:
            self._error = f"expected a worker that answers, found one that ended with exit code {self._process.wait()}"
            lost, self._waiting = self._waiting, {}
        for future in lost.values():
            future.set_exception(WorkerError(self._error))

    def close(self):
        """Lets it finish what it was asked and ends it."""
        with self._writing:
            self._process.stdin.close()
        return self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
