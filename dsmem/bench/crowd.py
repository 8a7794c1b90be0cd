"""Many processes that have imported all they need: forks of one that has, let go at the same moment.

`python -m dsmem.bench.crowd`: a JSON request a line on stdin, an answer a line on stdout; the end of stdin ends all.
A fork says that it is ready, waits for the gate, does its work, and holds what it has until it is let go.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import dsmem
from dsmem import helpers, proc
from dsmem.bench import recipes, told
from dsmem.errors import DsmemError

_IMPORTS = "import dsmem.server.daemon"
_SETTLE_S = 0.05
"""Forks that have just said that they are ready are still on their way to the gate."""


class CrowdFailed(DsmemError, RuntimeError):
    """A process of the crowd failed or died."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What the processes did."""

    elapsed_s: tuple[float, ...]
    """From the gate until the work was done, of each."""
    results: tuple[Any, ...]
    grown_bytes: int
    """By how much the PSS of all together grew, while they held what they had."""


class Crowd:
    """The process that forks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def act(self, work: str, processes: int, **arguments: object) -> Acted:
        """Have so many do this; raises CrowdFailed."""
        answer = self._ask({"do": work, "processes": processes, **arguments})
        return Acted(tuple(answer["elapsed_s"]), tuple(answer["results"]), answer["grown_bytes"])

    def imports(self) -> None:
        """A fresh Python imports what a daemon does, and ends: by hand it would be the least to wait for."""
        self._ask({"do": "import"})

    def stop_server(self) -> None:
        """End the daemon that was started."""
        self._ask({"do": "stop"})

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise CrowdFailed(f"process {self._process.pid} ended before it answered")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CrowdFailed(str(answer["error"]))
        return answer


@contextmanager
def crowd(place: Path) -> Iterator[Crowd]:
    """Start it; its server's socket and log lie in `place`.

    Whoever installed dsmem has its bytecode on the disk; where PYTHONDONTWRITEBYTECODE says that it may not be made
    there, it is made once, in `place`.
    """
    environ = {**helpers.environment(), "XDG_RUNTIME_DIR": str(place), "XDG_STATE_HOME": str(place)}
    if environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        environ["PYTHONPYCACHEPREFIX"] = str(place)
    with told.started("dsmem.bench.crowd", environ=environ) as process:
        yield Crowd(process)


def main() -> None:
    """Answer requests until stdin ends, and leave no daemon behind."""
    import datasets

    from dsmem.config import resolve
    from dsmem.server import client, lifecycle, places

    lifecycle.plan_of(resolve.resolve())
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = True
    assert client
    try:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                answer: dict[str, Any] = {}
                if request["do"] == "stop":
                    lifecycle.stop(places.find(resolve.resolve()))
                elif request["do"] == "import":
                    subprocess.run([sys.executable, "-P", "-S", "-c", _IMPORTS], env=helpers.environment(), check=True)
                else:
                    answer = _act(request)
            except Exception as exc:  # noqa: BLE001 - it is the answer, and raised where the request was made
                answer = {"error": f"{type(exc).__name__}: {exc}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        lifecycle.stop(places.find(resolve.resolve()))


def _act(request: Mapping[str, Any]) -> dict[str, Any]:
    work = _WORKS[request["do"]]
    gc.freeze()  # a collection in a fork would write to every page that it shares
    heard: dict[int, BinaryIO] = {}
    with ExitStack() as stack:
        stack.callback(lambda: [os.waitpid(pid, 0) for pid in heard])
        gate, opens = _pipe(stack)
        held, lets_go = _pipe(stack)
        for _ in range(request["processes"]):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                opens.close()
                lets_go.close()
                _fork(lambda: work(request), theirs, gate.fileno(), held.fileno())
            os.close(theirs)
            heard[pid] = stack.enter_context(os.fdopen(ours, "rb"))
        for one in heard.values():
            one.readline()
        time.sleep(_SETTLE_S)
        before = _pss_bytes(heard)
        opens.close()
        answers = [_answer(one) for one in heard.values()]
        grown = _pss_bytes(heard) - before
    return {
        "elapsed_s": [one["elapsed_s"] for one in answers],
        "results": [one["result"] for one in answers],
        "grown_bytes": grown,
    }


def _pipe(stack: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe()
    return stack.enter_context(os.fdopen(read, "rb")), stack.enter_context(os.fdopen(write, "wb"))


def _answer(heard: BinaryIO) -> dict[str, Any]:
    line = heard.readline()
    if not line:
        raise CrowdFailed("a process ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise CrowdFailed(answer["error"])
    return answer


def _fork(work: Callable[[], tuple[Any, Any]], says: int, gate: int, let_go: int) -> NoReturn:
    try:
        os.write(says, b"ready\n")
        os.read(gate, 1)
        began = time.perf_counter()
        try:
            result, held = work()
            answer = {"elapsed_s": time.perf_counter() - began, "result": result}
        except Exception as exc:  # noqa: BLE001 - it is the answer
            held, answer = None, {"error": f"{type(exc).__name__}: {exc}"}
        os.write(says, json.dumps(answer).encode() + b"\n")
        os.read(let_go, 1)
        del held
    finally:
        os._exit(0)


def _pss_bytes(pids: Iterable[int]) -> int:
    return sum(proc.memory_of(pid).pss_bytes for pid in pids)


def _nothing(request: Mapping[str, Any]) -> tuple[Any, Any]:
    return None, None


def _start(request: Mapping[str, Any]) -> tuple[Any, Any]:
    """The pid of the one daemon, started by whoever came first."""
    from dsmem.server import lifecycle

    return lifecycle.ensure_started(60).pid, None


def _rows(request: Mapping[str, Any]) -> tuple[Any, Any]:
    """Open a dataset and read every byte of it."""
    pattern = request["pattern"]
    if request["way"] == "shared":
        found = dsmem.load_dataset("json", data_files=pattern, split="train", fallback="error")
    else:
        found = recipes.load_rows(pattern, request["cache"], keep_in_memory=request["way"] == "memory")
    return _read(found), found


def _read(found: Any) -> list[int]:
    """Read every byte and allocate nothing of that size; (rows, bytes of their text).

    Bytes behind the last row of a batch may be of the next one.
    """
    import numpy as np

    text_bytes = 0
    for chunk in found.data.table.column("text").chunks:
        for buffer in chunk.buffers():
            if buffer is not None:
                np.frombuffer(buffer, np.uint8).sum(dtype=np.uint64)
        ends = np.frombuffer(chunk.buffers()[1], np.int32)
        text_bytes += int(ends[chunk.offset + len(chunk)] - ends[chunk.offset])
    return [len(found), text_bytes]


_WORKS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    "nothing": _nothing,
    "start": _start,
    "rows": _rows,
}


if __name__ == "__main__":
    main()
