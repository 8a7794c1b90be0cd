"""What of a set of files goes into shared memory: first the plan, by sizes and room, then the pins.

Small and always needed things come first, where all does not fit; a file that can't be pinned is left to the other
sources, with its reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from dsmem.errors import DsmemError
from dsmem.files import FileIdentity
from dsmem.pinning.pin import Pinned, pin
from dsmem.store import objects, obtain, space
from dsmem.store.root import Store, make_store, open_store
from dsmem.training.episodes import EpisodeFile

_HEADER_BYTES = 64 << 10
"""What an object takes beside its arrays, about: its header, whole pages, the ref."""
Progress = Callable[[int, int], None]
"""Called with files done and files in all."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """What is to be pinned."""

    whole: tuple[str, ...]
    """Paths of files pinned with all that they hold."""
    parts: Mapping[str, tuple[str, ...]]
    """Path → the datasets of it that are pinned: actions and states."""
    need_bytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """What was pinned."""

    objects: tuple[str, ...] = ()
    """Names of all objects, those that were there already among them."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Path → the object that holds a part of the file."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Path → why it could not be pinned."""
    size_bytes: int = 0
    """Of all objects."""


def plan(
    files: Sequence[EpisodeFile], room_bytes: int, *, critical: bool, there: frozenset[str] = frozenset()
) -> Placement:
    """What fits into `room_bytes`: everything; else actions and states of all, then whole files in their order.

    `there`: files that are pinned already. Encoded frames, whose size is not known before they are read, count as their
    file. Without `critical` only whole files are pinned.
    """
    sizes = {one.path: 0 if one.path in there else _size_bytes(one) for one in files}
    total = sum(sizes.values())
    if total <= room_bytes:
        return Placement(tuple(sizes), {}, total)
    parts: dict[str, tuple[str, ...]] = {}
    left = room_bytes
    if critical:
        for one in files:
            paths = one.critical()
            need = sum(one.stored[path].size_bytes for path in paths) + _HEADER_BYTES
            if one.path not in there and need <= left:
                parts[one.path] = paths
                left -= need
    whole: list[str] = []
    for one in files:
        if sizes[one.path] <= left:
            # Its actions and states lie in its own object then; what was set aside for them is a margin.
            whole.append(one.path)
            parts.pop(one.path, None)
            left -= sizes[one.path]
    return Placement(tuple(whole), parts, room_bytes - left)


def _size_bytes(file: EpisodeFile) -> int:
    known = sum(one.size_bytes for one in file.stored.values())
    varying = any(one.dtype == "object" for one in file.stored.values())
    # What else the file holds is pinned too: at least what the file itself takes.
    return (known + file.size_bytes if varying else max(known, file.size_bytes)) + _HEADER_BYTES


def place(
    files: Sequence[EpisodeFile], *, memory_limit: int | None, critical: bool, progress: Progress | None = None
) -> Placed:
    """Pin what fits into the store and `memory_limit`; a store that can't be used is one failure for all."""
    try:
        store = make_store()
        room_bytes = space.room(store).free_bytes * 9 // 10  # the last tenth is for what else runs
    except (DsmemError, OSError) as exc:
        _log.warning("done without shared memory: %s", exc)
        return Placed(failures={one.path: str(exc) for one in files})
    there = {one.path: found for one in files if (found := _attached(store, one.path)) is not None}
    if memory_limit is not None:
        held = sum(size_bytes for _, size_bytes in there.values())
        room_bytes = min(room_bytes, max(memory_limit - held, 0))
    return _pin(plan(files, room_bytes, critical=critical, there=frozenset(there)), there, progress)


def _attached(store: Store, path: str) -> tuple[str, int] | None:
    """The object that holds all of a file, as the file is now, and its size; None when it is not pinned."""
    try:
        found = obtain.attach(store, os.path.realpath(path), "", FileIdentity.of(os.stat(path)))
    except (DsmemError, OSError) as exc:
        _log.debug("%s: %s", path, exc)
        return None
    return None if found is None else (found[0].object, len(found[1].map))


def _pin(placement: Placement, there: Mapping[str, tuple[str, int]], progress: Progress | None) -> Placed:
    names = dict(there.values())
    parts: dict[str, str] = {}
    failures: dict[str, str] = {}
    todo: list[tuple[str, Callable[[], Pinned]]] = [
        (path, partial(pin, path)) for path in placement.whole if path not in there
    ]
    todo += [(path, partial(pin, path, only=paths)) for path, paths in placement.parts.items()]
    for done, (path, make) in enumerate(todo):
        try:
            pinned = make()
        except (DsmemError, OSError) as exc:
            _log.warning("%s stays out of shared memory: %s", path, exc)
            failures[path] = str(exc)
        else:
            names[pinned.name] = pinned.size_bytes
            if path in placement.parts:
                parts[path] = pinned.name
        if progress is not None:
            progress(done + 1, len(todo))
    return Placed(tuple(names), parts, failures, sum(names.values()))


def remove(names: Sequence[str]) -> tuple[str, ...]:
    """Remove objects that nobody holds any more, and nobody asked to keep; returns their names."""
    try:
        store = open_store()
    except DsmemError as exc:
        _log.debug("nothing removed: %s", exc)
        return ()
    gone: list[str] = []
    for name in names if store is not None else ():
        try:
            assert store is not None
            if objects.remove(store, name, spare_kept=True):
                gone.append(name)
        except (DsmemError, OSError) as exc:  # held by another process: the last one that ends removes it
            _log.debug("%s stays: %s", name, exc)
    return tuple(gone)
