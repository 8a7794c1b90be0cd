"""Which object of which file an open handle is, and of what kind.

`h5py.h5o.get_info` would say so too, but HDF5 2.0.0 crashes in it for damaged chunk indexes, whose size it adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from h5py import h5g, h5i

from dsmem.arrays.tree import Kind

_KINDS: dict[int, Kind] = {h5i.GROUP: "group", h5i.DATASET: "dataset", h5i.DATATYPE: "type"}


@dataclass(frozen=True, slots=True)
class Place:
    """Equal for equal objects, while the file is open."""

    fileno: int
    """HDF5's number of the open file."""
    addr: int
    links: int = field(compare=False)
    """How many hard links lead to it, as the file says."""


def place(opened: Any) -> Place:
    """The place of an open object, by its low-level handle; that of a file is its root group's."""
    found = h5g.get_objinfo(opened, b".")
    fileno, addr = (low | high << 64 for low, high in (found.fileno, found.objno))
    return Place(fileno, addr, found.nlink)


def kind(opened: Any) -> Kind | None:
    """What it is; None for what this version of dsmem does not know."""
    return _KINDS.get(h5i.get_type(opened))
