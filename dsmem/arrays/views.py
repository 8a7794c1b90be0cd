"""A tree and a buffer as groups and datasets: every array is a view of the buffer and owns it.

The buffer is a read-only map of an object in the store, or of an HDF5 file whose datasets are contiguous.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dsmem.arrays import attributes, dtypes, indexing, tree
from dsmem.arrays.header import DATA_BYTES_KEY as DATA_BYTES_KEY
from dsmem.arrays.header import Header
from dsmem.arrays.nodes import Dataset, Group, Source
from dsmem.arrays.tree import Kind, Tree
from dsmem.errors import DamagedObject

TREE_KEY = "dsmem.tree"
ATTRIBUTES_KEY = "dsmem.attributes"
Array = np.ndarray[Any, np.dtype[Any]]
_NONSENSE = (AssertionError, AttributeError, KeyError, IndexError, OverflowError, RecursionError, TypeError, ValueError)
"""What Python and numpy raise for a tree that dsmem can't have written."""


class TreeContents:
    """The contents of one object: a header that says where tensors lie, a tree, and the bytes.

    Nothing is read, checked or parsed before it is asked for.
    """

    def __init__(
        self,
        header: Header,
        buffer: Array,
        source: Source,
        why: str,
        *,
        label: str,
        tree: Tree | None = None,
        attributes: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self._header = header
        self._buffer: Array | None = buffer
        self._tree = tree
        self._attributes = attributes
        self.held: dict[str, Array] = {}
        """By path: what `array` has given, until the file is closed."""
        self._label = label
        self.source: Source = source
        self.why = why

    @property
    def tree(self) -> Tree:
        """The tree, parsed on first use; raises DamagedObject when there is none."""
        if self._tree is None:
            text = self._header.metadata.get(TREE_KEY)
            if text is None:
                raise DamagedObject(f"{self._label} has no tree: dsmem did not write it", name=self._label)
            self._tree = tree.load(text)
        return self._tree

    def close(self) -> None:
        """Let go of the buffer; arrays that were handed out keep it."""
        self._buffer = None
        self.held.clear()

    def names(self, path: str) -> Sequence[str]:
        self.check_open()
        return self.tree.children(path)

    def resolve(self, path: str, start: str) -> tuple[str, Kind] | None:
        self.check_open()
        found = self.tree.resolve(path, start)
        kind = None if found is None else self.tree.kind(found)
        return None if found is None or kind is None else (found, kind)

    def link(self, path: str) -> tuple[str, ...] | None:
        target = self.tree.soft_links.get(path)
        return None if target is None else (target,)

    def attributes(self, path: str) -> Mapping[str, Any]:
        self.check_open()
        try:
            if self._attributes is None:
                self._attributes = json.loads(self._header.metadata.get(ATTRIBUTES_KEY, "{}"))
            return _Attributes(
                self, {tree.shown(name): value for name, value in self._attributes.get(path, {}).items()}
            )
        except _NONSENSE as exc:
            raise self.damaged_attributes() from exc

    def attribute(self, value: object) -> Any:
        """One that is JSON, as h5py gives it."""
        self.check_open()
        try:
            return attributes.from_json(value, self._long)
        except _NONSENSE as exc:
            raise self.damaged_attributes() from exc

    def damaged_attributes(self) -> DamagedObject:
        """The error for attributes that can't be."""
        return DamagedObject(f"{self._label}: its attributes can't be read", name=self._label)

    def _long(self, begin: int, end: int) -> memoryview:
        """What is long of an attribute; raises IndexError for what is not there."""
        together = self._view(tree.ATTRIBUTES_NAME, None)
        if not 0 <= begin <= end <= len(together):
            raise IndexError(f"bytes {begin} to {end} of {len(together)}")
        return together[begin:end].data

    def named_type(self, path: str) -> np.dtype[Any]:
        try:
            return dtypes.from_json(self.tree.types[path])
        except _NONSENSE as exc:
            raise self.damaged(path) from exc

    def dataset(self, group: Group, name: str, path: str) -> Dataset:
        return TreeDataset(self, group, name, path)

    def array(self, path: str) -> Array:
        """All of a fixed-size dataset, as a read-only view of the buffer with its own dtype."""
        array = self.held.get(path)
        if array is None:
            record = self.tree.datasets[path]
            try:
                dtype = dtypes.from_json(record["dtype"]) if "dtype" in record else None
            except _NONSENSE as exc:
                raise self.damaged(path) from exc
            array = self._view(tree.tensor_name(path), dtype)
            self.held[path] = array
        return array

    def variable(self, path: str) -> tuple[Array, Array]:
        """The items of a variable-length dataset laid end to end, and the offsets (int64, items + 1) between them."""
        try:
            base = dtypes.variable_base(dtypes.from_json(self.tree.datasets[path]["dtype"]))
            shape = self.tree.datasets[path]["shape"]
            items = math.prod(shape)
            assert base is not None and all(type(n) is int and n >= 0 for n in shape)
        except _NONSENSE as exc:
            raise self.damaged(path) from exc
        if items == 0:
            return np.empty(0, base), np.zeros(1, np.int64)
        offsets = self._view(tree.offsets_name(path), None)
        if offsets.dtype != np.int64 or offsets.shape != (items + 1,):
            raise self.damaged(path)
        if base is not None and "enum" in (base.metadata or {}):
            base = np.dtype(base.str)  # items come without the names, as in h5py
        return self._view(tree.tensor_name(path), base), offsets

    def over(self, buffer: Array) -> TreeContents:
        """The same contents over another buffer of the same bytes."""
        return TreeContents(
            self._header,
            buffer,
            self.source,
            self.why,
            label=self._label,
            tree=self._tree,
            attributes=self._attributes,
        )

    def record(self, path: str) -> dict[str, Any]:
        """The tree's record of a dataset."""
        return self.tree.datasets[path]

    def _view(self, name: str, dtype: np.dtype[Any] | None) -> Array:
        buffer = self.check_open()
        try:
            tensor = self._header.tensor(name)
            own = dtypes.of_carrier(tensor.dtype)
            if own is None:
                raise DamagedObject(f"{self._label}: {tensor.dtype} is not a type that numpy has")
            raw = buffer[self._header.data_start + tensor.begin : self._header.data_start + tensor.end]
            if dtype is None:
                return raw.view(own).reshape(tensor.shape)
            base, item_shape = dtypes.elements(dtype)
            carrier = dtypes.carrier(dtype)
            axes = len(tensor.shape) - len(carrier.item_shape)
            if tensor.dtype != carrier.code or tensor.shape[axes:] != carrier.item_shape:
                raise DamagedObject(f"{self._label}: tensor {name!r} does not carry {dtype}")
            shape = (*tensor.shape[:axes], *item_shape)
            return raw.view(base).reshape(shape) if raw.size else np.empty(shape, base)
        except DamagedObject:
            raise
        except _NONSENSE as exc:
            raise DamagedObject(f"{self._label}: tensor {name!r} is not as its tree says", name=self._label) from exc

    def damaged(self, path: str) -> DamagedObject:
        """The error for a dataset, or a named type, that the tree describes in a way that can't be."""
        return DamagedObject(f"{self._label}: /{path} is not described as dsmem does", name=self._label)

    def check_open(self) -> Array:
        """The buffer; raises ValueError once the file is closed."""
        if self._buffer is None:
            raise ValueError(f"{self._label} is closed")
        return self._buffer


class _Attributes(Mapping[str, Any]):
    """Those of one group or dataset; each is read when it is asked for, and belongs to who asks."""

    def __init__(self, contents: TreeContents, table: Mapping[str, object]) -> None:
        self._contents = contents
        self._table = table

    def __getitem__(self, name: str) -> Any:
        return self._contents.attribute(self._table[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return repr(dict(self))


class TreeDataset(Dataset):
    """A dataset whose items lie in the buffer."""

    def __init__(self, contents: TreeContents, file: Group, name: str, path: str) -> None:
        super().__init__(contents, file, name, path)
        self._views = contents
        self._record = contents.record(path)
        self._is_variable = "shape" in self._record
        self._info: tree.Dataset | None = None
        recipe = self._record.get("dtype")
        self._rank = len(self.shape or ()) if isinstance(recipe, dict) and "array" in recipe else None
        self.source = contents.source
        self.why = contents.why

    @property
    def info(self) -> tree.Dataset:
        if self._info is None:
            self._views.check_open()
            try:
                self._info = self._described()
            except DamagedObject:
                raise
            except _NONSENSE as exc:
                raise self._views.damaged(self._path) from exc
        return self._info

    def _described(self) -> tree.Dataset:
        record = self._record
        dtype = dtypes.from_json(record["dtype"]) if "dtype" in record else None
        shape: tuple[int, ...] | None
        if record.get("null"):
            shape = None
        elif self._is_variable:
            shape = tuple(record["shape"])
        else:
            array = self._views.array(self._path)
            inner = () if dtype is None else dtypes.elements(dtype)[1]
            shape = array.shape[: array.ndim - len(inner)]
            dtype = dtype if dtype is not None else array.dtype
        assert dtype is not None
        fill = record.get("fillvalue")
        maxshape = record.get("maxshape")
        return tree.Dataset(
            shape,
            dtype,
            maxshape=shape if maxshape is None else tuple(maxshape),
            fillvalue=None if fill is None else attributes.from_json(fill),
            **tree.options(record),
        )

    def __getitem__(self, key: Any) -> Any:
        if type(key) is int and self._rank is None:  # one sample: all else here would cost more than numpy's own part
            held = self._views.held.get(self._path)
            if held is not None:
                try:
                    return held[key]
                except (IndexError, OverflowError):
                    pass  # judged below, by h5py's rules
        if self._record:
            if self._record.get("null"):
                return _read_null(self.info, key)
            if self._is_variable:
                return self._read_variable(key)
        return indexing.select(self._views.array(self._path), key, rank=self._rank)

    def _read_variable(self, key: Any) -> Any:
        values, offsets = self._views.variable(self._path)
        shape = self._record["shape"]
        starts = indexing.select(offsets[:-1].reshape(shape), key)
        ends = indexing.select(offsets[1:].reshape(shape), key)
        is_text = values.dtype == np.uint8 and isinstance(self._record["dtype"]["vlen"], str)
        if np.ndim(starts) == 0 and not isinstance(starts, np.ndarray):
            return _item(values, int(starts), int(ends), is_text)
        items = np.empty(starts.shape, self.info.dtype)
        flat = items.reshape(-1)
        for i, (start, end) in enumerate(zip(starts.ravel().tolist(), ends.ravel().tolist(), strict=True)):
            flat[i] = _item(values, start, end, is_text)
        return items


def _item(values: Array, start: int, end: int, is_text: bool) -> Any:
    """One variable-length item; a copy where the values, which come last in the buffer, are not aligned."""
    item = values[start:end]
    if is_text:
        return item.tobytes()
    return item if item.flags.aligned else item.copy()


def _read_null(info: tree.Dataset, key: Any) -> Any:
    if key == () or key is Ellipsis:
        return attributes.empty(info.dtype)
    raise ValueError("Empty datasets cannot be sliced")
