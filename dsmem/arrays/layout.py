"""Where each tensor lies in a file: no gaps and no pads (safetensors refuses both), every one aligned all the same.

Whole pages first, then by the falling power of two that divides the item; what varies in length last, its size unknown
until it has been read. As each size is a multiple of its own alignment, the next tensor starts aligned.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmem.arrays.header import PAGE_BYTES, Tensor, shape_bytes

UNKNOWN = -1
"""The size of a tensor that varies in length, before it has been read, and where it begins."""
_MOST_BYTES = 1 << 62
_LAST = 1 << 12
"""More than any rank of what has a size."""
Column = np.ndarray[Any, np.dtype[Any]]


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

    begins: Column
    sizes: Column
    """In bytes, like `begins`: int64, `UNKNOWN` of what varies in length."""
    order: Column
    """Numbers (uint32) in the order of the file, those of unknown size last, in the order to append them."""
    known: int
    """How many have a size."""

    @property
    def end(self) -> int:
        """Bytes of all that have a size."""
        return int(self.sizes[self.order[: self.known]].sum())


def place(planned: Iterable[Planned]) -> Layout:
    """Lay tensors out one behind the other; raises TooLarge."""
    ranks, told = array("h"), array("q")
    total_bytes = 0
    for tensor in planned:
        size_bytes = _size_bytes(tensor)
        total_bytes += max(size_bytes, 0)
        if total_bytes > _MOST_BYTES:
            raise TooLarge(total_bytes)
        told.append(size_bytes)
        ranks.append(_rank(size_bytes, tensor.align))
    sizes = np.frombuffer(told, np.int64)  # no copies: there may be many
    order = np.argsort(np.frombuffer(ranks, np.int16), kind="stable").astype(np.uint32)
    known = len(sizes) - int((sizes == UNKNOWN).sum())
    begins, in_order = np.full(len(sizes), UNKNOWN, np.int64), order[:known]
    ends = np.cumsum(sizes[in_order])
    ends -= sizes[in_order]
    begins[in_order] = ends
    return Layout(begins, sizes, order, known)


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
