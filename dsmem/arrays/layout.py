"""Where each tensor lies in a file: no gaps and no pads (safetensors refuses both), every one aligned all the same.

Whole pages first, then by the falling power of two that divides the item; what varies in length last, its size unknown
until it has been read. As each size is a multiple of its own alignment, the next tensor starts aligned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dsmem.arrays.columns import Column, Numbers, windows
from dsmem.arrays.header import PAGE_BYTES, Tensor, shape_bytes

UNKNOWN = -1
"""The size of a tensor that varies in length, before it has been read, and where it begins."""
_MOST_BYTES = 1 << 62
_LAST = 1 << 12
"""More than any rank of what has a size."""


class TooLarge(OverflowError):
    """More bytes than numbers of 64 bits can tell of."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"{size_bytes:,} bytes")
        self.size_bytes = size_bytes


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to lay out; `shape` None = one axis whose length is known only after reading."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    align: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tensors lie, by the numbers they were planned with; as columns, for there may be many."""

    begins: Numbers
    sizes: Numbers
    """In bytes, like `begins`: int64, `UNKNOWN` of what varies in length."""
    order: Numbers
    """Numbers (uint32) in the order of the file, those of unknown size last, in the order to append them."""
    known: int
    """How many have a size."""
    end: int
    """Bytes of all that have a size."""
    columns: tuple[Column, Column]
    """Of `begins` and `sizes`."""

    def put(self, number: int, begin: int, size_bytes: int) -> None:
        """Enter where one lies that varies in length."""
        for column, value in zip(self.columns, (begin, size_bytes), strict=True):
            column.set(number, value)


def place(planned: Iterable[Planned]) -> Layout:
    """Lay tensors out one behind the other; raises TooLarge."""
    ranks, begins, sizes = Column("h"), Column("q"), Column("q")
    total_bytes = known = 0
    held: dict[int, int] = {}
    """Bytes of each rank."""
    for tensor in planned:
        size_bytes = _size_bytes(tensor)
        rank = _rank(size_bytes, tensor.align)
        if size_bytes != UNKNOWN:
            known += 1
            total_bytes += size_bytes
            if total_bytes > _MOST_BYTES:
                raise TooLarge(total_bytes)
        held[rank] = held.get(rank, 0) + size_bytes
        sizes.append(size_bytes)
        ranks.append(rank)
    size_of, rank_of = sizes.array(), ranks.array()
    there = sorted(held)
    at = dict(zip(there, itertools.accumulate((held[rank] for rank in there), initial=0), strict=False))
    order = Column("I")
    for rank in there:
        for window in windows(len(rank_of)):
            order.extend(window.start + np.flatnonzero(rank_of[window] == rank))
    for window in windows(len(rank_of)):
        begins.extend(_begins(size_of[window], rank_of[window], at))
    return Layout(begins.array(), size_of, order.array(), known, total_bytes, (begins, sizes))


def _begins(sizes: Numbers, ranks: Numbers, at: dict[int, int]) -> Numbers:
    """Where some tensors lie, the next of each rank at `at`, which goes on."""
    begins = np.full(len(sizes), UNKNOWN, np.int64)
    for rank in at:
        here = np.flatnonzero(ranks == rank)
        if len(here) and rank <= _LAST:
            ends = np.cumsum(sizes[here])
            begins[here] = at[rank] + ends - sizes[here]
            at[rank] += int(ends[-1])
    return begins


def placed(planned: Sequence[Planned]) -> dict[str, Tensor]:
    """Tensors whose sizes are all known, with their places, in the order of the file."""
    sizes = list(map(_size_bytes, planned))
    tensors: dict[str, Tensor] = {}
    begin = 0
    for number in sorted(range(len(planned)), key=lambda number: _rank(sizes[number], planned[number].align)):
        one = planned[number]
        assert one.shape is not None
        tensors[one.name] = Tensor(one.dtype, one.shape, begin, begin + sizes[number])
        begin += sizes[number]
    return tensors


def _size_bytes(tensor: Planned) -> int:
    return UNKNOWN if tensor.shape is None else shape_bytes(tensor.dtype, tensor.shape)


def _rank(size_bytes: int, align: int) -> int:
    """Tensors of a lower one come first."""
    if size_bytes == UNKNOWN:
        return 2 * _LAST - align
    return (0 if size_bytes and size_bytes % PAGE_BYTES == 0 else _LAST) - align
