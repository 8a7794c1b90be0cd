"""Many small chunked datasets: a task decodes some that lie together in the file, and writes them as they lie together.

A task, a table and a read for each would cost more than decoding them does, and 3 KB until it is their turn.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np

from dsmem.arrays.columns import Column, in_order
from dsmem.digest import SLICE_BYTES
from dsmem.errors import BadSource
from dsmem.hdf5 import fewchunks
from dsmem.hdf5.chunks import BAND_BYTES, ChunkedDataset
from dsmem.hdf5.codecs import Array, Pipeline, Undecodable
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.items import Items
from dsmem.hdf5.stored import StoredChunks
from dsmem.pinning.copying import Decoding
from dsmem.pinning.source import Source
from dsmem.store.draft import Draft

_MOST_TOGETHER = 256
"""Datasets of a task."""
_MOST_BYTES = BAND_BYTES // 2
_MOST_PIPELINES = 1024


def fits_together(item: Item) -> bool:
    """Whether a dataset is decoded together with others."""
    return bool(item.few) and max(item.size_bytes, item.chunk_bytes) <= _MOST_BYTES


class SmallDatasets:
    """Decodes small datasets of a file into a draft; threads share it. `begin` says where each has its place."""

    def __init__(self, stored: StoredChunks, begin: Callable[[Item], int], draft: Draft, source: Source) -> None:
        self._stored = stored
        self._begin = begin
        self._draft = draft
        self._source = source
        self._pipeline = lru_cache(_MOST_PIPELINES)(Pipeline)
        self._local = threading.local()

    def decodings(self, items: Items) -> Iterator[Decoding]:
        """The tasks for these datasets."""
        columns = numbers, ends, sizes = Column("I"), Column("q"), Column("I")
        for item in items:
            numbers.append(item.number)
            ends.append(fewchunks.source_end(item.few))
            sizes.append(item.size_bytes)
        together, due = array("I"), 0
        first = size_bytes = 0
        number_of, end_of, size_of = (column.array() for column in columns)
        order = (index for some in in_order(end_of) for index in some.tolist())
        for index in order:
            end, item_bytes = int(end_of[index]), int(size_of[index])
            is_full = len(together) == _MOST_TOGETHER or size_bytes + item_bytes > _MOST_BYTES
            if together and (is_full or end - first > SLICE_BYTES):  # what was read long ago may be in memory no more
                yield Decoding(due, partial(self._decode, items.chosen(together)))
                together, size_bytes = array("I"), 0
            first, due = first if together else end, end
            together.append(int(number_of[index]))
            size_bytes += item_bytes
        if together:
            yield Decoding(due, partial(self._decode, items.chosen(together)))

    def _decode(self, some: Items) -> int:
        """Decode datasets one behind the other, and write what has its place so."""
        items = list(some)
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty(_MOST_BYTES, np.uint8)
        buffer: Array = self._local.buffer
        stored = self._stored.read(*fewchunks.places(b"".join(item.few for item in items)))
        start = held = done = 0
        for item in items:
            place = self._begin(item)
            if held and place != start + held:
                self._draft.write(start, buffer[:held].data)
                held = 0
            start = start if held else place
            self._decode_one(item, stored, buffer[held : held + item.size_bytes])
            held += item.size_bytes
            done += item.size_bytes
        self._draft.write(start, buffer[:held].data)
        return done

    def _decode_one(self, item: Item, stored: Iterator[memoryview | None], out: Array) -> None:
        shape, chunks, item_bytes = item.info.shape, item.info.chunks, item.info.dtype.itemsize
        assert shape is not None and chunks is not None
        pipeline = self._pipeline(item.filters, item.chunk_bytes)
        mask = fewchunks.only_mask(item.few) if shape == chunks else None
        if mask is None:
            table = fewchunks.table(item.few, shape, chunks)
            dataset = ChunkedDataset(
                self._stored,
                table,
                shape=shape,
                chunks=chunks,
                item_bytes=item_bytes,
                pipeline=pipeline,
                fill=item.fill,
                label=self._source.label(item.path),
            )
            dataset.decode_given(itertools.islice(stored, len(table.offsets)), out)
            return
        data = next(stored)
        assert data is not None
        try:
            pipeline.decode(data, out, mask)
        except Undecodable as exc:
            corner = (0,) * len(shape)
            raise BadSource(f"{self._source.label(item.path)}: the chunk at {corner} can't be decoded: {exc}") from exc
