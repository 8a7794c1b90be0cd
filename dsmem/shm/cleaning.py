"""Removing objects: first a plan, which changes nothing, then the doing, which looks again under each object's lock.

What somebody holds is never removed unless that was asked for, and even then nobody who has mapped it loses a byte.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dsmem import files
from dsmem.errors import Ambiguous, InUse, NotPinned
from dsmem.shm.listing import Entry, survey
from dsmem.store import areas, leases, objects, refs, sources
from dsmem.store.draft import HIDDEN_PREFIX
from dsmem.store.objects import TRASH_PREFIX
from dsmem.store.root import Store, open_store, remove_empty
from dsmem.store.sweep import TEMPORARY_AGE_S, sweep

_BLOCK_BYTES = 512
"""The unit of st_blocks, stat(2)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that was meant and stays."""

    entry: Entry
    reason: str
    in_use: bool
    """Because somebody holds it; False: another file shares it, or it is marked to be kept."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A file whose way to an object goes, while the object stays for another file of the same content."""

    path: str
    object: str


@dataclass(frozen=True, slots=True)
class CleanPlan:
    """What `clean` will do; nothing is done yet."""

    remove: tuple[Entry, ...]
    kept: tuple[Kept, ...]
    sweep_bytes: int
    """Memory of the small things that go as well: what killed processes left, and the refs of `forget`."""
    forget: tuple[Forgotten, ...] = ()
    everything: bool = False
    """All was meant: where all goes, the store's own directories go too."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean` did."""

    removed: tuple[str, ...]
    freed_bytes: int
    deferred_bytes: int
    """Of what was removed while in use: this memory comes back when the holders end."""
    kept: tuple[Kept, ...]


def plan(
    targets: Sequence[str] = (),
    *,
    h5: Sequence[str] = (),
    everything: bool = False,
    unused: bool = False,
    stale: bool = False,
    older_than_s: float | None = None,
    force: bool = False,
) -> CleanPlan:
    """Choose what to remove: what all of the filters let through; without any filter what nobody uses.

    A target with a `/`, or that exists, is a file, as is each of `h5`: every generation that was pinned from that path.
    Anything else is a name. A file whose object is also that of another, unchanged file is forgotten, the object stays.
    `stale`: all its files have changed or are gone. `unused` outdoes `force`: what is in use is not unused.
    What is marked to be kept stays, unless it is named, or `everything` and `force` are both given.
    Raises NotPinned for a target that means nothing, Ambiguous for one that means several things, UnsafeRoot.
    """
    only_unused = unused or not (targets or h5 or everything or stale or older_than_s is not None)
    store = open_store()
    entries = survey(store) if store is not None else ()
    meant = _meant(store, entries, targets, h5)
    remove: list[Entry] = []
    kept: list[Kept] = []
    forget: list[Forgotten] = []
    for entry in entries:
        if meant is not None and not meant.includes(entry):
            continue
        if (stale and not _is_stale(entry)) or (older_than_s is not None and entry.age_s <= older_than_s):
            continue
        if meant is not None and (shared := _shared_with(entry, meant)):
            own = sorted({source.path for source in entry.sources} & meant.paths)
            forget += [Forgotten(path, entry.name) for path in own]
            reason = f"also pinned from {', '.join(shared)}; only {', '.join(own)} is forgotten"
            kept.append(Kept(entry, reason, in_use=False))
        elif entry.kept and meant is None and not (everything and force):
            if entry.holders == () or not only_unused:
                kept.append(Kept(entry, "kept: name it to remove it", in_use=False))
        elif (why := _in_use(store, entry)) is None or (force and not only_unused):
            remove.append(entry)
        elif meant is not None or not only_unused:
            kept.append(Kept(entry, why, in_use=True))
    return CleanPlan(
        remove=tuple(remove),
        kept=tuple(kept),
        sweep_bytes=_sweep_bytes(store, forget) if store is not None else 0,
        forget=tuple(forget),
        everything=everything,
    )


def clean(plan: CleanPlan, *, force: bool = False) -> Cleaned:
    """Do what a plan says. What somebody has taken since it was made is kept, and said to be so.

    `force`: what the plan shows as held loses its name all the same; its memory comes back with the last holder.
    """
    store = open_store()
    if store is None:
        return Cleaned((), 0, 0, plan.kept)
    removed: list[str] = []
    taken: list[Entry] = []
    freed_bytes = deferred_bytes = 0
    for entry in plan.remove:
        try:
            if objects.remove(store, entry.name):
                removed.append(entry.name)
                freed_bytes += entry.size_bytes
        except InUse:
            if not force or entry.holders == ():
                taken.append(entry)
            elif objects.remove(store, entry.name, force=True):
                removed.append(entry.name)
                deferred_bytes += entry.size_bytes
    kept = (*plan.kept, *_taken_since(store, taken))
    freed_bytes += _tidy(store, plan.forget)
    if plan.everything and not kept and not deferred_bytes and remove_empty(store):
        _log.debug("removed the empty store %s", store.root)
    return Cleaned(tuple(removed), freed_bytes, deferred_bytes, kept)


@dataclass(frozen=True, slots=True)
class _Meant:
    """What the user named."""

    paths: frozenset[str]
    """Real paths of files."""
    names: frozenset[str]
    """Full names of objects."""

    def includes(self, entry: Entry) -> bool:
        return entry.name in self.names or any(source.path in self.paths for source in entry.sources)


def _meant(store: Store | None, entries: Sequence[Entry], targets: Sequence[str], h5: Sequence[str]) -> _Meant | None:
    """The targets resolved; None when there are none."""
    if not targets and not h5:
        return None
    all_names = {entry.name for entry in entries}
    pinned = {source.path for entry in entries for source in entry.sources}
    paths, names = {_pinned_path(path, pinned) for path in h5}, set()
    for target in targets:
        if "/" in target:
            paths.add(_pinned_path(target, pinned))
        elif not os.path.lexists(target) and os.path.realpath(target) not in pinned:
            names.add(_object(store, target, all_names))
        elif store is not None and _is_given(store, target, all_names):
            raise Ambiguous(
                f"{target!r} is both a file here and a name in the store",
                candidates=[f"./{target}", f"name {target}"],
            )
        else:
            paths.add(_pinned_path(target, pinned))
    return _Meant(frozenset(paths), frozenset(names))


def _pinned_path(target: str, pinned: set[str]) -> str:
    path = os.path.realpath(target)
    if path not in pinned:
        raise NotPinned(f"{target} is not pinned", target=target)
    return path


def _is_given(store: Store, name: str, all_names: set[str]) -> bool:
    """Whether an object has that very name, or was given it."""
    given = refs.find_name(store, name)
    return name in all_names or (given is not None and given.object in all_names)


def _object(store: Store | None, name: str, all_names: set[str]) -> str:
    """Full names first, whatever lies there: what is damaged has no other."""
    if name in all_names:
        return name
    if store is None:
        raise NotPinned(f"nothing called {name!r} is in the store", target=name)
    return objects.find(store, name)


def _is_stale(entry: Entry) -> bool:
    return bool(entry.sources) and all(source.state in ("changed", "gone") for source in entry.sources)


def _shared_with(entry: Entry, meant: _Meant) -> list[str]:
    """Files that were not named and are served by the object of one that was."""
    if entry.name in meant.names:
        return []
    return sorted({source.path for source in entry.sources if source.state in ("same", "unknown")} - meant.paths)


def _in_use(store: Store | None, entry: Entry) -> str | None:
    """Who keeps it from being removed; where that can't be seen, its lock tells whether anybody does."""
    if entry.holders:
        return f"in use by {', '.join(str(holder.pid) for holder in entry.holders)}"
    is_free = areas.is_free if entry.kind == areas.KIND else leases.is_free
    if entry.holders is not None or store is None or is_free(store, entry.name):
        return None
    return "in use by a process that can't be seen from here"


def _taken_since(store: Store, taken: Sequence[Entry]) -> Iterator[Kept]:
    if not taken:
        return
    now = {entry.name: entry for entry in survey(store)}
    for planned in taken:
        entry = replace(now.get(planned.name, planned), datasets=planned.datasets)
        why = _in_use(store, entry) if entry.holders else None
        yield Kept(entry, why or "in use by a process that can't be seen from here", in_use=True)


def _tidy(store: Store, forget: Sequence[Forgotten]) -> int:
    """Forget, and sweep; the bytes that came back."""
    before = _sweep_bytes(store, forget)
    gone = {(one.path, one.object) for one in forget}
    for ref in list(refs.all_refs(store)) if gone else ():
        if (sources.label(ref.provenance.source), ref.object) in gone:
            files.unlink_if_there(f"{store.refs}/{ref.file_name()}")
    try:
        sweep(store)
    except FileNotFoundError as exc:
        _log.debug("%s: another process removed the empty store meanwhile", exc.filename)
    return max(before - _sweep_bytes(store, forget), 0)


def _sweep_bytes(store: Store, forget: Sequence[Forgotten]) -> int:
    """The memory of all that `_tidy` removes."""
    gone = {(one.path, one.object) for one in forget}
    found = 0
    for ref in refs.all_refs(store):
        if (sources.label(ref.provenance.source), ref.object) in gone or not os.path.lexists(
            store.object_path(ref.object)
        ):
            found += _memory_of(f"{store.refs}/{ref.file_name()}")
    abandoned: tuple[tuple[str, Callable[[os.DirEntry[str]], bool]], ...] = (
        (store.objects, lambda entry: entry.name.startswith((HIDDEN_PREFIX, TRASH_PREFIX)) and _is_abandoned(entry)),
        (store.locks, _is_abandoned),
        (store.refs, lambda entry: entry.name.startswith(".tmp-") and _is_old(entry)),
    )
    for directory, goes in abandoned:
        try:
            with os.scandir(directory) as entries:
                found += sum(_memory_of(entry.path) for entry in entries if goes(entry))
        except FileNotFoundError:
            continue
    return found


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    """Whether nobody has it locked."""
    is_directory = entry.is_dir(follow_symlinks=False)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(entry.path, flags) if is_directory else files.open_own(entry.path)
    except FileNotFoundError:
        return False
    try:
        return files.try_lock(fd, exclusive=False)
    finally:
        os.close(fd)


def _is_old(entry: os.DirEntry[str]) -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > TEMPORARY_AGE_S
    except FileNotFoundError:
        return False


def _memory_of(path: str) -> int:
    """Of a file, or of all below a directory; 0 when it is gone."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    below = (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
    return status.st_blocks * _BLOCK_BYTES + sum(map(_memory_of, below))
