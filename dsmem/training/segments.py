"""The file of a cache that processes share: a head, a table of segments, an index of items, and the data.

Data is only ever appended: a segment has a place in the file that no other had before it or will have after it, and one
process that fills it; evicting it frees its pages (MADV_REMOVE) and never touches other bytes. The index says where an
item lies; a record begins with its own key and shape, so that an entry that is old, or half written by a process that
was killed, is found out. Every change is an aligned store of 8 bytes, made under `Index.alone`; any prefix of a
sequence of them is a valid file.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash

from dsmem.store import areas
from dsmem.store.areas import TAG_BYTES
from dsmem.store.hugepages import EXTENT_BYTES

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 1
"""Part of what a tag is made from: files of another version are never attached to."""
PAGE_BYTES = mmap.PAGESIZE
_HEAD_WORDS, _SEGMENT_WORDS, _ENTRY_WORDS = 16, 4, 5
SEGMENTS, BUCKETS, SEGMENT_BYTES, FLOOR, CEILING, LIMIT, CURSOR, LOOKED_NS, EVICTED, GIVEN_BACK = range(10)
"""Words of the head. CURSOR: where the next segment begins; LOOKED_NS: when memory was last looked at."""
OFFSET, SIZE, USED_NS, ITEMS = range(_SEGMENT_WORDS)
"""Words of a segment. SIZE 0 = there is none."""
_WAYS = 8
"""Entries of a bucket: an item can be in any of those of its own."""
_ITEM_BYTES = 16 << 10
"""Of the ceiling for each entry: smaller items on average, and the index is full before the cache is."""
_MOST_BUCKETS = 1 << 19
_RECORD = struct.Struct("<8s16sq8sq8q")
_MAGIC = b"dsmemrec"
RECORD_BYTES = 128
_MOST_DIMENSIONS = 8
_ALIGNMENT = 64
_LARGE_BYTES = 64 << 10
"""From here on a record's data begins at a page."""
_PAUSE_S = 0.00005
_FLOCK64 = struct.Struct("hhqqixxxx")
"""struct flock of 64-bit Linux, fcntl(2)."""


def new(fd: int, ceiling_bytes: int, *, huge_pages: bool = False) -> None:
    """Lay out a file for a cache of at most that many bytes, its own tables counted; raises OSError."""
    page_bytes = EXTENT_BYTES if huge_pages and ceiling_bytes >= 256 << 20 else PAGE_BYTES
    segment_bytes = _up(min(max(ceiling_bytes // 64, 1), 32 << 20), page_bytes)
    segments = 4 * ceiling_bytes // segment_bytes + 64
    buckets = 1 << max(math.ceil(math.log2(max(ceiling_bytes, 1) / (_ITEM_BYTES * _WAYS))), 4)
    buckets = min(buckets, _MOST_BUCKETS)
    tables_bytes = _tables_bytes(segments, buckets)
    os.posix_fallocate(fd, 0, tables_bytes)  # storing into a map of what has no room would be a SIGBUS
    ceiling = max(ceiling_bytes - tables_bytes, 0)
    floor = ceiling // 8
    head = np.zeros(_HEAD_WORDS, np.int64)
    cursor = _up(tables_bytes, page_bytes)
    head[: GIVEN_BACK + 1] = (segments, buckets, segment_bytes, floor, ceiling, ceiling // 2, cursor, 0, 0, 0)
    os.pwrite(fd, head.tobytes(), TAG_BYTES)


def _tables_bytes(segments: int, buckets: int) -> int:
    words = _HEAD_WORDS + segments * _SEGMENT_WORDS + buckets * _WAYS * _ENTRY_WORDS
    return _up(TAG_BYTES + 8 * words, max(PAGE_BYTES, 4096))


def _grain(segment_bytes: int) -> int:
    """Of huge pages, of which a segment has whole ones only, or of pages."""
    return EXTENT_BYTES if segment_bytes % EXTENT_BYTES == 0 else PAGE_BYTES


def _up(size_bytes: int, grain: int) -> int:
    return -(-size_bytes // grain) * grain


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies."""

    offset: int
    size_bytes: int
    """Of the array."""
    segment: int
    segment_offset: int


class Index:
    """The tables of a file, mapped, and its lock; every process has descriptors of its own."""

    def __init__(self, fd: int) -> None:
        """Map the tables of a file that `new` has laid out; raises ValueError for anything else."""
        self._fd = fd
        head = np.frombuffer(os.pread(fd, 8 * _HEAD_WORDS, TAG_BYTES).ljust(8 * _HEAD_WORDS, b"\0"), np.int64)
        segments, buckets = int(head[SEGMENTS]), int(head[BUCKETS])
        tables_bytes = _tables_bytes(segments, buckets)
        if segments < 1 or not 1 <= buckets <= _MOST_BUCKETS or tables_bytes > os.fstat(fd).st_size:
            raise ValueError("not the file of a cache")
        whole = np.frombuffer(mmap.mmap(fd, tables_bytes), np.int64, offset=TAG_BYTES)
        at = _HEAD_WORDS + segments * _SEGMENT_WORDS
        self.head: Array = whole[:_HEAD_WORDS]
        self.segments: Array = whole[_HEAD_WORDS:at].reshape(segments, _SEGMENT_WORDS)
        entries = whole[at : at + buckets * _WAYS * _ENTRY_WORDS]
        self._entries: Array = entries.reshape(buckets, _WAYS, _ENTRY_WORDS)
        self._buckets = buckets
        self.data_start = tables_bytes

    @contextmanager
    def alone(self, how: Literal["reading", "writing"], patience_s: float) -> Iterator[bool]:
        """A lock of the open file description, which the kernel drops at any death; False = it could not be had.

        Threads of a process share the description: they take turns by a lock of theirs. What a stopped process holds
        is given up after `patience_s`: a cache must not hold up those who can do without.
        """
        kind = fcntl.F_RDLCK if how == "reading" else fcntl.F_WRLCK
        deadline = 0.0
        while not self._locked(kind):
            now = time.monotonic()
            deadline = deadline or now + patience_s
            if now > deadline:
                yield False
                return
            time.sleep(_PAUSE_S)
        try:
            yield True
        finally:
            self._locked(fcntl.F_UNLCK)

    def _locked(self, kind: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK64.pack(kind, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def find(self, key: bytes) -> tuple[Place | None, bool]:
        """Where an item is, and whether it was there once; both under `alone`."""
        one, two = _words(key)
        for entry in self._entries[one & (self._buckets - 1)].tolist():
            if entry[0] == one and entry[1] == two:
                place = self._place(entry)
                return place, place is None
        return None, False

    def is_there(self, place: Place) -> bool:
        """Whether its segment has not been evicted."""
        offset, size_bytes = self.segments[place.segment, :USED_NS].tolist()
        return bool(size_bytes > 0 and offset == place.segment_offset)

    def enter(self, key: bytes, offset: int, size_bytes: int, segment: int) -> None:
        """Say where an item is: in the place of one that is gone, or the oldest of its bucket."""
        one, two = _words(key)
        bucket = self._entries[one & (self._buckets - 1)]
        listed = bucket.tolist()
        way = min(range(_WAYS), key=lambda way: self._worth(listed[way], one, two))
        bucket[way, 0] = 0  # no key while the rest changes
        bucket[way, 1:] = (two, offset, size_bytes, segment)
        bucket[way, 0] = one
        self.segments[segment, ITEMS] += 1

    def _worth(self, entry: list[int], one: int, two: int) -> tuple[int, int]:
        if entry[0] == one and entry[1] == two:
            return -2, 0
        return (-1, 0) if entry[0] == 0 else (int(self._place(entry) is not None), entry[2])

    def _place(self, entry: list[int]) -> Place | None:
        _, _, offset, size_bytes, segment = entry
        if not 0 <= segment < len(self.segments):
            return None
        first, held_bytes = self.segments[segment, :USED_NS].tolist()
        inside = held_bytes > 0 and first <= offset and offset + RECORD_BYTES + size_bytes <= first + held_bytes
        return Place(offset, size_bytes, segment, first) if inside and size_bytes >= 0 else None

    @property
    def held_bytes(self) -> int:
        """What all segments may hold; what lies in them is less."""
        return int(self.segments[:, SIZE].sum())

    def reserve(self, size_bytes: int) -> int | None:
        """A new segment; None where the table is full. Under `alone`. Raises OSError."""
        free = np.flatnonzero(self.segments[:, SIZE] == 0)
        if not len(free):
            return None
        number, offset = int(free[0]), _up(int(self.head[CURSOR]), _grain(size_bytes))
        os.ftruncate(self._fd, offset + size_bytes)  # nobody writes beyond: a huge page is had only within a file
        self.head[CURSOR] = offset + size_bytes
        self.segments[number, (OFFSET, USED_NS, ITEMS)] = (offset, time.monotonic_ns(), 0)
        self.segments[number, SIZE] = size_bytes
        return number

    def shorten(self, number: int, offset: int, used_bytes: int) -> None:
        """Of a segment that nobody fills any more only what is used counts. Under `alone`."""
        first, size_bytes = self.segments[number, :USED_NS].tolist()
        if first == offset and size_bytes:
            self.segments[number, SIZE] = min(size_bytes, _up(used_bytes, _grain(size_bytes)))

    def evict(self, limit_bytes: int) -> list[tuple[int, int]]:
        """Let go of the segments used longest ago; returns (offset, bytes) of them, to be freed without the lock."""
        held = self.segments[self.segments[:, SIZE] > 0]
        over = int(held[:, SIZE].sum()) - limit_bytes
        freed: list[tuple[int, int]] = []
        for offset, size_bytes, _, items in held[np.argsort(held[:, USED_NS])].tolist():
            if over <= 0:
                break
            self.segments[self.segments[:, OFFSET] == offset, SIZE] = 0
            self.head[EVICTED] += items
            freed.append((offset, size_bytes))
            over -= size_bytes
        return freed

    def leaked(self) -> list[tuple[int, int]]:
        """Where no segment is: bytes there are of processes that were killed. Freeing it does no harm, ever."""
        taken = sorted(self.segments[self.segments[:, SIZE] > 0][:, :USED_NS].tolist())
        gaps, at = [], self.data_start
        for offset, size_bytes in [*taken, (int(self.head[CURSOR]), 0)]:
            if offset > at:
                gaps.append((at, offset - at))
            at = max(at, offset + size_bytes)
        return gaps

    def free(self, ranges: list[tuple[int, int]]) -> None:
        """Give the pages back; raises OSError."""
        for first, size_bytes in ranges:
            areas.free(self._fd, first, size_bytes)

    @property
    def stored_bytes(self) -> int:
        """What data takes in memory."""
        return os.fstat(self._fd).st_blocks * 512 - self.data_start


def key_of(parts: tuple[object, ...]) -> bytes:
    """16 bytes for an item's key of numbers and texts."""
    return xxhash.xxh3_128_digest(repr(parts).encode())


def _words(key: bytes) -> tuple[int, int]:
    one, two = struct.unpack("<qq", key)
    return one or 1, two  # 0 = no entry


def record_bytes(array: Array) -> int:
    """What an array takes in a segment."""
    return _up(RECORD_BYTES + array.nbytes, _ALIGNMENT)


def placed(at: int, size_bytes: int) -> int:
    """Where from `at` on a record of that size begins: the data of a large one at a page, to be copied faster."""
    return at if size_bytes < _LARGE_BYTES else _up(at + RECORD_BYTES, PAGE_BYTES) - RECORD_BYTES


def can_hold(array: Array) -> bool:
    """Whether a record can tell what it is: numbers, of few dimensions."""
    return array.ndim <= _MOST_DIMENSIONS and array.dtype.kind in "biuf" and len(array.dtype.str) <= 8


def write(fd: int, offset: int, key: bytes, array: Array) -> None:
    """Write a record; raises OSError where there is no room."""
    shape = (*array.shape, *[0] * (_MOST_DIMENSIONS - array.ndim))
    head = _RECORD.pack(_MAGIC, key, array.nbytes, array.dtype.str.encode(), array.ndim, *shape).ljust(RECORD_BYTES)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    done = os.pwritev(fd, [head, data], offset)
    while done < RECORD_BYTES + array.nbytes:
        done += os.pwrite(fd, (head + bytes(data))[done:], offset + done)


def read(fd: int, place: Place, key: bytes, empty: Callable[[int], Array]) -> Array | None:
    """The array of a record, copied to what `empty` gives; None where another lies there, none, or less than all."""
    head, data = bytearray(RECORD_BYTES), empty(place.size_bytes)
    if os.preadv(fd, [head, data.data], place.offset) < RECORD_BYTES + place.size_bytes:
        return None
    magic, said, size_bytes, dtype, dimensions, *shape = _RECORD.unpack_from(head)
    if magic != _MAGIC or said != key or size_bytes != place.size_bytes or not 0 <= dimensions <= _MOST_DIMENSIONS:
        return None
    with suppress(TypeError, ValueError):  # not what `write` writes: as good as nothing
        array: Array = data.view(np.dtype(dtype.rstrip(b"\0").decode())).reshape(shape[:dimensions])
        array.flags.writeable = False
        return array
    return None
