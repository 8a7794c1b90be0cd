"""Groups and datasets that read like h5py's, over anything that can resolve a path and hand out arrays.

No node is remembered by what it came from: a reference cycle would keep a map, and with it a lease, past its last user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, Literal, Protocol, cast

import numpy as np

from dsmem.arrays import conversions, tree
from dsmem.arrays.tree import Kind

Source = Literal["pinned", "mapped", "h5py", "preloaded"]


class Contents(Protocol):
    """What groups and datasets are read from: one open file, whatever holds it."""

    def names(self, path: str) -> Sequence[str]:
        """Names of the links in a group, in h5py's order."""

    def resolve(self, path: str, start: str) -> tuple[str, Kind] | None:
        """The canonical path and the kind of what a path leads to; None for nothing."""

    def link(self, path: str) -> tuple[str, ...] | None:
        """What the link at exactly this path says: (path,) when soft, (file, path) when external; None when hard."""

    def attributes(self, path: str) -> Mapping[str, Any]:
        """Attributes of the object at a canonical path."""

    def dataset(self, group: Group, name: str, path: str) -> Dataset:
        """The dataset at a canonical path, to be called `name`."""

    def named_type(self, path: str) -> np.dtype[Any]:
        """The committed datatype at a canonical path."""


class Node:
    """Anything in a file: it has a name, a parent and attributes."""

    def __init__(self, contents: Contents, file: Group | None, name: str, path: str) -> None:
        self._contents = contents
        self._file = file
        self._name = name
        self._path = path

    @property
    def name(self) -> str:
        """Absolute path, as it was asked for: '/observations/qpos'; bytes where it is not UTF-8, as in h5py."""
        return tree.shown("/" + self._name)

    @property
    def file(self) -> Group:
        """The open file that this came from."""
        return self._file if self._file is not None else cast(Group, self)

    @property
    def parent(self) -> Group:
        """The group above; the root's is the root."""
        return cast(Group, self.file["/" + self._name.rpartition("/")[0]])

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes, as h5py returns them; read-only."""
        return self._contents.attributes(self._path)

    def __bool__(self) -> bool:
        """Whether the file is open, however little is in here."""
        return self._file is None or bool(self._file)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node):
            return NotImplemented
        return self.file is other.file and self._path == other._path

    def __hash__(self) -> int:
        return hash((id(self.file), self._path))

    def __reduce__(self) -> tuple[object, ...]:
        return _reach, (self.file, self.name)


def _reach(file: Group, name: str) -> Node:
    node: Node = file[name]
    return node


class NamedType(Node):
    """A committed datatype."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type as numpy has it."""
        return self._contents.named_type(self._path)


class Group(Node, Mapping[str, Any]):
    """A group: a mapping from names to groups, datasets and named types; paths with slashes work too."""

    def __getitem__(self, name: str | bytes) -> Any:
        text = _checked(name)
        found = self._contents.resolve(text, self._path) if text else None
        if found is None:
            raise KeyError(f"{text!r} is not in {self.name!r}")
        path, kind = found
        shown = text if text.startswith("/") else f"{self._name}/{text}"
        shown = "/".join(part for part in shown.split("/") if part not in ("", "."))
        if kind == "dataset":
            return self._contents.dataset(self.file, shown, path)
        return (Group if kind == "group" else NamedType)(self._contents, self.file, shown, path)

    def __contains__(self, name: object) -> bool:
        text = _checked(name)
        if text and self._contents.resolve(text, self._path) is not None:
            return True
        return self._has_link(text)

    def _has_link(self, text: str) -> bool:
        """Whether a path ends at a link, wherever that leads: a dangling one is in its group, as in h5py."""
        group, last = self._parent_of(text)
        return group is not None and last in group._contents.names(group._path)

    def _parent_of(self, text: str) -> tuple[Group | None, str]:
        parent, _, last = text.rstrip("/").rpartition("/")
        above = parent or ("/" if text.startswith("/") else ".")
        found = self._contents.resolve(above, self._path)
        group = self[above] if found is not None and found[1] == "group" else None
        return group, last

    def __iter__(self) -> Iterator[str]:
        return map(tree.shown, self._contents.names(self._path))

    def __len__(self) -> int:
        return len(self._contents.names(self._path))

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))

    # Mapping's own views look every name up: a dangling soft link is a key that leads nowhere.
    def keys(self) -> KeysView[str]:
        """Names of the links in this group."""
        return _Keys(self)

    def items(self) -> ItemsView[str, Any]:
        """Names and what they lead to; None for a link that leads nowhere, as h5py gives it."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """What the names lead to."""
        return _Values(self)

    def get(self, name: str, default: Any = None, getclass: bool = False, getlink: bool = False) -> Any:
        """As h5py's: the object, or its class, or its link, or the default."""
        if getlink:
            return self._link(_checked(name), default, getclass)
        text = _checked(name)
        if not text or self._contents.resolve(text, self._path) is None:
            return default
        found = self[text]
        return type(found) if getclass else found

    def _link(self, name: str, default: Any, getclass: bool) -> Any:
        import h5py

        group, last = self._parent_of(name)
        if group is None or last not in self._contents.names(group._path):
            return default
        said = self._contents.link(tree.join(group._path, last)) or ()
        kind = (h5py.HardLink, h5py.SoftLink, h5py.ExternalLink)[len(said)]
        return kind if getclass else kind(*map(tree.shown, said))

    def visit(self, func: Callable[[str], Any]) -> Any:
        """Call `func(name)` for everything below, each object once; stops at the first value not None."""
        return self.visititems(lambda name, _: func(name))

    def visititems(self, func: Callable[[str, Any], Any]) -> Any:
        """Call `func(name, object)` for everything below, each object once; stops at the first value not None."""
        seen = {self._path}
        todo = [(name, self) for name in self._backwards()]
        while todo:
            name, group = todo.pop()
            last = name.rpartition("/")[2]
            if self._contents.link(tree.join(group._path, last)) is not None:
                continue
            node = group[last]
            if node._path in seen:
                continue
            seen.add(node._path)
            found = func(tree.shown(name), node)
            if found is not None:
                return found
            if isinstance(node, Group):
                todo.extend((f"{name}/{child}", node) for child in node._backwards())
        return None

    def _backwards(self) -> list[str]:
        """Names in the reverse of the order in which HDF5 visits them, which is that of their bytes."""
        return sorted(self._contents.names(self._path), key=tree.raw, reverse=True)

    def __repr__(self) -> str:
        return f'<dsmem group "{self.name}" ({len(self)} members)>'


def _checked(name: object) -> str:
    if not isinstance(name, str | bytes):
        raise TypeError(f"Accessing a group is done with bytes or str, not {type(name)}")
    return tree.text(name)


class _Keys(KeysView[str]):
    _mapping: Group

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)


class _Items(ItemsView[str, Any]):
    _mapping: Group

    def __contains__(self, item: object) -> bool:
        name, value = cast(tuple[str, Any], item)
        return name in self._mapping and bool(self._mapping.get(name) == value)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, self._mapping.get(name)) for name in self._mapping)


class _Values(ValuesView[Any]):
    _mapping: Group

    def __contains__(self, value: object) -> bool:
        return any(found == value for found in self)

    def __iter__(self) -> Iterator[Any]:
        return (self._mapping.get(name) for name in self._mapping)


class Dataset(Node, ABC):
    """A dataset: indexing, shape, dtype and the rest of what h5py tells of one."""

    source: Source
    """Where the bytes come from."""
    why: str
    """Why from there."""

    @property
    @abstractmethod
    def info(self) -> tree.Dataset:
        """Everything that h5py tells of it."""

    @abstractmethod
    def __getitem__(self, key: Any) -> Any:
        """Read by h5py's rules; a basic key into shared memory is a read-only view."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """None for a null dataspace."""
        return self.info.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As h5py's, metadata for strings and enums included."""
        return self.info.dtype

    @property
    def size(self) -> int | None:
        """Number of items; None for a null dataspace."""
        return None if self.shape is None else int(np.prod(self.shape, dtype=np.int64))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape or ())

    @property
    def nbytes(self) -> int:
        """Bytes of the items in memory; variable-length items count as pointers, as in h5py."""
        return (self.size or 0) * self.dtype.itemsize

    @property
    def maxshape(self) -> tuple[int | None, ...] | None:
        """How far it could have been resized in the source file."""
        return self.info.maxshape if self.info.maxshape is not None else self.shape

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Chunk shape in the source file."""
        return self.info.chunks

    @property
    def compression(self) -> str | None:
        """Compression in the source file."""
        return self.info.compression

    @property
    def compression_opts(self) -> Any:
        """Its options."""
        return self.info.compression_opts

    @property
    def shuffle(self) -> bool:
        """Whether the source file shuffles bytes."""
        return self.info.shuffle

    @property
    def fletcher32(self) -> bool:
        """Whether the source file has checksums."""
        return self.info.fletcher32

    @property
    def scaleoffset(self) -> int | None:
        """The scale-offset filter's parameter in the source file."""
        return self.info.scaleoffset

    @property
    def fillvalue(self) -> Any:
        """What the source file gives for items never written."""
        if self.info.fillvalue is not None:
            return self.info.fillvalue
        if self.dtype.kind == "O":
            kind: Mapping[str, Any] = self.dtype.metadata or {}
            return b"" if kind.get("vlen") in (str, bytes) else None
        return np.zeros((), self.dtype)[()]

    @property
    def is_virtual(self) -> bool:
        """Never: what is virtual in the source is plain here."""
        return False

    def len(self) -> int:
        """Length of the first axis; TypeError for a scalar, as in h5py."""
        if not self.shape:
            raise TypeError("Attempt to take len() of scalar dataset")
        return self.shape[0]

    def __len__(self) -> int:
        return self.len()

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("Can't iterate over a scalar dataset")
        return (self[i] for i in range(self.shape[0]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if self.shape is None:
            raise TypeError(f"{self.name}: a null dataspace is no array")
        array = np.asarray(self[...])  # of a scalar, too, with the order of its bytes
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{self.name}: {array.dtype} as {np.dtype(dtype)} needs a copy")
            return np.asarray(conversions.converted(array, self.dtype, np.dtype(dtype)))
        return array.copy() if copy else array

    def read_direct(self, dest: np.ndarray[Any, Any], source_sel: Any = None, dest_sel: Any = None) -> None:
        """Copy into an existing array, as h5py's."""
        dest[() if dest_sel is None else dest_sel] = self[() if source_sel is None else source_sel]

    def asstr(self, encoding: str | None = None, errors: str = "strict") -> conversions.Converted:
        """A wrapper whose reads are `str`; TypeError when these are no strings."""
        kind: Mapping[str, Any] = self.dtype.metadata or {}
        if self.dtype.kind != "S" and kind.get("vlen") not in (str, bytes):
            raise TypeError("dset.asstr() can only be used on datasets with an HDF5 string datatype")
        utf8 = kind.get("vlen") is str or kind.get("h5py_encoding") == "utf-8"
        decode = conversions.decoder(encoding or ("utf-8" if utf8 else "ascii"), errors)
        return conversions.Converted(self, decode, np.dtype(object))

    def astype(self, dtype: Any) -> Dataset | conversions.Converted:
        """A wrapper whose reads are converted, or itself; what doesn't fit integers is clipped, as HDF5 does it."""
        target = np.dtype(dtype)
        if target == self.dtype:
            return self
        if self.shape is None:
            return conversions.Converted(self, conversions.unchanged, target)
        if target.kind == "T":
            decode = self.asstr()
            return conversions.Converted(decode, lambda value: np.asarray(value, dtype=target), target)
        return conversions.Converted(self, lambda value: conversions.converted(value, self.dtype, target), target)

    def fields(self, names: str | Sequence[str]) -> conversions.Converted:
        """A wrapper that reads some fields of a compound type; ValueError for a name that it lacks."""
        pick, dtype = conversions.fields_of(names, self.dtype)
        return conversions.Converted(self, conversions.unchanged if self.shape is None else pick, dtype)

    def __repr__(self) -> str:
        return f'<dsmem dataset "{self.name}": shape {self.shape}, type "{self.dtype.str}", {self.source}>'
