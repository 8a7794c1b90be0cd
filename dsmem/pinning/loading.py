"""How `pin` reads an HDF5 file: first what it holds, then its bytes into a draft.

`opened` does so in this process, `dsmem.pinning.untrusted.opened` in a child that may crash; what `pin` does around it
is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from dsmem.arrays import tree
from dsmem.arrays.header import HeaderTooLong
from dsmem.arrays.layout import TooLarge
from dsmem.errors import BadSource, Refusal
from dsmem.hdf5 import opening
from dsmem.hdf5.found import Scan
from dsmem.hdf5.scan import scan
from dsmem.pinning import filling, planning
from dsmem.pinning.beside import Need, beside_bytes
from dsmem.pinning.filling import Loaded
from dsmem.pinning.source import Source
from dsmem.progress import Progress
from dsmem.store.draft import Draft
from dsmem.store.refs import Provenance

_LISTED = 10


class Reader(Protocol):
    """A file that has been looked through."""

    @property
    def refusals(self) -> Sequence[Refusal]:
        """What can't be pinned exactly."""
        ...

    @property
    def is_outside(self) -> bool:
        """Whether some of it lies in other files."""
        ...

    def plan(self, provenance: Provenance) -> Need:
        """Lay out the object (`provenance` as wide as the one to be sealed in); what it needs, at a good guess."""
        ...

    def fill(self, draft: Draft, *, stream_algo: str | None, verify: bool, progress: Progress) -> Loaded:
        """Read everything that was planned into the draft."""
        ...


Opener = Callable[[Source], AbstractContextManager[Reader]]


@contextmanager
def opened(source: Source, seen: Callable[[], None] | None = None) -> Iterator[Reader]:
    """Read the file in this process; `seen` is called for every object in it.

    Raises BadSource when it can't be read, or holds nothing that is asked for.
    """
    with opening.opened(source.fd, source.path, by_name="external" in source.allow) as file:
        found = scan(file, source.path, only=source.only, allow=source.allow, file_bytes=source.size_bytes, seen=seen)
        if source.only and not found.items and not found.refusals:
            raise nothing_selected(file, source.path, source.only)
        yield _OpenFile(source, file, found)


class _OpenFile:
    def __init__(self, source: Source, file: Any, found: Scan) -> None:
        self._source = source
        self._file = file
        self._scan = found
        self._plan: planning.Plan | None = None

    @property
    def refusals(self) -> Sequence[Refusal]:
        return self._scan.refusals

    @property
    def is_outside(self) -> bool:
        return self._scan.is_outside

    def plan(self, provenance: Provenance) -> Need:
        try:
            self._plan = planning.plan(self._scan, provenance)
        except HeaderTooLong as exc:
            raise BadSource(f"{self._source.path}: {exc}") from exc
        except TooLarge as exc:
            return Need(exc.size_bytes, 0)  # for which nobody has room
        return Need(self._plan.need_bytes, beside_bytes(self._scan.items))

    def fill(self, draft: Draft, *, stream_algo: str | None, verify: bool, progress: Progress) -> Loaded:
        assert self._plan is not None
        return filling.fill(
            self._plan, draft, self._source, self._file, stream_algo=stream_algo, verify=verify, progress=progress
        )


def nothing_selected(file: Any, path: str, only: Sequence[str]) -> BadSource:
    """The error for globs that match nothing in an open h5py.File: it says what there is."""
    found: list[str] = []
    file.visititems(lambda name, node: found.append(tree.text(name)) if hasattr(node, "shape") else None)
    listed = ", ".join(found[:_LISTED]) + (", …" if len(found) > _LISTED else "")
    return BadSource(f"{path}: nothing matches {', '.join(only)}; it holds {listed or 'no datasets'}")
