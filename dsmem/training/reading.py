"""Rows of episode files, in one process: from shared memory, else the file's pages, else the cache, else h5py.

Whatever fails, the next source is asked; the failure is counted, its reason logged once, and that source is not asked
again for the file. Only `Unread`, when all have failed, leaves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dsmem import proc
from dsmem.arrays import pages
from dsmem.errors import BadSource, NotPinned
from dsmem.files import FileIdentity
from dsmem.training import images
from dsmem.training.cache import Array, Cache
from dsmem.training.episodes import EpisodeFile, Stored
from dsmem.training.monitoring import Monitor, Source
from dsmem.training.sources import FileRows, H5Rows, PinnedRows, Unserved

T = TypeVar("T")
_MOST_REASONS = 20
_log = logging.getLogger(__name__)


class Unread(BadSource):
    """No source could give what was asked for; the message has the reason of each."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Which sources are asked, and how many files are kept open."""

    pinned: bool
    mapped: bool
    """Pages of the file, and chunks decoded without HDF5."""
    open_files: int
    """Of files that are not pinned: with a file go the chunks that were decoded of it."""


class Readers:
    """All files of a dataset as one process reads them; threads share it."""

    def __init__(
        self, files: Sequence[EpisodeFile], ways: Ways, cache: Cache, monitor: Monitor, parts: Mapping[str, str]
    ) -> None:
        self.cache = cache
        self._files = files
        self._ways = ways
        self._parts = parts
        self._lock = threading.Lock()
        self._pinned: OrderedDict[int, FileReader] = OrderedDict()
        self._others: OrderedDict[int, FileReader] = OrderedDict()
        self._notes = Notes(monitor)
        soft, _ = proc.rlimit_open_files()
        self._most_pinned = max((soft or 65536) // 4, 16)  # a map holds a descriptor

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why sources were passed over, the first few."""
        return tuple(self._notes.reasons)

    @property
    def decodes(self) -> bool:
        """Whether the last chunk that was looked for in the cache was not there."""
        return self._notes.decodes

    def file(self, number: int) -> FileReader:
        """The reader of a file, opened when it is first read from."""
        with self._lock:
            for table in (self._pinned, self._others):
                found = table.get(number)
                if found is not None:
                    table.move_to_end(number)
                    return found
        file = self._files[number]
        made = FileReader(number, file, self._ways, self.cache, self._notes, self._parts.get(file.path))
        with self._lock:
            table, most = (self._pinned, self._most_pinned) if made.is_pinned else (self._others, self._ways.open_files)
            table[number] = made
            while len(table) > max(most, 1):
                dropped, reader = table.popitem(last=False)
                reader.close()
                self.cache.drop(dropped)
            return made

    def close(self) -> None:
        """Let go of every file; arrays that were handed out stay valid."""
        with self._lock:
            for table in (self._pinned, self._others):
                for reader in table.values():
                    reader.close()
                table.clear()
        self.cache.close()

    def passed_over(self, source: Source, path: str, exc: BaseException) -> None:
        """Count a failure, and say its reason once."""
        self._notes.passed_over(source, path, exc)


class Notes:
    """Where the readers of a process count, and keep the reasons of what failed."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.reasons: dict[str, None] = {}
        self.decodes = False

    def passed_over(self, source: Source, path: str, exc: BaseException) -> None:
        """Count a failure, and say its reason once."""
        self.monitor.failed(source)
        reason = f"{source}: {path}: {exc}"
        if reason not in self.reasons and len(self.reasons) < _MOST_REASONS:
            self.reasons[reason] = None
            _log.warning("passed over %s", reason)


class FileReader:
    """One file in one process: asks its sources in turn.

    It does not know the `Readers`: a circle of references would keep a lease past its last user.
    """

    def __init__(
        self, number: int, file: EpisodeFile, ways: Ways, cache: Cache, notes: Notes, part: str | None
    ) -> None:
        self._number = number
        self._about = file
        self._notes = notes
        self._monitor = notes.monitor
        self._cache = cache
        self._part = part
        self._lock = threading.Lock()
        self._refused: dict[Source, str] = {}
        self._seen = ""
        self._opened: dict[str, Any] = {}
        self._order: list[Source] = []
        self._order_of: dict[str, list[Source]] = {}
        """Of datasets that not each source has."""
        if ways.pinned and self._open_pinned():
            self._order.append("pinned")
        if ways.mapped:
            self._order += ["mapped", "decoded"]
        self._order.append("h5py")

    @property
    def is_pinned(self) -> bool:
        """Whether any of it comes from shared memory."""
        return "pinned" in self._opened

    def rows(self, path: str, start: int, stop: int) -> Any:
        """Rows [start, stop) of a dataset: a read-only array, or an array of arrays. Raises Unread."""
        stored = self._about.stored[path]
        order = self._order_of.get(path, self._order)
        for source in order:
            if source in self._refused:
                continue
            began = time.perf_counter()
            try:
                found = _READ[source](self, stored, start, stop)
            except Unserved:  # for good: what is open stays the same
                self._order_of[path] = [other for other in self._order_of.get(path, order) if other != source]
                continue
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next source is asked; counted and said
                self._refuse(source, exc)
                continue
            if source != "decoded":  # `_block` counts, hits and misses apart
                self._monitor.count(source, found.nbytes, time.perf_counter() - began)
            return found
        reasons = "; ".join(f"{source}: {reason}" for source, reason in self._refused.items())
        raise Unread(f"{self._about.path}: /{path}: {reasons or 'no source has it'}")

    def frame(self, path: str, step: int) -> Array:
        """One frame [height, width, channels]; encoded ones are decoded, and cached. Raises Unread, BadSource."""
        stored = self._about.stored[path]
        if not stored.is_encoded:
            array: Array = self.rows(path, step, step + 1)[0]
            return array if array.ndim == 3 else array[:, :, None]
        key = (self._number, path, "frame", step, self._version())
        began = time.perf_counter()
        found = self._cache.get(key)
        if found is not None:
            self._monitor.count("cache", found.nbytes, time.perf_counter() - began)
            return found
        data = np.asarray(self.rows(path, step, step + 1)[0], np.uint8)
        image = images.decoded(data, f"{self._about.path}: /{path}, step {step}")
        return self._cache.put(key, pages.copied(image, self._cache.empty))

    def ask(self, path: str, step: int) -> None:
        """Have the system read the chunk of a row beforehand, if it will be decoded; what fails, reading finds out."""
        stored = self._about.stored[path]
        file = self._opened.get("file")
        if file is None or "decoded" in self._refused or self.is_pinned:
            return
        with suppress(Unserved, OSError):
            block = step // file.rows_together(stored)
            if not self._cache.holds((self._number, stored.path, block, file.version)):
                file.ask(stored, block)

    def _version(self) -> str:
        """Of the file when its first frame was read here."""
        if not self._seen:
            try:
                self._seen = str(FileIdentity.of(os.stat(self._about.path)).as_list())
            except OSError as exc:  # what is pinned is read without it
                self._seen = str(exc)
        return self._seen

    def close(self) -> None:
        """Let go of what is open."""
        self._opened.clear()

    def _refuse(self, source: Source, exc: BaseException) -> None:
        self._refused[source] = str(exc) or type(exc).__name__
        self._notes.passed_over(source, self._about.path, exc)

    def _open_pinned(self) -> bool:
        path = self._about.path
        try:
            self._opened["pinned"] = PinnedRows(path, self._part)
        except NotPinned as exc:
            _log.debug("%s: %s", path, exc)  # there was no room for it: no failure
            return False
        except Exception as exc:  # noqa: BLE001 - shared memory must never end a run; counted and said
            self._refuse("pinned", exc)
            return False
        return True

    def _from_pinned(self, stored: Stored, start: int, stop: int) -> Any:
        return self._opened["pinned"].rows(stored, start, stop)

    def _from_map(self, stored: Stored, start: int, stop: int) -> Array:
        return self._once("file", lambda: FileRows(self._about)).rows(stored, start, stop)

    def _from_chunks(self, stored: Stored, start: int, stop: int) -> Array:
        file = self._once("file", lambda: FileRows(self._about))
        together = file.rows_together(stored)
        first = start // together
        last = -(-stop // together)
        if last == first + 1:
            rows = self._block(file, stored, first)
        else:
            rows = np.concatenate([self._block(file, stored, block) for block in range(first, last)])
        return rows[start - first * together : stop - first * together]

    def _block(self, file: FileRows, stored: Stored, block: int) -> Array:
        began = time.perf_counter()
        key = (self._number, stored.path, block, file.version)
        found = self._cache.get(key)
        source: Source = "decoded" if found is None else "cache"
        self._notes.decodes = found is None
        if found is None:
            found = self._cache.put(key, file.decode(stored, block, self._cache.empty))
        self._monitor.count(source, found.nbytes, time.perf_counter() - began)
        return found

    def _from_h5py(self, stored: Stored, start: int, stop: int) -> Any:
        return self._once("h5py", lambda: H5Rows(self._about.path)).rows(stored, start, stop)

    def _once(self, what: str, make: Callable[[], T]) -> T:
        """What is opened when it is first needed; a failure is the caller's."""
        there: T | None = self._opened.get(what)
        if there is not None:
            return there
        with self._lock:
            found: T | None = self._opened.get(what)
            if found is None:
                found = self._opened[what] = make()
            return found


_READ: dict[Source, Callable[[FileReader, Stored, int, int], Any]] = {
    "pinned": FileReader._from_pinned,
    "mapped": FileReader._from_map,
    "decoded": FileReader._from_chunks,
    "h5py": FileReader._from_h5py,
}
