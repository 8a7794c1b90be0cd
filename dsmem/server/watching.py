"""What the daemon does in a thread of its own, because it may wait for a disk: look at sources, remove old generations.

A local source is looked at every few seconds, by size and times alone, and has changed once it stays changed; data on a
hub is asked for its revision by the child that loads it, every ten minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dsmem.errors import DsmemError, InUse
from dsmem.files import FileIdentity
from dsmem.server.spec import Spec
from dsmem.store.root import Store, open_store

WATCH_S = 2.0
HUB_S = 600.0
_SHARE = 0.05
"""Of the time may go into looking: large directories are looked at less often."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watched:
    """A dataset as the watcher sees it."""

    spec: Spec
    identity: FileIdentity | None
    """None = it could not be loaded yet: any source that is there now is news."""
    object: str
    root: str
    """Of the store that it is in."""


class Watcher:
    """The thread. `snapshot` is asked what to look at; `changed` is told what must be loaded anew, `gone` what is no
    longer in the store."""

    def __init__(
        self,
        roots: Sequence[str],
        *,
        snapshot: Callable[[], Mapping[str, Watched]],
        changed: Callable[[list[str]], None],
        gone: Callable[[list[str]], None],
        watch_s: float = WATCH_S,
        hub_s: float = HUB_S,
    ) -> None:
        self._roots, self._snapshot, self._changed, self._gone = roots, snapshot, changed, gone
        self._watch_s, self._hub_s = watch_s, hub_s
        self._seen: dict[str, FileIdentity | None] = {}
        self._asked: dict[str, float] = {}
        self._current: frozenset[tuple[str, str]] = frozenset()
        self._older: dict[str, set[str]] = {root: set() for root in roots}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dsmem-watcher", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look at a disk that hangs is not waited for."""
        self._stop.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(1.0)

    def _run(self) -> None:
        pause_s = self._watch_s
        while not self._stop.wait(pause_s):
            began = time.monotonic()
            try:
                self.look()
            except Exception:  # noqa: BLE001 - logged; a thread that ends would watch no more, unnoticed
                _log.exception("the sources could not be looked at")
            pause_s = max(self._watch_s, (time.monotonic() - began) / _SHARE)

    def look(self) -> None:
        """One round: report what has changed and is at rest, remove the generations that nobody holds."""
        watched = self._snapshot()
        gone = [name for name, one in watched.items() if one.object and not _is_there(one.root, one.object)]
        if gone:
            self._gone(gone)
            watched = {name: one for name, one in watched.items() if name not in gone}
        news = [name for name, one in watched.items() if self._is_news(name, one)]
        if news:
            self._changed(news)
        published = [one for one in watched.values() if one.object]
        current = frozenset((one.root, one.object) for one in published)
        for root in self._roots:
            if current != self._current:
                self._older[root] |= older(root, published)
            self._older[root] -= {name for place, name in current if place == root}
            if self._older[root]:
                self._older[root] = remove_free(root, self._older[root])
        self._current = current

    def _is_news(self, name: str, one: Watched) -> bool:
        if not one.spec.local_paths():
            now = time.monotonic()
            if now - self._asked.setdefault(name, now) < self._hub_s:
                return False
            self._asked[name] = now
            return True
        try:
            found = one.spec.identity()
        except (DsmemError, OSError, ValueError) as exc:
            _log.debug("%s: %s", name, exc)
            self._seen.pop(name, None)  # what is gone does not take away what was read from it
            return False
        at_rest = self._seen.get(name) == found
        known = one.identity if one.identity is not None else self._seen.get(f"failed {name}")
        self._seen[name] = found
        if not at_rest or found == known:
            return False
        if one.identity is None:
            self._seen[f"failed {name}"] = found  # as it is, it was tried
        return True


def _is_there(root: str, name: str) -> bool:
    return os.path.lexists(Store(root).object_path(name))


def older(root: str, current: Iterable[Watched]) -> set[str]:
    """Objects that were made for these datasets, and to which no source leads any more."""
    store = open_store(root)
    meant = {(one.spec.source, one.spec.selection) for one in current}
    if store is None or not meant:
        return set()
    from dsmem.store import objects, refs

    led_to = {ref.object for ref in refs.all_refs(store)}
    made = ((found.name, found.provenance) for found in objects.scan(store, objects.listed(store) - led_to))
    return {name for name, by in made if by is not None and (by.source, by.selection) in meant}


def remove_free(root: str, names: Iterable[str]) -> set[str]:
    """Remove those objects that nobody holds; the others."""
    store = open_store(root)
    if store is None:
        return set()
    from dsmem.store import objects

    held = set()
    for name in names:
        try:
            if objects.remove(store, name, spare_kept=True):
                _log.info("removed %s: an older generation that nobody holds", name)
        except InUse:
            held.add(name)
    return held
