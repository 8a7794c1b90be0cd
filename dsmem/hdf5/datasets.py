"""One HDF5 dataset: what it is to numpy, how its bytes can be read, or why they are refused."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from h5py import h5d, h5s, h5t

from dsmem.arrays import dtypes, tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.errors import Allow
from dsmem.hdf5 import elsewhere, sizes
from dsmem.hdf5.chunkindex import stored_bytes
from dsmem.hdf5.chunks import grid_of
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline
from dsmem.hdf5.edges import may_be_unfiltered
from dsmem.hdf5.filters import check_installed, filters_of
from dsmem.hdf5.opening import reason

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

    @property
    def size_bytes(self) -> int:
        """Bytes in memory; 0 for what varies in length, which is known only after reading."""
        if self.info.shape is None or self.info.dtype.kind == "O":
            return 0
        return math.prod(self.info.shape) * self.info.dtype.itemsize


def inspect(
    dataset: Any, path: str, file_bytes: int, *, allow: Collection[Allow] = (), in_other_file: bool = False
) -> Item:
    """What an h5py.Dataset of a file of that size is, and how it is read; raises UnsupportedType with the reason.

    `in_other_file`: an external link led to it.
    """
    plist = dataset.id.get_create_plist()
    try:
        dtype = dtypes.shared(dataset.dtype)
    except (TypeError, ValueError) as exc:
        raise UnsupportedType(f"a type that numpy lacks ({reason(exc)})") from exc
    _check_type(dataset, dtype)
    layout = plist.get_layout()
    filters = filters_of(plist) if layout == h5d.CHUNKED else ()
    check_installed(filters)
    reach = elsewhere.check(dataset, allow)  # before its shape, for which HDF5 may open virtual sources
    item = Item(
        path,
        tree.Dataset(None, dtype),
        "empty",
        "a null dataspace",
        None,
        0,
        filters,
        layout="external" if plist.get_external_count() else _LAYOUTS.get(layout, "unknown"),
        is_outside=in_other_file or (reach is not None and reach.outside),
    )
    space = dataset.id.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return replace(item, info=_info(dataset, None, dtype, plist, layout, None))
    shape = tuple(int(n) for n in space.shape)
    item = replace(item, info=_info(dataset, shape, dtype, plist, layout, _note(dataset, dtype)))
    if math.prod(shape) == 0:
        return replace(item, why="no items")
    size_bytes = math.prod(shape) * dtype.itemsize
    storage: int | None = None
    if reach is not None:
        storage = reach.stored_bytes
    elif layout != h5d.CHUNKED or dtype.kind == "O" or size_bytes > sizes.LEAST_BYTES:
        storage = stored_bytes(dataset.id)
    if storage is not None:
        sizes.check(size_bytes, storage, allow)
    if item.info.chunks is not None and len(item.info.chunks) == len(shape) and not item.is_outside:
        sizes.check_chunks(math.prod(grid_of(shape, item.info.chunks)), file_bytes, allow)
    item = replace(item, storage_bytes=storage)
    why = _only_h5py(dataset, item)
    if why is not None:
        return replace(item, tier="h5py", why=why)
    item = _as_stored(item, dataset.id, plist, file_bytes)
    return replace(item, fill=_fill(plist, dtype)) if item.tier == "chunked" else item


def pointers(dataset: Any, item: Item, pointer_bytes: int, file_bytes: int) -> Item | None:
    """What the file has in the place of a variable-length dataset: opaque items of that size; None: only HDF5 knows."""
    if item.layout not in ("contiguous", "chunked") or item.is_outside:
        return None
    item = replace(item, info=replace(item.info, dtype=np.dtype((np.void, pointer_bytes)), fillvalue=None))
    item = _as_stored(item, dataset.id, dataset.id.get_create_plist(), file_bytes)
    return None if item.tier == "h5py" else item


def describe(dataset: Any) -> tree.Dataset:
    """What h5py tells of a dataset that can't be pinned, all but its type, which numpy may lack, and fill value."""
    plist = dataset.id.get_create_plist()
    info = _info(dataset, None, np.dtype("V"), plist, plist.get_layout(), None)
    return replace(info, shape=dataset.shape, maxshape=dataset.maxshape)


def _only_h5py(dataset: Any, item: Item) -> str | None:
    """Why a dataset's bytes are not in the file as numpy would have them, filters apart; None when they are."""
    if item.layout not in ("contiguous", "chunked"):
        return {"external": "external storage", "unknown": "unknown layout"}.get(item.layout, item.layout)
    if item.is_outside:
        return "in another file"
    if item.info.dtype.kind == "O":
        return "variable length"
    if dataset.id.get_type() != h5t.py_create(item.info.dtype):
        return "its type in the file is not the one in memory"
    return None


def _as_stored(item: Item, dataset_id: Any, plist: Any, file_bytes: int) -> Item:
    """How to read an item whose bytes are in the file as they are in memory, filters apart."""
    if item.layout == "chunked":
        return _chunked(item, dataset_id, plist)
    return _contiguous(item, dataset_id.get_offset(), file_bytes)


def _contiguous(item: Item, offset: int | None, file_bytes: int) -> Item:
    if offset is None or item.storage_bytes != item.size_bytes or offset + item.size_bytes > file_bytes:
        return replace(item, tier="h5py", why="not allocated in full")
    return replace(item, tier="contiguous", why="contiguous", offset=int(offset))


def _chunked(item: Item, dataset_id: Any, plist: Any) -> Item:
    if len(item.info.chunks or ()) != len(item.info.shape or ()):
        raise UnsupportedType(f"chunks {item.info.chunks} of another rank than its shape {item.info.shape}")
    named = " + ".join(one.name for one in item.filters) or "no filter"
    try:
        Pipeline(item.filters, math.prod(item.info.chunks or ()) * item.info.dtype.itemsize)
    except NotKnown as exc:
        return replace(item, tier="h5py", why=f"chunked, {named}: {exc}")
    if _may_be_misnumbered(item):
        return replace(item, tier="h5py", why=f"chunked, {named}: HDF5 may tell places of its chunks wrong")
    shape, chunks, dtype = item.info.shape or (), item.info.chunks or (), item.info.dtype
    if item.filters and may_be_unfiltered(dataset_id, shape, chunks, dtype.itemsize):
        return replace(item, tier="h5py", why=f"chunked, {named}: chunks at its edge may be unfiltered")
    return replace(item, tier="chunked", why=f"chunked, {named}")


def _fill(plist: Any, dtype: np.dtype[Any]) -> bytes:
    """What h5py reads where an item was never written: with a fill time of "never" HDF5 leaves its zeros alone.

    As an array: a scalar of numpy's would have any bytes between its values.
    """
    item = np.zeros((), dtype)
    if plist.fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED and plist.get_fill_time() != h5d.FILL_TIME_NEVER:
        plist.get_fill_value(item)
    return item.tobytes()


def _may_be_misnumbered(item: Item) -> bool:
    """Whether HDF5 may tell, of each chunk, the place of another, where it walks over them.

    An extensible array (files of HDF5 1.10 and later) numbers chunks with its one unlimited axis before all others;
    HDF5 2.0.0 takes the axes in their order where it lists chunks, not where it reads them. Measured: the places are
    right for every other index, and where no axis before that one has more than one chunk.
    """
    largest, chunks = item.info.maxshape or (), item.info.chunks or ()
    unlimited = [axis for axis, extent in enumerate(largest) if extent is None]
    if len(unlimited) != 1:
        return False
    before = zip(largest[: unlimited[0]], chunks, strict=False)
    return any(extent is not None and extent > chunk for extent, chunk in before)


def _check_type(dataset: Any, dtype: np.dtype[Any]) -> None:
    """Raise UnsupportedType for a type that can't be pinned exactly."""
    if dtypes.variable_base(dtype) is None:
        dtypes.carrier(dtype)
    dtypes.to_json(dtype)
    in_file, in_memory = dataset.id.get_type(), h5t.py_create(dtype)
    if in_file != in_memory and h5t.find(in_file, in_memory) is None:
        raise UnsupportedType(f"a type that h5py can't read as {dtype}")


def _info(
    dataset: Any,
    shape: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    plist: Any,
    layout: int,
    note: str | None,
) -> tree.Dataset:
    options: dict[str, Any] = {}
    if layout == h5d.CHUNKED:
        options = {
            "chunks": tuple(int(n) for n in plist.get_chunk()),
            "compression": dataset.compression,
            "compression_opts": dataset.compression_opts,
            "shuffle": bool(dataset.shuffle),
            "fletcher32": bool(dataset.fletcher32),
            "scaleoffset": dataset.scaleoffset,
        }
    fill = None
    if plist.fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED and shape is not None:
        fill = dataset.fillvalue
    maxshape = None if shape is None else tuple(dataset.maxshape)
    if maxshape == shape:
        maxshape = shape  # not a copy: there may be many
    return tree.Dataset(shape, dtype, maxshape=maxshape, fillvalue=fill, note=note, **options)


def _note(dataset: Any, dtype: np.dtype[Any]) -> str | None:
    kind = dataset.id.get_type()
    if isinstance(kind, h5t.TypeFloatID) and kind.get_size() != dtype.itemsize:
        return f"a {8 * kind.get_size()}-bit float in the file, read as {dtype.name}"
    return None
