"""Chunked datasets into a draft: the tasks that decode them, a band each, in place or through a thread's buffer.

A file of many small chunks is decoded by processes, with a thread for each that waits, and by one thread beside them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from h5py import h5d

from dsmem import proc
from dsmem.arrays import tree
from dsmem.hdf5 import fewchunks
from dsmem.hdf5.chunkindex import read_table
from dsmem.hdf5.chunks import (
    BAND_BYTES,
    LARGEST_BAND_BYTES,
    Band,
    ChunkedDataset,
    ChunkTable,
    grid_of,
)
from dsmem.hdf5.codecs import Pipeline
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.items import Items
from dsmem.hdf5.opening import translated
from dsmem.hdf5.stored import StoredChunks
from dsmem.parallel import Room
from dsmem.pinning.copying import Decoding
from dsmem.pinning.decoders import Decoders, Description
from dsmem.pinning.small import SmallDatasets, fits_together
from dsmem.pinning.source import Source
from dsmem.store.draft import Draft

SMALL_BYTES_PER_CPU = 4 << 10
"""A chunk is small up to this times the CPUs: the more threads, the more often each asks for Python's lock.

On 2 CPUs chunks of 16 KiB are decoded as fast as that in threads, chunks of 4 KiB are not.
"""
_ALL_BUFFERED_BYTES = 16 << 20
"""Of all threads. A band longer than a thread's share (and than small chunks make it) is decoded into the object's map.

That takes 5–20 % longer on 4 KiB pages, but no memory of our own beside the chunk's stored bytes.
"""
_BESIDE_BYTES = 16 << 20
"""Beside a chunk for each thread: for what threads have at once of large chunks, as stored, and between filters."""
WORTH_CHUNKS = 16_384
"""Below this, threads are done (0.2 s) before processes have gained what their start takes (0.05 s of a CPU each)."""
_LARGE_BYTES = 256 << 10
"""Chunks of this size are looked up, which takes 5 to 20 µs each: to decode one takes 100 times as long."""
LEAST_CHUNKS = fewchunks.MOST_CHUNKS + 1
"""Of a dataset: what processes must be told of each (0.2 ms) takes longer than fewer chunks do in threads."""


def in_processes(items: Items) -> Items:
    """Which of a file's datasets are decoded by processes: those of many small chunks, if there are enough of them."""
    cpus = proc.usable_cpus()
    small = items.chosen(item.number for item in items if item.tier == "chunked" and _is_small(item, cpus))
    is_worth_it = sum(math.prod(grid(item)) for item in small) >= WORTH_CHUNKS and cpus > 1
    return small if is_worth_it else items.chosen(())


def _is_small(item: Item, cpus: int) -> bool:
    shape, chunks, item_bytes = item.info.shape or (), item.info.chunks or (), item.info.dtype.itemsize
    band_bytes = math.prod((*chunks[:1], *shape[1:])) * item_bytes
    is_small = item.chunk_bytes <= SMALL_BYTES_PER_CPU * cpus and band_bytes <= LARGEST_BAND_BYTES
    return is_small and math.prod(grid(item)) >= LEAST_CHUNKS


def grid(item: Item) -> tuple[int, ...]:
    """How many chunks a chunked dataset has along each axis."""
    return grid_of(item.info.shape or (), item.info.chunks or ())


def started(items: Items, fd: int, draft: Draft, *, object_bytes: int) -> AbstractContextManager[Decoders | None]:
    """The processes for these datasets, if there are any, while the block lasts; early, for they take time to start.

    One less than CPUs: one thread that decodes has Python's lock to itself, and needs no start.
    """
    if not len(items):
        return nullcontext()
    needs_numpy = any(
        (item.info.chunks or ())[1:] != (item.info.shape or ())[1:] or not _pipeline(item).is_small_deflate
        for item in items
    )
    return Decoders(fd, draft, proc.usable_cpus() - 1, object_bytes=object_bytes, with_numpy=needs_numpy)


def decodings(
    items: Items,
    begin: Callable[[Item], int],
    source: Source,
    file: Any,
    draft: Draft,
    *,
    shared_out: Items | None = None,
    decoders: Decoders | None = None,
    looked: Callable[[], None] = lambda: None,
) -> Iterator[Decoding]:
    """The tasks for some chunked datasets; `begin` says where in the object each has its place.

    `shared_out`: those that `decoders` decode; `looked` is called as chunks of a distrusted source are looked up.
    Raises BadSource for a chunk index that can't be.
    """
    local = threading.local()
    threads = proc.usable_cpus()
    buffered_bytes = max(BAND_BYTES, _ALL_BUFFERED_BYTES // threads)
    room = Room(_BESIDE_BYTES + threads * max((item.chunk_bytes for item in items), default=0))
    elsewhere = set() if shared_out is None else {item.number for item in shared_out}
    stored = StoredChunks(source.fd, source.path)
    together, alone = items.parted(lambda item: fits_together(item) and item.number not in elsewhere)
    yield from SmallDatasets(stored, begin, draft, source).decodings(together)
    for item in alone:
        table = _table(item, source, file, looked)
        dataset = _dataset(item, table, stored, source)
        place = begin(item)
        if decoders is None or item.number not in elsewhere:
            for band in dataset.bands():
                yield Decoding(
                    band.source_end, partial(_decode, dataset, band, draft, place, local, buffered_bytes, room)
                )
            continue
        number = decoders.add(_description(item, place, source), table)
        for band in dataset.bands():
            outside = partial(decoders.decode, number, band, is_plain=dataset.is_plain(band))
            here = partial(_decode, dataset, band, draft, place, local, buffered_bytes, room)
            yield Decoding(band.source_end, partial(_decode_anywhere, outside, here, draft, place, band))


def _description(item: Item, place: int, source: Source) -> Description:
    shape, chunks = item.info.shape, item.info.chunks
    assert shape is not None and chunks is not None
    return Description(
        place=place,
        shape=shape,
        chunks=chunks,
        item_bytes=item.info.dtype.itemsize,
        filters=[(one.code, one.values, one.name) for one in item.filters],
        fill_hex=item.fill.hex(),
        label=source.label(item.path),
    )


def _pipeline(item: Item) -> Pipeline:
    return Pipeline(item.filters, item.chunk_bytes)


def _table(item: Item, source: Source, file: Any, looked: Callable[[], None]) -> ChunkTable:
    shape, chunks = item.info.shape, item.info.chunks
    assert shape is not None and chunks is not None
    if item.few:
        return fewchunks.table(item.few, shape, chunks)
    is_odd = math.prod(grid(item)) <= fewchunks.MOST_CHUNKS
    with translated(source.path, f"/{item.path}"):
        found = h5d.open(file.id, tree.raw(item.path))
        look = source.is_distrusted or is_odd or item.chunk_bytes >= _LARGE_BYTES
        return read_table(found, shape, chunks, source.size_bytes, looked=looked if look else None)


def check_index(item: Item, source: Source, file: Any) -> None:
    """Raise BadSource unless HDF5 finds every chunk of a chunked dataset where its index lists it."""
    if item.tier == "chunked":
        _table(item, replace(source, is_distrusted=True), file, lambda: None)


def _dataset(item: Item, table: ChunkTable, stored: StoredChunks, source: Source) -> ChunkedDataset:
    shape, chunks = item.info.shape, item.info.chunks
    assert shape is not None and chunks is not None
    return ChunkedDataset(
        stored,
        table,
        shape=shape,
        chunks=chunks,
        item_bytes=item.info.dtype.itemsize,
        pipeline=_pipeline(item),
        fill=item.fill,
        label=source.label(item.path),
    )


def _decode_anywhere(
    outside: Callable[[], int | None], here: Callable[[], int], draft: Draft, place: int, band: Band
) -> int:
    draft.take(place + band.start, band.size_bytes)
    done = outside()
    return here() if done is None else done


def _decode(
    dataset: ChunkedDataset,
    band: Band,
    draft: Draft,
    place: int,
    local: threading.local,
    buffered_bytes: int,
    room: Room,
) -> int:
    pieces = dataset.pieces(band) if dataset.is_plain(band) else None
    if pieces is not None:
        draft.write_pieces(place + band.start, pieces)
        return band.size_bytes
    has_huge_pages = draft.take(place + band.start, band.size_bytes)
    if has_huge_pages or not band.whole or band.size_bytes > buffered_bytes:
        out = np.frombuffer(draft.reserved(place + band.start, band.size_bytes), np.uint8)
        with room.taken(dataset.beside_bytes(band)):
            return dataset.decode(band, out)
    if not hasattr(local, "buffer") or len(local.buffer) < band.size_bytes:
        local.buffer = np.empty(band.size_bytes, np.uint8)
    out = local.buffer[: band.size_bytes]
    with room.taken(dataset.beside_bytes(band)):
        done = dataset.decode(band, out)
    draft.write(place + band.start, out.data)
    return done
