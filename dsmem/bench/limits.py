"""What the machine can do at best, by plain means: the yardstick that stands beside every speed."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dsmem import digest, parallel, proc
from dsmem.buffers import Buffer
from dsmem.digest.algorithms import Hasher
from dsmem.store import hugepages
from dsmem.store.hugepages import Extents

_BLOCK_BYTES = 1 << 20
_SLICE_BYTES = 32 << 20
Fill = Callable[[str, BinaryIO], None]


def copy_memory(size_bytes: int) -> Callable[[], None]:
    """A function that copies so many bytes from memory to memory, in one thread; both are touched beforehand."""
    source, target = np.ones(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
    return lambda: np.copyto(target, source)


def read_cached(path: str) -> None:
    """Read a file that lies in the page cache, 1 MiB at a time, with a thread for each CPU."""
    with Path(path).open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size

        def read(start: int) -> None:
            buffer = Buffer().at(start, _BLOCK_BYTES)
            for offset in range(start, min(start + _SLICE_BYTES, size_bytes), _BLOCK_BYTES):
                os.preadv(file.fileno(), [buffer], offset)

        _in_threads(read, size_bytes)


def read_into(directory: Path, places: Sequence[tuple[int, int]]) -> None:
    """Read the files of a directory into memory (addresses and bytes), one after the other, a thread for each CPU."""
    handles = [path.open("rb", buffering=0) for path in sorted(directory.iterdir())]
    try:
        tasks = []
        left = [os.fstat(handle.fileno()).st_size for handle in handles]
        number = 0
        for address, size_bytes in places:
            while number < len(left) - 1 and left[number] < size_bytes:
                number += 1
            view = memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")
            offset = max(0, os.fstat(handles[number].fileno()).st_size - left[number])
            left[number] -= size_bytes
            tasks.append((handles[number].fileno(), view, offset))
        batches = [tasks[start : start + 256] for start in range(0, len(tasks), 256)]
        if len(tasks) < 256 * proc.usable_cpus():
            batches = [[task] for task in tasks]

        def read(batch: list[tuple[int, memoryview, int]]) -> None:
            for fd, view, offset in batch:
                for start in range(0, len(view), _SLICE_BYTES):
                    os.preadv(fd, [view[start : start + _SLICE_BYTES]], offset + start)

        parallel.run((partial(read, batch) for batch in batches), min(proc.usable_cpus(), len(batches)))
    finally:
        for handle in handles:
            handle.close()


def read_once(path: Path) -> None:
    """Read a file from its begin to its end, 1 MiB at a time, in one thread."""
    buffer = Buffer().at(0, _BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            continue


def open_and_map(path: str) -> int:
    """Open a file, map it, read its first byte: less can't be done to reach a file's data."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as mapped:
            return mapped[0]
    finally:
        os.close(fd)


def fill_one_thread(path: str, target: BinaryIO) -> None:
    """Copy a file as `dd bs=1M` does: read and write 1 MiB at a time."""
    with Path(path).open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        _copy(file.fileno(), target.fileno(), range(0, size_bytes, _BLOCK_BYTES))


def fill_threads(path: str, target: BinaryIO, *, hashed: bool = False) -> None:
    """Copy a file 1 MiB at a time, with a thread for each CPU; hashed: also digest it, as an xxh3-tree is."""
    with Path(path).open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size

        def copy(start: int) -> None:
            blocks = range(start, min(start + _SLICE_BYTES, size_bytes), _BLOCK_BYTES)
            hasher = digest.slice_digest() if hashed else None
            _copy(file.fileno(), target.fileno(), blocks, hasher)

        _in_threads(copy, size_bytes)


def fill_hot(path: str, target: BinaryIO) -> None:
    """Write as many bytes as the file has, the same 1 MiB again and again, with a thread for each CPU: no reading."""
    fill_hot_bytes(os.stat(path).st_size, target)


def fill_hot_bytes(size_bytes: int, target: BinaryIO) -> None:
    """Write so many bytes, the same 1 MiB again and again, with a thread for each CPU: no reading, no decoding."""
    block = Buffer().at(0, _BLOCK_BYTES)
    block[:] = bytes(range(256)) * (_BLOCK_BYTES // 256)

    def write(start: int) -> None:
        end = min(start + _SLICE_BYTES, size_bytes)
        for offset in range(start, end, _BLOCK_BYTES):
            os.pwrite(target.fileno(), block[: min(_BLOCK_BYTES, end - offset)], offset)

    _in_threads(write, size_bytes)


def fill_mapped(path: str, target: BinaryIO, *, taken: bool = False, hashed: bool = False) -> None:
    """Read a file straight into a map that asks for huge pages, 1 MiB at a time, with a thread for each CPU.

    taken: on a mount that gives no huge pages by itself, one by one before each is filled. hashed: also digest it, as
    an xxh3-tree is, while it is hot in the cache.
    """
    with Path(path).open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        target.truncate(size_bytes)
        access = mmap.PROT_READ | mmap.PROT_WRITE
        with (
            hugepages.mapped(target.fileno(), size_bytes, flags=mmap.MAP_SHARED, prot=access) as mapped,
            memoryview(mapped) as memory,
        ):
            mapped.madvise(mmap.MADV_HUGEPAGE)
            place = hugepages.address_of(mapped)
            extents = Extents(target.fileno(), lambda: place)
            extents.resize(size_bytes)

            def read(start: int) -> None:
                hasher = digest.slice_digest()
                for offset in range(start, min(start + _SLICE_BYTES, size_bytes), _BLOCK_BYTES):
                    with memory[offset : offset + _BLOCK_BYTES] as block:
                        if taken:
                            extents.take(offset, len(block))
                        os.preadv(file.fileno(), [block], offset)
                        if hashed:
                            hasher.update(block)

            _in_threads(read, size_bytes)


Way = tuple[str, Fill, bool]
"""A plain way to fill shared memory: its name, how, and whether it copies the file."""
WRITTEN: tuple[Way, ...] = (
    ("dd bs=1M", fill_one_thread, True),
    ("pread + pwrite, threads", fill_threads, True),
    ("the same, hashed as it comes", partial(fill_threads, hashed=True), True),
    ("pwrite of a hot buffer, threads", fill_hot, False),
)
"""By write(2). The fastest way in a run is that run's limit."""
MAPPED: tuple[Way, ...] = (
    ("pread into a map, threads", fill_mapped, True),
    ("into a map, hashed as it comes", partial(fill_mapped, hashed=True), True),
)
"""Through a map, which gets huge pages where the mount has them."""
TAKEN: tuple[Way, ...] = (
    ("pread into huge pages taken one by one, threads", partial(fill_mapped, taken=True), True),
    ("those, hashed as it comes", partial(fill_mapped, taken=True, hashed=True), True),
)
"""The same where they can be taken."""


def ways(directory: Path) -> tuple[Way, ...]:
    """The plain ways to fill memory as fast as its mount allows."""
    mount = proc.mount_of(directory)
    if proc.huge_pages(mount) != "never":
        return MAPPED
    return TAKEN if hugepages.can_be_taken(mount) else WRITTEN


def fill_once(directory: Path, fill: Fill, path: str) -> None:
    """Fill memory with a file's bytes, and free it: it is at hand then for whoever takes it next.

    A virtual machine gives back to its host what was free for a while, and whoever comes next would pay for that.
    """
    with new_file(directory) as memory:
        fill(path, memory)


def new_file(directory: Path) -> BinaryIO:
    """A file without a name in that directory; its memory is given back when it is closed."""
    return tempfile.TemporaryFile(dir=directory, buffering=0)


def _copy(source: int, target: int, offsets: range, hasher: Hasher | None = None) -> None:
    view = Buffer().at(0, _BLOCK_BYTES)  # from page to page, as dd has it
    for offset in offsets:
        count = os.preadv(source, [view], offset)
        if hasher is not None:
            hasher.update(view[:count])
        os.pwrite(target, view[:count], offset)


def _in_threads(work: Callable[[int], None], size_bytes: int) -> None:
    starts = range(0, size_bytes, _SLICE_BYTES)
    parallel.run((partial(work, start) for start in starts), min(proc.usable_cpus(), len(starts)))
