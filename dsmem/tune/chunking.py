"""Which chunk shape fits how a dataset is read: whole frames at random, stretches of actions. Pure.

A read costs the chunks that it touches, whole, and a little for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsmem.tune.facts import Role, Storage

TARGET_BYTES = 64 << 10
"""What small rows are gathered into; a frame that is larger is a chunk by itself."""
_TOUCH_BYTES = 4096
"""Finding, reading and starting to decode a chunk takes as long as decoding so much more (10 µs at 0.4 GB/s)."""
_WORTH = 1.5
"""Another shape is recommended where a read costs so many times as much now."""


@dataclass(frozen=True, slots=True)
class Change:
    """Datasets that would be read with less work in another chunk shape."""

    name: str
    chunks: tuple[int, ...]
    better: tuple[int, ...]
    times: float
    """How many times as much a read costs now."""


def fitting(shape: Sequence[int], item_bytes: int) -> tuple[int, ...]:
    """The chunk shape for reading rows of `shape` [steps, …] at random: whole rows, up to 64 KiB of them together."""
    row_bytes = math.prod(shape[1:]) * item_bytes
    rows = max(TARGET_BYTES // max(row_bytes, 1), 1)
    return (max(min(rows, shape[0]), 1), *(max(extent, 1) for extent in shape[1:]))


def read_cost(shape: Sequence[int], chunks: Sequence[int], item_bytes: int, rows: int) -> float:
    """What a read of so many rows costs on average, in decoded bytes."""
    across = math.prod(-(-extent // chunk) for extent, chunk in zip(shape[1:], chunks[1:], strict=True))
    rows = min(rows, shape[0])
    # Where it begins in a chunk is chance: (rows - 1) / chunk more chunks than one, at most as many as there are.
    along = min(1 + (rows - 1) / chunks[0], -(-shape[0] // chunks[0]))
    return along * across * (math.prod(chunks) * item_bytes + _TOUCH_BYTES)


def rows_read(role: Role, chunk_size: int) -> int:
    """How many rows a sample takes of a dataset."""
    return chunk_size if role == "action" else 1


def better(shape: Sequence[int], chunks: Sequence[int], item_bytes: int, rows: int) -> tuple[int, ...] | None:
    """A chunk shape in which reading takes less work, clearly; None where there is none."""
    if not all(shape) or len(shape) != len(chunks):
        return None
    other = fitting(shape, item_bytes)
    now, then = (read_cost(shape, one, item_bytes, rows) for one in (chunks, other))
    return other if now >= _WORTH * then else None


def changes(storages: Sequence[Storage], *, chunk_size: int) -> tuple[Change, ...]:
    """What to change in the files; `chunk_size`: actions of a sample."""
    found: list[Change] = []
    for one in storages:
        if one.chunks is None or one.is_encoded or not one.count:
            continue
        size = np.dtype(one.dtype).itemsize
        shape = (max(one.rows // one.count, 1), *one.item_shape)
        rows = rows_read(one.role, chunk_size)
        other = better(shape, one.chunks, size, rows)
        if other is not None:
            times = read_cost(shape, one.chunks, size, rows) / read_cost(shape, other, size, rows)
            found.append(Change(one.name, one.chunks, other, round(times, 1)))
    return tuple(found)
