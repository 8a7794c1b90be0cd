"""What HDF5 tells of an open dataset. An answer costs 1–20 µs, and files have many datasets: each is asked once.

What follows from the answers alone is worked out once for all datasets that are alike: most of a file are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import h5py
import numpy as np
from h5py import h5d, h5s, h5t

from dsmem.arrays import dtypes, tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline
from dsmem.hdf5.filters import check_installed, filters_of
from dsmem.hdf5.opening import reason

_MOST_ALIKE = 1024
K = TypeVar("K")
V = TypeVar("V")


class Properties:
    """Of one open dataset, by its low-level handle."""

    def __init__(self, dataset_id: Any) -> None:
        self.id = dataset_id
        self.plist = dataset_id.get_create_plist()
        self.layout: int = self.plist.get_layout()
        self.is_external = self.plist.get_external_count() > 0
        """Its data lies in external files."""

    @cached_property
    def _space(self) -> Any:
        return self.id.get_space()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """None of a null dataspace. For it HDF5 may open the sources of a virtual dataset."""
        if self._space.get_simple_extent_type() == h5s.NULL:
            return None
        return tuple(int(n) for n in self._space.shape)

    @property
    def maxshape(self) -> tuple[int | None, ...]:
        """None for an axis without a limit."""
        return tuple(None if n == h5s.UNLIMITED else n for n in self._space.get_simple_extent_dims(True))

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """None of what is not chunked."""
        return tuple(int(n) for n in self.plist.get_chunk()) if self.layout == h5d.CHUNKED else None

    @property
    def has_fill(self) -> bool:
        """Whether the file names a fill value."""
        return bool(self.plist.fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED)


@dataclass(frozen=True, slots=True, eq=False)
class FileType:
    """What the type of a dataset is to numpy."""

    dtype: np.dtype[Any]
    is_as_in_memory: bool
    """Items have in the file the bytes that they have in memory."""
    note: str | None
    """What a user should know of it."""


class Alike:
    """What datasets of a file have in common, so that it is worked out, and held, once."""

    def __init__(self) -> None:
        self._types: dict[bytes, FileType] = {}
        self._infos: dict[tuple[object, ...], tree.Dataset] = {}
        self._options: dict[tuple[Filter, ...], dict[str, Any]] = {}
        self._undecodable: dict[tuple[tuple[Filter, ...], int], str | None] = {}

    def type_of(self, dataset_id: Any) -> FileType:
        """Raises UnsupportedType for a type that can't be pinned exactly."""
        opened = dataset_id.get_type()
        key = opened.encode()  # HDF5 takes texts of other encodings for equal types
        found = self._types.get(key)
        if found is None:
            found = kept(self._types, key, _file_type(opened))
        return found

    def filters_of(self, properties: Properties) -> tuple[Filter, ...]:
        """The filters of a dataset; raises UnsupportedType for those that HDF5 can't decode here."""
        if properties.layout != h5d.CHUNKED:
            return ()
        filters = filters_of(properties.plist)
        if filters not in self._options:
            check_installed(filters)
            kept(self._options, filters, _options(h5py.Dataset(properties.id)))
        return filters

    def info(self, properties: Properties, kind: FileType, filters: tuple[Filter, ...]) -> tree.Dataset:
        """What h5py tells of a dataset whose filters were looked at."""
        shape, fill = properties.shape, None
        maxshape = None if shape is None else properties.maxshape
        options = {} if properties.layout != h5d.CHUNKED else self._options[filters]
        if properties.has_fill:
            fill = h5py.Dataset(properties.id).fillvalue
        key = (shape, maxshape, kind, properties.chunks, filters)
        found = self._infos.get(key) if fill is None else None
        if found is None:
            maxshape = shape if maxshape == shape else maxshape
            note = None if shape is None else kind.note
            found = tree.Dataset(
                shape, kind.dtype, chunks=properties.chunks, maxshape=maxshape, fillvalue=fill, note=note, **options
            )
            if fill is None:
                kept(self._infos, key, found)
        return found

    def undecodable(self, filters: tuple[Filter, ...], chunk_bytes: int) -> str | None:
        """Why chunks of that size can't be decoded here; None where they can."""
        key = (filters, chunk_bytes)
        if key not in self._undecodable:
            return kept(self._undecodable, key, _undecodable(filters, chunk_bytes))
        return self._undecodable[key]


def kept(known: dict[K, V], key: K, value: V) -> V:
    """Remember a value, and forget the others when they are many."""
    if len(known) >= _MOST_ALIKE:
        known.clear()
    known[key] = value
    return value


def _undecodable(filters: tuple[Filter, ...], chunk_bytes: int) -> str | None:
    try:
        Pipeline(filters, chunk_bytes)
    except NotKnown as exc:
        return str(exc)
    return None


def describe(dataset_id: Any) -> tree.Dataset:
    """What h5py tells of a dataset that can't be pinned, all but its type, which numpy may lack, and fill value."""
    properties = Properties(dataset_id)
    shape = properties.shape
    options = {} if properties.layout != h5d.CHUNKED else _options(h5py.Dataset(dataset_id))
    return tree.Dataset(
        shape,
        np.dtype("V"),
        chunks=properties.chunks,
        maxshape=None if shape is None else properties.maxshape,
        **options,
    )


def _file_type(opened: Any) -> FileType:
    try:
        dtype = dtypes.shared(opened.dtype)
    except (TypeError, ValueError) as exc:
        raise UnsupportedType(f"a type that numpy lacks ({reason(exc)})") from exc
    if dtypes.variable_base(dtype) is None:
        dtypes.carrier(dtype)
    dtypes.to_json(dtype)
    in_memory = h5t.py_create(dtype)
    is_as_in_memory = bool(opened == in_memory)
    if not is_as_in_memory and h5t.find(opened, in_memory) is None:
        raise UnsupportedType(f"a type that h5py can't read as {dtype}")
    note = None
    if isinstance(opened, h5t.TypeFloatID) and opened.get_size() != dtype.itemsize:
        note = f"a {8 * opened.get_size()}-bit float in the file, read as {dtype.name}"
    return FileType(dtype, is_as_in_memory, note)


def _options(dataset: Any) -> dict[str, Any]:
    """What h5py tells of the filters of a chunked dataset."""
    return {
        "compression": dataset.compression,
        "compression_opts": dataset.compression_opts,
        "shuffle": bool(dataset.shuffle),
        "fletcher32": bool(dataset.fletcher32),
        "scaleoffset": dataset.scaleoffset,
    }
