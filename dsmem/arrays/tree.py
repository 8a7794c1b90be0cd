"""The tree of an HDF5 file without its data: groups, datasets, links, named types; as JSON and back.

Paths have no leading slash, the root group is ''. Every path is canonical: what hard links reach again is an alias.
"""

from __future__ import annotations

import itertools
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np

from dsmem.arrays import dtypes
from dsmem.arrays.rows import Names
from dsmem.errors import DamagedObject

HELPER_PREFIX = "__dsmem__/"
ATTRIBUTES_NAME = f"{HELPER_PREFIX}attributes"
"""The helper tensor (uint8) with what is long of attributes, in the form of `dsmem.arrays.attributes.Apart`."""
_PLAIN = re.compile(r"[\w /.+-]*", re.ASCII)
"""Names that need no look at each character."""
_MOST_LINKS = 40
_AT_ONCE = 1000
"""Entries of a table that are turned into JSON together."""
Kind = Literal["group", "dataset", "type"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What h5py tells of a dataset: a null dataspace has shape None; `fillvalue` None means zero."""

    shape: tuple[int, ...] | None
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None = None
    maxshape: tuple[int | None, ...] | None = None
    compression: str | None = None
    compression_opts: Any = None
    shuffle: bool = False
    fletcher32: bool = False
    scaleoffset: int | None = None
    fillvalue: Any = None
    note: str | None = None
    """What a user should know of how it was stored, such as a float type that numpy lacks."""


_DEFAULTS: Mapping[str, object] = {
    "chunks": None,
    "compression": None,
    "compression_opts": None,
    "shuffle": False,
    "fletcher32": False,
    "scaleoffset": None,
    "note": None,
}


@dataclass(slots=True)
class Tree:
    """All that a file holds, by canonical path; `groups` maps to the names of their links in h5py's order."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Records as `describe` makes them."""
    aliases: dict[str, str] = field(default_factory=dict)
    soft_links: dict[str, str] = field(default_factory=dict)
    types: dict[str, object] = field(default_factory=dict)

    def kind(self, path: str) -> Kind | None:
        """What lies at a canonical path."""
        if path in self.datasets:
            return "dataset"
        if path in self.groups:
            return "group"
        return "type" if path in self.types else None

    def resolve(self, path: str, start: str = "") -> str | None:
        """The canonical path that a user's path leads to, through links; None when it leads nowhere."""
        followed = 0
        todo = [part for part in path.split("/") if part not in ("", ".")]
        todo.reverse()
        here = "" if path.startswith("/") else start
        while todo:
            step = join(here, todo.pop())
            if step in self.soft_links:
                followed += 1
                if followed > _MOST_LINKS:
                    return None
                target = self.soft_links[step]
                todo.extend(reversed([part for part in target.split("/") if part not in ("", ".")]))
                here = "" if target.startswith("/") else here
                continue
            here = self.aliases.get(step, step)
            if self.kind(here) is None or (todo and here not in self.groups):
                return None
        return here

    def children(self, path: str) -> list[str]:
        """Names of the links in a group; raises DamagedObject when one leads nowhere."""
        names = self.groups.get(path, [])
        if not isinstance(names, list) or not all(isinstance(n, str) and self._is_link(join(path, n)) for n in names):
            raise DamagedObject(f"the group {path!r} lists what is not there")
        return names

    def _is_link(self, path: str) -> bool:
        return path in self.datasets or path in self.aliases or path in self.soft_links or self.kind(path) is not None

    def dumped(self) -> Iterator[str]:
        """See `dumped`."""
        return dumped({part: getattr(self, part) for part in self.__slots__})


class Listed(Protocol):
    """A part of a tree, to be dumped."""

    def __len__(self) -> int: ...

    def items(self) -> Iterable[tuple[str, Any]]:
        """Its entries, in order."""
        ...


def dumped(parts: Mapping[str, Listed]) -> Iterator[str]:
    """A tree as ASCII JSON in parts, for it may be long; names that are not UTF-8 stay as surrogates (see `text`).

    `parts`: those that `Tree` has, by their names there.
    """
    opened = "{"
    for name, part in parts.items():
        if len(part):
            yield f'{opened}"{name}":'
            yield from dumped_table(part.items())
            opened = ","
    yield "{}" if opened == "{" else "}"


def dumped_table(table: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """A table as ASCII JSON in parts, a list of names in it (or `Names`) that is long in several."""
    comma = "{"
    for some in _together(table):
        yield comma
        comma = ","
        key, names = next(iter(some.items()))
        if _is_long(names):
            yield _json(key) + ":["
            remaining, inner = iter(names), ""
            while few := list(itertools.islice(remaining, _AT_ONCE)):
                yield inner + _json(few)[1:-1]
                inner = ","
            yield "]"
        else:
            yield _json({key: list(value) if isinstance(value, Names) else value for key, value in some.items()})[1:-1]
    yield "{}" if comma == "{" else "}"


def _is_long(value: object) -> bool:
    return isinstance(value, list | Names) and len(value) > _AT_ONCE


def _together(table: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Some entries at a time, one with a long list by itself."""
    some: dict[str, Any] = {}
    size = 0
    for key, value in table:
        weight = 1 + (len(value) if isinstance(value, list | Names) else 0)
        if some and size + weight > _AT_ONCE:
            yield some
            some, size = {}, 0
        some[key] = value
        size += weight
    if some:
        yield some


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def load(text: str) -> Tree:
    """The inverse of `Tree.dumped`; raises DamagedObject."""
    try:
        parts = json.loads(text)
        tree = Tree(**{name: parts.get(name, {}) for name in Tree.__slots__})
        _check(tree)
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise DamagedObject("the object's tree is not of the expected form") from exc
    return tree


def _check(tree: Tree) -> None:
    """Raise TypeError unless every part is what it should be; groups are checked when they are listed (`children`)."""
    for part in (tree.groups, tree.datasets, tree.aliases, tree.soft_links, tree.types):
        if not isinstance(part, dict):
            raise TypeError("a part is not a table")
    if not all(isinstance(record, dict) for record in tree.datasets.values()):
        raise TypeError("a dataset is not a table")
    if not all(isinstance(target, str) for target in (*tree.aliases.values(), *tree.soft_links.values())):
        raise TypeError("a link is not a text")
    if any(tree.kind(target) is None for target in tree.aliases.values()):
        raise TypeError("a link leads nowhere")


def describe(dataset: Dataset, fillvalue: object) -> dict[str, Any]:
    """The JSON record of a dataset; what is default or what its tensor tells is left out.

    `fillvalue` is the encoded attribute of `dsmem.arrays.attributes`, or None for zero.
    """
    record: dict[str, Any] = {
        name: list(value) if isinstance(value := getattr(dataset, name), tuple) else value
        for name, default in _DEFAULTS.items()
        if getattr(dataset, name) != default
    }
    if dataset.maxshape is not None and dataset.maxshape != dataset.shape:
        record["maxshape"] = list(dataset.maxshape)
    if fillvalue is not None:
        record["fillvalue"] = fillvalue
    if dataset.shape is None:
        record["null"] = True
    if dataset.shape is None or dataset.dtype.kind == "O" or not dtypes.is_plain(dataset.dtype):
        record["dtype"] = dtypes.to_json(dataset.dtype)
    if dataset.dtype.kind == "O" and dataset.shape is not None:
        record["shape"] = list(dataset.shape)
    return record


def options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments for `Dataset` that a record holds, all but shape, dtype and fill value."""
    found = {name: record[name] for name in _DEFAULTS if name in record}
    for name in ("chunks", "compression_opts"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    return found


def join(parent: str, name: str) -> str:
    """The path of a child."""
    return f"{parent}/{name}" if parent else name


def raw(path: str) -> bytes:
    """The absolute path in the bytes of the HDF5 file, which h5py takes for names that are not UTF-8 too."""
    return b"/" + path.encode("utf-8", "surrogateescape")


def text(name: str | bytes) -> str:
    """A name that h5py gave or takes, as it is kept here: bytes that are not UTF-8 as surrogates."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def shown(name: str) -> str:
    """A name as h5py hands it out: a str, but bytes where it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return cast(str, name.encode("utf-8", "surrogateescape"))
    return name


def tensor_name(path: str) -> str:
    """The tensor that carries a dataset: its path, percent-escaped where safetensors or UTF-8 would not allow it."""
    if _PLAIN.fullmatch(path) and not path.startswith("__"):
        return path
    escaped = urllib.parse.quote(path, safe="/ !#$&'()*+,:;=?@[]^`{|}<>\\~", errors="surrogateescape")
    if escaped == path and not path.startswith("__"):
        return path
    return "%5F" + escaped[1:] if escaped.startswith("__") else escaped


def offsets_name(path: str) -> str:
    """The helper tensor with the offsets (int64, items + 1) of a variable-length dataset."""
    return f"{HELPER_PREFIX}offsets/{tensor_name(path)}"
