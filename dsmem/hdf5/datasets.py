"""One HDF5 dataset: what it is to numpy, how its bytes can be read, or why they are refused."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from h5py import h5d

from dsmem.arrays import tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.errors import Allow
from dsmem.hdf5 import elsewhere, fewchunks, sizes
from dsmem.hdf5.chunkindex import stored_bytes
from dsmem.hdf5.chunks import grid_of
from dsmem.hdf5.codecs import Filter
from dsmem.hdf5.edges import may_be_unfiltered
from dsmem.hdf5.elsewhere import Reach
from dsmem.hdf5.properties import Alike, FileType, Properties

Tier = Literal["contiguous", "chunked", "h5py", "empty"]
"""Copied as it lies; decoded in threads; read by h5py; nothing to read."""
Layout = Literal["contiguous", "chunked", "compact", "virtual", "external", "unknown"]
_LAYOUTS: dict[int, Layout] = {
    h5d.CONTIGUOUS: "contiguous",
    h5d.CHUNKED: "chunked",
    h5d.COMPACT: "compact",
    h5d.VIRTUAL: "virtual",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One dataset to bring into memory: what it is, how it is read, and why so."""

    path: str
    info: tree.Dataset
    tier: Tier
    why: str
    offset: int | None
    """Where in the file its bytes lie, exactly as they are in memory; None unless `tier` is "contiguous"."""
    storage_bytes: int | None
    """None of chunked data that is not so large: adding up its chunks takes HDF5 1 µs for each."""
    filters: tuple[Filter, ...] = ()
    layout: Layout = "contiguous"
    is_outside: bool = False
    """Some of it lies in other files, whose changes nobody notices."""
    fill: bytes = b""
    """Of chunked data: an item that was never written, as it is in memory."""
    few: bytes = b""
    """Of chunked data: where its chunks lie, if they are few (`fewchunks.read`): then it need not be opened again."""
    number: int = -1
    """Of those of its file, if it is one of `dsmem.hdf5.items.Items`."""

    @property
    def size_bytes(self) -> int:
        """Bytes in memory; 0 for what varies in length, which is known only after reading."""
        if self.info.shape is None or self.info.dtype.kind == "O":
            return 0
        return math.prod(self.info.shape) * self.info.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk in memory; 0 of what is not chunked."""
        return 0 if self.info.chunks is None else math.prod(self.info.chunks) * self.info.dtype.itemsize


class _Way(NamedTuple):
    """How the bytes of a dataset are read: see `Item`."""

    tier: Tier
    why: str
    offset: int | None = None


def inspect(
    dataset_id: Any,
    path: str,
    file_bytes: int,
    *,
    allow: Collection[Allow] = (),
    in_other_file: bool = False,
    alike: Alike | None = None,
) -> Item:
    """What an open dataset of a file of that size is, and how it is read; raises UnsupportedType with the reason.

    `in_other_file`: an external link led to it. `alike`: what is known of other datasets of the file.
    """
    alike = alike or Alike()
    properties = Properties(dataset_id)
    kind = alike.type_of(dataset_id)
    filters = alike.filters_of(properties)
    reach = elsewhere.check(properties, allow)  # before its shape, for which HDF5 may open virtual sources
    info = alike.info(properties, kind, filters)
    layout = "external" if properties.is_external else _LAYOUTS.get(properties.layout, "unknown")
    is_outside = in_other_file or (reach is not None and reach.outside)
    storage: int | None = 0
    if info.shape is None or math.prod(info.shape) == 0:
        way = _Way("empty", "a null dataspace" if info.shape is None else "no items")
    else:
        size_bytes = math.prod(info.shape) * info.dtype.itemsize
        storage = _stored_bytes(properties, size_bytes, reach, is_variable=info.dtype.kind == "O")
        if storage is not None:
            sizes.check(size_bytes, storage, allow)
        if info.chunks is not None and len(info.chunks) == len(info.shape) and not is_outside:
            sizes.check_chunks(math.prod(grid_of(info.shape, info.chunks)), file_bytes, allow)
        why = _only_h5py(layout, kind, is_outside=is_outside)
        way = _way(properties, info, filters, storage, file_bytes, alike) if why is None else _Way("h5py", why)
    if way.tier != "chunked":
        return Item(path, info, way.tier, way.why, way.offset, storage, filters, layout, is_outside)
    fill = _fill(properties, info.dtype)
    few = fewchunks.read(dataset_id, info.shape or (), info.chunks or (), file_bytes)
    return Item(path, info, way.tier, way.why, way.offset, storage, filters, layout, is_outside, fill, few)


def pointers(dataset_id: Any, item: Item, pointer_bytes: int, file_bytes: int) -> Item | None:
    """What the file has in the place of a variable-length dataset: opaque items of that size; None: only HDF5 knows."""
    if item.layout not in ("contiguous", "chunked") or item.is_outside:
        return None
    info = replace(item.info, dtype=np.dtype((np.void, pointer_bytes)), fillvalue=None)
    way = _way(Properties(dataset_id), info, item.filters, item.storage_bytes, file_bytes, Alike())
    if way.tier == "h5py":
        return None
    return replace(item, info=info, tier=way.tier, why=way.why, offset=way.offset)


def _stored_bytes(properties: Properties, size_bytes: int, reach: Reach | None, *, is_variable: bool) -> int | None:
    """See `Item.storage_bytes`; `size_bytes`: in memory."""
    if reach is not None:
        return reach.stored_bytes
    if properties.layout != h5d.CHUNKED or is_variable or size_bytes > sizes.LEAST_BYTES:
        return stored_bytes(properties.id, properties.plist)
    return None


def _only_h5py(layout: Layout, kind: FileType, *, is_outside: bool) -> str | None:
    """Why a dataset's bytes are not in the file as numpy would have them, filters apart; None when they are."""
    if layout not in ("contiguous", "chunked"):
        return {"external": "external storage", "unknown": "unknown layout"}.get(layout, layout)
    if is_outside:
        return "in another file"
    if kind.dtype.kind == "O":
        return "variable length"
    if not kind.is_as_in_memory:
        return "its type in the file is not the one in memory"
    return None


def _way(
    properties: Properties,
    info: tree.Dataset,
    filters: tuple[Filter, ...],
    storage_bytes: int | None,
    file_bytes: int,
    alike: Alike,
) -> _Way:
    """How to read what is in the file as it is in memory, filters apart."""
    if properties.layout == h5d.CHUNKED:
        return _chunked(properties.id, info, filters, alike)
    size_bytes = math.prod(info.shape or ()) * info.dtype.itemsize
    offset = properties.id.get_offset()
    if offset is None or storage_bytes != size_bytes or offset + size_bytes > file_bytes:
        return _Way("h5py", "not allocated in full")
    return _Way("contiguous", "contiguous", int(offset))


def _chunked(dataset_id: Any, info: tree.Dataset, filters: tuple[Filter, ...], alike: Alike) -> _Way:
    shape, chunks, dtype = info.shape or (), info.chunks or (), info.dtype
    if len(chunks) != len(shape):
        raise UnsupportedType(f"chunks {info.chunks} of another rank than its shape {info.shape}")
    named = " + ".join(one.name for one in filters) or "no filter"
    undecodable = alike.undecodable(filters, math.prod(chunks) * dtype.itemsize)
    if undecodable is not None:
        return _Way("h5py", f"chunked, {named}: {undecodable}")
    if _may_be_misnumbered(info):
        return _Way("h5py", f"chunked, {named}: HDF5 may tell places of its chunks wrong")
    if filters and may_be_unfiltered(dataset_id, shape, chunks, dtype.itemsize):
        return _Way("h5py", f"chunked, {named}: chunks at its edge may be unfiltered")
    return _Way("chunked", f"chunked, {named}")


def _fill(properties: Properties, dtype: np.dtype[Any]) -> bytes:
    """What h5py reads where an item was never written: with a fill time of "never" HDF5 leaves its zeros alone.

    As an array: a scalar of numpy's would have any bytes between its values.
    """
    item = np.zeros((), dtype)
    if properties.has_fill and properties.plist.get_fill_time() != h5d.FILL_TIME_NEVER:
        properties.plist.get_fill_value(item)
    return item.tobytes()


def _may_be_misnumbered(info: tree.Dataset) -> bool:
    """Whether HDF5 may tell, of each chunk, the place of another, where it walks over them.

    An extensible array (files of HDF5 1.10 and later) numbers chunks with its one unlimited axis before all others;
    HDF5 2.0.0 takes the axes in their order where it lists chunks, not where it reads them. Measured: the places are
    right for every other index, and where no axis before that one has more than one chunk.
    """
    largest, chunks = info.maxshape or (), info.chunks or ()
    unlimited = [axis for axis, extent in enumerate(largest) if extent is None]
    if len(unlimited) != 1:
        return False
    before = zip(largest[: unlimited[0]], chunks, strict=False)
    return any(extent is not None and extent > chunk for extent, chunk in before)
