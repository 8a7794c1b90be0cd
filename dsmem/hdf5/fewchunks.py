"""The chunk index of a dataset of few chunks, read while it is open anyway: a file may have many such datasets.

As bytes, 16 for each chunk: numpy's arrays take 400 for each dataset, and to open one again takes HDF5 30 µs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmem.hdf5.chunkindex import is_found
from dsmem.hdf5.chunks import ChunkTable, grid_of
from dsmem.hdf5.stored import MISSING

MOST_CHUNKS = 63
_PLACE = struct.Struct("<qII")
_COLUMNS = np.dtype([("offset", "<i8"), ("size", "<u4"), ("mask", "<u4")])
_NEVER_WRITTEN = _PLACE.pack(MISSING, 0, 0)
_WIDEST_SIZE = 2**32 - 1
_DAMAGE = (OSError, RuntimeError, ValueError, OverflowError)
"""What h5py raises for an index that it can't follow."""


def read(dataset_id: Any, shape: Sequence[int], chunks: Sequence[int], file_bytes: int) -> bytes:
    """Where the chunks of an h5py DatasetID lie, in C order of the grid.

    Nothing where they are many, or where anything is odd: `chunkindex.read_table` says what it is. Each is one that
    HDF5 finds by its place.
    """
    grid = grid_of(shape, chunks)
    total = math.prod(grid)
    if not 0 < total <= MOST_CHUNKS:
        return b""
    told: list[Any] = []

    def keep(info: Any) -> bool | None:
        told.append(info)
        return len(told) > total or None

    try:
        dataset_id.chunk_iter(keep)
    except _DAMAGE:
        return b""
    found = [_NEVER_WRITTEN] * total
    last = -1
    for corner, mask, offset, size in told:
        position = _position(corner, chunks, grid)
        if position <= last or size > _WIDEST_SIZE or not 0 <= offset <= file_bytes - size:
            return b""
        if not is_found(dataset_id, corner):
            return b""
        found[position] = _PLACE.pack(offset, size, mask)
        last = position
    return b"".join(found)


def _position(corner: Sequence[int], chunks: Sequence[int], grid: Sequence[int]) -> int:
    """Of a chunk in the grid; -1 for one that can't be there."""
    position = 0
    for start, chunk, count in zip(corner, chunks, grid, strict=True):
        index, beside = divmod(start, chunk)
        if beside or not 0 <= index < count:
            return -1
        position = position * count + index
    return position


def source_end(few: bytes) -> int:
    """Where in the file the last byte of the chunks lies; MISSING where none was written."""
    return max(int(offset + size) for offset, size, _ in _PLACE.iter_unpack(few))


def only_mask(few: bytes) -> int | None:
    """The filter mask of the only chunk; None unless there is one alone, and it was written."""
    if len(few) != _PLACE.size or few == _NEVER_WRITTEN:
        return None
    mask: int = _PLACE.unpack(few)[2]
    return mask


def places(few: bytes) -> tuple[list[int], list[int]]:
    """Offsets and sizes of all chunks, of several datasets if need be."""
    columns = np.frombuffer(few, _COLUMNS)
    return columns["offset"].tolist(), columns["size"].tolist()


def table(few: bytes, shape: Sequence[int], chunks: Sequence[int]) -> ChunkTable:
    """What `chunkindex.read_table` would give."""
    columns = np.frombuffer(few, _COLUMNS)
    offsets, sizes, masks = (np.ascontiguousarray(columns[name]) for name in ("offset", "size", "mask"))
    return ChunkTable(grid_of(shape, chunks), offsets, sizes, masks)
