"""What a scan found in a file, in little memory: there may be hundreds of thousands of datasets and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsmem.arrays import tree
from dsmem.arrays.attributes import Apart
from dsmem.arrays.rows import Names, Rows, Table
from dsmem.arrays.tree import Tree
from dsmem.errors import Refusal
from dsmem.hdf5.items import Items

_MANY_NAMES = 1000
APART = ...
"""What stands in `Scan.noted` for a value that lies apart."""


class LongAttribute(NamedTuple):
    """One whose value lies apart: where it is, which bytes of those of all it has, and these, if they are at hand."""

    path: str
    name: str
    begin: int
    end: int
    held: memoryview | None


class LongAttributes:
    """Attributes whose values lie apart, one behind the other."""

    def __init__(self) -> None:
        self._rows: Rows[tuple[str, str, dict[str, Any], str, int]] = Rows()
        """Path, name, and what `Apart` says."""
        self._held: dict[int, memoryview] = {}
        self.size_bytes = 0
        """Of all values."""

    def __iter__(self) -> Iterator[LongAttribute]:
        begin = 0
        for number, (path, name, _, _, size_bytes) in enumerate(self._rows):
            yield LongAttribute(path, name, begin, begin + size_bytes, self._held.get(number))
            begin += size_bytes

    def add(self, path: str, name: str, value: Apart) -> None:
        """Add a value behind the others."""
        if value.held is not None:
            self._held[len(self._rows)] = value.held
        self._rows.append((path, name, value.rest, value.key, value.size_bytes))
        self.size_bytes += value.size_bytes

    def placed(self) -> Iterator[object]:
        """The JSON of each, which says where its bytes lie."""
        begin = 0
        for _, _, rest, key, size_bytes in self._rows:
            yield Apart(rest, key, size_bytes).placed(begin)
            begin += size_bytes

    def kept(self, wanted: Callable[[str], bool]) -> LongAttributes:
        """Those of wanted paths."""
        left = LongAttributes()
        for number, (path, name, rest, key, size_bytes) in enumerate(self._rows):
            if wanted(path):
                left.add(path, name, Apart(rest, key, size_bytes, self._held.get(number)))
        return left


class Groups:
    """Groups by path, each with the names of its links in h5py's order."""

    def __init__(self) -> None:
        self._rows: Rows[tuple[str, bytes]] = Rows()
        self._large: dict[int, Names] = {}
        """Those that are not copied: by number, where the row has none."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, path: str, names: Names) -> None:
        """Add a group behind the others; nobody is to change its names any more."""
        if is_large := len(names) > _MANY_NAMES:
            self._large[len(self._rows)] = names
        self._rows.append((path, b"" if is_large else names.joined()))

    def items(self) -> Iterator[tuple[str, Names]]:
        """All groups, in order."""
        for number, (path, joined) in enumerate(self._rows):
            yield path, self._large.get(number) or Names(joined)


@dataclass(slots=True)
class Scan:
    """What a file holds."""

    groups: Groups = field(default_factory=Groups)
    items: Items = field(default_factory=Items)
    aliases: Table[str] = field(default_factory=Table)
    soft_links: Table[str] = field(default_factory=Table)
    types: Table[object] = field(default_factory=Table)
    noted: Table[dict[str, Any]] = field(default_factory=Table)
    """Attributes by path and name, as JSON; APART in the place of those in `apart`."""
    apart: LongAttributes = field(default_factory=LongAttributes)
    """Those that are long, in the order of `noted`; none of a scan to be mapped."""
    refusals: list[Refusal] = field(default_factory=list)
    is_outside: bool = False
    """Some of it lies in other files."""
    others: dict[int, Any] = field(default_factory=dict)
    """An object of every other file that a link leads to, by HDF5's file number: it keeps that file open and locked."""

    @property
    def tree(self) -> Tree:
        """All but the data and the attributes, made anew."""
        groups = {path: list(names) for path, names in self.groups.items()}
        records, types = dict(self.items.records()), dict(self.types.items())
        return Tree(groups, records, dict(self.aliases.items()), dict(self.soft_links.items()), types)

    @property
    def attributes(self) -> dict[str, dict[str, Any]]:
        """Those that do not lie apart, by path and name, made anew."""
        return dict(self.noted.items())

    def dumped(self) -> Iterator[str]:
        """What `tree.dumped()` gives, without it."""
        parts: dict[str, tree.Listed] = {"groups": self.groups, "datasets": _Records(self.items)}
        return tree.dumped({**parts, "aliases": self.aliases, "soft_links": self.soft_links, "types": self.types})


class _Records:
    def __init__(self, items: Items) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._items.records()
