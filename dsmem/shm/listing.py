"""What is in shared memory: every object with its sources, its age and its holders. Looking changes nothing.

No lock is taken and nothing is written; a list is what was true of each object at the moment it was looked at.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dsmem import proc
from dsmem.errors import DamagedObject, NotPinned, SourceMissing, UsageError
from dsmem.files import FileIdentity
from dsmem.proc import Holder
from dsmem.store import areas, objects, refs, sources
from dsmem.store.objects import Object
from dsmem.store.refs import Provenance, Ref
from dsmem.store.root import SHARED_MEMORY, Store, default_root, open_store

if TYPE_CHECKING:
    from dsmem.arrays.summary import DatasetSummary as DatasetEntry

Sort = Literal["name", "size", "age"]
State = Literal["same", "changed", "gone", "unknown"]

_LEFTOVERS = re.compile(r"glint_[0-9a-f]{32}_.+", re.DOTALL)
"""Segments of an older system: `glint_<md5>_<dataset>`."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """A file that an object was made from, and what has become of it since."""

    path: str
    """Real path; of tables and checkpoints the local path they were made from, or their name (`sources.label`)."""
    state: State
    """'same' = the object is what the file holds now; 'unknown' = the file can't be looked at."""
    partial: bool
    """Only a part of it was pinned."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the store."""

    name: str
    kind: str
    size_bytes: int
    sources: tuple[SourceState, ...]
    digest: str
    """'<algo>:<hex>' of the source's bytes; '' where that is not known."""
    age_s: float
    holders: tuple[Holder, ...] | None
    """None = unknown: processes of this user could not be read, and none that could be holds it."""
    damaged: str | None
    """Why it can't be attached."""
    datasets: tuple[DatasetEntry, ...] = ()
    """Filled in when the objects of one file were asked for."""
    kept: bool = False
    """Never evicted, and cleaned only when it is named."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file in /dev/shm by which another system left data behind."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The store, and the file system that it lies on."""

    root: str
    entries: tuple[Entry, ...]
    total_bytes: int
    shm_total_bytes: int
    """0 = that file system has no size of its own."""
    shm_used_bytes: int
    leftovers: tuple[Leftover, ...]


def list_objects(*, sort: Sort = "name", h5: str | None = None, everything: bool = False) -> Listing:
    """Everything in the store, by name, or the largest, or the oldest first.

    `h5`: only what was pinned from that path, every generation of it, with its datasets; nothing if it is not pinned.
    `everything`: also what other systems left in /dev/shm. Raises UnsafeRoot, UsageError.
    """
    if sort not in _ORDERS:
        raise UsageError(f"sort={sort!r} means nothing; it is one of {', '.join(_ORDERS)}")
    root = default_root()
    store = open_store(root)
    entries = survey(store, source=None if h5 is None else os.path.realpath(h5)) if store is not None else ()
    if h5 is not None and store is not None:
        entries = tuple(_with_datasets(store, entry) for entry in entries)
    space = os.statvfs(proc.mount_of(root).point)
    return Listing(
        root=root,
        entries=tuple(sorted(entries, key=_ORDERS[sort])),
        total_bytes=sum(entry.size_bytes for entry in entries),
        shm_total_bytes=space.f_blocks * space.f_frsize,
        shm_used_bytes=(space.f_blocks - space.f_bfree) * space.f_frsize,
        leftovers=_leftovers() if everything else (),
    )


_ORDERS: dict[str, Callable[[Entry], tuple[float, str]]] = {
    "name": lambda entry: (0, entry.name),
    "size": lambda entry: (-entry.size_bytes, entry.name),
    "age": lambda entry: (-entry.age_s, entry.name),
}


def survey(store: Store, *, source: str | None = None) -> tuple[Entry, ...]:
    """Every object by name, damaged ones and shared caches too, without datasets; or those made from one real path."""
    led: dict[str, list[Ref]] = {}
    for ref in refs.all_refs(store):
        led.setdefault(ref.object, []).append(ref)
    there = sorted([*objects.scan(store), *areas.scan(store)], key=lambda found: found.name)
    origins = [(found, _origins(found, led.get(found.name, ()))) for found in there]
    if source is not None:
        origins = [(found, made) for found, made in origins if any(_is_from(one, source) for one in made)]
    held = objects.holders([found for found, _ in origins])
    statuses: dict[str, FileIdentity | State] = {}
    entries = []
    for found, made in origins:
        seen = held.by_name[found.name]
        first = next((one for one in made if _is_from(one, source)), made[0] if made else None)
        entries.append(
            Entry(
                name=found.name,
                kind=found.kind,
                size_bytes=found.size_bytes,
                sources=tuple(
                    SourceState(sources.label(one.source), _state(one, statuses), bool(one.selection)) for one in made
                ),
                digest=first.digest if first is not None else "",
                age_s=max(time.time() - found.made_s, 0.0),
                holders=seen if seen or held.complete else None,
                damaged=found.damaged,
                kept=found.kept,
            )
        )
    return tuple(entries)


def _is_from(made: Provenance, source: str | None) -> bool:
    return sources.label(made.source) == source


def _origins(found: Object, led: Iterable[Ref]) -> list[Provenance]:
    """What the refs say; what the object itself says where none is left; what names say if it can't speak.

    A path that was pinned anew, or cleaned, has no ref to the older object, but the object still knows it.
    """
    made = {(ref.provenance.source, ref.provenance.selection): ref.provenance for ref in led if not ref.name}
    if not made and found.provenance is not None:
        made = {(found.provenance.source, found.provenance.selection): found.provenance}
    if not made:
        made = {(ref.provenance.source, ref.provenance.selection): ref.provenance for ref in led}
    return [made[key] for key in sorted(made)]


def _state(made: Provenance, statuses: dict[str, FileIdentity | State]) -> State:
    """`statuses` remembers what each path is now: one stat a path."""
    if made.source not in statuses:
        statuses[made.source] = _request_now(made.source) if sources.is_request(made.source) else _now(made.source)
    now = statuses[made.source]
    if isinstance(now, FileIdentity):
        return "same" if now == made.identity else "changed"
    return now


def _now(path: str) -> FileIdentity | State:
    try:
        return FileIdentity.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return "gone"
    except (OSError, ValueError):  # forbidden, a stale network mount, a path that no file can have
        return "unknown"


def _request_now(source: str) -> FileIdentity | State:
    """What a hub holds now is not asked for here."""
    if not sources.local_paths(source):
        return "unknown"
    try:
        return sources.identity(source)
    except SourceMissing:
        return "gone"
    except (OSError, ValueError):
        return "unknown"


def _with_datasets(store: Store, entry: Entry) -> Entry:
    from dsmem.arrays.summary import summarize, summarize_tensors

    if entry.damaged is not None or entry.kind not in ("arrays", "checkpoint"):
        return entry
    try:
        header = objects.read_header(store, entry.name)
        found = summarize(header, entry.name) if entry.kind == "arrays" else summarize_tensors(header)
        return replace(entry, datasets=found)
    except (DamagedObject, NotPinned) as exc:
        return replace(entry, damaged=str(exc))


def _leftovers() -> tuple[Leftover, ...]:
    try:
        with os.scandir(SHARED_MEMORY) as entries:
            paths = sorted(entry.path for entry in entries if _LEFTOVERS.fullmatch(entry.name))
    except (FileNotFoundError, PermissionError):
        return ()
    found = []
    for path in paths:
        try:
            found.append(Leftover(path, os.lstat(path).st_size))
        except FileNotFoundError:
            continue
    return tuple(found)
