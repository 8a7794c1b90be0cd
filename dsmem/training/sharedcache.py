"""One cache for all processes of a machine that read the same files: workers, forked or spawned, and ranks.

What one of them has decoded, the others copy from shared memory. Nobody sees an item that is not whole, nobody waits
for who was stopped or killed, and what fails is a miss. The memory goes with the last process that holds the cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache, partial
from multiprocessing.util import Finalize

from dsmem import proc
from dsmem.errors import UnsafeRoot
from dsmem.files import FileIdentity
from dsmem.store import areas, hugepages, space
from dsmem.store.areas import Area
from dsmem.store.hugepages import EXTENT_BYTES, Extents
from dsmem.store.root import Store, make_store
from dsmem.training import segments
from dsmem.training.cache import SHORT_CHECK_S, WINDOW, Array, CacheState, Key, adapted, eased, memory_is_short
from dsmem.training.segments import Index
from dsmem.training.slots import Slots

_PATIENCE_S = 0.005
"""How long a lookup waits for who changes the index: microseconds, unless that one was stopped. Then it is a miss."""
_FULL = 0.05
"""Below this share of free space, the store is short of it, and pins go before."""
_log = logging.getLogger(__name__)


def tag_of(paths: Sequence[str], *, asked_bytes: int | None) -> bytes:
    """What those have in common who share a cache: the same files, unchanged, and the same `cache_bytes`.

    Raises OSError.
    """
    files = [[os.path.realpath(path), FileIdentity.of(os.stat(path)).as_list()] for path in paths]
    about = json.dumps([segments.VERSION, files, asked_bytes]).encode()
    return hashlib.blake2b(about, digest_size=areas.TAG_BYTES).digest()


class SharedCache:
    """What `ArrayCache` is, for the processes that have the same tag; whoever comes first says how large it gets.

    Arrays are copied out, so what is given out is the caller's own, and stays as it is.
    """

    def __init__(
        self, store: Store, area: Area, *, is_short: Callable[[], bool] | None = None, extents: Extents | None = None
    ) -> None:
        """Over an area that `segments.new` has laid out, which is left with this; raises ValueError, OSError.

        `extents`: of the area's file, where huge pages have to be asked for.
        """
        self._store = store
        self._area = area
        self._is_short = is_short or (lambda: memory_is_short() or _is_full(store))
        self._holds_lease = True
        self._lock = threading.Lock()
        self._index = Index(area.fd)
        self._extents = extents
        self._slots = Slots()
        self._segment: int | None = None
        """The one that this process fills, from `_at` to `_end`."""
        self._first = self._at = self._end = 0
        self._said = False
        self._hits = self._misses = 0
        self._window_hits = self._window_ghosts = self._window_lookups = 0
        # After the workers: multiprocessing ends what is left of them before it comes to negative priorities.
        self._leave = Finalize(self, areas.leave, (store, area), exitpriority=-20)
        # A child forked for something else must not hold it; one that reads takes a lease of its own (`forked`).
        _held().add(self)

    @classmethod
    def obtain(cls, tag: bytes, ceiling_bytes: int) -> SharedCache:
        """The cache of that tag, made if it is not there; raises DsmemError or OSError where that can't be."""
        store = make_store()
        mount = store.file_system()
        if mount.fstype != "tmpfs":
            raise UnsafeRoot(f"{store.root} is on {mount.fstype}: a cache there is no memory", root=store.root)

        asks = hugepages.can_be_taken(mount)

        def lay_out(fd: int) -> None:
            room_bytes = space.room(store).free_bytes * 9 // 10
            huge = asks or proc.huge_pages(mount) != "never"
            with space.translated(store):
                segments.new(fd, min(ceiling_bytes, room_bytes), huge_pages=huge)

        area = areas.obtain(store, tag, lay_out)
        try:
            return cls(store, area, extents=Extents(area.fd) if asks else None)
        except BaseException:
            areas.leave(store, area)
            raise

    def get(self, key: Key) -> Array | None:
        """A copy of what was put there, by whichever process, unless it had to go; read-only."""
        found, was_there = None, False
        try:
            found, was_there = self._look_up(segments.key_of(key))
            self._give_back_if_short()
            if self._counted(found is not None, was_there):
                self._adapt()
        except OSError as exc:
            self._failed(exc)
        return found

    def put(self, key: Key, array: Array) -> Array:
        """Let all have a copy of it; returns it, read-only. One over a quarter of the limit is not kept."""
        array.flags.writeable = False
        size_bytes = segments.record_bytes(array)
        if size_bytes * 4 > int(self._index.head[segments.LIMIT]) or not segments.can_hold(array):
            return array
        try:
            self._store_record(segments.key_of(key), array, size_bytes)
        except OSError as exc:
            self._failed(exc)
        return array

    def empty(self, size_bytes: int) -> Array:
        """New memory, uint8 [size_bytes], for an array that will be put."""
        return self._slots.empty(size_bytes)

    def holds(self, key: Key) -> bool:
        """Whether `get` would find it now; this does not count as asking for it."""
        with self._lock, self._index.alone("reading", _PATIENCE_S) as can:
            return can and self._index.find(segments.key_of(key))[0] is not None

    def drop(self, owner: Hashable) -> None:
        """Nothing: others may have the file open that this process has closed."""

    def clear(self) -> None:
        """Let go of everything, for all processes."""
        self._evict(0)

    def close(self) -> None:
        """Leave it; the last process frees its memory. It must not be used again."""
        self._leave()

    def forked(self, shares: int = 1) -> SharedCache:
        """The same cache in a forked child, with descriptors of its own; of it there are no shares.

        Raises OSError, and ValueError where the parent was the last to leave it, and has removed it.
        """
        area = areas.again(self._area)
        try:
            extents = None if self._extents is None else Extents(area.fd)
            return SharedCache(self._store, area, is_short=self._is_short, extents=extents)
        except BaseException:  # as when all others have left it
            areas.leave(self._store, area)
            raise

    @property
    def state(self) -> CacheState:
        """What it holds now; hits and misses are this process's."""
        head = self._index.head
        taken = self._index.segments[self._index.segments[:, segments.SIZE] > 0]
        return CacheState(
            items=int(taken[:, segments.ITEMS].sum()),
            size_bytes=max(self._index.stored_bytes, 0),
            limit_bytes=int(head[segments.LIMIT]),
            floor_bytes=int(head[segments.FLOOR]),
            ceiling_bytes=int(head[segments.CEILING]),
            hits=self._hits,
            misses=self._misses,
            evicted=int(head[segments.EVICTED]),
            given_back_bytes=int(head[segments.GIVEN_BACK]),
        )

    def _counted(self, hit: bool, regretted: bool) -> bool:
        """Whether a window is full."""
        with self._lock:
            self._window_lookups += 1
            self._window_hits += hit
            self._window_ghosts += regretted
            self._hits += hit
            self._misses += not hit
            return self._window_lookups >= WINDOW

    def _failed(self, exc: OSError) -> None:
        """What can't be kept, or read, is a miss; where there is no room, less is kept from now on."""
        if exc.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
            with suppress(OSError):  # the next one tries again
                self._lower(short=True)
        (_log.debug if self._said else _log.warning)("done without the shared cache: %s", exc)
        self._said = True

    def _look_up(self, name: bytes) -> tuple[Array | None, bool]:
        """(a copy, whether it was there and had to go). Where it lies is looked up before and after it is copied."""
        index = self._index
        with self._lock, index.alone("reading", _PATIENCE_S) as can:
            place, was_there = index.find(name) if can else (None, False)
        if place is None:
            return None, was_there
        found = segments.read(self._area.fd, place, name, self._slots.empty)
        with self._lock, index.alone("reading", _PATIENCE_S) as can:
            # Pages are freed after the segment is said to be gone: if it is still there, all of them were.
            if found is None or not can or not index.is_there(place):
                return None, False
            index.segments[place.segment, segments.USED_NS] = time.monotonic_ns()
        return found, False

    def _store_record(self, name: bytes, array: Array, size_bytes: int) -> None:
        with self._lock:
            room = self._room(size_bytes)
            if room is not None and self._extents is not None:
                self._extents.resize(int(self._index.head[segments.CURSOR]))
        if room is None:
            return
        segment, first, end, offset = room
        if self._extents is not None and (end - first) % EXTENT_BYTES == 0:  # else huge pages are others', too
            self._extents.take(offset, size_bytes)
        segments.write(self._area.fd, offset, name, array)
        place = segments.Place(offset, array.nbytes, segment, first)
        with self._lock, self._index.alone("writing", _PATIENCE_S) as can:
            if not can:
                return  # nobody will find it; it goes with its segment
            gone = not self._index.is_there(place)
            if not gone and self._index.find(name)[0] is None:
                self._index.enter(name, offset, array.nbytes, segment)
            if gone and self._segment == segment:
                self._segment = None
        if gone:  # evicted meanwhile, and freed before this was written
            self._index.free([(first, end - first)])

    def _room(self, size_bytes: int) -> tuple[int, int, int, int] | None:
        """(segment, its first and last byte, where to write), for this process alone. With the thread's lock held."""
        segment_bytes = int(self._index.head[segments.SEGMENT_BYTES])
        if size_bytes * 2 > segment_bytes:
            made = self._begin(segments.placed(0, size_bytes) + size_bytes)
            return None if made is None else (*made, segments.placed(made[1], size_bytes))
        if (
            self._segment is None
            or segments.placed(self._at, size_bytes) + size_bytes > self._end
            or not self._is_mine()
        ):
            made = self._begin(segment_bytes, instead=True)
            if made is None:
                return None
            self._segment, self._first, self._end = made
            self._at = self._first
        offset = segments.placed(self._at, size_bytes)
        self._at = offset + size_bytes
        return self._segment, self._first, self._end, offset

    def _is_mine(self) -> bool:
        """Whether the segment that this process fills has not been evicted, as far as can be seen without the lock."""
        assert self._segment is not None
        return self._index.is_there(segments.Place(self._at, 0, self._segment, self._first))

    def _begin(self, size_bytes: int, *, instead: bool = False) -> tuple[int, int, int] | None:
        """A new segment, others evicted for it: its number, its first and its last byte. With the thread's lock held.

        `instead`: of the one that this process fills, whose rest, too small for what comes, counts no more.
        """
        index = self._index
        wanted = -(-size_bytes // segments.PAGE_BYTES) * segments.PAGE_BYTES
        freed: list[tuple[int, int]] = []
        with index.alone("writing", _PATIENCE_S) as can:
            limit = int(index.head[segments.LIMIT])
            if not can or wanted > limit:
                return None
            if instead and self._segment is not None:
                index.shorten(self._segment, self._first, self._at - self._first)
                self._segment = None
            freed += index.evict(limit - wanted)
            number = index.reserve(wanted)
            if number is None:  # many small segments: one of them goes
                freed += index.evict(index.held_bytes - 1)
                number = index.reserve(wanted)
            first = 0 if number is None else int(index.segments[number, segments.OFFSET])
        index.free(freed)
        if index.stored_bytes - index.held_bytes > wanted:
            self._free_leaks()
        return None if number is None else (number, first, first + wanted)

    def _free_leaks(self) -> None:
        """What processes that were killed had written, or had evicted and not freed yet."""
        with self._index.alone("reading", _PATIENCE_S) as can:
            ranges = self._index.leaked() if can else []
        self._index.free(ranges)

    def _adapt(self) -> None:
        with self._lock:
            hit_rate, regretted = self._window_hits / WINDOW, self._window_ghosts / WINDOW
            self._window_hits = self._window_ghosts = self._window_lookups = 0
        head = self._index.head
        with self._lock, self._index.alone("writing", _PATIENCE_S) as can:
            if not can:
                return
            limit = adapted(
                int(head[segments.LIMIT]),
                floor_bytes=int(head[segments.FLOOR]),
                ceiling_bytes=int(head[segments.CEILING]),
                hit_rate=hit_rate,
                regretted=regretted,
                evicted=bool(head[segments.EVICTED]),
            )
            head[segments.LIMIT] = limit
            freed = self._index.evict(limit)
        self._index.free(freed)

    def _give_back_if_short(self) -> None:
        """One process at a time looks, twice a second."""
        head = self._index.head
        now = time.monotonic_ns()
        if now - int(head[segments.LOOKED_NS]) < SHORT_CHECK_S * 1e9:
            return
        head[segments.LOOKED_NS] = now
        short = self._is_short()
        if short or head[segments.LIMIT] < head[segments.FLOOR]:
            self._lower(short=short)

    def _lower(self, *, short: bool) -> None:
        """Half the limit while memory is short, back to the floor when it is not."""
        head = self._index.head
        with self._lock, self._index.alone("writing", _PATIENCE_S) as can:
            if not can:
                return
            floor = int(head[segments.FLOOR])
            head[segments.LIMIT] = eased(int(head[segments.LIMIT]), floor) if short else floor
            freed = self._index.evict(int(head[segments.LIMIT]))
            head[segments.GIVEN_BACK] += sum(size_bytes for _, size_bytes in freed)
        self._index.free(freed)

    def _evict(self, limit_bytes: int) -> None:
        with self._lock, self._index.alone("writing", 100 * _PATIENCE_S) as can:
            freed = self._index.evict(limit_bytes) if can else []
        self._index.free(freed)


@cache
def _held() -> weakref.WeakSet[SharedCache]:
    """The caches of this process. What is registered for forks stays for good: once, not for each of them."""
    caches: weakref.WeakSet[SharedCache] = weakref.WeakSet()
    os.register_at_fork(after_in_child=partial(_let_go_of_leases, caches))
    return caches


def _let_go_of_leases(caches: weakref.WeakSet[SharedCache]) -> None:
    """In a forked child, before anything else runs there: close the descriptors that are the parent's leases."""
    for one in caches:
        if one._holds_lease and one._leave.still_active():
            os.close(one._area.lease_fd)
            one._holds_lease = False  # nor has a child of the child anything to close


def _is_full(store: Store) -> bool:
    try:
        found = os.statvfs(store.root)
    except OSError:  # its directories were removed by force: the machine's memory is looked at all the same
        return False
    return bool(found.f_blocks) and found.f_bavail < _FULL * found.f_blocks
