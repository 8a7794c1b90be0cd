"""An HDF5 file read through h5py, behind the same groups and datasets as a pinned one.

Contiguous datasets are mapped all the same. An h5py handle never crosses a fork: each process opens its own, and leaves
an inherited one alone (closing it would unlock the parent's).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5l, h5o

from dsmem.arrays import dtypes, indexing, tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.arrays.nodes import Dataset, Group, Source
from dsmem.arrays.tree import Kind
from dsmem.errors import BadSource
from dsmem.hdf5 import places
from dsmem.hdf5.datasets import Item, inspect
from dsmem.hdf5.elsewhere import Circular
from dsmem.hdf5.opening import translated
from dsmem.hdf5.places import Place
from dsmem.hdf5.properties import describe

Array = np.ndarray[Any, np.dtype[Any]]


class H5Contents:
    """The contents of one HDF5 file, by path; `mappable` says whether its file system is a local one."""

    source: Source = "h5py"

    def __init__(self, path: str, why: str, *, mappable: bool) -> None:
        self.why = why
        self._path = path
        self._mappable = mappable
        self._file: Any = None
        self._pid = 0
        self._inherited: list[Any] = []
        self._canonical: dict[Place, str] = {}
        self._bytes: Array | None = None
        self._closed = False
        self.handle()

    def handle(self) -> Any:
        """The h5py.File of this process."""
        self.check_open()
        if self._pid != os.getpid():
            if self._file is not None:
                self._inherited.append(self._file)
            with translated(self._path):
                self._file = h5py.File(self._path, "r")
            self._pid = os.getpid()
            self._canonical = {places.place(self._file.id): ""}
        return self._file

    def check_open(self) -> None:
        """Raise ValueError once closed."""
        if self._closed:
            raise ValueError(f"{self._path} is closed")

    def close(self) -> None:
        """Close the file; arrays that were mapped keep their map."""
        if not self._closed and self._pid == os.getpid():
            self._file.close()
        self._closed = True
        self._bytes = None

    def names(self, path: str) -> Sequence[str]:
        return list(map(tree.text, self.handle()[tree.raw(path)]))

    def resolve(self, path: str, start: str) -> tuple[str, Kind] | None:
        parts = (path if path.startswith("/") else f"{start}/{path}").split("/")
        full = "/".join(part for part in parts if part not in ("", "."))
        file = self.handle()
        try:
            opened = h5o.open(file.id, tree.raw(full))
        except (KeyError, RuntimeError):
            return None  # nothing there, or a link that leads nowhere or in a circle
        kind = places.kind(opened)
        canonical = self._canonical.setdefault(places.place(opened), full)
        return None if kind is None else (canonical, kind)

    def link(self, path: str) -> tuple[str, ...] | None:
        links, name = self.handle().id.links, tree.raw(path)
        kind = links.get_info(name).type
        if kind == h5l.TYPE_EXTERNAL:
            filename, target = links.get_val(name)
            return os.fsdecode(filename), tree.text(target)
        return (tree.text(links.get_val(name)),) if kind == h5l.TYPE_SOFT else None

    def attributes(self, path: str) -> Mapping[str, Any]:
        # Not all at once: one that h5py can't read would hide the others.
        attributes: Mapping[str, Any] = self.handle()[tree.raw(path)].attrs
        return attributes

    def named_type(self, path: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.handle()[tree.raw(path)].dtype
        return dtype

    def dataset(self, group: Group, name: str, path: str) -> Dataset:
        return H5Dataset(self, group, name, path)

    def inspect(self, path: str) -> tuple[Item | None, str]:
        """How a dataset can be read, or why only h5py can; raises BadSource where that would crash."""
        file = self.handle()
        dataset = file[tree.raw(path)]
        elsewhere = places.place(dataset.id).fileno != places.place(file.id).fileno
        try:
            item = inspect(dataset.id, path, os.path.getsize(self._path), in_other_file=elsewhere)
        except Circular as exc:
            raise BadSource(f"{self._path}: /{path}: {exc}") from exc
        except UnsupportedType as exc:
            return None, str(exc)
        return item, item.why

    def mapped(self, item: Item) -> Array | None:
        """All of a contiguous dataset as a view of the file's own pages; None when it can't be mapped."""
        if item.offset is None or not self._mappable:
            return None
        if self._bytes is None:
            with open(self.handle().id.get_vfd_handle(), "rb", closefd=False) as file:
                self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
        dtype, shape = item.info.dtype, item.info.shape or ()
        base, item_shape = dtypes.elements(dtype)
        raw = self._bytes[item.offset : item.offset + item.size_bytes]
        return raw.view(base).reshape((*shape, *item_shape))


class H5Dataset(Dataset):
    """A dataset that h5py reads, or whose bytes are mapped from the file."""

    def __init__(self, contents: H5Contents, file: Group, name: str, path: str) -> None:
        super().__init__(contents, file, name, path)
        self._owner = contents
        self._opened: tuple[int, Any] = (0, None)
        item, self.why = contents.inspect(path)
        self._array = None if item is None else contents.mapped(item)
        self.source: Source = "h5py" if self._array is None else "mapped"
        self._is_refused = item is None
        self._info = None if item is None else item.info

    def _h5(self) -> Any:
        self._owner.check_open()
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._owner.handle()[tree.raw(self._path)])
        return self._opened[1]

    @property
    def info(self) -> tree.Dataset:
        if self._info is None:
            self._info = describe(self._h5().id)
        return self._info

    @property
    def dtype(self) -> np.dtype[Any]:
        if not self._is_refused:
            return self.info.dtype
        dtype: np.dtype[Any] = self._h5().dtype
        return dtype

    @property
    def fillvalue(self) -> Any:
        return super().fillvalue if self._array is not None else self._h5().fillvalue

    def __getitem__(self, key: Any) -> Any:
        if self._array is not None:
            self._owner.check_open()
            return indexing.select(self._array, key, rank=len(self.shape or ()))
        return self._h5()[key]
