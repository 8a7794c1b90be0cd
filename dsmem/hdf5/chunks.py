"""Chunked datasets decoded in threads: where every chunk lies, grouped into bands that are contiguous in memory.

A band is what some chunks fill without a gap: whole rows of the first axis. Bands, not chunks, are the unit of work, so
that small chunks share a read, a write and a task.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmem.errors import BadSource
from dsmem.hdf5.codecs import Array, Pipeline, Undecodable, scratch
from dsmem.hdf5.stored import MISSING, StoredChunks

BAND_BYTES = 2 << 20
"""What a band is filled up to, of small chunks."""
_MOST_CHUNKS = 1 << 14
"""Whose places are Python's numbers at once, 100 bytes each: of a band of several rows, and of a part of a long row."""
LARGEST_BAND_BYTES = 16 << 20
"""A longer band is decoded into the object itself, in pieces, not through a buffer."""
_LARGE_BYTES = 4 << 20
"""Of a larger chunk no buffer is kept for the next one."""


Column = np.ndarray[Any, np.dtype[Any]]


def grid_of(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """How many chunks there are along each axis; ValueError for chunks of another rank."""
    return tuple(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """All chunks of a dataset by grid position in C order: int64 file offsets (-1 = never written), sizes and masks.

    Integers of 4 or 8 bytes; a column whose values are all the same has strides of 0, and takes no memory.
    """

    grid: tuple[int, ...]
    offsets: Column
    sizes: Column
    masks: Column

    @property
    def missing(self) -> int:
        """How many were never written."""
        return int((self.offsets == MISSING).sum())


@dataclass(frozen=True, slots=True)
class Band:
    """Chunks `first` up to `last` (grid positions), which lie in bytes [start, start + size) of the dataset.

    `whole` says whether they fill it: a long band is shared by several tasks.
    """

    first: int
    last: int
    start: int
    size_bytes: int
    whole: bool
    source_end: int
    """Where in the file the last of their bytes lies."""


class ChunkedDataset:
    """One dataset to decode: `bands` are the tasks, `decode` does one. Threads share it; datasets share `stored`."""

    def __init__(
        self,
        stored: StoredChunks,
        table: ChunkTable,
        *,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        item_bytes: int,
        pipeline: Pipeline,
        fill: bytes,
        label: str,
    ) -> None:
        self._stored = stored
        self._table = table
        self._shape = shape
        self._chunks = chunks
        self._item_bytes = item_bytes
        self._pipeline = pipeline
        self._fill = np.frombuffer(fill, np.uint8)
        self._label = label
        self._chunk_bytes = math.prod(chunks) * item_bytes
        self._whole_rows = chunks[1:] == shape[1:]
        self._local = threading.local()

    def bands(self) -> Iterator[Band]:
        """Every chunk once, in the order of the dataset."""
        in_row = math.prod(self._table.grid[1:])
        row_bytes = math.prod(self._shape[1:]) * self._item_bytes
        band_bytes = self._chunks[0] * row_bytes
        together = max(min(BAND_BYTES // max(band_bytes, 1), _MOST_CHUNKS // max(in_row, 1)), 1)
        for row in range(0, self._table.grid[0], together):
            last_row = min(row + together, self._table.grid[0])
            start = row * band_bytes
            size = min(last_row * band_bytes, self._shape[0] * row_bytes) - start
            first, last = row * in_row, last_row * in_row
            if size <= LARGEST_BAND_BYTES:
                yield Band(first, last, start, size, True, self._source_end(first, last))
                continue
            step = max(min(BAND_BYTES // self._chunk_bytes, _MOST_CHUNKS), 1)
            for i in range(first, last, step):
                j = min(i + step, last)
                yield Band(i, j, start, size, last - first <= step, self._source_end(i, j))

    def _source_end(self, first: int, last: int) -> int:
        return int((np.maximum(self._table.offsets[first:last], 0) + self._table.sizes[first:last]).max())

    def beside_bytes(self, band: Band) -> int:
        """What decoding a band takes beside its place, where that is much: large chunks as stored, and buffers."""
        if self._chunk_bytes <= _LARGE_BYTES:
            return 0
        stored_bytes = int(self._table.sizes[band.first : band.last].sum())
        return stored_bytes + self._pipeline.passed_on_bytes + (0 if self._whole_rows else self._chunk_bytes)

    def is_plain(self, band: Band) -> bool:
        """Whether `pieces` does it: small chunks of whole rows, deflate alone, all there, none cut off at the edge."""
        together = (band.last - band.first) * self._chunk_bytes == band.size_bytes
        if not (self._whole_rows and together and band.whole and self._pipeline.is_small_deflate):
            return False
        here = slice(band.first, band.last)
        return not (self._table.masks[here].any() or (self._table.offsets[here] == MISSING).any())

    def pieces(self, band: Band) -> list[bytearray] | None:
        """The chunks of a plain band decoded, as they follow each other in the dataset.

        None where one can't be: `decode` says which.
        """
        here = slice(band.first, band.last)
        offsets, sizes = self._table.offsets[here].tolist(), self._table.sizes[here].tolist()
        return self._stored.inflated(offsets, sizes, self._chunk_bytes)

    def decode(self, band: Band, out: Array) -> int:
        """Decode a band's chunks into `out`: uint8, the band's size; returns how many bytes they are.

        Raises BadSource for chunks that can't be decoded.
        """
        rows = band.size_bytes // (math.prod(self._shape[1:]) * self._item_bytes)
        target = out.reshape(rows, *self._shape[1:], self._item_bytes)
        first_row = band.start // (math.prod(self._shape[1:]) * self._item_bytes)
        if band.whole and (self._table.offsets[band.first : band.last] == MISSING).all():
            target[...] = self._fill
            return band.size_bytes
        for first in range(band.first, band.last, _MOST_CHUNKS):
            self._decode_some(first, min(first + _MOST_CHUNKS, band.last), out, target, first_row)
        return band.size_bytes if band.whole else min((band.last - band.first) * self._chunk_bytes, band.size_bytes)

    def decode_given(self, stored: Iterator[memoryview | None], out: Array) -> None:
        """`decode` for all chunks, with their stored bytes in the order of the grid (None: never written)."""
        self._decode_stored(stored, 0, len(self._table.offsets), out, out.reshape(*self._shape, self._item_bytes), 0)

    def _decode_some(self, first: int, last: int, out: Array, target: Array, first_row: int) -> None:
        """Decode chunks of a band that begins with that row; `target` are the bytes of `out`, as items."""
        offsets, sizes = self._table.offsets[first:last].tolist(), self._table.sizes[first:last].tolist()
        self._decode_stored(self._stored.read(offsets, sizes), first, last, out, target, first_row)

    def _decode_stored(
        self, stored: Iterator[memoryview | None], first: int, last: int, out: Array, target: Array, first_row: int
    ) -> None:
        masks = self._table.masks[first:last].tolist()
        position = first
        # The size of a chunk in whole rows; 0: none goes straight to its place. Small chunks must not drown in Python.
        straight = self._chunk_bytes if self._whole_rows else 0
        at = (position * self._chunks[0] - first_row) * (self._chunk_bytes // self._chunks[0])
        undo = self._pipeline.decode
        try:
            for data, mask in zip(stored, masks, strict=True):
                end = at + straight
                if straight and data is not None and end <= len(out):
                    undo(data, out[at:end], mask)
                else:
                    self._decode_one(position, data, mask, target, first_row)
                position += 1
                at = end
        except Undecodable as exc:
            raise BadSource(f"{self._label}: the chunk at {self._corner(position)} can't be decoded: {exc}") from exc

    def _decode_one(self, position: int, data: memoryview | None, mask: int, target: Array, first_row: int) -> None:
        """A chunk that is missing, cut off at an edge, or narrower than a row."""
        corner = self._corner(position)
        clipped = tuple(
            slice(0, min(chunk, extent - start))
            for chunk, extent, start in zip(self._chunks, self._shape, corner, strict=True)
        )
        place = target[
            (
                slice(corner[0] - first_row, corner[0] - first_row + clipped[0].stop),
                *(slice(start, start + part.stop) for start, part in zip(corner[1:], clipped[1:], strict=True)),
            )
        ]
        if data is None:
            place[...] = self._fill
            return
        chunk = self._scratch()
        self._pipeline.decode(data, chunk, mask)
        place[...] = chunk.reshape(*self._chunks, self._item_bytes)[clipped]

    def _corner(self, position: int) -> tuple[int, ...]:
        corner: list[int] = []
        for count, chunk in zip(reversed(self._table.grid), reversed(self._chunks), strict=True):
            position, here = divmod(position, count)
            corner.append(here * chunk)
        return tuple(reversed(corner))

    def _scratch(self) -> Array:
        """This thread's buffer for a chunk."""
        if self._chunk_bytes > _LARGE_BYTES:
            return scratch(self._chunk_bytes)
        buffer: Array | None = getattr(self._local, "chunk", None)
        if buffer is None:
            buffer = self._local.chunk = np.empty(self._chunk_bytes, np.uint8)
        return buffer
