"""Columns of very many numbers: what lies behind the first of them is on a disk (`dsmem.scratch`), and mapped."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from dsmem.scratch import Scratch

Numbers = np.ndarray[Any, np.dtype[Any]]
_AT_ONCE = 1 << 16
"""Numbers that are written together; a column that has less is in memory."""
_WINDOW = 1 << 13
"""Numbers that are looked at together: as a list of Python's each takes 40 bytes."""
_SORTED_AT_ONCE = 1 << 18
_SAMPLES = 1 << 12
_MOST_PARTS = 64
"""As often all of them are looked at."""


class Column:
    """Numbers of a type of `array`, one behind the other."""

    def __init__(self, code: str) -> None:
        self._tail = array(code)
        self._most = _AT_ONCE
        self._scratch = Scratch()
        self._stored = 0
        """How many lie on the disk, before the others."""

    def __len__(self) -> int:
        return self._stored + len(self._tail)

    def append(self, number: int) -> None:
        """Add one behind the others."""
        self._tail.append(number)
        if len(self._tail) >= self._most:
            self._put()

    def extend(self, numbers: Numbers) -> None:
        """Add some of that type, or of one that fits, behind the others."""
        for begin in range(0, len(numbers), _AT_ONCE):
            some = numbers[begin : begin + _AT_ONCE]
            self._tail.frombytes(some.astype(self._tail.typecode, copy=False).tobytes())
            if len(self._tail) >= self._most:
                self._put()

    def set(self, index: int, number: int) -> None:
        """Put another one in the place of one; arrays that were given show it."""
        if index >= self._stored:
            self._tail[index - self._stored] = number
        else:
            self._scratch.rewrite(index * self._tail.itemsize, array(self._tail.typecode, [number]).tobytes())

    def array(self) -> Numbers:
        """All that there are by now, to be looked at; more is added only when nobody has it any more."""
        if self._stored and self._tail:
            self._put()
        if self._stored and not self._tail:
            with suppress(OSError):  # no more maps, or descriptors
                return np.frombuffer(self._scratch.mapped(), self._tail.typecode)
        if self._stored:  # no room: what is there is read back
            every = array(self._tail.typecode)
            for begin in range(0, self._stored, _AT_ONCE):
                count = min(_AT_ONCE, self._stored - begin)
                every.frombytes(self._scratch.read(begin * every.itemsize, count * every.itemsize))
            self._tail, self._stored = every + self._tail, 0
            self._most = sys.maxsize
        return np.frombuffer(self._tail, self._tail.typecode)

    def _put(self) -> None:
        if self._scratch.append(memoryview(self._tail).cast("B")) is None:
            self._most = sys.maxsize
        else:
            self._stored += len(self._tail)
            self._tail = array(self._tail.typecode)


def column(code: str, parts: Iterator[Numbers]) -> Numbers:
    """The array of a column that is made of parts."""
    whole = Column(code)
    for part in parts:
        whole.extend(part)
    return whole.array()


def windows(count: int) -> Iterator[slice]:
    """All of so many, some at a time."""
    return (slice(begin, begin + _WINDOW) for begin in range(0, count, _WINDOW))


def in_order(keys: Numbers) -> Iterator[Numbers]:
    """What `argsort` gives, some at a time, no key in two parts: those with equal keys in the order that they have."""
    parts = min(-(-len(keys) // _SORTED_AT_ONCE), _MOST_PARTS)
    some = np.sort(keys[:: max(1, len(keys) // _SAMPLES)])
    cuts = np.unique(some[len(some) * np.arange(1, parts) // max(parts, 1)])
    for number in range(len(cuts) + 1):
        found = np.concatenate([_between(keys, window, cuts, number) for window in windows(len(keys))] or [keys[:0]])
        yield found[np.argsort(keys[found], kind="stable")] if len(found) else found


def _between(keys: Numbers, window: slice, cuts: Numbers, number: int) -> Numbers:
    """Which keys of a window lie behind so many cuts."""
    some = keys[window]
    is_there = np.ones(len(some), bool)
    if number:
        is_there &= some >= cuts[number - 1]
    if number < len(cuts):
        is_there &= some < cuts[number]
    found: Numbers = np.flatnonzero(is_there) + window.start
    return found
