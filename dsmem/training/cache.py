"""A cache of decoded arrays, bounded in bytes, that threads share: it grows while that helps, and gives memory back.

Pinned and mapped arrays, which all processes share, never enter a cache. The limit moves between a floor and a ceiling.
It grows when what was evicted is asked for again, shrinks when hardly anything is asked for twice, and falls to nothing
while memory is short. `ArrayCache` is one process's own; `sharedcache` has one for all processes of a machine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dsmem import proc
from dsmem.training.slots import Slots

Array = np.ndarray[Any, np.dtype[Any]]
Key = tuple[Hashable, ...]
"""The first field says whose the array is."""
WINDOW = 256
"""Lookups between two looks at how it goes."""
_RESERVE = 0.05
"""Of the machine's or the cgroup's memory: below this much available, memory is short."""
SHORT_CHECK_S = 0.5


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a cache holds now, and what came of it so far."""

    items: int
    size_bytes: int
    limit_bytes: int
    floor_bytes: int
    ceiling_bytes: int
    hits: int
    misses: int
    evicted: int
    given_back_bytes: int
    """Let go because memory was short."""


class Cache(Protocol):
    """What the readers of a process need of a cache. What `get` and `put` give is read-only."""

    def get(self, key: Key) -> Array | None: ...
    def put(self, key: Key, array: Array) -> Array: ...
    def empty(self, size_bytes: int) -> Array: ...
    def holds(self, key: Key) -> bool: ...
    def drop(self, owner: Hashable) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...
    def forked(self, shares: int = 1) -> Cache: ...
    @property
    def state(self) -> CacheState: ...


def adapted(
    limit_bytes: int, *, floor_bytes: int, ceiling_bytes: int, hit_rate: float, regretted: float, evicted: bool
) -> int:
    """The limit after a window of lookups: `regretted` of them asked for what had been there and had to go."""
    if regretted > 0.05:
        return min(limit_bytes + max(limit_bytes // 4, 1 << 20), ceiling_bytes)
    if hit_rate < 0.02 and evicted:
        return max(limit_bytes * 4 // 5, floor_bytes)
    return limit_bytes


def eased(limit_bytes: int, floor_bytes: int) -> int:
    """The limit after a look that found memory short: half, and nothing once it is at the floor."""
    return limit_bytes // 2 if limit_bytes > floor_bytes else 0


def memory_is_short() -> bool:
    """Whether the machine, or a control group that pays for this process, has less than 5 % of its memory left."""
    now = proc.memory()
    if now.available_bytes < _RESERVE * now.total_bytes:
        return True
    return any(group.free_bytes < _RESERVE * group.limit_bytes for group in proc.cgroup_memory())


class ArrayCache:
    """Least recently used arrays by key; a key's first field says whose it is. What it gives out is read-only."""

    def __init__(
        self,
        ceiling_bytes: int,
        *,
        floor_bytes: int | None = None,
        is_short: Callable[[], bool] = memory_is_short,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ceiling_bytes = max(ceiling_bytes, 0)
        self._floor_bytes = min(self._ceiling_bytes // 8 if floor_bytes is None else floor_bytes, self._ceiling_bytes)
        self._limit_bytes = max(self._ceiling_bytes // 2, self._floor_bytes)
        self._is_short = is_short
        self._clock = clock
        self._lock = threading.Lock()
        self._slots = Slots()
        self._items: OrderedDict[Key, Array] = OrderedDict()
        self._ghosts: OrderedDict[Key, int] = OrderedDict()
        self._size_bytes = 0
        self._ghost_bytes = 0
        self._hits = self._misses = self._evicted = self._given_back_bytes = 0
        self._window_hits = self._window_ghosts = self._window_lookups = 0
        self._checked = clock()

    def get(self, key: Key) -> Array | None:
        """What was put there, unless it had to go."""
        with self._lock:
            found = self._items.get(key)
            self._window_lookups += 1
            if found is not None:
                self._items.move_to_end(key)
                self._hits += 1
                self._window_hits += 1
            else:
                self._misses += 1
                ghost_bytes = self._ghosts.pop(key, None)
                if ghost_bytes is not None:
                    self._ghost_bytes -= ghost_bytes
                    self._window_ghosts += 1
            if self._window_lookups >= WINDOW:
                self._adapt()
        now = self._clock()
        if now - self._checked >= SHORT_CHECK_S:
            self._checked = now
            self._give_back_if_short()
        return found

    def put(self, key: Key, array: Array) -> Array:
        """Keep an array that is the caller's no more; returns it, read-only. One over half the limit is not kept."""
        array.flags.writeable = False
        with self._lock:
            if array.nbytes * 2 > self._limit_bytes:
                # Else one array would empty the cache; a limit that has fallen rises again once memory is there.
                return array
            there = self._items.pop(key, None)
            if there is not None:
                self._size_bytes -= there.nbytes
            self._items[key] = array
            self._size_bytes += array.nbytes
            self._trim(self._limit_bytes)
        return array

    def empty(self, size_bytes: int) -> Array:
        """New memory, uint8 [size_bytes], for an array that will be put."""
        return self._slots.empty(size_bytes)

    def holds(self, key: Key) -> bool:
        """Whether `get` would find it now; this does not count as asking for it."""
        with self._lock:
            return key in self._items

    def drop(self, owner: Hashable) -> None:
        """Let go of all whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._items if key[0] == owner]:
                self._size_bytes -= self._items.pop(key).nbytes

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._items.clear()
            self._ghosts.clear()
            self._size_bytes = self._ghost_bytes = 0
        self._slots = Slots()  # those that were there go with the last array in them

    def close(self) -> None:
        """The same: nobody else knows it."""
        self.clear()

    def forked(self, shares: int = 1) -> ArrayCache:
        """A cache with locks of its own and the same arrays, for a forked child, which gets one of so many shares."""
        child = ArrayCache(
            self._ceiling_bytes // shares,
            floor_bytes=self._floor_bytes // shares,
            is_short=self._is_short,
            clock=self._clock,
        )
        # The parent's pages: sharing them costs nothing before the child puts others in their place.
        child._items = OrderedDict(self._items)
        child._size_bytes = sum(array.nbytes for array in child._items.values())
        child._limit_bytes = max(child._limit_bytes, min(child._size_bytes, child._ceiling_bytes))
        child._trim(child._limit_bytes)
        return child

    @property
    def state(self) -> CacheState:
        """What it holds now."""
        with self._lock:
            return CacheState(
                items=len(self._items),
                size_bytes=self._size_bytes,
                limit_bytes=self._limit_bytes,
                floor_bytes=self._floor_bytes,
                ceiling_bytes=self._ceiling_bytes,
                hits=self._hits,
                misses=self._misses,
                evicted=self._evicted,
                given_back_bytes=self._given_back_bytes,
            )

    def _adapt(self) -> None:
        """Called with the lock held, once a window."""
        self._limit_bytes = adapted(
            self._limit_bytes,
            floor_bytes=self._floor_bytes,
            ceiling_bytes=self._ceiling_bytes,
            hit_rate=self._window_hits / WINDOW,
            regretted=self._window_ghosts / WINDOW,
            evicted=self._evicted > 0,
        )
        self._trim(self._limit_bytes)
        self._window_hits = self._window_ghosts = self._window_lookups = 0

    def _trim(self, limit_bytes: int) -> None:
        """Called with the lock held."""
        while self._size_bytes > limit_bytes:
            key, array = self._items.popitem(last=False)
            self._size_bytes -= array.nbytes
            self._evicted += 1
            self._ghosts[key] = array.nbytes
            self._ghost_bytes += array.nbytes
            while self._ghost_bytes > self._ceiling_bytes:  # what no ceiling could have kept is not regretted
                self._ghost_bytes -= self._ghosts.popitem(last=False)[1]

    def _give_back_if_short(self) -> None:
        short = self._is_short()  # reads /proc: not under the lock
        with self._lock:
            if short:
                before = self._size_bytes
                self._limit_bytes = eased(self._limit_bytes, self._floor_bytes)
                self._trim(self._limit_bytes)
                self._given_back_bytes += before - self._size_bytes
            elif self._limit_bytes < self._floor_bytes:
                self._limit_bytes = self._floor_bytes
