"""The links of a group; and where they lead, before HDF5 follows them: at a FIFO or terminal it would wait for ever."""

from __future__ import annotations

import heapq
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import h5py
from h5py import h5, h5f, h5g, h5l, h5o, h5p

from dsmem.arrays.columns import Column
from dsmem.arrays.rows import Names, Rows
from dsmem.stopping import Held

_Link = tuple[int, bytes, int]
_MANY = 1 << 14
_AT_ONCE = 64
"""Links of a run that are read together."""
_MOST_LINKS = 16
"""As many as HDF5 follows on one way (H5Pset_nlinks)."""


def endless(group: Any, path: bytes, left: int = _MOST_LINKS) -> str | None:
    """What never ends among the files that the links on a way lead to, if any does: the path of a FIFO or a device.

    `group`: an h5py GroupID where the way begins, unless it is absolute. What can't be opened ends it: HDF5 says so.
    """
    here = h5g.open(group, b"/") if path.startswith(b"/") else group
    todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
    while todo:
        name = todo.pop()
        if not isinstance(here, h5g.GroupID) or name not in here:
            return None
        kind = here.links.get_info(name).type
        rest = b"/".join([b"", *reversed(todo)])
        if kind == h5l.TYPE_HARD:
            here = h5o.open(here, name)
        elif not left:
            return None
        elif kind == h5l.TYPE_SOFT:
            return endless(here, here.links.get_val(name) + rest, left - 1)
        elif kind == h5l.TYPE_EXTERNAL:
            return _endless_elsewhere(here, name, rest, left - 1)
        else:
            return None
    return None


def _endless_elsewhere(group: Any, name: bytes, rest: bytes, left: int) -> str | None:
    filename, target = group.links.get_val(name)
    for path in _candidates(group, os.fsdecode(filename)):
        with suppress(OSError):
            if stat.S_ISFIFO(os.stat(path).st_mode) or stat.S_ISCHR(os.stat(path).st_mode):
                return path
            with h5py.File(path, "r") as file:
                return endless(file["/"].id, b"/" + target + rest, left)
    return None


def _candidates(group: Any, filename: str) -> Iterator[str]:
    """Where HDF5 looks for the file of a link (H5Lcreate_external): beside the file that has it, and from here."""
    beside = os.path.dirname(os.fsdecode(h5f.get_name(group)))
    if os.path.isabs(filename):
        yield filename
        filename = os.path.basename(filename)
    yield os.path.join(beside, filename)
    yield filename


def listed(group: Any, held: Held, seen: Callable[[], None] | None = None) -> tuple[Names, bytearray]:
    """Names of the links in a group in h5py's order, which has them as a list of bytes, and of what type each is.

    What is raised inside of what HDF5 calls h5py loses, so nothing is. Many links are sorted here: HDF5 would take 130
    bytes for each; `seen` is called for them.
    """
    by_creation = bool(group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED)
    index = h5.INDEX_CRT_ORDER if by_creation else h5.INDEX_NAME
    names, types = Names(), bytearray()

    def keep(name: bytes, info: Any) -> None:
        names.append(name)
        types.append(info.type)

    count = group.get_num_objs()
    if count <= _MANY:
        _iterate(group, index, h5.ITER_INC, keep, held)
        return names, types
    found = _Links()

    def note(name: bytes, info: Any) -> None:
        if len(found) == count:  # parts of the index of a damaged group may come again and again, without an end
            raise OSError("a group has more links than it says")
        found.add(info.corder if by_creation else 0, name, info.type)
        if seen is not None:
            seen()

    _iterate(group, index, h5.ITER_NATIVE, note, held)
    return found.in_order()


def _iterate(group: Any, index: int, order: int, keep: Callable[[bytes, Any], None], held: Held) -> None:
    """Have HDF5 tell of all links; signals wait meanwhile."""
    failed: list[BaseException] = []

    def told(name: bytes, info: Any) -> bool | None:
        try:
            keep(name, info)
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)
            return True
        return None

    held.hold()
    try:
        group.links.iterate(told, idx_type=index, order=order, info=True)
    finally:
        held.release()
    if failed:
        raise failed[0]


class _Links:
    """Links by number of creation (0: that does not count) and name, with their types."""

    def __init__(self) -> None:
        self._names, self._types = Names(), bytearray()
        """As long as they come in order."""
        self._created = Column("q")
        self._last = (-1, b"")
        self._rest: Rows[_Link] = Rows()
        """Those that come behind, in runs, each in order."""
        self._runs = [0]
        self._some: list[_Link] = []

    def __len__(self) -> int:
        return len(self._names) + len(self._rest) + len(self._some)

    def add(self, created: int, name: bytes, kind: int) -> None:
        if not self._is_parted and self._last <= (created, name):
            self._last = created, name
            self._created.append(created)
            self._names.append(name)
            self._types.append(kind)
            return
        self._some.append((created, name, kind))
        if len(self._some) == _MANY:
            self._end_run()

    @property
    def _is_parted(self) -> bool:
        return bool(self._some) or len(self._runs) > 1

    def in_order(self) -> tuple[Names, bytearray]:
        """All of them; nothing is added any more."""
        if not self._is_parted:
            return self._names, self._types
        self._end_run()
        names, types = Names(), bytearray()
        for _, name, kind in heapq.merge(self._first_run(), *map(self._run, itertools.pairwise(self._runs))):
            names.append(name)
            types.append(kind)
        return names, types

    def _end_run(self) -> None:
        for link in sorted(self._some):
            self._rest.append(link)
        self._some.clear()
        self._runs.append(len(self._rest))

    def _first_run(self) -> Iterator[_Link]:
        created = self._created.array()
        numbers = (int(number) for number in created)
        for number, name, kind in zip(numbers, self._names, self._types, strict=True):
            yield number, name.encode("utf-8", "surrogateescape"), kind

    def _run(self, ends: tuple[int, int]) -> Iterator[_Link]:
        for begin in range(*ends, _AT_ONCE):
            yield from [self._rest[number] for number in range(begin, min(begin + _AT_ONCE, ends[1]))]
