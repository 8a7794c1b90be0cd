"""Processes that decode small chunks: in threads Python's lock would be asked for every few microseconds.

Measured with 65,536 chunks of 4 KiB (gzip): one takes 10 µs without the lock and 2 µs with it, and two threads spend
14 µs of a clock on each, because whoever waits for the lock sleeps, and wakes 50 µs later. Each process is a fresh
interpreter (`dsmem.pinning.decoder`) that inherits the source, the draft and the chunk tables by descriptor, writes
what it decodes straight to its place, and ends with the parent, however that ended.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np

from dsmem import files, helpers
from dsmem.errors import BadSource
from dsmem.hdf5.chunks import Band, ChunkTable, Column
from dsmem.store.draft import Draft

_PATIENCE_S = 5.0
_ANSWER_BYTES = 4096
_ALIGNED_BYTES = 8


@dataclass(frozen=True, slots=True)
class Description:
    """What a process must know of a dataset to decode it."""

    place: int
    """Where in the object it begins."""
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    item_bytes: int
    filters: Sequence[tuple[int, Sequence[int], str]]
    """Code, values and name of each, in the order in which they were applied."""
    fill_hex: str
    """The bytes of one item that was never written."""
    label: str
    """What errors call it."""


class Decoders:
    """A number of processes; `decode` may be called from any number of threads."""

    def __init__(self, fd: int, draft: Draft, processes: int, *, object_bytes: int, with_numpy: bool) -> None:
        """Start them; they get ready meanwhile (0.05 s; with numpy, which whatever is not plain needs, 0.1 s)."""
        self._draft = draft
        self._told: list[bytes] = []
        self._tables_bytes = 0
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        with ExitStack() as stack:
            self._tables_fd = os.memfd_create("dsmem-chunks", os.MFD_CLOEXEC)
            stack.callback(os.close, self._tables_fd)
            mapped_bytes = object_bytes if draft.in_place else 0
            for _ in range(processes):
                self._idle.put(_Process(stack, fd, draft.fd, self._tables_fd, mapped_bytes, int(with_numpy)))
            self._stack = stack.pop_all()

    def add(self, description: Description, table: ChunkTable) -> int:
        """Announce a dataset; returns its number. Not to be called by two threads at once."""
        columns = [self._column(column) for column in (table.offsets, table.sizes, table.masks)]
        known = {**asdict(description), "grid": table.grid, "columns": columns}
        self._told.append(json.dumps(known).encode() + b"\n")
        return len(self._told) - 1

    def _column(self, column: Column) -> tuple[str, int]:
        """Share a column: its format and where it lies; of one that takes no memory "" and its value."""
        if column.strides == (0,):
            return "", int(column[0])
        start = self._tables_bytes
        files.pwrite_full(self._tables_fd, column.view(np.uint8).data, start)
        self._tables_bytes += -(-column.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
        return column.dtype.char, start

    def decode(self, number: int, band: Band, *, is_plain: bool) -> int | None:
        """Have a band of a dataset decoded into its place; returns how many bytes that was. None: all are busy.

        Raises BadSource for what can't be decoded, and when the process dies; NoSpace.
        """
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            return None
        try:
            answer = process.ask(self._told, number, band, is_plain)
        finally:
            self._idle.put(process)
        if "errno" in answer:
            raise self._draft.translated(OSError(answer["errno"], os.strerror(answer["errno"])))
        if "error" in answer:
            raise BadSource(answer["error"])
        return int(answer["done"])

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Process:
    def __init__(self, stack: ExitStack, fd: int, draft_fd: int, tables_fd: int, mapped: int, with_numpy: int) -> None:
        self._process = helpers.start(
            "dsmem.pinning.decoder",
            mapped,
            with_numpy,
            fds=(fd, draft_fd, tables_fd),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**helpers.environment(), "OPENBLAS_NUM_THREADS": "1"},  # whose threads spin while numpy is imported
            bufsize=0,
        )
        stack.callback(self._stop)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._knows = 0

    def ask(self, told: Sequence[bytes], number: int, band: Band, is_plain: bool) -> dict[str, Any]:
        """Tell it of the datasets that it does not know yet, then have it decode a band; returns its answer."""
        known = len(told)
        task = [number, is_plain, *(getattr(band, name) for name in Band.__slots__)]
        request = b"".join(told[self._knows : known]) + json.dumps(task).encode() + b"\n"
        self._knows = known
        left = memoryview(request)
        with suppress(BrokenPipeError):  # it is dead: its answers are at an end
            while left:  # a signal may end a write early
                left = left[self._requests.write(left) or 0 :]
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self._answers.fileno(), _ANSWER_BYTES)
            if part:
                line += part
                continue
            code = self._process.wait(_PATIENCE_S)
            return {"error": f"a process that decoded chunks for us ended ({helpers.ending(code)})"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self) -> None:
        self._requests.close()
        self._answers.close()
        self._process.kill()
        self._process.wait()
