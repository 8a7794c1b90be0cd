"""Bytes on their way into a file, hashed as they come; those whose place is not known yet wait in memory or in a file.

What waits in memory is bounded for all that a process makes together (`Room`); whatever has no room there waits in a
file of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from dsmem import files

_ROOM_BYTES, _ALL_ROOM_BYTES = 96 << 20, 64 << 20
"""For one process, and for all that do the same."""
_BLOCK_BYTES = 1 << 20


def share_bytes(processes: int) -> int:
    """The room of each of so many processes."""
    return min(_ROOM_BYTES, _ALL_ROOM_BYTES // processes)


class Room:
    """How many bytes may wait in memory at a time."""

    def __init__(self, size_bytes: int = _ROOM_BYTES) -> None:
        self._left_bytes = size_bytes
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Whether there is room for so many, which then is taken."""
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        self.taken_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """So many wait no longer."""
        self._left_bytes += size_bytes
        self.taken_bytes -= size_bytes


class Held:
    """Bytes that wait; from the first for which there is no room on, in the file at `path`."""

    def __init__(self, path: str, room: Room) -> None:
        self._path = path
        self._room = room
        self._blocks: list[memoryview] = []
        self._in_memory_bytes = 0
        self._spilled: HashedFile | None = None
        self._hasher = xxhash.xxh3_128()
        self.size_bytes = 0

    def write(self, array: Any) -> None:
        """The next bytes, of an array that nobody changes from now on."""
        data = _bytes_of(array)
        self._hasher.update(data)
        self.size_bytes += len(data)
        if self._spilled is None and self._room.take(len(data)):
            self._blocks.append(data)
            self._in_memory_bytes += len(data)
            return
        if self._spilled is None:
            self._spilled = HashedFile(self._path)
        self._spilled.write(data)

    def hexdigest(self) -> str:
        """xxh3-128 of all bytes."""
        return self._hasher.hexdigest()

    def write_to(self, path: str, start_bytes: int) -> None:
        """Write all of them there, and hold them no longer; the file is made if need be."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            at = start_bytes
            for block in self._blocks:
                files.pwrite_full(fd, block, at)
                at += len(block)
            if self._spilled is not None:
                self._spilled.close()
                with Path(self._path).open("rb", buffering=0) as file:
                    while data := file.read(_BLOCK_BYTES):
                        files.pwrite_full(fd, memoryview(data), at)
                        at += len(data)
            if self.size_bytes:
                files.start_writing_out(fd, start_bytes, self.size_bytes)
        finally:
            os.close(fd)
        self.release()

    def release(self) -> None:
        """Hold nothing any longer."""
        self._blocks.clear()
        self._room.give(self._in_memory_bytes)
        self._in_memory_bytes = 0
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
