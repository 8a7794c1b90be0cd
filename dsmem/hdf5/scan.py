"""Everything an HDF5 file holds, listed once: tree and attributes, how each dataset can be read, what is refused."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import h5py
from h5py import h5a, h5i, h5l, h5o

from dsmem import malloc, stopping
from dsmem.arrays import dtypes, tree
from dsmem.arrays.columns import Column, in_order
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.arrays.header import MAX_HEADER_BYTES
from dsmem.arrays.rows import Names, Table
from dsmem.errors import Allow, BadSource, Refusal
from dsmem.hdf5 import links, sizes
from dsmem.hdf5.attrs import AttributeReader
from dsmem.hdf5.chunkindex import DamagedIndex, stored_bytes
from dsmem.hdf5.datasets import Item, inspect
from dsmem.hdf5.elsewhere import NotAllowed
from dsmem.hdf5.found import Groups, Scan
from dsmem.hdf5.met import Met
from dsmem.hdf5.opening import reason, translated
from dsmem.hdf5.places import kind, place
from dsmem.hdf5.properties import Alike
from dsmem.stopping import Held

_FIRST_CHECK = 1 << 10
_MANY = 1 << 14
_NODES: Mapping[int, Callable[[Any], Any]] = {
    h5i.GROUP: h5py.Group,
    h5i.DATASET: h5py.Dataset,
    h5i.DATATYPE: h5py.Datatype,
}


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
    or dataset. `seen` is called for every link, and now and then when all is told of. Raises BadSource when h5py can't
    read the structure, NotMappable (see there) when asked.
    """
    with (
        stopping.held() as held,
        AttributeReader(allow, of_all=not only, apart=not mappable) as attrs,
        translated(path),
    ):
        held.release()
        walk = _Walk(path, [pattern.strip("/") for pattern in only], allow, mappable, file_bytes, seen, attrs, held)
        root = file["/"]
        if not isinstance(root, h5py.Group):
            raise BadSource(f"{path}: its root is not a group")
        walk.all_below(root)
        walk.check_links()
        if "oversized" not in allow and not mappable:
            walk.judge_sizes(file)
    if only:
        walk.prune()
    walk.sum_up()
    if seen is not None:
        walk.found.seen = seen
    if len(walk.found.items) > _MANY:
        malloc.give_back()  # HDF5 has let go of much
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
        held: Held,
    ) -> None:
        self.found = Scan()
        self._path = path
        self._only = only
        self._allow = allow
        self._mappable = mappable
        self._file_bytes = file_bytes
        self._at_link = at_link
        self._attrs = attrs
        self._held = held
        self._alike = Alike()
        self._met = Met()
        """What other links may lead to again."""
        self._linked_once = Column("Q")
        """Addresses of the rest: a file may have many, and what is said of each takes 200 bytes."""
        self._checked_at = _FIRST_CHECK
        self._above: set[int] = set()
        """Addresses of the groups on the way to where it is."""
        self._kept_open: dict[str, Any] = {}
        """Groups of other files, which may change: listed is what was looked at."""
        self._name_bytes = 0
        self._owned: list[tuple[str, Refusal]] = []
        """Refusals that go when the node they belong to is not selected."""
        self._outside = Names()
        """Paths of what other files hold."""
        self._fileno = 0

    def all_below(self, root: Any) -> None:
        """List every group before what is below it; open are the ones on the way to where it is."""
        here = place(root.id)
        self._fileno = here.fileno
        self._met.add(here, "")
        todo = [(root.id, "", here.addr, iter(self._group(root.id, "")))]
        while todo:
            group, path, address, below = todo[-1]
            name = next(below, None)
            if name is None:
                self._above.discard(address)
                todo.pop()
                continue
            child_path = tree.join(path, name)
            child = self._kept_open.pop(child_path, None)
            child = h5o.open(group, _raw(name)) if child is None else child
            address = place(child).addr
            self._above.add(address)
            todo.append((child, child_path, address, iter(self._group(child, child_path))))

    def _group(self, group: Any, path: str) -> Names:
        """List a group, and what of its links leads to datasets and named types; the names of the groups in it."""
        self._read_attributes(group, path)
        names, types = links.listed(group, self._held, self._at_link)
        below, kept = self.found.groups.names(), self.found.groups.names()
        for name, link in zip(names, types, strict=True):
            child = tree.join(path, name)
            if not self._link(group, _raw(name), link, child, below):
                continue
            kept.append(name)
            self._name_bytes += len(child)
            if self._name_bytes > MAX_HEADER_BYTES and not self._only and not self._mappable:
                raise BadSource(f"{self._path}: names take more than {MAX_HEADER_BYTES:,} bytes, which is the most")
        self.found.groups.add(path, kept)
        return below

    def _met_once(self, address: int) -> None:
        """Note an object that has one link, as it says; where it has more, looking through the file may never end."""
        if address in self._above:
            raise self._miscounted()
        self._linked_once.append(address)
        if len(self._linked_once) >= self._checked_at:
            self._checked_at *= 2
            self.check_links()
            if len(self._linked_once) > _MANY:
                malloc.give_back()  # HDF5's heap has many holes by now

    def check_links(self) -> None:
        """Refuse a file that has more links to an object than it counts: h5py would say that they are one."""
        addresses = self._linked_once.array()
        for some in in_order(addresses):
            found = addresses[some]
            if (found[1:] == found[:-1]).any():
                raise self._miscounted()

    def _miscounted(self) -> Exception:
        why = "several links lead to what it says has one"
        return NotMappable(why) if self._mappable else BadSource(f"{self._path} is damaged: {why}")

    def judge_sizes(self, file: Any) -> None:
        """Refuse datasets that are possible each by itself, and hardly all together."""

        def stored(item: Item) -> int:
            if item.storage_bytes is not None:
                return item.storage_bytes
            with translated(self._path, f"/{item.path}"):
                return stored_bytes(file[tree.raw(item.path)].id)

        chosen, why = sizes.too_many(self.found.items, self._file_bytes, stored)
        if not chosen:
            return
        paths = {item.path for item in chosen}
        aliases = {path: to for path, to in self.found.aliases.items() if to in paths}
        for item in chosen:
            for path in (item.path, *(path for path, to in aliases.items() if to == item.path)):
                self._refuse(path, why, allow="oversized")
        gone = paths | aliases.keys()
        self.found.aliases = self.found.aliases.kept(lambda path, _: path not in gone)
        self._keep(lambda path: path not in gone, lambda link: link not in gone)

    def _keep(self, node: Callable[[str], bool], link: Callable[[str], bool]) -> None:
        """Leave out groups, datasets and what is noted of others, and links of other names."""
        found = self.found
        groups = Groups()
        for path, names in found.groups.items():
            if node(path):
                kept = groups.names()
                for name in names:
                    if link(tree.join(path, name)):
                        kept.append(name)
                groups.add(path, kept)
        found.groups = groups
        found.items = found.items.kept(node)
        found.noted = found.noted.kept(node)

    def prune(self) -> None:
        """Drop groups with nothing selected below, and links that lead out of what is left."""
        found = self.found
        selected = {item.path for item in found.items}
        kept = {""}
        for path in (*selected, *(path for path, target in found.aliases.items() if target in selected)):
            while path:
                kept.add(path)
                path = path.rpartition("/")[0]
        found.types = Table()
        found.aliases = found.aliases.kept(lambda _, target: target in kept)
        self._keep(kept.__contains__, lambda _: True)
        left = found.tree
        found.soft_links = found.soft_links.kept(lambda path, _: left.resolve(path) is not None)
        links = kept | left.aliases.keys() | dict(found.soft_links.items()).keys()
        self._keep(kept.__contains__, links.__contains__)
        gone = {id(refusal) for owner, refusal in self._owned if owner not in kept}
        found.refusals = [refusal for refusal in found.refusals if id(refusal) not in gone]

    def sum_up(self) -> None:
        """Say whether anything of what is left lies in other files."""
        found = self.found
        found.is_outside = len(found.items.where(lambda item: item.is_outside)) > 0
        if self._outside and not found.is_outside:
            left = found.tree
            found.is_outside = any(left.kind(path) is not None for path in self._outside)

    def _link(self, group: Any, name: bytes, link: int, path: str, below: Names) -> bool:
        """Record one link, its name in `below` if it leads to a group to be listed; whether it belongs to the tree."""
        if self._at_link is not None:
            self._at_link()
        if link == h5l.TYPE_EXTERNAL:
            return self._external_link(group, name, path, below)
        if link == h5l.TYPE_SOFT and place(group).fileno == self._fileno:
            self.found.soft_links.add(path, group.links.get_val(name).decode("utf-8", "surrogateescape"))
            return True
        if link == h5l.TYPE_SOFT:
            return self._soft_link_elsewhere(group, name, path, below)
        if link != h5l.TYPE_HARD:
            if self._wanted(path):
                self._refuse(path, "a user-defined link")
            return False
        return self._object(group, name, path, below)

    def _external_link(self, group: Any, name: bytes, path: str, below: Names) -> bool:
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

    def _soft_link_elsewhere(self, group: Any, name: bytes, path: str, below: Names) -> bool:
        """A soft link of another file, whose paths mean nothing here: recorded as what it leads to."""
        try:
            return self._object_elsewhere(group, name, path, below)
        except (KeyError, OSError, RuntimeError) as exc:
            if self._wanted(path):
                target = group.links.get_val(name).decode("utf-8", "surrogateescape")
                self._refuse(path, f"a soft link of another file to {target}, which can't be opened ({reason(exc)})")
        return False

    def _object_elsewhere(self, group: Any, name: bytes, path: str, below: Names) -> bool:
        """`_object`, where HDF5 may open other files on the way."""
        endless = links.endless(group, name)
        if endless is not None:
            raise OSError(f"{endless} is not a file")
        return self._object(group, name, path, below)

    def _object(self, group: Any, name: bytes, path: str, below: Names) -> bool:
        """Record what a link leads to; raises KeyError, OSError or RuntimeError where it leads nowhere."""
        opened = h5o.open(group, name)
        here, what = place(opened), kind(opened)
        if what == "dataset" and not self._wanted(path):
            return False
        is_elsewhere = here.fileno != self._fileno
        if is_elsewhere:
            # Kept open: a file that is closed and opened again has another number, and circles would not be seen.
            self.found.others.setdefault(here.fileno, opened)
        known = self._met.path(here)
        if known is not None:
            self.found.aliases.add(path, known)
            return True
        if what == "group":
            below.append(name)
            if is_elsewhere:
                self._kept_open[path] = opened
        elif what == "dataset":
            if not self._dataset(opened, path, in_other_file=is_elsewhere):
                return False
        elif not self._named_type(opened, path):
            return False
        if is_elsewhere:
            self._outside.append(path)
        if is_elsewhere or here.links != 1 or "external" in self._allow:
            self._met.add(here, path)
        else:
            self._met_once(here.addr)
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
            self.found.types.add(path, dtypes.to_json(opened.dtype))
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
            if self._mappable and item.tier not in ("contiguous", "empty"):
                raise NotMappable(f"/{path}: {item.why}")
            self.found.items.append(item)
        except (UnsupportedType, DamagedIndex) as exc:
            self._refuse(path, str(exc), allow=exc.allow if isinstance(exc, NotAllowed) else None)
            return False
        self._read_attributes(opened, path)
        return True

    def _read_attributes(self, opened: Any, path: str) -> None:
        if not h5a.get_num_attrs(opened):
            return
        node = _NODES[h5i.get_type(opened)](opened)
        inside: dict[str, Any] = {}
        for name in node.attrs:
            called = tree.text(name)
            try:
                if self._mappable and self._attrs.may_be_much(node, name):
                    raise NotMappable(f"/{path}@{called}: an attribute that may be very large")
                inside[called] = self._attrs.read(node, name)
            except UnsupportedType as exc:
                allow = exc.allow if isinstance(exc, NotAllowed) else None
                self._refuse(f"{path}@{called}", f"an attribute with {exc}", path, allow=allow)
            except (TypeError, ValueError, OSError, KeyError, RuntimeError) as exc:
                self._refuse(f"{path}@{called}", f"an attribute that h5py can't read ({reason(exc)})", path)
        if inside:
            self.found.noted.add(path, inside)


def _raw(name: str) -> bytes:
    """The name of a link, as the file has it."""
    return name.encode("utf-8", "surrogateescape")
