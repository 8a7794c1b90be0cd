"""Token files written from parts: joined where the order is kept, else gathered in blocks.

Whatever the size, a block of some MiB a thread is all that is held. Every writer returns the xxh3-tree digest of what
it wrote, taken while it is hot in the page cache, and leaves the file synced (`take_over`: while it is being synced).
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsmem import files, parallel, proc
from dsmem.digest import DEFAULT_ALGORITHM, SLICE_BYTES, hash_descriptor, slice_digest, tree_digest
from dsmem.digest.algorithms import Hasher
from dsmem.errors import SourceChanged
from dsmem.progress import Progress
from dsmem.tokens.parts import Part

_BLOCK_BYTES = 1 << 20
_GATHER_BYTES = 64 << 20
_NO_SECOND_NAME = (errno.EPERM, errno.EACCES, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say that have no hard links, or none from one directory to another."""
Array = np.ndarray[Any, np.dtype[Any]]
Count = Callable[[int], None]
"""Told of so many more bytes that are written; from any thread."""


def counter(total_bytes: int, progress: Progress) -> Count:
    """Tells progress of every hundredth or so."""
    step = max(1, math.ceil(total_bytes / 200))
    done_bytes, told_bytes = 0, 0
    counting = threading.Lock()

    def count(size_bytes: int) -> None:
        nonlocal done_bytes, told_bytes
        with counting:
            done_bytes += size_bytes
            if done_bytes - told_bytes >= step or done_bytes == total_bytes:
                told_bytes = done_bytes
                progress(done_bytes, total_bytes)

    return count


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a part's tokens, and where in the output they go."""

    path: str
    offset: int
    size_bytes: int
    to: int


def stretches(parts: Sequence[Part], item_bytes: int, start: int, stop: int) -> Iterator[Stretch]:
    """Bytes `start` … `stop` − 1 of all parts as if they were one file, cut where a slice of the output begins."""
    before = 0
    for part in parts:
        size_bytes = part.tokens * item_bytes
        at, end = max(start, before), min(stop, before + size_bytes)
        if at < end:
            yield from cut(Stretch(part.tokens_path, part.start_bytes + at - before, end - at, at - start))
        before += size_bytes


def cut(whole: Stretch) -> Iterator[Stretch]:
    """The same in pieces that lie in one slice of the output each."""
    done = 0
    while done < whole.size_bytes:
        here = min(whole.size_bytes - done, SLICE_BYTES - (whole.to + done) % SLICE_BYTES)
        yield Stretch(whole.path, whole.offset + done, here, whole.to + done)
        done += here


def join(path: str, found: Iterable[Stretch], count: Count) -> str:
    """Write a file from stretches in order of `to`, by threads; returns the digest.

    Block by block, hashed on its way: copy_file_range takes as long, and what it wrote must be read for that.
    """
    with Path(path).open("wb+", buffering=0) as file:
        fd = file.fileno()
        digests: list[bytes] = []

        def fill(number: int, together: Sequence[Stretch]) -> None:
            hasher = slice_digest()
            block = memoryview(bytearray(_BLOCK_BYTES))
            for one in together:
                _copy(one, fd, block, hasher)
            digests[number] = hasher.digest()
            size_bytes = sum(one.size_bytes for one in together)
            files.start_writing_out(fd, together[0].to, size_bytes)
            count(size_bytes)

        def tasks() -> Iterator[Callable[[], None]]:
            for number, together in enumerate(_by_slice(found)):
                digests.append(b"")
                yield partial(fill, number, together)

        parallel.run(tasks(), proc.usable_cpus())
        os.fsync(fd)
    return f"{DEFAULT_ALGORITHM}:{tree_digest(digests)}"


def is_whole(parts: Sequence[Part], item_bytes: int) -> bool:
    """Whether the parts lie in one file one after the other, from its beginning: it holds what joining them would."""
    at = 0
    for part in parts:
        if part.tokens_path != parts[0].tokens_path or part.start_bytes != at:
            return False
        at += part.tokens * item_bytes
    return bool(parts)


class Syncing:
    """An fsync that goes on in a thread while its caller does something else."""

    def __init__(self, fd: int) -> None:
        """Begin; the descriptor may be closed."""
        self._fd = os.dup(fd)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._sync, name="dsmem-fsync", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when it is done; raises its OSError."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as exc:
            self._error = exc
        finally:
            os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that has a second name."""

    digest: str
    syncing: Syncing


def take_over(path: str, parts: Sequence[Part], size_bytes: int, count: Count) -> Taken | None:
    """Give the file in which all parts lie (`is_whole`) a second name; None where there are no hard links.

    The first name stays: until the output is there a run that is started again finds the parts. Raises SourceChanged.
    """
    source = parts[0].tokens_path
    files.unlink_if_there(path)
    fd = os.open(source, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(fd).st_size < size_bytes:
            raise SourceChanged(f"{source} is shorter than its documents")
        os.ftruncate(fd, size_bytes)
        try:
            os.link(source, path)
        except OSError as exc:
            if exc.errno not in _NO_SECOND_NAME:
                raise
            return None
        syncing = Syncing(fd)
        found = hash_descriptor(fd, size_bytes, DEFAULT_ALGORITHM)
    finally:
        os.close(fd)
    count(size_bytes)
    return Taken(f"{DEFAULT_ALGORITHM}:{found}", syncing)


class Writer:
    """Writes token files one after the other from one stream of bytes; a file begins where the one before is full."""

    def __init__(self, paths: Sequence[str], sizes_bytes: Sequence[int], count: Count) -> None:
        self._targets = iter(zip(paths, sizes_bytes, strict=True))
        self._count = count
        self._fd = -1
        self._room = 0
        self._slices: list[bytes] = []
        self._hasher = slice_digest()
        self._in_slice = 0
        self.digests: list[str] = []
        """Of the files that are complete."""

    def write(self, data: memoryview) -> None:
        """The next bytes; raises SourceChanged when there are more than all files hold."""
        while len(data):
            while not self._room:
                self._next()
            here = min(len(data), self._room, SLICE_BYTES - self._in_slice)
            _write(self._fd, data[:here])
            self._hasher.update(data[:here])
            self._room -= here
            self._in_slice += here
            if self._in_slice == SLICE_BYTES:
                self._end_slice()
            self._count(here)
            data = data[here:]

    def finish(self) -> list[str]:
        """Digests of all files, in order; raises SourceChanged unless every byte of them was written."""
        while self._advance():
            if self._room:
                raise SourceChanged("there are fewer tokens than documents tell")
        return self.digests

    def close(self) -> None:
        """Give up the file that is being written, if any."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next(self) -> None:
        if not self._advance():
            raise SourceChanged("there are more tokens than documents tell")

    def _advance(self) -> bool:
        """End the current file, which must be full, and begin the next; False when there is none."""
        if self._fd >= 0:
            if self._room:
                raise SourceChanged("there are fewer tokens than documents tell")
            if self._in_slice:
                self._end_slice()
            os.fsync(self._fd)
            self.close()
            self.digests.append(f"{DEFAULT_ALGORITHM}:{tree_digest(self._slices)}")
            self._slices = []
        path, self._room = next(self._targets, ("", 0))
        if not path:
            return False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return True

    def _end_slice(self) -> None:
        self._slices.append(self._hasher.digest())
        self._hasher = slice_digest()
        self._in_slice = 0


def gather(parts: Sequence[Part], item_bytes: int, blocks: Iterable[tuple[Array, Array]], writer: Writer) -> None:
    """Write documents in any order: blocks of their first tokens, counted through all parts, and of their lengths."""
    firsts = np.cumsum([0, *(part.tokens for part in parts)], dtype=np.uint64) * np.uint64(item_bytes)
    for starts, lengths in blocks:
        some = lengths > 0  # an empty one at the end lies in no part
        starts, sizes = starts[some] * np.uint64(item_bytes), lengths[some] * np.uint64(item_bytes)
        ends = np.cumsum(sizes)
        done, base = 0, 0
        while done < len(sizes):
            stop = max(done + 1, int(np.searchsorted(ends, np.uint64(base + _GATHER_BYTES), "right")))
            _gather(parts, firsts, starts[done:stop], sizes[done:stop], writer)
            done, base = stop, int(ends[stop - 1])


def _gather(parts: Sequence[Part], firsts: Array, starts: Array, sizes: Array, writer: Writer) -> None:
    """Documents that fit a block together; or a single one of any size, which is written as it is read."""
    of_part = np.searchsorted(firsts, starts, "right") - 1
    if len(sizes) == 1:
        _pass_on(parts[int(of_part[0])], int(starts[0] - firsts[of_part[0]]), int(sizes[0]), writer)
        return
    block = memoryview(bytearray(int(sizes.sum())))
    places = np.cumsum(sizes) - sizes
    order = np.argsort(starts, kind="stable")
    of_part = of_part[order]
    groups = np.nonzero(np.diff(of_part, prepend=-1))[0].tolist()

    def read(first: int, last: int) -> None:
        part = parts[int(of_part[first])]
        chosen = order[first:last]
        offsets = (starts[chosen] - firsts[of_part[first]]).tolist()
        with Path(part.tokens_path).open("rb", buffering=0) as file:
            fd = file.fileno()
            for offset, size, place in zip(offsets, sizes[chosen].tolist(), places[chosen].tolist(), strict=True):
                _read(fd, block[place : place + size], part.start_bytes + offset, part)

    tasks = (partial(read, first, last) for first, last in zip(groups, [*groups[1:], len(order)], strict=True))
    parallel.run(tasks, min(proc.usable_cpus(), len(groups)))
    writer.write(block)


def _pass_on(part: Part, offset: int, size_bytes: int, writer: Writer) -> None:
    block = memoryview(bytearray(min(size_bytes, SLICE_BYTES)))
    with Path(part.tokens_path).open("rb", buffering=0) as file:
        for done in range(0, size_bytes, len(block)):
            piece = block[: min(len(block), size_bytes - done)]
            _read(file.fileno(), piece, part.start_bytes + offset + done, part)
            writer.write(piece)


def _read(fd: int, piece: memoryview, offset: int, part: Part) -> None:
    if files.pread_full(fd, piece, offset) != len(piece):
        raise SourceChanged(f"{part.tokens_path} is shorter than its documents")


def _by_slice(found: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    together: list[Stretch] = []
    for one in found:
        if together and one.to % SLICE_BYTES == 0:
            yield together
            together = []
        together.append(one)
    if together:
        yield together


def _copy(one: Stretch, fd: int, block: memoryview, hasher: Hasher) -> None:
    with Path(one.path).open("rb", buffering=0) as source:
        for done in range(0, one.size_bytes, len(block)):
            piece = block[: min(len(block), one.size_bytes - done)]
            if files.pread_full(source.fileno(), piece, one.offset + done) != len(piece):
                raise SourceChanged(f"{one.path} became shorter")
            hasher.update(piece)
            files.pwrite_full(fd, piece, one.to + done)


def _write(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]
