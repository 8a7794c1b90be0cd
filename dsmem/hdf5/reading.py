"""Read datasets through h5py in blocks of bounded size: what can't be copied as it lies in the file."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_BLOCK_BYTES = 16 << 20
_FIRST_ITEMS = 64
_MOST_ITEMS = 1 << 20


def blocks(
    shape: Sequence[int], item_bytes: int, chunks: Sequence[int] | None, limit_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Cut an array into (first item, items, selection), each contiguous in C order and at most about `limit_bytes`.

    Cuts fall between chunks where the limit allows: a chunk that is cut would be decoded once for each piece.
    """
    if not shape:
        yield 0, 1, ()
        return
    axis, step = _cut(shape, item_bytes, chunks, limit_bytes)
    for outer in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            yield _piece(shape, outer, start, step)


def some_block(shape: Sequence[int], item_bytes: int, limit_bytes: int) -> tuple[int, int, tuple[slice, ...]]:
    """One of the pieces that `blocks` would cut, chosen at random."""
    if not shape:
        return 0, 1, ()
    axis, step = _cut(shape, item_bytes, None, limit_bytes)
    outer = tuple(random.randrange(length) for length in shape[:axis])
    return _piece(shape, outer, step * random.randrange(-(-shape[axis] // step)), step)


def _cut(shape: Sequence[int], item_bytes: int, chunks: Sequence[int] | None, limit_bytes: int) -> tuple[int, int]:
    """The axis that is cut, those before it being taken index by index, and how many indices of it make a piece."""
    axis = 0
    below = math.prod(shape[1:])
    while axis < len(shape) - 1 and below * item_bytes * (chunks[axis] if chunks else 1) > limit_bytes:
        axis += 1
        below = math.prod(shape[axis + 1 :])
    step = max(limit_bytes // max(below * item_bytes, 1), 1)
    if chunks and step > chunks[axis]:
        step -= step % chunks[axis]
    return axis, step


def _piece(shape: Sequence[int], outer: Sequence[int], start: int, step: int) -> tuple[int, int, tuple[slice, ...]]:
    axis = len(outer)
    below = math.prod(shape[axis + 1 :])
    before = 0
    for index, length in zip(outer, shape, strict=False):
        before = before * length + index
    end = min(start + step, shape[axis])
    selection = (*(slice(i, i + 1) for i in outer), slice(start, end))
    return (before * shape[axis] + start) * below, (end - start) * below, selection


def as_bytes(array: Array) -> memoryview:
    """The bytes of an array of a fixed-size dtype, copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_block(dataset: Any, selection: tuple[slice, ...]) -> memoryview:
    """The bytes of a block of fixed-size items, in the byte order of the dataset.

    A scalar is read with `...`: what `()` gives is a numpy scalar, which is always in native order.
    """
    return as_bytes(np.asarray(dataset[selection or ...]))


def read_fixed(dataset: Any, item_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """(byte offset within the dataset, bytes) for all of a dataset of fixed-size items, in order."""
    for first, _, selection in blocks(dataset.shape, item_bytes, dataset.chunks):
        yield first * item_bytes, read_block(dataset, selection)


def read_variable(dataset: Any, base: np.dtype[Any]) -> Iterator[tuple[memoryview, Array]]:
    """(the items' bytes end to end, their lengths in elements of `base`) for a variable-length dataset, in order."""
    total = math.prod(dataset.shape)
    items, done = _FIRST_ITEMS, 0
    flat = dataset.shape == (total,)
    while done < total:
        wanted = min(items, total - done)
        read = _read_flat(dataset, done, wanted) if not flat else dataset[done : done + wanted]
        done += len(read)
        encoded = [_item_bytes(item, base) for item in read]
        data = b"".join(encoded)
        lengths = np.fromiter((len(item) // base.itemsize for item in encoded), np.int64, len(encoded))
        yield memoryview(data), lengths
        mean_bytes = max(len(data) // len(read), 1)
        items = min(max(_BLOCK_BYTES // mean_bytes, 1), 4 * items, _MOST_ITEMS)


def _read_flat(dataset: Any, start: int, items: int) -> Array:
    """Up to `items` items from flat position `start`, to the end of the last axis at most."""
    shape = dataset.shape
    if not shape:
        scalar = np.empty(1, object)
        scalar[0] = dataset[()]
        return scalar
    where = np.unravel_index(start, shape)
    last = int(where[-1])
    end = min(last + items, shape[-1])
    selection = (*(int(i) for i in where[:-1]), slice(last, end))
    return np.asarray(dataset[selection])


def _item_bytes(item: Any, base: np.dtype[Any]) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    return np.ascontiguousarray(item, dtype=base).tobytes()
