"""Digests of the input while it is read: the slices of an xxh3-tree in a range of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from dsmem import digest

_READ_BYTES = 1 << 20


class Slices:
    """The range `start` … `end` − 1 of a file; `start` is a multiple of SLICE_BYTES. Its bytes come in order."""

    def __init__(self, start: int, end: int) -> None:
        self.end = end
        self._at = start
        self._hasher = digest.slice_digest()
        self._in_slice = 0
        self._found: list[str] = []

    def update(self, data: memoryview) -> None:
        """The next bytes; what goes beyond the end is left out."""
        data = data[: self.end - self._at]
        self._at += len(data)
        while data:
            here = data[: digest.SLICE_BYTES - self._in_slice]
            self._hasher.update(here)
            self._in_slice += len(here)
            if self._in_slice == digest.SLICE_BYTES:
                self._end_slice()
            data = data[len(here) :]

    def look_at(self, fd: int, until: int) -> None:
        """Read what comes before `until`, of which nobody else has any use."""
        until = min(until, self.end)
        while self._at < until and (data := os.pread(fd, min(_READ_BYTES, until - self._at), self._at)):
            self.update(memoryview(data))

    def watch(self, fd: int, blocks: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        """The blocks with their offsets, each seen before somebody else gets it, and what lies between them."""
        for offset, block in blocks:
            self.look_at(fd, offset)
            self.update(block)
            yield offset, block
        self.look_at(fd, self.end)

    def digests(self) -> list[str]:
        """In hex, of all slices."""
        if self._in_slice:
            self._end_slice()
        return self._found

    def _end_slice(self) -> None:
        self._found.append(self._hasher.hexdigest())
        self._hasher = digest.slice_digest()
        self._in_slice = 0
