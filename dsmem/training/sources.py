"""The three ways to the rows of one file: its object in the store, the file itself, h5py. Each is one process's own.

`rows` gives [stop - start, …]; Unserved says that a source does not have a dataset, which is no failure. What is open
is let go of with the last reference, so that a thread never loses what it reads from.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from dsmem import digest, proc
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.errors import DamagedObject, NotPinned
from dsmem.files import FileIdentity
from dsmem.hdf5 import opening
from dsmem.hdf5.chunkindex import read_table
from dsmem.hdf5.chunks import Band, ChunkedDataset, ChunkTable
from dsmem.hdf5.codecs import Pipeline
from dsmem.hdf5.datasets import Item, inspect
from dsmem.hdf5.stored import StoredChunks
from dsmem.pinning.opening import attach
from dsmem.training.episodes import EpisodeFile, Stored

Array = np.ndarray[Any, np.dtype[Any]]


class Unserved(Exception):
    """This source does not have that dataset."""


class PinnedRows:
    """Read-only views of the object of a file: whole, or the part of it that was pinned under a name."""

    def __init__(self, path: str, part: str | None) -> None:
        try:
            self._file = attach(os.path.abspath(path))
        except NotPinned:
            if part is None:
                raise
            self._file = attach(part)
        self._arrays: dict[str, Any] = {}

    def rows(self, stored: Stored, start: int, stop: int) -> Any:
        array = self._arrays.get(stored.path)
        if array is None:
            array = self._arrays[stored.path] = self._open(stored)
        return array[start:stop]

    def _open(self, stored: Stored) -> Any:
        if stored.path not in self._file:
            raise Unserved(stored.path)
        dataset = self._file[stored.path]
        if dataset.shape != stored.shape:
            raise DamagedObject(f"{self._file.object_name}: {stored.path} is {dataset.shape}, not {stored.shape}")
        return dataset if stored.dtype == "object" else dataset[()]


class FileRows:
    """The file as it lies on its disk: contiguous datasets mapped, chunked ones decoded without HDF5.

    The descriptor is read by position only, so that a forked child may have it too.
    """

    def __init__(self, file: EpisodeFile) -> None:
        self._label = file.path
        self._whole: Array | None = None
        self._contiguous: dict[str, Item] = {}
        self._chunked: dict[str, tuple[ChunkedDataset, Item]] = {}
        self._tables: dict[str, ChunkTable] = {}
        self._fd = digest.open_source(file.path)
        # Not closed by hand: another thread may be reading by its number.
        weakref.finalize(self, os.close, self._fd).atexit = False
        self._stored = StoredChunks(self._fd, self._label)
        self.version = str(FileIdentity.of(os.fstat(self._fd)).as_list())
        """Of what is open here: one in another process may have a later file of that name."""
        self._open(file)

    def _open(self, file: EpisodeFile) -> None:
        opening.lock_source(self._fd, file.path)
        size_bytes = os.fstat(self._fd).st_size
        with opening.opened(self._fd, file.path) as opened, opening.translated(file.path):
            for path in file.stored:
                try:
                    item = inspect(opened[path].id, path, size_bytes)
                except UnsupportedType:
                    continue  # h5py reads it
                if item.tier == "contiguous":
                    self._contiguous[path] = item
                elif item.tier == "chunked":
                    self._chunked[path] = (self._decoder(path, opened[path].id, item, size_bytes), item)
        if self._contiguous and not proc.is_network_fs(proc.mount_of(file.path).fstype):
            self._whole = np.frombuffer(mmap.mmap(self._fd, size_bytes, prot=mmap.PROT_READ), np.uint8)

    def _decoder(self, path: str, dataset_id: Any, item: Item, size_bytes: int) -> ChunkedDataset:
        shape, chunks, dtype = item.info.shape, item.info.chunks, item.info.dtype
        assert shape is not None and chunks is not None
        self._tables[path] = read_table(dataset_id, shape, chunks, size_bytes)
        return ChunkedDataset(
            self._stored,
            self._tables[path],
            shape=shape,
            chunks=chunks,
            item_bytes=dtype.itemsize,
            pipeline=Pipeline(item.filters, math.prod(chunks) * dtype.itemsize),
            fill=item.fill,
            label=f"{self._label}: /{item.path}",
        )

    def rows(self, stored: Stored, start: int, stop: int) -> Array:
        """Views of the file's own pages."""
        item = self._contiguous.get(stored.path)
        if item is None or item.offset is None or self._whole is None:
            raise Unserved(stored.path)
        raw = self._whole[item.offset : item.offset + item.size_bytes]
        array: Array = raw.view(item.info.dtype).reshape(stored.shape)
        return array[start:stop]

    def rows_together(self, stored: Stored) -> int:
        """How many rows its chunks hold, which are decoded together; raises Unserved where it has none."""
        found = self._chunked.get(stored.path)
        if found is None:
            raise Unserved(stored.path)
        chunks = found[1].info.chunks
        assert chunks is not None
        return chunks[0]

    def ask(self, stored: Stored, block: int) -> None:
        """Have the system read what `decode` will read, while this process does something else."""
        table = self._tables[stored.path]
        in_row = math.prod(table.grid[1:])
        here = slice(block * in_row, (block + 1) * in_row)
        for offset, size_bytes in zip(table.offsets[here].tolist(), table.sizes[here].tolist(), strict=True):
            if size_bytes:
                os.posix_fadvise(self._fd, offset, size_bytes, os.POSIX_FADV_WILLNEED)

    def decode(self, stored: Stored, block: int, empty: Callable[[int], Array]) -> Array:
        """Rows [block * rows_together, …) in memory that `empty` gives; raises BadSource."""
        decoder, item = self._chunked[stored.path]
        shape, chunks, dtype = item.info.shape, item.info.chunks, item.info.dtype
        assert shape is not None and chunks is not None
        first, last = block * chunks[0], min((block + 1) * chunks[0], shape[0])
        in_row = math.prod(self._tables[stored.path].grid[1:])
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        out = empty((last - first) * row_bytes)
        band = Band(block * in_row, (block + 1) * in_row, first * row_bytes, len(out), True, 0)
        decoder.decode(band, out)
        return out.view(dtype).reshape(last - first, *shape[1:])


class H5Rows:
    """What h5py reads. A handle is never used, nor closed, in a forked child."""

    def __init__(self, path: str) -> None:
        self._path = path
        with opening.translated(path):
            self._file = h5py.File(path, "r")

    def rows(self, stored: Stored, start: int, stop: int) -> Any:
        with opening.translated(self._path, stored.path):
            return self._file[stored.path][start:stop]
