"""Chunked datasets into a draft: the tasks that decode them, a band each, in place or through a thread's buffer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from dsmem.arrays import tree
from dsmem.errors import BadSource
from dsmem.hdf5.chunks import LARGEST_BAND_BYTES, Band, ChunkedDataset, DamagedIndex, read_table
from dsmem.hdf5.codecs import Pipeline
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.opening import translated
from dsmem.pinning.copying import Decoding
from dsmem.store.draft import Draft


def decodings(
    items: Sequence[Item],
    begin: Callable[[Item], int],
    fd: int,
    size_bytes: int,
    file: Any,
    draft: Draft,
    *,
    path: str,
) -> Iterator[Decoding]:
    """The tasks for some chunked datasets; `begin` says where in the object each has its place.

    Raises BadSource for a chunk index that can't be.
    """
    local = threading.local()
    for item in items:
        dataset = _dataset(item, fd, size_bytes, file, path)
        place = begin(item)
        for band in dataset.bands():
            yield Decoding(band.source_end, partial(_decode, dataset, band, draft, place, local))


def _dataset(item: Item, fd: int, size_bytes: int, file: Any, path: str) -> ChunkedDataset:
    shape, chunks, dtype = item.info.shape, item.info.chunks, item.info.dtype
    assert shape is not None and chunks is not None
    try:
        with translated(path, item.path):
            table = read_table(file[tree.raw(item.path)].id, shape, chunks, size_bytes)
    except DamagedIndex as exc:
        raise BadSource(f"{path}: /{item.path}: {exc}") from exc
    fill = np.zeros((), dtype) if item.info.fillvalue is None else np.asarray(item.info.fillvalue, dtype)
    return ChunkedDataset(
        fd,
        table,
        shape=shape,
        chunks=chunks,
        item_bytes=dtype.itemsize,
        pipeline=Pipeline(item.filters, int(np.prod(chunks, dtype=np.int64)) * dtype.itemsize),
        fill=fill.tobytes(),
        label=f"{path}: /{item.path}",
    )


def _decode(dataset: ChunkedDataset, band: Band, draft: Draft, place: int, local: threading.local) -> int:
    pieces = dataset.pieces(band)
    if pieces is not None:
        draft.write_pieces(place + band.start, pieces)
        return band.size_bytes
    if draft.in_place or band.size_bytes > LARGEST_BAND_BYTES:
        out = np.frombuffer(draft.reserved(place + band.start, band.size_bytes), np.uint8)
        return dataset.decode(band, out)
    if not hasattr(local, "buffer") or len(local.buffer) < band.size_bytes:
        local.buffer = np.empty(band.size_bytes, np.uint8)
    out = local.buffer[: band.size_bytes]
    done = dataset.decode(band, out)
    draft.write(place + band.start, out.data)
    return done
