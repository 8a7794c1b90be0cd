"""Data that lies elsewhere: a dataset's external files and virtual sources, checked before HDF5 opens any of them.

Unless "external" is allowed no other file is touched, and what leads to one, however indirectly, is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import h5py
from h5py import h5d, h5f, h5g, h5i, h5l, h5o, h5t

from dsmem.arrays.dtypes import UnsupportedType
from dsmem.errors import Allow
from dsmem.hdf5 import filters, links
from dsmem.hdf5.chunkindex import stored_bytes
from dsmem.hdf5.places import place
from dsmem.hdf5.properties import Properties

_MOST_LINKS = 16
_DEEPEST = 16
_MOST_NAMES = 5
_SAME_FILE = "."


class NotAllowed(UnsupportedType):
    """Refused unless a flag lets it through: `allow` is the flag's value."""

    def __init__(self, message: str, *, allow: Allow) -> None:
        super().__init__(message)
        self.allow: Allow = allow


class Circular(UnsupportedType):
    """A virtual dataset that is its own source, or too deep to be sure: HDF5 crashes when it is read."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the bytes of a dataset come from."""

    outside: bool
    """From other files too."""
    stored_bytes: int
    """How many there are in all those places."""


def check(properties: Properties, allow: Collection[Allow]) -> Reach | None:
    """Where a dataset's bytes lie; None: in its own file, as its own storage.

    Raises NotAllowed for other files, Circular, and UnsupportedType for virtual sources or external files that are
    missing, and sources whose filters are not installed.
    """
    if not properties.is_external and properties.layout != h5d.VIRTUAL:
        return None
    dataset = h5py.Dataset(properties.id)
    walk = _Walk("external" in allow, h5t.py_create(dataset.dtype))
    walk.follow(dataset, ())
    return Reach(walk.outside, walk.stored_bytes)


class _Walk:
    """Follows a dataset to all that it reads, each source once."""

    def __init__(self, allowed: bool, in_memory: Any) -> None:
        """`in_memory`: the type that HDF5 is to read its data as."""
        self.outside = False
        self.stored_bytes = 0
        self._allowed = allowed
        self._in_memory = in_memory
        self._done: set[tuple[bytes, int]] = set()
        self._of_other_types: list[str] = []

    def follow(self, dataset: Any, above: tuple[tuple[bytes, int], ...]) -> None:
        """Check one dataset, and its sources if it is virtual; `above` are those that it is a source of."""
        key = (h5f.get_name(dataset.id), place(dataset.id).addr)
        if key in above:
            raise Circular("a virtual dataset over itself")
        if len(above) > _DEEPEST:
            raise Circular(f"virtual datasets more than {_DEEPEST} deep")
        if key in self._done:
            return
        self._done.add(key)
        plist = dataset.id.get_create_plist()
        layout = plist.get_layout()
        if plist.get_external_count() > 0:
            self._external_storage(plist)
        elif layout == h5d.VIRTUAL:
            self._virtual(dataset, (*above, key))
        else:
            if layout == h5d.CHUNKED:
                filters.check_installed(filters.filters_of(plist))
            self.stored_bytes += stored_bytes(dataset.id)

    def _external_storage(self, plist: Any) -> None:
        parts = [plist.get_external(index) for index in range(plist.get_external_count())]
        paths = list(dict.fromkeys(os.fsdecode(name) for name, _, _ in parts))
        if not self._allowed:
            raise NotAllowed(f"its data lies in external files ({_listed(paths)})", allow="external")
        if "HDF5_EXTFILE_PREFIX" not in os.environ:  # where to look is HDF5's matter then
            missing = [path for path in paths if not os.path.isfile(path)]
            if missing:
                raise UnsupportedType(f"its data lies in external files that are missing ({_listed(missing)})")
            self.stored_bytes += sum(os.path.getsize(path) for path in paths)
        self.outside = True

    def _virtual(self, dataset: Any, within: tuple[tuple[bytes, int], ...]) -> None:
        sources = list(dict.fromkeys((one.file_name, one.dset_name) for one in dataset.virtual_sources()))
        others = list(dict.fromkeys(file for file, _ in sources if file != _SAME_FILE))
        if others and not self._allowed:
            raise NotAllowed(f"a virtual dataset over other files ({_listed(others)})", allow="external")
        self.outside = self.outside or bool(others)
        missing: list[str] = []
        for file, name in sources:
            if not self._follow_source(dataset, _numbered(file, 0), _numbered(name, 0), within):
                missing.append(name if file == _SAME_FILE else f"{file}:{name}")
                continue
            block = 1
            while _numbered(file + name, block) != _numbered(file + name, 0):  # a pattern, for as many as there are
                if not self._follow_source(dataset, _numbered(file, block), _numbered(name, block), within):
                    break
                block += 1
        if missing:
            raise UnsupportedType(f"a virtual dataset over what is missing ({_listed(missing)})")
        if self._of_other_types:
            listed = _listed(self._of_other_types)
            raise UnsupportedType(
                f"a virtual dataset over data of a type that HDF5 can't convert to its own ({listed})"
            )

    def _follow_source(self, dataset: Any, file: str, name: str, within: tuple[tuple[bytes, int], ...]) -> bool:
        """Check one source; whether there is one of that name."""
        with ExitStack() as stack:
            source = self._source(dataset, file, name, stack)
            if isinstance(source, h5py.Dataset):
                if h5t.find(source.id.get_type(), self._in_memory) is None:
                    self._of_other_types.append(name if file == _SAME_FILE else f"{file}:{name}")
                self.follow(source, within)
                return True
        return False

    def _source(self, dataset: Any, file: str, name: str, stack: ExitStack) -> Any:
        """The source of that name, None if there is none."""
        path = name.encode("utf-8", "surrogateescape")
        if file == _SAME_FILE:
            if not self._allowed:
                return _within(dataset, path)
            opened = h5py.Group(_root(dataset))
        else:
            found = _open_beside(h5f.get_name(dataset.id), file)
            if found is None:
                return None
            opened = stack.enter_context(found)
        try:
            if links.endless(opened.id, b"/" + path) is not None:
                return None
            source = opened[b"/" + path]
        except (KeyError, OSError, RuntimeError):
            return None
        self.outside = self.outside or h5f.get_name(source.id) != h5f.get_name(dataset.id)
        return source


def _numbered(name: str, block: int) -> str:
    """The name of a source's nth block: %b is its number, %% a percent sign (H5Pset_virtual)."""
    return re.sub("%[%b]", lambda found: "%" if found[0] == "%%" else str(block), name)


def _within(dataset: Any, path: bytes) -> Any:
    """The dataset at a path of the same file, None if there is none; raises NotAllowed where it leads out of it."""
    root = _root(dataset)
    here, followed = root, 0
    todo = _parts(path)
    while todo:
        name = todo.pop()
        if not isinstance(here, h5g.GroupID) or name not in here:
            return None
        kind = here.links.get_info(name).type
        if kind == h5l.TYPE_HARD:
            here = h5o.open(here, name)
        elif kind == h5l.TYPE_SOFT:
            target = here.links.get_val(name)
            here = root if target.startswith(b"/") else here
            todo += _parts(target)
            followed += 1
            if followed > _MOST_LINKS:
                return None
        elif kind == h5l.TYPE_EXTERNAL:
            other = os.fsdecode(here.links.get_val(name)[0])
            raise NotAllowed(f"a virtual dataset over other files ({other})", allow="external")
        else:
            raise UnsupportedType("a virtual dataset over a user-defined link")
    return h5py.Dataset(here) if isinstance(here, h5d.DatasetID) else None


def _root(dataset: Any) -> Any:
    return h5g.open(h5i.get_file_id(dataset.id), b"/")


def _parts(path: bytes) -> list[bytes]:
    """The names of a path, the first one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _open_beside(above: bytes, name: str) -> Any:
    """A source file, looked for as HDF5 does (H5F_prefix_open_file): beside the file that names it, then from here."""
    directory = os.path.dirname(os.fsdecode(above))
    prefixes = [prefix for prefix in os.environ.get("HDF5_VDS_PREFIX", "").split(":") if prefix]
    plain = os.path.basename(name) if os.path.isabs(name) else name
    wanted = [name] if os.path.isabs(name) else []
    wanted += [
        os.path.join(prefix.replace("${ORIGIN}", directory), plain) for prefix in (*prefixes, directory) if prefix
    ]
    for path in (*wanted, plain):
        if os.path.isfile(path):
            try:
                return h5py.File(path, "r")
            except OSError:
                continue  # HDF5 goes on to the next place too
    return None


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_MOST_NAMES]) + (", …" if len(found) > _MOST_NAMES else "")
