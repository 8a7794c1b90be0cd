"""Memory for arrays that come and go, in slabs on huge pages: copying a frame from there takes less than from pages of
its own, which lie scattered.

A slot is not used again while its array or a view of it is left. Of free ones a few stay, the memory of the rest goes
back to the system at once. Only speed depends on huge pages.
"""

from __future__ import annotations

import logging
import mmap
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from dsmem import madvise, settings
from dsmem.arrays import pages
from dsmem.arrays.memory import Pages
from dsmem.madvise import HUGE_PAGE_BYTES
from dsmem.store.hugepages import address_of

Array = np.ndarray[Any, np.dtype[Any]]
SLAB_BYTES = 32 << 20
"""Of addresses; memory is taken as it is used."""
LEAST_BYTES, MOST_BYTES = 64 << 10, SLAB_BYTES // 4
"""Smaller ones take little to copy; larger ones numpy puts on huge pages itself."""
_KEPT = 4
"""Free slots of a size that keep their memory: what is decoded next takes the place of what was evicted."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of a slab, which stays as long as this is known."""

    slab: mmap.mmap
    address: int
    size_bytes: int


class _Slot:
    """A place that is taken; what numpy makes of it, and of that, keeps it."""

    __slots__ = ("__array_interface__", "__weakref__", "_place")

    def __init__(self, place: _Place, size_bytes: int) -> None:
        self._place = place
        self.__array_interface__ = {
            "version": 3, "shape": (size_bytes,), "typestr": "|u1", "data": (place.address, False),
        }  # fmt: skip


@dataclass(slots=True)
class _Free:
    """Places of one size that are free; deques, as what ends an array may come at any moment, and takes no lock."""

    with_memory: deque[_Place] = field(default_factory=deque)
    without: deque[_Place] = field(default_factory=deque)

    def taken(self) -> _Place | None:
        for places in (self.with_memory, self.without):
            try:
                return places.pop()
            except IndexError:
                continue
        return None

    def add(self, place: _Place) -> None:
        if len(self.with_memory) < _KEPT:
            self.with_memory.append(place)
        else:
            madvise.advise(place.address, place.size_bytes, mmap.MADV_DONTNEED)
            self.without.append(place)


class Slots:
    """Of one process, for all its threads; a forked child makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A worker copies frames while the loop works: it gains nothing by them, and starts with what asking takes.
        self._asks = settings.read().huge_pages != "never" and get_worker_info() is None
        self._pages = Pages()
        self._free: dict[int, _Free] = {}
        self._slab: mmap.mmap | None = None
        self._at = self._ready = self._end = 0
        """Of the slab: where the next slot begins, up to where huge pages were asked for, and its end."""

    def empty(self, size_bytes: int) -> Array:
        """uint8 [size_bytes], not initialized, at the beginning of a page; the memory is the caller's."""
        if not LEAST_BYTES <= size_bytes <= MOST_BYTES:
            return pages.empty(size_bytes)
        whole_bytes = -(-size_bytes // pages.PAGE_BYTES) * pages.PAGE_BYTES
        free = self._free.get(whole_bytes)
        place = None if free is None else free.taken()
        if place is None:
            try:
                place = self._new(whole_bytes)
            except OSError as exc:  # addresses are bounded: ordinary memory does, or says so itself
                _log.debug("no slab: %s", exc)
                return pages.empty(size_bytes)
        slot = _Slot(place, size_bytes)
        weakref.finalize(slot, self._free[whole_bytes].add, place).atexit = False
        return np.asarray(slot)

    def _new(self, size_bytes: int) -> _Place:
        with self._lock:
            self._free.setdefault(size_bytes, _Free())
            if self._slab is None or self._at + size_bytes > self._end:
                slab = mmap.mmap(-1, SLAB_BYTES + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._slab, self._pages = slab, Pages()  # a slab may lose 5 ms, where decoding it takes 100
                self._at = self._ready = -(-address_of(slab) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
                self._end = self._at + SLAB_BYTES
            place = _Place(self._slab, self._at, size_bytes)
            self._at += size_bytes
            if self._at > self._ready:
                ready = -(-self._at // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
                if self._asks:
                    self._pages.prepare(self._ready, ready - self._ready)
                    if self._pages.are_had:  # the kernel must not fill what is given back later
                        madvise.advise(self._ready, ready - self._ready, mmap.MADV_NOHUGEPAGE)
                self._ready = ready
            return place
