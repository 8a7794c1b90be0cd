"""Bytes on their way into a file, hashed as they come; those whose place is not known yet wait in memory or in a file.

What waits in memory is bounded for all that a process makes together (`Room`); whatever has no room there waits in a
file of its own.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from dsmem import files

_ROOM_BYTES, _ALL_ROOM_BYTES = 96 << 20, 64 << 20
"""For one process, and for all that do the same."""
_BLOCK_BYTES, _READ_BYTES = 256 << 10, 1 << 20


def share_bytes(processes: int) -> int:
    """The room of each of so many processes."""
    return min(_ROOM_BYTES, _ALL_ROOM_BYTES // processes)


class Room:
    """Blocks of memory in which bytes wait, used again and again: what the C library is given back, of sizes that
    differ, it keeps, and asks the kernel for more."""

    def __init__(self, size_bytes: int = _ROOM_BYTES, block_bytes: int = _BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._most = size_bytes // block_bytes
        self._memory: memoryview | None = None
        self._free: list[memoryview] = []
        self._made = 0

    @property
    def taken_bytes(self) -> int:
        """Of memory, whether anything waits in it or not."""
        return self._made * self._block_bytes

    def take(self) -> memoryview | None:
        """A block to write to; None where there is no room."""
        if self._free:
            return self._free.pop()
        if self._made == self._most:
            return None
        if self._memory is None:
            size_bytes = self._most * self._block_bytes
            self._memory = memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        start = self.taken_bytes
        self._made += 1
        return self._memory[start : start + self._block_bytes]

    def give(self, blocks: Iterable[memoryview]) -> None:
        """Nothing waits in these any longer."""
        self._free += blocks


@dataclass(frozen=True, slots=True)
class Mark:
    """How far bytes had come."""

    size_bytes: int
    hasher: xxhash.xxh3_128
    blocks: int = 0
    left_bytes: int = 0
    spilled: Mark | None = None


class Held:
    """Bytes that wait; from the first for which there is no room on, in the file at `path`."""

    def __init__(self, path: str, room: Room) -> None:
        self._path = path
        self._room = room
        self._blocks: list[memoryview] = []
        self._left_bytes = 0
        """Of the last block."""
        self._spilled: HashedFile | None = None
        self._hasher = xxhash.xxh3_128()
        self.size_bytes = 0

    def write(self, array: Any) -> None:
        """The next bytes, of an array."""
        data = _bytes_of(array)
        self._hasher.update(data)
        self.size_bytes += len(data)
        while data and self._spilled is None:
            if not self._left_bytes:
                block = self._room.take()
                if block is None:
                    self._spilled = HashedFile(self._path)
                    break
                self._blocks.append(block)
                self._left_bytes = len(block)
            here = min(len(data), self._left_bytes)
            start = len(self._blocks[-1]) - self._left_bytes
            self._blocks[-1][start : start + here] = data[:here]
            self._left_bytes -= here
            data = data[here:]
        if self._spilled is not None:
            self._spilled.write(data)

    def mark(self) -> Mark:
        """To go back to."""
        spilled = None if self._spilled is None else self._spilled.mark()
        return Mark(self.size_bytes, self._hasher.copy(), len(self._blocks), self._left_bytes, spilled)

    def go_back(self, mark: Mark) -> None:
        """What was written since then was not."""
        if mark.spilled is None:
            self._end_spilling()
            self._room.give(self._blocks[mark.blocks :])
            del self._blocks[mark.blocks :]
        elif self._spilled is not None:
            self._spilled.go_back(mark.spilled)
        self._left_bytes = mark.left_bytes
        self.size_bytes, self._hasher = mark.size_bytes, mark.hasher.copy()

    def hexdigest(self) -> str:
        """xxh3-128 of all bytes."""
        return self._hasher.hexdigest()

    def write_to(self, path: str, start_bytes: int) -> None:
        """Write all of them there, and hold them no longer; the file is made if need be."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            at = start_bytes
            for number, block in enumerate(self._blocks, 1):
                full = block if number < len(self._blocks) else block[: len(block) - self._left_bytes]
                files.pwrite_full(fd, full, at)
                at += len(full)
            if self._spilled is not None:
                self._spilled.close()
                with Path(self._path).open("rb", buffering=0) as file:
                    while data := file.read(_READ_BYTES):
                        files.pwrite_full(fd, memoryview(data), at)
                        at += len(data)
            if self.size_bytes:
                files.start_writing_out(fd, start_bytes, self.size_bytes)
        finally:
            os.close(fd)
        self.release()

    def release(self) -> None:
        """Hold nothing any longer."""
        self._room.give(self._blocks)
        self._blocks, self._left_bytes = [], 0
        self._end_spilling()

    def _end_spilling(self) -> None:
        if self._spilled is not None:
            self._spilled.close()
            files.unlink_if_there(self._path)
            self._spilled = None


class HashedFile:
    """A new file, hashed as it is written."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._hasher = xxhash.xxh3_128()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, array: Any) -> None:
        """The next bytes."""
        data = _bytes_of(array)
        self._hasher.update(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def mark(self) -> Mark:
        """To go back to."""
        return Mark(os.lseek(self._fd, 0, os.SEEK_CUR), self._hasher.copy())

    def go_back(self, mark: Mark) -> None:
        """What was written since then was not."""
        os.ftruncate(self._fd, mark.size_bytes)
        os.lseek(self._fd, mark.size_bytes, os.SEEK_SET)
        self._hasher = mark.hasher.copy()

    def close(self) -> None:
        """Nothing more comes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def hexdigest(self) -> str:
        """xxh3-128 of what was written."""
        return self._hasher.hexdigest()


def _bytes_of(array: Any) -> memoryview:
    return memoryview(array).cast("B") if len(array) else memoryview(b"")
