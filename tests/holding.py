"""Processes that hold an object: real ones, started anew, told what to do through a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from samples import settle

_READER = """
import os, sys
import dsmem
array = dsmem.attach(sys.argv[1])["x"][()]
if "fork" in sys.argv[2:] and os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
for _ in sys.stdin:
    print(int(array.sum()), flush=True)
"""
ITEMS = 1000


@dataclass(frozen=True, slots=True)
class Reader:
    """A process with an array of one object, its file closed."""

    pid: int
    _process: subprocess.Popen[str]

    def sum(self) -> int:
        """The sum of its array, read now."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def reader(target: str | Path, *, forked: bool = False) -> Iterator[Reader]:
    """A process that has attached; `forked`: its parent did, and is gone. It has ended after the block."""
    words = [sys.executable, "-W", "ignore", "-c", _READER, str(target), *(["fork"] if forked else [])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield Reader(int(process.stdout.readline()), process)
        process.stdin.close()
        assert process.stdout.read() == ""  # end of file: also a fork has ended


def write(path: Path, value: int = 1, *, items: int = ITEMS) -> Path:
    """A file whose dataset `x` holds `items` times the value (float64), and `y` ten zeros; its old self is replaced."""
    fresh = path.with_name(path.name + ".new")
    with h5py.File(fresh, "w") as file:
        file["x"] = np.full(items, value, np.float64)
        file["y"] = np.zeros(10, np.uint8)
    os.replace(fresh, path)
    return settle(path)
