"""What a scan found in a file, in little memory: there may be hundreds of thousands of datasets and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsmem.arrays import tree
from dsmem.arrays.attributes import Apart
from dsmem.arrays.rows import Names, Rows, Table
from dsmem.arrays.tree import Tree
from dsmem.errors import Refusal
from dsmem.hdf5.items import Items
from dsmem.scratch import Scratch


class LongAttribute(NamedTuple):
    """One whose value lies apart: where it is, which bytes of those of all it has, and these, if they are at hand."""

    path: str
    name: str
    begin: int
    end: int
    held: memoryview | None


class Attributes:
    """Attributes as JSON, by the path of what has them; what is long of them lies apart, one behind the other."""

    def __init__(self) -> None:
        self._inside: Table[dict[str, Any]] = Table()
        """Values by name, each a table; a number in the place of one that lies apart."""
        self._apart: Rows[tuple[str, str, int, dict[str, Any], str, int]] = Rows()
        """By that number: path, name, where it begins, and what `Apart` says."""
        self._held: dict[int, memoryview] = {}
        self.apart_bytes = 0
        """Of all that lies apart."""

    def add(self, path: str, inside: Mapping[str, object]) -> None:
        """Add what a node has: values as JSON, or `Apart`."""
        plain = {name: self._put(path, name, one) if isinstance(one, Apart) else one for name, one in inside.items()}
        self._inside.add(path, plain)

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path, and attributes by name; of what lies apart the JSON says where."""
        for path, inside in self._inside.items():
            yield path, {name: self._placed(one) if type(one) is int else one for name, one in inside.items()}

    def apart(self) -> Iterator[LongAttribute]:
        """Those that lie apart."""
        for number, (path, name, begin, _, _, size_bytes) in enumerate(self._apart):
            yield LongAttribute(path, name, begin, begin + size_bytes, self._held.get(number))

    def kept(self, wanted: Callable[[str], bool]) -> Attributes:
        """Those of wanted paths."""
        left = Attributes()
        for path, inside in self._inside.items():
            if wanted(path):
                left.add(path, {name: self._value(one) if type(one) is int else one for name, one in inside.items()})
        return left

    def _put(self, path: str, name: str, value: Apart) -> int:
        number = len(self._apart)
        if value.held is not None:
            self._held[number] = value.held
        self._apart.append((path, name, self.apart_bytes, value.rest, value.key, value.size_bytes))
        self.apart_bytes += value.size_bytes
        return number

    def _value(self, number: int) -> Apart:
        _, _, _, rest, key, size_bytes = self._apart[number]
        return Apart(rest, key, size_bytes, self._held.get(number))

    def _placed(self, number: int) -> object:
        return self._value(number).placed(self._apart[number][2])


class Groups:
    """Groups by path, each with the names of its links in h5py's order."""

    def __init__(self) -> None:
        self._rows: Rows[tuple[str, bytes]] = Rows()
        self._large: dict[int, Names] = {}
        """Those that are not copied: by number, where the row has none."""
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> Names:
        """None yet, of a group to be added or of what is below one: there may be many groups that have many."""
        return Names(scratch=self._scratch)

    def add(self, path: str, names: Names) -> None:
        """Add a group behind the others; nobody is to change its names any more."""
        if is_large := names.are_stored():
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
    noted: Attributes = field(default_factory=Attributes)
    """None lie apart of a scan to be mapped."""
    refusals: list[Refusal] = field(default_factory=list)
    is_outside: bool = False
    """Some of it lies in other files."""
    seen: Callable[[], object] = bool
    """To be called now and then where it takes long to tell of all."""
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
        """By path and name, as JSON, made anew."""
        return dict(self.noted.items())

    def dumped(self) -> Iterator[str]:
        """What `tree.dumped()` gives, without it."""
        parts: dict[str, tree.Listed] = {"groups": self.groups, "datasets": _Records(self.items)}
        for part in tree.dumped({**parts, "aliases": self.aliases, "soft_links": self.soft_links, "types": self.types}):
            self.seen()
            yield part


class _Records:
    def __init__(self, items: Items) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._items.records()
