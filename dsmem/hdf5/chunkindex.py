"""Where the chunks of a dataset lie, as HDF5 lists them: checked, for nothing of a file is believed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from h5py import h5d

from dsmem.hdf5.chunks import ChunkTable, Column, grid_of
from dsmem.hdf5.stored import MISSING

_AT_ONCE = 1 << 14
"""Chunks that are put into a table together: each takes some 100 bytes until then, and 8 to 16 in the table."""
_WIDEST_SIZE = 2**32 - 1


class DamagedIndex(ValueError):
    """A chunk index that can't be; the message does not say whose."""


def read_table(
    dataset_id: Any,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    file_bytes: int,
    *,
    looked: Callable[[], None] | None = None,
) -> ChunkTable:
    """The chunk index of an h5py DatasetID; raises DamagedIndex when it can't be that of such a dataset and file.

    With `looked`, called now and then, HDF5 looks up every chunk that it listed, 5 µs each: a key may be damaged where
    it is not listed, and then HDF5 reads the fill value where the chunk is.
    """
    index = _Index(shape, chunks, file_bytes)
    numbers = array("q")  # not a list of tuples: those cost the garbage collector more than the walk costs HDF5
    extend, enough = numbers.extend, _AT_ONCE * (len(chunks) + 3)

    def keep(info: Any) -> None:
        extend(info[0])  # h5py's StoreInfo: the corner, then filter mask, offset and size in bytes
        extend(info[1:])
        if len(numbers) >= enough:
            index.put(numbers)
            del numbers[:]

    try:
        dataset_id.chunk_iter(keep)
    except OverflowError as exc:
        raise DamagedIndex("its chunk index leads outside the file") from exc
    if numbers:
        index.put(numbers)
    table = index.finish()
    if not index.is_ascending:
        _check_found(dataset_id, table, chunks)
    elif looked is not None:
        _check_there(dataset_id, table, chunks, looked)
    return table


def stored_bytes(dataset_id: Any, plist: Any = None) -> int:
    """What a dataset takes in its file; raises DamagedIndex for more chunks than it can have.

    HDF5's own sum follows an index whose layers lead to each other many times for as long as that takes.
    `plist`: its creation properties, if known.
    """
    plist = plist or dataset_id.get_create_plist()
    if plist.get_layout() != h5d.CHUNKED:
        return int(dataset_id.get_storage_size())
    size_bytes = 0

    def add(info: Any) -> None:
        nonlocal size_bytes
        size_bytes += info.size

    visit(dataset_id, dataset_id.shape, plist.get_chunk(), add)
    return size_bytes


def visit(dataset_id: Any, shape: tuple[int, ...], chunks: tuple[int, ...], seen: Callable[[Any], object]) -> object:
    """Call `seen` with h5py's StoreInfo of every chunk that is listed, until it returns something, which is returned.

    Raises DamagedIndex for more chunks than there can be.
    """
    if len(shape) != len(chunks):
        raise DamagedIndex(f"chunks {chunks} of another rank than its shape {shape}")
    total = math.prod(grid_of(shape, chunks))
    left = total

    def count(info: Any) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_many(total)
        return seen(info)

    found: object = dataset_id.chunk_iter(count)
    return found


class _Index:
    """A table that is filled with chunks as HDF5 tells of them, many at a time."""

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...], file_bytes: int) -> None:
        self._grid = grid_of(shape, chunks)
        self._total = math.prod(self._grid)
        self._offsets = np.full(self._total, MISSING, np.int64)
        self._sizes: Column | None = None
        self._size: int | None = None
        """Of every chunk so far, while there are no `_sizes`."""
        self._masks: Column | None = None
        self.is_ascending = True
        """Whether they came in the order of the dataset, as they do where HDF5 finds each by its place."""
        self._chunks, self._counts = np.array(chunks, np.int64), np.array(self._grid, np.int64)
        self._file_bytes = file_bytes
        self._told = 0
        self._last = -1

    def put(self, numbers: array[int]) -> None:
        """Enter chunks, each its corner, mask, offset and size; raises DamagedIndex."""
        infos = np.frombuffer(numbers, np.int64).reshape(-1, len(self._chunks) + 3)
        self._told += len(infos)
        if self._told > self._total:
            raise _too_many(self._total)
        starts, (masks, offsets, sizes) = infos[:, :-3], infos[:, -3:].T
        positions, beside = np.divmod(starts, self._chunks)
        has_negative = infos.min() < 0
        if (positions >= self._counts).any() or (has_negative and (starts < 0).any()):
            raise DamagedIndex("its chunk index leads outside the dataset")
        if beside.any():
            raise DamagedIndex("its chunk index is damaged: a chunk lies between others")
        if has_negative or (offsets > self._file_bytes - sizes).any():
            raise DamagedIndex("its chunk index leads outside the file")
        where = np.ravel_multi_index(tuple(positions.T), self._grid)
        self.is_ascending &= self._last < int(where[0]) and (len(where) == 1 or bool((np.diff(where) > 0).all()))
        self._last = int(where[-1])
        self._enter_sizes(where, sizes)
        self._offsets[where] = offsets
        if masks.any():
            if self._masks is None:
                self._masks = np.zeros(self._total, np.uint32)
            self._masks[where] = masks

    def _enter_sizes(self, where: Column, sizes: Column) -> None:
        if self._sizes is None:
            self._size = int(sizes[0]) if self._size is None else self._size
            if (sizes == self._size).all():
                return
            self._sizes = np.zeros(self._total, np.uint32 if self._size <= _WIDEST_SIZE else np.int64)
            self._sizes[self._offsets != MISSING] = self._size
        if self._sizes.dtype != np.int64 and int(sizes.max()) > _WIDEST_SIZE:
            self._sizes = self._sizes.astype(np.int64)
        self._sizes[where] = sizes

    def finish(self) -> ChunkTable:
        """The table; raises DamagedIndex."""
        sizes = _repeated(self._size or 0, self._total) if self._sizes is None else self._sizes
        masks = _repeated(0, self._total) if self._masks is None else self._masks
        table = ChunkTable(self._grid, self._offsets, sizes, masks)
        if self._told > self._total - table.missing:
            raise DamagedIndex("its chunk index is damaged: there are two of one chunk")
        return table


def _repeated(value: int, total: int) -> Column:
    return np.ndarray(total, np.int64, np.int64(value).tobytes(), strides=(0,))


def _too_many(total: int) -> DamagedIndex:
    return DamagedIndex(f"its chunk index is damaged: it lists more than the {total:,} chunks that there can be")


def _check_found(dataset_id: Any, table: ChunkTable, chunks: tuple[int, ...]) -> None:
    """Raise DamagedIndex unless HDF5 finds every chunk by its place: where keys are out of order, some are hidden.

    Only reading a chunk looks for it: h5py's `get_chunk_info_by_coord` walks over all.
    """
    for position, corner in _corners(table, chunks):
        try:
            _, stored = dataset_id.read_direct_chunk(corner)
        except (OSError, RuntimeError, ValueError) as exc:
            raise _not_found(corner) from exc
        if len(stored) != table.sizes[position]:
            raise DamagedIndex(f"its chunk index is damaged: HDF5 finds another chunk at {corner}")


def _check_there(dataset_id: Any, table: ChunkTable, chunks: tuple[int, ...], looked: Callable[[], None]) -> None:
    """Raise DamagedIndex unless HDF5 finds a chunk at the place of each; nothing is read of them."""
    for count, (_, corner) in enumerate(_corners(table, chunks)):
        if count % _AT_ONCE == 0:
            looked()
        if not is_found(dataset_id, corner):
            raise _not_found(corner)


def is_found(dataset_id: Any, corner: tuple[int, ...]) -> bool:
    """Whether HDF5 finds a chunk there through the index; nothing of it is read.

    h5py looks for a chunk before it finds that there is no room for it, which is its ValueError.
    """
    try:
        dataset_id.read_direct_chunk(corner, out=bytearray())
    except ValueError:
        return True
    except (OSError, RuntimeError):
        return False
    return False


def _corners(table: ChunkTable, chunks: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every chunk that was written: its position in the table, and the place of its first item."""
    steps = np.array(chunks, np.int64)
    for start in range(0, len(table.offsets), _AT_ONCE):
        positions = start + np.flatnonzero(table.offsets[start : start + _AT_ONCE] != MISSING)
        places = np.stack(np.unravel_index(positions, table.grid), axis=-1) * steps
        yield from zip(positions.tolist(), map(tuple, places.tolist()), strict=True)


def _not_found(corner: tuple[int, ...]) -> DamagedIndex:
    return DamagedIndex(f"its chunk index is damaged: HDF5 does not find the chunk at {corner}")
