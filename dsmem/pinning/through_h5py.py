"""What only h5py reads, into a draft: in blocks of bounded size, by several processes where that is worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from dsmem import proc
from dsmem.arrays import dtypes, tree
from dsmem.errors import SourceChanged
from dsmem.hdf5 import reading, variable
from dsmem.hdf5.chunkindex import stored_bytes
from dsmem.hdf5.codecs import DEFLATE
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.items import Items
from dsmem.hdf5.opening import translated
from dsmem.pinning import decoding, processes
from dsmem.pinning.processes import Slab
from dsmem.store.draft import Draft

Array = np.ndarray[Any, np.dtype[Any]]
_BESIDE_BYTES = 24 << 20
"""What processes that have h5py decode may take beside a chunk for each CPU, and what their interpreters take."""
_Piece = TypeVar("_Piece")


def read(items: Items, begin: Callable[[Item], int], draft: Draft, fd: int, file: Any, path: str) -> Iterator[int]:
    """Read datasets of fixed size, in other processes too where there is enough of them; yields each piece's bytes.

    `begin` says where in the object each has its place.
    """

    def here(slab: Slab) -> None:
        item = items.numbered(slab.number)
        dataset = _dataset(file, path, item)
        if slab.span_bytes:
            span = draft.reserved_on(slab.target, slab.span_bytes)
            with translated(path, f"/{item.path}"):
                reading.read_into(dataset, slab.selection, span)
        else:
            with translated(path, f"/{item.path}"):
                data = reading.read_block(dataset, slab.selection)
            draft.write(slab.target, data)

    inside = items.where(lambda item: not item.is_outside)
    outside = items.where(lambda item: item.is_outside)  # found by the file's name, which other processes don't know
    is_worth_it = sum(item.size_bytes for item in inside) >= processes.WORTH_BYTES
    others = _readers(inside, file, path) - 1 if is_worth_it else 0
    shared = (slab for item in inside for slab in _slabs(item, begin(item)))
    yield from processes.read(shared, fd, draft, others, here, path=path)
    for slab in (slab for item in outside for slab in _slabs(item, begin(item))):
        here(slab)
        yield slab.size_bytes


def _readers(items: Items, file: Any, path: str) -> int:
    """How many processes may have h5py decode the largest chunk at once: to take no more than a chunk for each CPU.

    HDF5 has a chunk as it is stored and as it is decoded; between two filters, both whole; from gzip, up to twice.
    """
    cpus = proc.usable_cpus()
    largest = max(items, key=lambda item: item.chunk_bytes, default=None)
    if largest is None or not (chunk_bytes := largest.chunk_bytes):
        return cpus
    dataset = _dataset(file, path, largest)
    with translated(path, f"/{largest.path}"):
        held_bytes = stored_bytes(dataset.id) // math.prod(decoding.grid(largest))
    into_bytes = chunk_bytes if len(largest.filters) > 1 else min(held_bytes, chunk_bytes)
    out_bytes = 2 * chunk_bytes if any(one.code == DEFLATE for one in largest.filters) else chunk_bytes
    return max(min((_BESIDE_BYTES + cpus * chunk_bytes) // (into_bytes + out_bytes), cpus), 1)


def _slabs(item: Item, start: int) -> Iterator[Slab]:
    """Through a map goes what others lie between, and a chunk so large that no copy of it is wanted."""
    shape, item_bytes = item.info.shape or (), item.info.dtype.itemsize
    for block in reading.blocks(shape, item_bytes, item.info.chunks):
        size_bytes = block.count * item_bytes
        is_written = not shape or (block.is_contiguous and size_bytes <= reading.BLOCK_BYTES)
        span_bytes = 0 if is_written else block.span * item_bytes
        target = start + block.first * item_bytes
        yield Slab(tree.raw(item.path), block.selection, target, size_bytes, span_bytes, item.number)


def _dataset(file: Any, path: str, item: Item) -> Any:
    with translated(path, f"/{item.path}"):
        dataset = file[tree.raw(item.path)]
        if dataset.shape == item.info.shape and dataset.dtype == item.info.dtype:
            return dataset
    raise SourceChanged(f"{path}: /{item.path} changed, in another file, while it was read")


def _translated(pieces: Iterator[_Piece], path: str, item: Item) -> Iterator[_Piece]:
    """Iterate with h5py's errors translated, and those of whoever takes the pieces left as they are."""
    while True:
        with translated(path, f"/{item.path}"):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def variable_pieces(item: Item, file: Any, fd: int, size_bytes: int, path: str) -> Iterator[tuple[memoryview, Array]]:
    """The items of a dataset of variable length: their bytes end to end, and how many elements each has."""
    base = dtypes.variable_base(item.info.dtype)
    assert base is not None
    if item.tier == "empty":
        return iter(())
    dataset = _dataset(file, path, item)
    with translated(path, f"/{item.path}"):
        counts = variable.Counts(dataset, item, base, fd, size_bytes, f"{path}: /{item.path}")
    return _translated(variable.read(dataset, base, counts), path, item)
