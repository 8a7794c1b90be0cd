"""Datasets of variable length: HDF5 is asked for no more items at once than fit, by the lengths that the file tells,
and for no long one whose place can be told (`dsmem.hdf5.globalheap`).

Each item is a pointer in the dataset's own storage: uint32 number of elements (bytes of a text), then where they lie in
the file (HDF5 File Format Specification, "Variable-length Datatypes" and "Global Heap ID"). Many may lead to one place.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dsmem import files
from dsmem.errors import BadSource
from dsmem.hdf5.chunkindex import read_table
from dsmem.hdf5.chunks import Band, ChunkedDataset
from dsmem.hdf5.codecs import Pipeline
from dsmem.hdf5.datasets import Item, pointers
from dsmem.hdf5.globalheap import Heap, is_text
from dsmem.hdf5.reading import MOST_CHUNKS, Array, as_bytes
from dsmem.hdf5.stored import StoredChunks

BLOCK_BYTES = 16 << 20
"""Of items that are read at once: HDF5, Python and what is written each have them once."""
LONG_BYTES = 256 << 10
"""Of an item that is read without HDF5, if its place can be told."""
_PIECE_BYTES = 4 << 20
_LENGTH = np.dtype("<u4")
_INDEX_BYTES = 4
_MOST_ITEMS = 1 << 17
"""Of a read: each costs about 100 bytes of Python's beside its own."""
_LARGE_ITEM_BYTES = 4 << 10
_FIRST_ITEMS = 64
_POINTERS_BYTES = 2 << 20
_MOST_POINTERS_BYTES = 32 << 20
_UNKNOWN_BYTES = 256 << 20
"""What a read of compact data may come to if every item is as long as the whole file: they are few (64 KiB)."""


class Portion(NamedTuple):
    """What is read at once: so many items, or the one of that size that lies at an offset of the file."""

    items: int
    offset: int | None = None
    size_bytes: int = 0


class Counts:
    """How many items of a variable-length dataset to read at once, again and again, until there are no more."""

    def __init__(self, dataset: Any, item: Item, base: np.dtype[Any], fd: int, file_bytes: int, label: str) -> None:
        """`base`: of the elements; `fd`: the open file. Raises BadSource, with `label`, for unreadable pointers."""
        self._total = math.prod(item.info.shape or ())
        self._longest_bytes = 1
        self._fd = fd
        self._label = label
        self._is_text = is_text(dataset)
        self._next: Iterator[Portion] = self._growing()
        fill = item.info.fillvalue
        stored = pointers(dataset.id, item, _pointer_bytes(dataset), file_bytes)
        if stored is not None and stored.offset is not None:
            told = _contiguous_pointers(stored, stored.offset, fd, label)
            self._next = _fitting(told, base.itemsize, Heap.of(dataset, base, fd, file_bytes))
        elif stored is not None and not _is_too_wide(stored):
            told = _chunked_pointers(dataset, stored, fill, fd, file_bytes, label)
            self._next = _fitting(told, base.itemsize, Heap.of(dataset, base, fd, file_bytes))
        elif item.storage_bytes == 0 and not item.is_outside:
            self._next = self._equal(BLOCK_BYTES // max(0 if fill is None else len(fill) * base.itemsize, 1))
        elif item.layout == "compact":
            self._next = self._equal(_UNKNOWN_BYTES // max(file_bytes, 1))

    def __iter__(self) -> Iterator[Portion]:
        return self._next

    def straight(self, portion: Portion, element_bytes: int) -> Iterator[tuple[memoryview, Array]]:
        """See `read`: the item whose place is known, in pieces; its length comes with the last."""
        assert portion.offset is not None
        held = bytearray(min(_PIECE_BYTES, portion.size_bytes))
        done, is_last = 0, False
        while not is_last:
            piece = memoryview(held)[: portion.size_bytes - done]
            if files.pread_full(self._fd, piece, portion.offset + done) < len(piece):
                raise BadSource(f"{self._label}: the file ends within it")
            end = held.find(0, 0, len(piece)) if self._is_text else -1
            piece = piece[:end] if end >= 0 else piece
            done += len(piece)
            is_last = end >= 0 or done == portion.size_bytes
            yield piece, np.array([done // element_bytes] if is_last else [], np.int64)

    def saw(self, lengths: Array, element_bytes: int) -> None:
        """Learn from what was read, where nothing could be known before."""
        self._longest_bytes = max(self._longest_bytes, int(lengths.max(initial=0)) * element_bytes)

    def _equal(self, at_once: int) -> Iterator[Portion]:
        at_once = max(min(at_once, _MOST_ITEMS), 1)
        for start in range(0, self._total, at_once):
            yield Portion(min(at_once, self._total - start))

    def _growing(self) -> Iterator[Portion]:
        """As many as fit if they are like the longest so far, at most four times as many as the time before."""
        done, count = 0, _FIRST_ITEMS
        while done < self._total:
            yield Portion(min(count, self._total - done))
            done += count
            count = max(min(BLOCK_BYTES // self._longest_bytes, 4 * count, _MOST_ITEMS), 1)


def read(dataset: Any, base: np.dtype[Any], counts: Counts) -> Iterator[tuple[memoryview, Array]]:
    """(the items' bytes end to end, their lengths in elements of `base`) in C order, so many items at a time.

    The bytes are valid until the next are taken. A long item may come in pieces, its length with the last.
    """
    done = 0
    most = MOST_CHUNKS * dataset.chunks[-1] if dataset.chunks else _MOST_ITEMS
    for portion in counts:
        if portion.offset is not None:
            yield from counts.straight(portion, base.itemsize)
            done += 1
            continue
        end = done + portion.items
        while done < end:
            selection, taken = _box(dataset.shape, done, min(end - done, most))
            done += taken
            items = np.asarray(dataset[selection], object).ravel() if selection else [dataset[()]]
            encoded = [_item_bytes(item, base) for item in items]
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // base.itemsize
            counts.saw(lengths, base.itemsize)
            joined = memoryview(encoded[0] if len(encoded) == 1 else b"".join(encoded))
            del items, encoded
            yield joined, lengths
            joined.release()  # or the next ones would be read beside them


def _box(shape: tuple[int, ...], start: int, most: int) -> tuple[tuple[int | slice, ...], int]:
    """The longest box from a flat position on that lies together in C order, of at most so many items; their number."""
    below, axis = 1, len(shape) - 1
    while axis > 0 and start % (below * shape[axis]) == 0 and most >= below * shape[axis]:
        below *= shape[axis]
        axis -= 1
    if axis < 0:
        return (), 1
    corner = [int(i) for i in np.unravel_index(start, shape)]
    steps = min(most // below, shape[axis] - corner[axis])
    return (*corner[:axis], slice(corner[axis], corner[axis] + steps)), steps * below


def _item_bytes(item: Any, base: np.dtype[Any]) -> bytes | memoryview:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    array = np.ascontiguousarray(item, dtype=base)
    return array.tobytes() if array.nbytes < _LARGE_ITEM_BYTES else as_bytes(array)  # a copy is quicker for a small one


def _fitting(pointers: Iterable[Array], element_bytes: int, heap: Heap | None) -> Iterator[Portion]:
    """How many items make up a block, at least one; by themselves those that lie where `heap` can tell."""
    for some in pointers:
        lengths = some[:, : _LENGTH.itemsize].copy().view(_LENGTH).ravel()
        sizes = lengths.astype(np.int64) * element_bytes
        long = np.flatnonzero(sizes >= LONG_BYTES).tolist() if heap is not None else []
        found = {number: heap.find(some[number].tobytes(), int(sizes[number])) for number in long if heap is not None}
        del some, lengths  # a large chunk of them
        done = 0
        for number, offset in [*((number, at) for number, at in found.items() if at is not None), (len(sizes), None)]:
            while done < number:
                ends = np.cumsum(sizes[done : min(done + _MOST_ITEMS, number)])
                count = max(int(np.searchsorted(ends, BLOCK_BYTES, "right")), 1)
                yield Portion(count)
                done += count
            if offset is not None:
                yield Portion(1, offset, int(sizes[number]))
                done += 1


def _pointer_bytes(dataset: Any) -> int:
    from h5py import h5i

    address_bytes, _ = h5i.get_file_id(dataset.id).get_create_plist().get_sizes()
    return int(_LENGTH.itemsize + address_bytes + _INDEX_BYTES)


def _contiguous_pointers(stored: Item, begin: int, fd: int, label: str) -> Iterator[Array]:
    """Pointers, uint8 of shape (items, bytes of a pointer)."""
    total, item_bytes = math.prod(stored.info.shape or ()), stored.info.dtype.itemsize
    at_once = _POINTERS_BYTES // item_bytes
    for start in range(0, total, at_once):
        some = np.empty((min(at_once, total - start), item_bytes), np.uint8)
        if files.pread_full(fd, some.reshape(-1).data, begin + start * item_bytes) < some.nbytes:
            raise BadSource(f"{label}: the file ends within it")
        yield some


def _is_too_wide(stored: Item) -> bool:
    """Whether a row of several chunks, which are decoded together, takes too much memory."""
    shape, chunks = stored.info.shape or (), stored.info.chunks or ()
    row_bytes = math.prod((*chunks[:1], *shape[1:])) * stored.info.dtype.itemsize
    return chunks[1:] != shape[1:] and row_bytes > _MOST_POINTERS_BYTES


def _chunked_pointers(dataset: Any, stored: Item, fill: Any, fd: int, file_bytes: int, label: str) -> Iterator[Array]:
    shape, chunks, item_bytes = stored.info.shape or (), stored.info.chunks or (), stored.info.dtype.itemsize
    chunked = ChunkedDataset(
        StoredChunks(fd, label),
        read_table(dataset.id, shape, chunks, file_bytes),
        shape=shape,
        chunks=chunks,
        item_bytes=item_bytes,
        pipeline=Pipeline(stored.filters, math.prod(chunks) * item_bytes),
        fill=struct.pack("<I", 0 if fill is None else len(fill)).ljust(item_bytes, b"\0"),
        label=label,
    )
    for _, row in itertools.groupby(chunked.bands(), lambda band: band.start):  # a long one is several bands
        yield _decoded(chunked, row).reshape(-1, item_bytes)  # not held here: a large chunk of them takes much


def _decoded(chunked: ChunkedDataset, row: Iterable[Band]) -> Array:
    decoded = np.empty(0, np.uint8)
    for band in row:
        decoded = decoded if len(decoded) else np.empty(band.size_bytes, np.uint8)
        chunked.decode(band, decoded)
    return decoded
