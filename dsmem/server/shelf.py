"""The datasets of a running daemon: added, loaded by children, loaded anew when their source changes, removed.

All but `snapshot` and `changed`, which the watcher's thread calls, is for the daemon's own thread.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dsmem.server import catalogue, overflow
from dsmem.server.loading import Loading
from dsmem.server.records import Published, Record
from dsmem.server.spec import Spec
from dsmem.server.watching import Watched
from dsmem.store.root import Store, make_store

AT_ONCE = 4
"""Children that load at the same time."""
_log = logging.getLogger(__name__)


class Shelf:
    """Records by name, and the children at work for them. `settled` is called when a record can be told of."""

    def __init__(
        self,
        store: Store,
        selector: selectors.BaseSelector,
        *,
        second: Store | None = None,
        loader: str,
        stderr: int | None,
        settled: Callable[[Record], None],
    ) -> None:
        self._store, self._selector, self._loader, self._stderr = store, selector, loader, stderr
        self._settled = settled
        self._second = second
        self._records: dict[str, Record] = {}
        self._loading: dict[str, Loading] = {}
        self._again: set[str] = set()
        """To be loaded once more when the child that is at it has ended."""
        self._guard = threading.Lock()

    def records(self) -> list[Record]:
        """All datasets, in the order in which they came."""
        return list(self._records.values())

    def get(self, name: str) -> Record | None:
        """The record of that name."""
        return self._records.get(name)

    def known(self, name: str) -> Record | None:
        """The record of that name; what the catalogue alone names is served from now on."""
        if name not in self._records:
            spec = catalogue.read(self._store).get(name)
            if spec is not None:
                self._put(name, spec)
        return self._records.get(name)

    def resume(self, planned: Sequence[tuple[str, Spec]]) -> None:
        """Serve what is planned, and what the catalogue names and the store still has."""
        named = dict(planned)
        for name, spec in catalogue.read(self._store).items():
            if name not in named and any(overflow.has(store, spec) for store in self._stores()):
                self._put(name, spec)
        for name, spec in planned:
            self._put(name, spec)
        self._note()

    def name_for(self, spec: Spec) -> str:
        """The name under which this very request is served, else one that is free."""
        for record in self._records.values():
            if record.spec == spec:
                return record.name
        label = spec.label
        numbered = (f"{label} ({number})" for number in range(2, len(self._records) + 3))
        return next(name for name in (label, *numbered) if name not in self._records)

    def gone(self, name: str) -> None:
        """Its object is no longer in the store: whoever asks for it has it loaded again."""
        record = self._records.get(name)
        if record is None or name in self._loading or os.path.lexists(Store(record.root).object_path(record.object)):
            return
        with self._guard:
            record.state, record.object, record.identity = "evicted", "", None
            record.rows = record.size_bytes = 0
            record.error, record.since_s = "", time.time()
        _log.info("%s is no longer in the store", name)

    def add(self, name: str, spec: Spec) -> Record:
        """A dataset under that name, in place of another one; one that is there already is left as it is."""
        record = self._records.get(name)
        if record is None or record.spec != spec:
            self._abandon(name)
            self._put(name, spec)
            self._note()
            _log.info("added %s: %s", name, spec.label)
        elif record.state in ("failed", "evicted"):
            self.refresh(name)
        return self._records[name]

    def remove(self, name: str) -> Record:
        """Serve it no longer, and forget its name; the data stays in the store."""
        self._abandon(name)
        with self._guard:
            record = self._records.pop(name)
        record.state, record.error = "failed", "it was removed"
        known = catalogue.read(self._store)
        if known.pop(name, None) is not None:
            catalogue.write(self._store, known)
        _log.info("removed %s", name)
        self._settled(record)
        self._load_next()
        return record

    def refresh(self, name: str) -> None:
        """Load it anew; what is being loaded is loaded once more thereafter."""
        record = self._records[name]
        if name in self._loading:
            self._again.add(name)
        elif record.object:
            self._load(record)
        else:
            record.state = "waiting"
            self._load_next()

    def close(self) -> None:
        """End the children."""
        for loading in self._loading.values():
            loading.kill()
        self._loading.clear()

    def snapshot(self) -> dict[str, Watched]:
        """What the watcher is to look at: nothing that is being loaded."""
        with self._guard:
            return {
                one.name: Watched(one.spec, one.identity, one.object, one.root)
                for one in self._records.values()
                if one.state in ("ready", "failed") and not one.refreshing
            }

    def _stores(self) -> list[Store]:
        return [self._store, *([self._second] if self._second is not None else [])]

    def _put(self, name: str, spec: Spec) -> None:
        with self._guard:
            self._records[name] = Record(name, spec)
        self._load_next()

    def _abandon(self, name: str) -> None:
        self._again.discard(name)
        loading = self._loading.pop(name, None)
        if loading is not None:
            loading.kill()

    def _note(self) -> None:
        """Write the catalogue, if that changes it; names that are not served now stay in it."""
        known = catalogue.read(self._store)
        mapping = {**known, **{name: record.spec for name, record in self._records.items()}}
        if mapping != known:
            try:
                make_store(self._store.root)
                catalogue.write(self._store, mapping)
            except OSError as exc:  # a full store: what is in it is served all the same
                _log.error("the catalogue can't be written; names last until the server ends: %s", exc)

    def _load_next(self) -> None:
        for record in self.records():
            if len(self._loading) >= AT_ONCE:
                return
            if record.state == "waiting":
                self._load(record)

    def _load(self, record: Record) -> None:
        with self._guard:
            record.refreshing = bool(record.object)
            if not record.object:
                record.state, record.since_s = "loading", time.time()
            record.done_bytes = record.total_bytes = 0
        _log.info("loading %s from %s", record.name, record.spec.label)
        try:
            self._loading[record.name] = Loading(
                record.spec,
                self._store.root,
                self._second.root if self._second is not None else None,
                self._selector,
                told=partial(self._told, record),
                ended=partial(self._ended, record),
                module=self._loader,
                stderr=self._stderr,
            )
        except OSError as exc:  # no processes, memory or descriptors left
            self._failed(record, f"no process to load it could be started: {exc}")
            self._settled(record)

    def _told(self, record: Record, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "progress":
            done_bytes, total_bytes = message.get("done_bytes"), message.get("total_bytes")
            if type(done_bytes) is int and type(total_bytes) is int:
                record.done_bytes, record.total_bytes = done_bytes, total_bytes
        elif kind == "done":
            self._loaded(record, message)
        elif kind == "failed":
            self._failed(record, str(message.get("error")))

    def _loaded(self, record: Record, message: dict[str, Any]) -> None:
        try:
            found = Published.from_dict(message)
            root = found.root or self._store.root
            if root not in [store.root for store in self._stores()]:
                raise ValueError("a store that it was not told of")
        except ValueError as exc:
            self._failed(record, f"the process that loaded it made no sense ({exc})")
            return
        with self._guard:
            if found.object != record.object:
                record.since_s = time.time()
            record.root = root
            record.object, record.rows, record.size_bytes = found.object, found.rows, found.size_bytes
            record.identity, record.generation = found.identity, found.generation
            record.state, record.refreshing, record.error = "ready", False, ""
            record.loads += 1
        _log.info("%s is ready: %s, %d rows, %d bytes", record.name, found.object, found.rows, found.size_bytes)

    def _failed(self, record: Record, error: str) -> None:
        with self._guard:
            record.state = "ready" if record.object else "failed"
            record.refreshing, record.error, record.since_s = False, error, time.time()
            record.failures += 1
        _log.error("%s could not be loaded: %s", record.name, error)

    def _ended(self, record: Record, death: str) -> None:
        del self._loading[record.name]
        if record.state == "loading" or record.refreshing:
            self._failed(record, death or "the process that loaded it said nothing")
        if record.name in self._again:
            self._again.discard(record.name)
            self.refresh(record.name)
        self._settled(record)
        self._load_next()
