"""One pass over the source: each 32 MiB slice is read by a thread, hashed while it is hot, and copied to its place.

The pass reads every byte of the file once, whatever is copied, because the digest of the whole file is its identity.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dsmem import digest, files, parallel, proc, stopping
from dsmem.arrays.columns import Column, in_order, windows
from dsmem.buffers import Buffer, are_near
from dsmem.digest.algorithms import Hasher
from dsmem.errors import SourceChanged
from dsmem.pinning.pagecache import AHEAD, PageCache
from dsmem.progress import ByteCounter
from dsmem.store.draft import Draft

_BLOCK_BYTES = 1 << 20
_STRAIGHT_BYTES = 2 << 20
"""What is read straight into a huge page, and hashed there: what is between two blocks takes Python's lock."""
_FOLLOWED_BYTES = 8 << 20
"""What a plain stream reads at once."""
_REPORTED_BYTES = 8 << 20
"""Progress is told at least this often."""
_HASHED_BYTES, _ALL_HASHED_BYTES = 2 << 20, 24 << 20
"""Of what is only hashed, in one thread, and in all: a thread that decodes leaves Python's lock only after a while."""
_BECAME_SHORTER = "the file became shorter while it was read"


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of the source that go to the object as they are."""

    source_offset: int
    target_offset: int
    size_bytes: int

    @property
    def source_end(self) -> int:
        """First byte of the source after it."""
        return self.source_offset + self.size_bytes

    def holds(self, start: int, end: int) -> bool:
        """Whether all of these bytes of the source belong to it."""
        return self.source_offset <= start and end <= self.source_end

    def clipped(self, start: int, end: int) -> tuple[int, int]:
        """The part of these bytes of the source that belongs to it."""
        return max(self.source_offset, start), min(self.source_end, end)

    def target_of(self, offset: int) -> int:
        """Where in the object a byte of the source goes."""
        return self.target_offset + offset - self.source_offset


class _Extents:
    """Extents by where they begin, as columns: there may be many, and each would take 150 bytes more."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        columns = starts, targets, sizes = Column("q"), Column("q"), Column("q")
        for extent in extents:
            starts.append(extent.source_offset)
            targets.append(extent.target_offset)
            sizes.append(extent.size_bytes)
        found = [column.array() for column in columns]
        in_file = Column("q"), Column("q"), Column("q")
        for some in in_order(found[0]):
            for column, numbers in zip(in_file, found, strict=True):
                column.extend(numbers[some])
        self._starts, self._targets, self._sizes = (column.array() for column in in_file)
        ends = Column("q")
        furthest = 0
        for window in windows(len(self._starts)):
            ends_here = np.maximum.accumulate(self._starts[window] + self._sizes[window])
            ends.extend(np.maximum(ends_here, furthest))
            furthest = max(furthest, int(ends_here[-1]))
        self._ends = ends.array()
        """The furthest end up to each: some may overlap."""

    def overlapping(self, start: int, end: int) -> list[Extent]:
        """Those that have some of these bytes of the source."""
        first, last = np.searchsorted(self._ends, start, side="right"), np.searchsorted(self._starts, end)
        some = (column[first:last].tolist() for column in (self._starts, self._targets, self._sizes))
        return [Extent(*each) for each in zip(*some, strict=True) if each[0] + each[2] > start]

    def next_start(self, offset: int, end: int) -> int:
        """Where the first begins that does so behind an offset of the source; the end if none does."""
        following = int(np.searchsorted(self._starts, offset, side="right"))
        return int(self._starts[following]) if following < len(self._starts) else end


@dataclass(frozen=True, slots=True)
class Digests:
    """What the pass computed: the identity's tree digest, and the plain stream that was asked for, if any."""

    tree_hex: str
    stream_hex: str | None


class _Pass:
    def __init__(
        self,
        fd: int,
        size_bytes: int,
        draft: Draft,
        extents: Iterable[Extent],
        counter: ByteCounter,
        cache: PageCache,
    ) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._draft = draft
        self._extents = _Extents(extents)
        self.add = counter.add
        """Counts bytes that have reached the object."""
        self._local = threading.local()
        starts = range(0, size_bytes, digest.SLICE_BYTES)
        self.digests = [b""] * len(starts)
        self.finished = [threading.Event() for _ in starts]
        self.failed = threading.Event()
        self.cache = cache
        self.threads = proc.usable_cpus()
        self.followed = False
        """Whether a stream digest reads each slice once more, and lets go of it then."""

    def copy_slice(self, index: int) -> None:
        start = index * digest.SLICE_BYTES
        end = min(start + digest.SLICE_BYTES, self.size_bytes)
        self.cache.expect(index)
        hasher = digest.slice_digest()
        try:
            while start < end:
                stop, extents = self._stretch(start, end)
                if not extents:
                    self._hash(start, stop, hasher)
                elif len(extents) == 1 and extents[0].holds(start, stop):
                    self._copy(start, stop, extents[0], hasher)
                else:
                    self._copy_parts(start, stop, extents, hasher)
                start = stop
        except BaseException:
            self.failed.set()
            raise
        finally:
            self.finished[index].set()
        self.digests[index] = hasher.digest()
        if not self.followed:
            self.cache.passed(index)

    def _stretch(self, start: int, end: int) -> tuple[int, list[Extent]]:
        """Where a stretch from there ends, and the extents in it: none, one that holds it all, or those of a block."""
        stop = min(start + _BLOCK_BYTES, end)
        extents = self._extents.overlapping(start, stop)
        if len(extents) > 1 or (extents and not extents[0].holds(start, stop)):
            return stop, extents
        further = min(end, self._extents.next_start(start, end))
        if extents:
            further = min(further, extents[0].source_end, start + _REPORTED_BYTES)
        blocks = (further - start) // _BLOCK_BYTES
        return (further if further == end else max(stop, start + blocks * _BLOCK_BYTES)), extents

    def _hash(self, start: int, end: int, hasher: Hasher) -> None:
        """Bytes that go nowhere as they are."""
        block_bytes = max(_BLOCK_BYTES, min(_HASHED_BYTES, _ALL_HASHED_BYTES // self.threads))
        for offset in range(start, end, block_bytes):
            hasher.update(self._read(offset, min(offset + block_bytes, end)))
            self.add(0)

    def _copy(self, start: int, end: int, extent: Extent, hasher: Hasher) -> None:
        """Bytes of one extent. What is done between two blocks holds up the other threads: little is."""
        draft, beyond, update = self._draft, extent.target_of(0), hasher.update
        is_slow = are_near(0, beyond)
        offset = start
        while offset < end:
            if not is_slow:
                offset += draft.read_from(self.fd, offset, offset + beyond, end - offset, _STRAIGHT_BYTES, update)
            if offset < end:
                data = self._read(offset, min(offset + _BLOCK_BYTES, end), offset + beyond)
                draft.write(offset + beyond, data)
                update(data)
                offset += len(data)
        self.add(end - start)

    def _copy_parts(self, start: int, end: int, extents: Sequence[Extent], hasher: Hasher) -> None:
        """A block that only parts of go anywhere, or to several places."""
        data = self._read(start, end)
        copied_bytes = 0
        for extent in extents:
            begin, stop = extent.clipped(start, end)
            self._draft.write(extent.target_of(begin), data[begin - start : stop - start])
            copied_bytes += stop - begin
        hasher.update(data)
        self.add(copied_bytes)

    def _read(self, start: int, end: int, target: int | None = None) -> memoryview:
        """Bytes of the source in this thread's buffer, on their way to an offset of the object, if to one."""
        data = self._buffer().between(start, start if target is None else target, end - start)
        if files.pread_full(self.fd, data, start) < len(data):
            raise SourceChanged(_BECAME_SHORTER)
        return data

    def _buffer(self) -> Buffer:
        """This thread's buffer."""
        buffer: Buffer | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = Buffer()
        return buffer


@dataclass(frozen=True, slots=True)
class Decoding:
    """A task that decodes some of the source into the object, and returns how many bytes that was."""

    source_end: int
    """The task is due once the file has been read up to here: what it reads is in the page cache then."""
    run: Callable[[], int]


def copy(
    fd: int,
    size_bytes: int,
    draft: Draft,
    extents: Iterable[Extent],
    decodings: Iterable[Decoding],
    stream_algo: str | None,
    counter: ByteCounter,
    cache: PageCache,
) -> Digests:
    """Hash the file, copy its extents into the draft, run the decodings; `counter` counts the bytes in the object.

    What was not in the page cache is let go behind the reading, but for the last of it: that is the caller's to finish.
    A plain stream (`stream_algo`) is computed in order by a thread that follows the copiers, on what they just read.
    Raises SourceChanged when the file becomes shorter, NoSpace when the store is full.
    """
    work = _Pass(fd, size_bytes, draft, extents, counter, cache)
    tasks = _in_file_order(work, decodings)
    stream_hex = _run(work, tasks, work.threads, stream_algo)
    return Digests(digest.tree_digest(work.digests), stream_hex)


def _run(work: _Pass, tasks: Iterator[Callable[[], None]], threads: int, stream_algo: str | None) -> str | None:
    """Run the tasks, and beside them the plain stream if one is asked for; returns its digest."""
    if stream_algo is None:
        parallel.run(tasks, threads)
        return None
    work.followed = True
    follower = _Follower(work, stream_algo)
    with stopping.held() as held:
        follower.start()
        try:
            held.release()
            parallel.run(tasks, threads)
        except BaseException:
            work.failed.set()
            raise
        finally:
            held.hold()
            for event in work.finished:
                event.set()
            follower.join()
    if follower.error is not None:
        raise follower.error
    return follower.hex


def _in_file_order(work: _Pass, decodings: Iterable[Decoding]) -> Iterator[Callable[[], None]]:
    """Slices as they lie in the file, and behind each the decodings of what has been read by then.

    The chunk indices are read first, by one thread, which takes Python's time; the others begin with slices meanwhile.
    """
    due: deque[Decoding] = deque()
    known = threading.Event()

    def read_indices() -> None:
        try:
            due.extend(sorted(decodings, key=lambda decoding: decoding.source_end))
        finally:
            known.set()

    yield read_indices
    for index in range(len(work.digests)):
        if index >= AHEAD:
            known.wait()
        yield partial(work.copy_slice, index)
        while known.is_set() and due and due[0].source_end <= (index + 1) * digest.SLICE_BYTES:
            yield partial(_decode, work, due.popleft())
    known.wait()
    while due:
        yield partial(_decode, work, due.popleft())


def _decode(work: _Pass, decoding: Decoding) -> None:
    work.add(decoding.run())


class _Follower(threading.Thread):
    """Feeds a plain hash stream with one slice after the other, each as soon as it has been copied."""

    def __init__(self, work: _Pass, algo: str) -> None:
        super().__init__(name="dsmem-digest", daemon=True)
        self._hasher = digest.stream(algo)
        self._work = work
        self.hex = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        buffer = Buffer()
        try:
            for index, finished in enumerate(self._work.finished):
                finished.wait()
                end = min((index + 1) * digest.SLICE_BYTES, self._work.size_bytes)
                for offset in range(index * digest.SLICE_BYTES, end, _FOLLOWED_BYTES):
                    if self._work.failed.is_set():
                        return
                    piece = buffer.at(offset, min(_FOLLOWED_BYTES, end - offset))
                    if files.pread_full(self._work.fd, piece, offset) < len(piece):
                        raise SourceChanged(_BECAME_SHORTER)
                    self._hasher.update(piece)
                    self._work.add(0)  # it may lag behind the copiers: those who watch see that it goes on
                self._work.cache.passed(index)
            self.hex = self._hasher.hexdigest()
        except BaseException as exc:  # noqa: BLE001 - raised by `_run`
            self.error = exc
