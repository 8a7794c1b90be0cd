"""A training process to measure: loads or attaches what it is told to, holds it, and ends with its parent.

`python -m dsmem.bench.worker`: a JSON request a line on stdin, a JSON answer a line on stdout; the end of stdin ends
it, also in the midst of work.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any, BinaryIO

import dsmem
from dsmem.bench import recipes, sources
from dsmem.bench.sources import Array


def main() -> None:
    """Answer requests until stdin ends."""
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may come between the answers
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    held: dict[str, Array] = {}
    while True:
        request = requests.get()
        held.clear()
        try:
            answer = _do(request, held)
        except Exception as exc:  # noqa: BLE001 - it is the answer, and raised where the request was made
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        try:
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent died while it waited


def _listen(stdin: BinaryIO, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _do(request: dict[str, Any], held: dict[str, Array]) -> dict[str, Any]:
    """Carry out one request; what it loads stays in `held` until the next one."""
    if request["do"] == "drop":
        return {"ready_s": 0.0, "read_s": 0.0, "digest": ""}
    if request["root"] is not None:
        os.environ["DSMEM_ROOT"] = request["root"]
    path, names = request["path"], request["names"]
    began = time.perf_counter()
    if request["do"] == "preload":
        held.update(recipes.preload(path, names))
    else:
        file = dsmem.attach(path)
        held.update({name: file[name][()] for name in names})
    ready = time.perf_counter()
    digest = sources.content_digest(held)
    return {"ready_s": ready - began, "read_s": time.perf_counter() - ready, "digest": digest}


if __name__ == "__main__":
    main()
