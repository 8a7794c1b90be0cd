"""Read datasets through h5py in blocks of bounded size: what can't be copied as it lies in the file."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK_BYTES = 4 << 20
MOST_CHUNKS = 2048
"""Of a read: each takes HDF5 6 KB beside its bytes."""


@dataclass(frozen=True, slots=True)
class Block:
    """A box of an array; in the array's C order its `count` items lie within `span` from `first` on."""

    selection: tuple[slice, ...]
    first: int
    count: int
    span: int

    @property
    def is_contiguous(self) -> bool:
        """Whether nothing of other blocks lies between its items."""
        return self.span == self.count


def blocks(
    shape: Sequence[int], item_bytes: int, chunks: Sequence[int] | None, limit_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Cut an array into boxes of whole chunks, in ascending order of where they begin, and of where they end.

    A chunk that is cut would be decoded once for each piece. A box is at most `limit_bytes`, or one chunk, and not of
    very many; without chunks it is contiguous. It is as long as can be along the last axes: its items lie together.
    """
    if chunks is not None:
        limit_bytes = min(limit_bytes, MOST_CHUNKS * math.prod(chunks) * item_bytes)
    box = _box(shape, item_bytes, chunks, limit_bytes)
    for corner in itertools.product(*(range(0, length, step) for length, step in zip(shape, box, strict=True))):
        yield _block(shape, corner, box)


def some_block(shape: Sequence[int], item_bytes: int, chunks: Sequence[int] | None, limit_bytes: int) -> Block:
    """One of the pieces that `blocks` would cut without chunks, chosen at random; `chunks`: it lies in few of those."""
    if chunks:
        limit_bytes = min(limit_bytes, MOST_CHUNKS * chunks[-1] * item_bytes)
    box = _box(shape, item_bytes, None, limit_bytes)
    corner = [step * random.randrange(-(-length // step) or 1) for length, step in zip(shape, box, strict=True)]
    return _block(shape, corner, box)


def _box(shape: Sequence[int], item_bytes: int, chunks: Sequence[int] | None, limit_bytes: int) -> list[int]:
    """How long a block is along each axis: as many chunks as fit, about the same number in each block."""
    together = list(chunks or [1] * len(shape))
    box = [max(min(pair), 1) for pair in zip(together, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        in_all = -(-shape[axis] // together[axis])
        fitting = max(limit_bytes // max(item_bytes * math.prod(box), 1), 1)
        in_each = -(-in_all // -(-in_all // fitting)) if in_all else 1
        box[axis] = max(min(in_each * together[axis], shape[axis]), 1)
        if box[axis] < shape[axis]:
            break
    return box


def _block(shape: Sequence[int], corner: Sequence[int], box: Sequence[int]) -> Block:
    ends = [min(start + step, length) for start, step, length in zip(corner, box, shape, strict=True)]
    first, last = 0, 0
    for start, end, length in zip(corner, ends, shape, strict=True):
        first, last = first * length + start, last * length + end - 1
    count = math.prod(end - start for start, end in zip(corner, ends, strict=True))
    return Block(tuple(map(slice, corner, ends)), first, count, last - first + 1)


def as_bytes(array: Array) -> memoryview:
    """The bytes of an array of a fixed-size dtype, copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_block(dataset: Any, selection: tuple[slice, ...]) -> memoryview:
    """The bytes of a block of fixed-size items, in the byte order of the dataset.

    A scalar is read with `...`: what `()` gives is a numpy scalar, which is always in native order.
    """
    return as_bytes(np.asarray(dataset[selection or ...]))


def read_into(dataset: Any, selection: tuple[slice, ...], span: memoryview) -> None:
    """Let HDF5 read a block straight to its place among the items of other blocks; fixed-size items, no scalar.

    `span`: writable, from the first byte of the block to its last; ValueError where it is not that long.
    """
    from h5py import h5s, h5t

    starts = tuple(part.start for part in selection)
    counts = tuple(part.stop - part.start for part in selection)
    below = [math.prod(dataset.shape[axis + 1 :]) for axis in range(len(counts))]
    items = 1 + sum((count - 1) * step for count, step in zip(counts, below, strict=True))
    if len(span) != items * dataset.dtype.itemsize:
        raise ValueError("the dataset changed while it was read")
    stored = dataset.id.get_space()
    stored.select_hyperslab(starts, counts)
    here = h5s.create_simple((counts[0], *dataset.shape[1:]))
    here.select_hyperslab((0,) * len(counts), counts)
    dataset.id.read(here, stored, np.frombuffer(span, np.uint8), h5t.py_create(dataset.dtype))


def rows_of(span: memoryview, shape: Sequence[int], item_bytes: int, selection: tuple[slice, ...]) -> Array:
    """The bytes of a block among those of others, uncopied; the last axis runs along bytes that lie end to end."""
    lengths = [part.stop - part.start for part in selection]
    strides = [item_bytes * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    run = item_bytes
    while lengths and strides[-1] == run:
        run *= lengths.pop()
        strides.pop()
    return np.ndarray((*lengths, run), np.uint8, span, 0, (*strides, 1))
