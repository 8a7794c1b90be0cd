"""Datasets that only h5py can decode, read by other processes too: h5py decodes in one thread, whatever one does.

Each worker is a fresh interpreter that inherits the source and the draft by descriptor, writes what it reads straight
to its place, or has HDF5 read it there, and ends with the parent, however that ended. It is given work once it has
started, which takes it longer than this process takes to read 64 MiB.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from dsmem import helpers
from dsmem.errors import BadSource
from dsmem.hdf5 import filters
from dsmem.store.draft import Draft

WORTH_BYTES = 128 << 20
"""Below this, this process is nearly done before others have imported h5py (0.2–0.3 s at 0.2–0.5 GB/s)."""
_IN_FLIGHT = 2
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Slab:
    """A piece of a dataset, and where in the object it goes."""

    path: bytes
    """Absolute path of the dataset, in the bytes of the file."""
    selection: tuple[slice, ...]
    target: int
    size_bytes: int
    span_bytes: int = 0
    """Not 0: HDF5 is to read it to its place in a map; from its first byte to its last, others' between them."""
    number: int = -1
    """Of the dataset, for the sender."""

    def dump(self) -> bytes:
        """As a line of JSON."""
        bounds = [[part.start, part.stop] for part in self.selection]
        return json.dumps([self.path.decode("latin-1"), bounds, self.target, self.span_bytes]).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Slab:
        """The inverse of `dump`; size and number are the sender's to know."""
        path, bounds, target, span_bytes = json.loads(line)
        return cls(path.encode("latin-1"), tuple(slice(*pair) for pair in bounds), target, 0, span_bytes)


def read(
    slabs: Iterable[Slab], fd: int, draft: Draft, processes: int, here: Callable[[Slab], None], *, path: str
) -> Iterator[int]:
    """Let that many processes read the slabs into the draft, and `here` do so in this one; yields the bytes of each.

    Raises BadSource with h5py's words, or when a process dies; NoSpace.
    """
    waiting = _Waiting(slabs)
    with ExitStack() as stack, DefaultSelector() as ready:
        workers = [_Worker(stack, fd, draft.fd) for _ in range(processes)]
        for worker in workers:
            ready.register(worker.answers, EVENT_READ, worker)
        while waiting or any(worker.in_flight for worker in workers):
            for key, _ in ready.select(0 if waiting else None):
                worker = key.data
                yield worker.collect(draft, path)
                worker.feed(waiting, draft)
            if waiting:
                slab = waiting.take()
                here(slab)
                yield slab.size_bytes


class _Waiting:
    """What is still to be read; of many slabs only the next one is there."""

    def __init__(self, slabs: Iterable[Slab]) -> None:
        self._slabs = iter(slabs)
        self._next = next(self._slabs, None)

    def __bool__(self) -> bool:
        return self._next is not None

    def take(self) -> Slab:
        slab, self._next = self._next, next(self._slabs, None)
        assert slab is not None
        return slab


class _Worker:
    def __init__(self, stack: ExitStack, fd: int, draft_fd: int) -> None:
        self._process = helpers.start(
            __name__,
            int(filters.package_is_loaded()),
            fds=(fd, draft_fd),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        stack.callback(self._stop)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self.answers = self._process.stdout
        self.in_flight: deque[Slab] = deque()

    def feed(self, waiting: _Waiting, draft: Draft) -> None:
        while waiting and len(self.in_flight) < _IN_FLIGHT:
            slab = waiting.take()
            self.in_flight.append(slab)
            if slab.span_bytes:
                draft.reserved_on(slab.target, slab.span_bytes)
            else:
                draft.take(slab.target, slab.size_bytes)
            try:
                self._requests.write(slab.dump())
            except BrokenPipeError:
                return  # it is dead: `collect` finds its answers at an end

    def collect(self, draft: Draft, path: str) -> int:
        """The bytes of the slab that it is done with; 0: it has started."""
        line = self.answers.readline()
        if not line:
            code = self._process.wait(_PATIENCE_S)
            raise BadSource(f"{path}: the process that read it for us ended ({helpers.ending(code)})")
        answer: Any = json.loads(line)
        if not self.in_flight:
            if "error" in answer:
                raise BadSource(f"{path} {answer['error']}")
            return 0
        slab = self.in_flight.popleft()
        if "errno" in answer:
            raise draft.translated(OSError(answer["errno"], answer["error"]))
        if "error" in answer:
            raise BadSource(f"{path}: {slab.path.decode('utf-8', 'replace')} {answer['error']}")
        return slab.size_bytes

    def _stop(self) -> None:
        self._requests.close()
        self.answers.close()
        self._process.kill()
        self._process.wait()


def _work(arguments: Sequence[str]) -> None:
    """A worker: slabs on standard input; on standard output a line when the file is open, and one for each slab."""
    parent, fd, draft_fd, with_plugins = (int(argument) for argument in arguments)
    helpers.end_with_parent(parent)
    helpers.ignore_interrupts()
    import h5py

    from dsmem.hdf5.opening import keep_little, unreadable

    if with_plugins:
        filters.load_package()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(f"/proc/self/fd/{fd}", "r"))
            keep_little(file.id)
        except (OSError, RuntimeError) as exc:
            _answer({"error": unreadable(exc)})
            return
        _answer({})
        draft = _Map(draft_fd)
        for line in sys.stdin.buffer:
            slab = Slab.load(line)
            try:
                data = _read(file[slab.path], slab, draft)
            except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as exc:
                _answer({"error": unreadable(exc)})
            else:
                _answer(_store(draft_fd, data, slab.target))


def _answer(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class _Map:
    """The object, mapped when it is first asked for; what is stored into has been reserved by who asks."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def view(self, offset: int, size_bytes: int) -> memoryview:
        if self._map is None:
            from dsmem.store import writing

            self._map = writing.mapped(self._fd, os.fstat(self._fd).st_size)
        return memoryview(self._map)[offset : offset + size_bytes]


def _read(dataset: Any, slab: Slab, draft: _Map) -> memoryview:
    """The bytes that are still to be written."""
    from dsmem.hdf5 import reading

    if not slab.span_bytes:
        return reading.read_block(dataset, slab.selection)
    reading.read_into(dataset, slab.selection, draft.view(slab.target, slab.span_bytes))
    return memoryview(b"")


def _store(draft_fd: int, data: memoryview, target: int) -> dict[str, object]:
    from dsmem import files

    try:
        files.pwrite_full(draft_fd, data, target)
    except OSError as exc:
        return {"errno": exc.errno, "error": exc.strerror}
    return {}


if __name__ == "__main__":
    _work(sys.argv[1:])
