"""Everything an HDF5 file holds, listed once: tree and attributes, how each dataset can be read, what is refused."""

from __future__ import annotations

import fnmatch
import os
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5i, h5l, h5o

from dsmem.arrays import dtypes, tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.arrays.tree import Tree
from dsmem.errors import Allow, BadSource, Refusal
from dsmem.hdf5 import links, sizes
from dsmem.hdf5.attrs import AttributeReader
from dsmem.hdf5.chunkindex import DamagedIndex, stored_bytes
from dsmem.hdf5.datasets import Item, inspect
from dsmem.hdf5.elsewhere import NotAllowed
from dsmem.hdf5.opening import reason, translated
from dsmem.hdf5.places import Place, kind, place
from dsmem.hdf5.properties import Alike

_NODES: Mapping[int, Callable[[Any], Any]] = {
    h5i.GROUP: h5py.Group,
    h5i.DATASET: h5py.Dataset,
    h5i.DATATYPE: h5py.Datatype,
}


@dataclass(slots=True)
class Scan:
    """What a file holds."""

    tree: Tree = field(default_factory=Tree)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path and name: as JSON, or `attributes.Apart` for what is long (not where it is scanned to be mapped)."""
    items: list[Item] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    is_outside: bool = False
    """Some of it lies in other files."""
    others: dict[int, Any] = field(default_factory=dict)
    """An object of every other file that a link leads to, by HDF5's file number: it keeps that file open and locked."""


class NotMappable(Exception):
    """Raised by `scan(mappable=True)` at the first thing that can't be mapped; the message says what and why."""


def scan(
    file: Any,
    path: str,
    *,
    only: Sequence[str] = (),
    allow: Collection[Allow] = (),
    mappable: bool = False,
    file_bytes: int,
    seen: Callable[[], None] | None = None,
) -> Scan:
    """List an open h5py.File; with `only`, the datasets that a glob matches and the groups above them.

    With "external" in `allow` (the file opened by its name) what external links lead to is listed like any other group
    or dataset. `seen` is called for every link. Raises BadSource when h5py can't read the structure, NotMappable (see
    there) when asked.
    """
    with AttributeReader(allow, of_all=not only, apart=not mappable) as attrs, translated(path):
        walk = _Walk(path, [pattern.strip("/") for pattern in only], allow, mappable, file_bytes, seen, attrs)
        root = file["/"]
        if not isinstance(root, h5py.Group):
            raise BadSource(f"{path}: its root is not a group")
        walk.group(root, "")
        walk.check_links()
        if "oversized" not in allow and not mappable:
            walk.judge_sizes(file)
    if only:
        walk.prune()
    walk.sum_up()
    return walk.found


class _Walk:
    def __init__(
        self,
        path: str,
        only: Sequence[str],
        allow: Collection[Allow],
        mappable: bool,
        file_bytes: int,
        at_link: Callable[[], None] | None,
        attrs: AttributeReader,
    ) -> None:
        self.found = Scan()
        self._path = path
        self._only = only
        self._allow = allow
        self._mappable = mappable
        self._file_bytes = file_bytes
        self._at_link = at_link
        self._attrs = attrs
        self._alike = Alike()
        self._seen: dict[Place, str] = {}
        """What other links may lead to again."""
        self._linked_once = array("Q")
        """Addresses of the rest: a file may have many datasets, and what is said of each takes 200 bytes."""
        self._owned: list[tuple[str, Refusal]] = []
        """Refusals that go when the node they belong to is not selected."""
        self._outside: set[str] = set()
        """Paths of what other files hold."""
        self._fileno = 0

    def group(self, root: Any, root_path: str) -> None:
        here = place(root.id)
        self._fileno = here.fileno
        self._seen[here] = root_path
        todo = [(root, root_path)]
        while todo:
            group, path = todo.pop()
            names = self.found.tree.groups[path] = []
            self._read_attributes(group.id, path)
            below: list[tuple[Any, str]] = []
            for name in map(tree.text, group):
                child = tree.join(path, name)
                if self._link(group.id, name.encode("utf-8", "surrogateescape"), child, below):
                    names.append(name)
            todo.extend(reversed(below))

    def check_links(self) -> None:
        """Refuse a file that has more links to an object than it counts: h5py would say that they are one."""
        addresses = np.sort(np.frombuffer(self._linked_once, np.uint64))
        if (addresses[1:] == addresses[:-1]).any():
            why = "several links lead to what it says has one"
            raise NotMappable(why) if self._mappable else BadSource(f"{self._path} is damaged: {why}")

    def judge_sizes(self, file: Any) -> None:
        """Refuse datasets that are possible each by itself, and hardly all together."""

        def stored(item: Item) -> int:
            if item.storage_bytes is not None:
                return item.storage_bytes
            with translated(self._path, f"/{item.path}"):
                return stored_bytes(file[tree.raw(item.path)].id)

        chosen, why = sizes.too_many(self.found.items, self._file_bytes, stored)
        for item in chosen:
            for path in (item.path, *(path for path, to in self.found.tree.aliases.items() if to == item.path)):
                self._refuse(path, why, allow="oversized")
        self._drop({item.path for item in chosen})

    def _drop(self, paths: set[str]) -> None:
        """Take datasets out, as if they had been refused when they were met."""
        found = self.found.tree
        gone = paths | {path for path, target in found.aliases.items() if target in paths}
        found.datasets = {path: record for path, record in found.datasets.items() if path not in paths}
        found.aliases = {path: target for path, target in found.aliases.items() if path not in gone}
        found.groups = {
            path: [name for name in names if tree.join(path, name) not in gone] for path, names in found.groups.items()
        }
        self.found.items = [item for item in self.found.items if item.path not in paths]
        self.found.attributes = {path: a for path, a in self.found.attributes.items() if path not in paths}

    def prune(self) -> None:
        """Drop groups with nothing selected below, and links that lead out of what is left."""
        found = self.found.tree
        kept = {""}
        for path in (*found.datasets, *(path for path, target in found.aliases.items() if target in found.datasets)):
            while path:
                kept.add(path)
                path = path.rpartition("/")[0]
        found.groups = {path: names for path, names in found.groups.items() if path in kept}
        found.types.clear()
        found.aliases = {path: target for path, target in found.aliases.items() if target in kept}
        found.soft_links = {
            path: target for path, target in found.soft_links.items() if found.resolve(path) is not None
        }
        for path, names in found.groups.items():
            links = kept | found.aliases.keys() | found.soft_links.keys()
            found.groups[path] = [name for name in names if tree.join(path, name) in links]
        self.found.attributes = {path: a for path, a in self.found.attributes.items() if path in kept}
        gone = {id(refusal) for owner, refusal in self._owned if owner not in kept}
        self.found.refusals = [refusal for refusal in self.found.refusals if id(refusal) not in gone]

    def sum_up(self) -> None:
        """Say whether anything of what is left lies in other files."""
        found = self.found.tree
        nodes = found.groups.keys() | found.datasets.keys() | found.types.keys()
        self.found.is_outside = not self._outside.isdisjoint(nodes) or any(item.is_outside for item in self.found.items)

    def _link(self, group: Any, name: bytes, path: str, below: list[tuple[Any, str]]) -> bool:
        """Record one link; whether its name belongs to the tree."""
        if self._at_link is not None:
            self._at_link()
        link = group.links.get_info(name).type
        if link == h5l.TYPE_EXTERNAL:
            return self._external_link(group, name, path, below)
        if link == h5l.TYPE_SOFT and place(group).fileno == self._fileno:
            self.found.tree.soft_links[path] = group.links.get_val(name).decode("utf-8", "surrogateescape")
            return True
        if link == h5l.TYPE_SOFT:
            return self._soft_link_elsewhere(group, name, path, below)
        if link != h5l.TYPE_HARD:
            if self._wanted(path):
                self._refuse(path, "a user-defined link")
            return False
        return self._object(group, name, path, below)

    def _external_link(self, group: Any, name: bytes, path: str, below: list[tuple[Any, str]]) -> bool:
        filename, target = group.links.get_val(name)
        where = f"{os.fsdecode(filename)}:{tree.text(target)}"
        if "external" in self._allow:
            try:
                return self._object_elsewhere(group, name, path, below)
            except (KeyError, OSError, RuntimeError) as exc:
                if self._wanted(path):
                    self._refuse(path, f"an external link to {where}, which can't be opened ({reason(exc)})")
        elif self._wanted(path):
            self._refuse(path, f"an external link: it leads to {where}", allow="external")
        return False

    def _soft_link_elsewhere(self, group: Any, name: bytes, path: str, below: list[tuple[Any, str]]) -> bool:
        """A soft link of another file, whose paths mean nothing here: recorded as what it leads to."""
        try:
            return self._object_elsewhere(group, name, path, below)
        except (KeyError, OSError, RuntimeError) as exc:
            if self._wanted(path):
                target = group.links.get_val(name).decode("utf-8", "surrogateescape")
                self._refuse(path, f"a soft link of another file to {target}, which can't be opened ({reason(exc)})")
        return False

    def _object_elsewhere(self, group: Any, name: bytes, path: str, below: list[tuple[Any, str]]) -> bool:
        """`_object`, where HDF5 may open other files on the way."""
        endless = links.endless(group, name)
        if endless is not None:
            raise OSError(f"{endless} is not a file")
        return self._object(group, name, path, below)

    def _object(self, group: Any, name: bytes, path: str, below: list[tuple[Any, str]]) -> bool:
        """Record what a link leads to; raises KeyError, OSError or RuntimeError where it leads nowhere."""
        opened = h5o.open(group, name)
        here, what = place(opened), kind(opened)
        if what == "dataset" and not self._wanted(path):
            return False
        if here.fileno != self._fileno:
            # Kept open: a file that is closed and opened again has another number, and circles would not be seen.
            self.found.others.setdefault(here.fileno, opened)
        known = self._seen.get(here)
        if known is not None:
            self.found.tree.aliases[path] = known
            return True
        if what == "group":
            below.append((h5py.Group(opened), path))
        elif what == "dataset":
            if not self._dataset(opened, path, in_other_file=here.fileno != self._fileno):
                return False
        elif not self._named_type(opened, path):
            return False
        if what == "group" or here.links != 1 or "external" in self._allow:
            self._seen[here] = path
        else:
            self._linked_once.append(here.addr)
        if here.fileno != self._fileno:
            self._outside.add(path)
        return True

    def _wanted(self, path: str) -> bool:
        return not self._only or any(
            fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*") for pattern in self._only
        )

    def _refuse(self, path: str, reason: str, owner: str | None = None, *, allow: Allow | None = None) -> None:
        if self._mappable:
            raise NotMappable(f"/{path}: {reason}")
        refusal = Refusal(f"/{path}", reason, allow)
        self.found.refusals.append(refusal)
        if owner is not None:
            self._owned.append((owner, refusal))

    def _named_type(self, opened: Any, path: str) -> bool:
        try:
            self.found.tree.types[path] = dtypes.to_json(opened.dtype)
        except (UnsupportedType, TypeError) as exc:
            self._refuse(path, f"a named type: {exc}", path)
            return False
        self._read_attributes(opened, path)
        return True

    def _dataset(self, opened: Any, path: str, *, in_other_file: bool) -> bool:
        try:
            item = inspect(
                opened, path, self._file_bytes, allow=self._allow, in_other_file=in_other_file, alike=self._alike
            )
            record = self._alike.record(item.info)
        except (UnsupportedType, DamagedIndex) as exc:
            self._refuse(path, str(exc), allow=exc.allow if isinstance(exc, NotAllowed) else None)
            return False
        if self._mappable and item.tier not in ("contiguous", "empty"):
            raise NotMappable(f"/{path}: {item.why}")
        self.found.tree.datasets[path] = record
        self.found.items.append(item)
        self._read_attributes(opened, path)
        return True

    def _read_attributes(self, opened: Any, path: str) -> None:
        if not h5a.get_num_attrs(opened):
            return
        node = _NODES[h5i.get_type(opened)](opened)
        encoded: dict[str, Any] = {}
        for name in node.attrs:
            try:
                if self._mappable and self._attrs.may_be_much(node, name):
                    raise NotMappable(f"/{path}@{tree.text(name)}: an attribute that may be very large")
                encoded[tree.text(name)] = self._attrs.read(node, name)
            except UnsupportedType as exc:
                allow = exc.allow if isinstance(exc, NotAllowed) else None
                self._refuse(f"{path}@{tree.text(name)}", f"an attribute with {exc}", path, allow=allow)
            except (TypeError, ValueError, OSError, KeyError, RuntimeError) as exc:
                self._refuse(f"{path}@{tree.text(name)}", f"an attribute that h5py can't read ({reason(exc)})", path)
        if encoded:
            self.found.attributes[path] = encoded
