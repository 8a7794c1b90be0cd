"""What was looked at in a checkpoint and what is wrong with it: gathered from all threads, told in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from dsmem.checkpoint.formats import Format
from dsmem.progress import ByteCounter, Progress

State = Literal["ok", "note", "bad"]
About = Literal["structure", "files", "index", "tensors", "checksums"]
_ORDER: tuple[About, ...] = ("structure", "files", "index", "tensors", "checksums")
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `bad` is a fault, `note` something to know that is none."""

    name: About
    state: State
    detail: str
    file: str | None = None
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of a checkpoint; `ok`: no check is bad."""

    path: str
    format: Format
    ok: bool
    tensors: int
    size_bytes: int
    """Of the files that were looked at."""
    verified: int
    """Items (tensors, storages, byte items) whose checksums are those that were saved."""
    unverifiable: int
    """Items without checksums."""
    elapsed_s: float
    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """The checks that are bad."""
        return tuple(check for check in self.checks if check.state == "bad")


class Stopped(Exception):
    """Ends a task whose findings nobody waits for."""


class Findings:
    """Checks in the making. Every method may be called from any thread."""

    def __init__(self, progress: Progress) -> None:
        self._checks: list[Check] = []
        self._lock = threading.Lock()
        self._counter = ByteCounter(progress)
        self.stopped: Callable[[], bool] = lambda: False
        """Whether nobody wants the rest, since an interrupt."""
        self.tensors = 0
        self.size_bytes = 0
        self.verified = 0
        self.unverifiable = 0

    def bad(self, name: About, detail: str, *, file: str | None = None, tensor: str | None = None) -> None:
        """A fault."""
        self._add(Check(name, "bad", detail, file, tensor))

    def note(self, name: About, detail: str, *, file: str | None = None, tensor: str | None = None) -> None:
        """Something to know."""
        self._add(Check(name, "note", detail, file, tensor))

    def fine(self, name: About, detail: str) -> None:
        """What is right, told unless something of that name is bad."""
        if not any(check.name == name and check.state == "bad" for check in self._checks):
            self._add(Check(name, "ok", detail))

    def count(self, *, verified: bool) -> None:
        """One item more whose checksums were compared, or that has none."""
        with self._lock:
            self.verified += verified
            self.unverifiable += not verified

    def expect(self, size_bytes: int) -> None:
        """There are so many bytes more to read; said before they are read."""
        self._counter.total_bytes += size_bytes

    def advance(self, size_bytes: int) -> None:
        """So many bytes more were read; raises Stopped where that was enough: one record can be very large."""
        if self.stopped():
            raise Stopped
        self._counter.add(size_bytes)

    def checks(self) -> tuple[Check, ...]:
        """All, in an order that does not depend on threads."""
        return tuple(sorted(self._checks, key=_place))

    def _add(self, check: Check) -> None:
        with self._lock:
            self._checks.append(check)


def _place(check: Check) -> tuple[int, bool, str, str, str]:
    return _ORDER.index(check.name), check.state != "ok", check.file or "", check.tensor or "", check.detail


def few(names: Iterable[str]) -> str:
    """'a, b, c and 4 more'."""
    listed = list(names)
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
