"""Bytes of files read to memory that waits for them, by every worker: what formats without wrapping need."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dsmem.checkpoint.direct import PIECE_BYTES, ChecksumError
from dsmem.checkpoint.items import failure_of
from dsmem.checkpoint.opened import Directory, memory_at
from dsmem.checkpoint.pool import Pool, Task
from dsmem.checkpoint.report import Counting
from dsmem.checkpoint.scratch import Scratch
from dsmem.errors import DsmemError, ReadFailure

_MOST_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Extent:
    """So many bytes of a file, and the address they go to. `names`: the tensors they are of."""

    file: str
    offset: int
    size_bytes: int
    address: int
    names: tuple[str, ...]
    crc: int | None = None
    """To be compared; zero = none was saved."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a task did."""

    extents: Sequence[Extent]
    elapsed_s: float
    verified: int = 0
    failures: tuple[ReadFailure, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all extents."""
        return sum(one.size_bytes for one in self.extents)


@dataclass(frozen=True, slots=True)
class Result:
    """What a read failed at, and what there is to say of its pace."""

    failures: Sequence[ReadFailure]
    slower: str | None
    """Where one worker alone was faster."""


def read(
    directory: Directory,
    extents: Sequence[Extent],
    *,
    workers: int,
    counting: Counting,
    commit: Callable[[str, int], None] = lambda file, size_bytes: None,
) -> Result:
    """Read all of them. `commit` gets the file and the bytes of each task, in the calling thread."""
    failures: list[ReadFailure] = []

    def handle(done: Done) -> list[Task[Done]]:
        failures.extend(done.failures)
        for extent in done.extents:
            counting.file_bytes[extent.file] += extent.size_bytes
            counting.size_bytes += extent.size_bytes
        file = done.extents[0].file
        commit(file, done.size_bytes)
        counting.busy_s[file] = counting.busy_s.get(file, 0.0) + done.elapsed_s
        counting.verified += done.verified
        return []

    pool = Pool[Done](workers, lambda done: done.size_bytes)
    pool.run([partial(_read, directory, some) for some in _together(extents)], handle)
    return Result(failures, pool.pace.slower())


def _together(extents: Sequence[Extent]) -> list[list[Extent]]:
    """Neighbours in one call, up to 16 MiB; larger ones are cut, unless a checksum of all their bytes is wanted."""
    found: list[list[Extent]] = []
    end = size_bytes = 0
    for extent in sorted(extents, key=lambda one: (one.file, one.offset)):
        if extent.size_bytes > PIECE_BYTES and not extent.crc:
            for at in range(0, extent.size_bytes, PIECE_BYTES):
                length = min(PIECE_BYTES, extent.size_bytes - at)
                piece = Extent(extent.file, extent.offset + at, length, extent.address + at, extent.names)
                found.append([piece])
            end = -1
            continue
        last = found[-1] if found and end == extent.offset and found[-1][0].file == extent.file else None
        if last is None or size_bytes + extent.size_bytes > PIECE_BYTES or len(last) == _MOST_AT_ONCE:
            found.append([extent])
            size_bytes = 0
        else:
            last.append(extent)
        size_bytes += extent.size_bytes
        end = extent.offset + extent.size_bytes
    return found


def _read(directory: Directory, extents: Sequence[Extent], scratch: Scratch) -> Done:
    began = time.perf_counter()
    failures = []
    verified = 0
    try:
        file = directory.open(extents[0].file)
        crcs: dict[int, int] = {}
        for one in extents:
            directory.prepare(one.address, one.size_bytes)
        if len(extents) == 1 and extents[0].crc:
            crcs[0] = file.copy_with_crc(extents[0].address, extents[0].size_bytes, extents[0].offset)
        elif len(extents) == 1:
            file.copy(extents[0].address, extents[0].size_bytes, extents[0].offset)
        else:
            file.read([memory_at(one.address, one.size_bytes) for one in extents], extents[0].offset)
        for number, one in enumerate(extents):
            if one.crc:
                actual = crcs[number] if number in crcs else zlib.crc32(memory_at(one.address, one.size_bytes))
                if actual != one.crc:
                    names = ", ".join(one.names)
                    changed = ChecksumError(
                        f"the bytes of {names} changed: their CRC is {actual:08x}, saved was {one.crc:08x}"
                    )
                    failures.append(failure_of(changed, one.file, one.names, one.offset))
                verified += 1
    except (OSError, DsmemError) as exc:
        all_names = tuple(name for one in extents for name in one.names)
        failures.append(failure_of(exc, extents[0].file, all_names, extents[0].offset))
    return Done(extents, time.perf_counter() - began, verified, tuple(failures))
