"""The links of a group; and where they lead, before HDF5 follows them: at a FIFO or terminal it would wait for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h5py
from h5py import h5, h5f, h5g, h5l, h5o, h5p

from dsmem.arrays import tree
from dsmem.arrays.rows import Names
from dsmem.stopping import Held

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


def listed(group: Any, held: Held) -> tuple[Names, dict[str, int]]:
    """Names of the links in a group in h5py's order, which has them as a list of bytes, and what is no hard link.

    What is raised inside of what HDF5 calls h5py loses, so nothing is: signals wait meanwhile.
    """
    created = group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    names = Names()
    others: dict[str, int] = {}
    failed: list[BaseException] = []

    def keep(name: bytes, info: Any) -> bool | None:
        try:
            names.append(name)
            if info.type != h5l.TYPE_HARD:
                others[tree.text(name)] = info.type
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)
            return True
        return None

    held.hold()
    try:
        group.links.iterate(keep, idx_type=h5.INDEX_CRT_ORDER if created else h5.INDEX_NAME, info=True)
    finally:
        held.release()
    if failed:
        raise failed[0]
    return names, others
