"""Opening a token file in a fresh process that has imported all it needs: a fork of this one, for each time.

`python -m dsmem.bench.opener PATH`: "l" (TokenLoader) or "p" (plain) on stdin forks; the fork says "ready" and waits
for "g", opens the file, reads a batch, answers with a JSON line, with another about its memory, and ends. The end of
stdin ends everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dsmem
from dsmem import proc
from dsmem.bench import told
from dsmem.errors import DsmemError

Way = Literal["l", "p"]
BATCH_SIZE, SEQ_LEN, CONSUMED = 64, 1024, 1 << 29


class OpenerFailed(DsmemError, RuntimeError):
    """The process ended before it answered."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What one fresh process did."""

    shape: tuple[int, int]
    largest: int
    """The largest id in the batch."""


class Opener:
    """The running process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.grown_bytes = 0
        """By how much the resident memory of the last fork grew."""

    @contextmanager
    def fresh(self, way: Way) -> Iterator[Opener]:
        """With a fork that waits to be told."""
        self._say(way.encode())
        self._hear()
        yield self
        self.grown_bytes = int(self._hear())

    def open(self) -> Opened:
        """Let the fork open the file and read a batch; what follows is how much memory that took."""
        self._say(b"g")
        shape, largest = json.loads(self._hear())
        return Opened(tuple(shape), largest)

    def _say(self, what: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what)
        self._process.stdin.flush()

    def _hear(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OpenerFailed(f"process {self._process.pid} ended before it answered")
        return line


@contextmanager
def opener(path: str) -> Iterator[Opener]:
    """Start it; at the end it ends, too."""
    with told.started("dsmem.bench.opener", path) as process:
        yield Opener(process)


def main() -> None:
    """Fork whenever stdin asks for it."""
    from dsmem.bench import token_recipes

    (path,) = sys.argv[1:]
    _ = dsmem.TokenLoader  # what a training script has imported when it comes to open its data
    while way := os.read(0, 1):
        pid = os.fork()
        if pid == 0:
            _fresh(way, path, token_recipes.get_batch)
        os.waitpid(pid, 0)


def _fresh(way: bytes, path: str, get_batch: Callable[..., Any]) -> None:
    code = 1
    try:
        os.write(1, b"ready\n")
        before = proc.memory_of(os.getpid()).rss_bytes
        if os.read(0, 1) == b"g":
            x, y = _resumed(path) if way == b"l" else get_batch(path, BATCH_SIZE, SEQ_LEN)
            os.write(1, json.dumps([list(x.shape), max(int(x.max()), int(y.max()))]).encode() + b"\n")
            os.write(1, f"{proc.memory_of(os.getpid()).rss_bytes - before}\n".encode())
        code = 0
    finally:
        os._exit(code)


def _resumed(path: str) -> Any:
    """Open, shuffle, go on in the middle of an epoch."""
    loader = dsmem.TokenLoader(path, BATCH_SIZE, SEQ_LEN, seed=1)
    state = loader.state_dict()
    loader.load_state_dict({**state, "position": {"epoch": 2, "consumed": CONSUMED}})
    return next(iter(loader))


if __name__ == "__main__":
    main()
