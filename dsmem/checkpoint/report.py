"""What a read did, for people and programs: which way each item took, and why not the fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dsmem.checkpoint.items import Outcome
from dsmem.checkpoint.workers import Choice


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file: `busy_s` is the time of all workers together."""

    name: str
    items: int
    size_bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class ReadReport:
    """A read of a checkpoint. Every item is in exactly one of the counts."""

    size_bytes: int
    """Bytes of tensors and byte items that were asked for, as they lie in the files."""
    elapsed_s: float
    workers: int
    why_workers: str
    io: str
    direct: int
    """Read straight to their places."""
    bounced: int
    """Through a buffer: columns, casts, destinations with strides."""
    grouped: int
    """Small ones that were read together."""
    fallback: int
    """By torch's own code."""
    failed: int
    why: Mapping[str, int]
    """Reason → how many items torch's own code read for it."""
    verified: int
    unverifiable: int
    """Saved without checksums."""
    files: tuple[FileReport, ...]
    advice: str | None = None
    """What would have been faster: told where more workers than one were slower than one."""

    @property
    def bytes_per_s(self) -> float:
        """Of the whole read."""
        return self.size_bytes / max(self.elapsed_s, 1e-9)


@dataclass(slots=True)
class Counting:
    """A report in the making."""

    size_bytes: int = 0
    direct: int = 0
    bounced: int = 0
    grouped: int = 0
    fallback: int = 0
    failed: int = 0
    verified: int = 0
    unverifiable: int = 0
    why: Counter[str] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)
    file_bytes: Counter[str] = field(default_factory=Counter)
    busy_s: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Bytes, time and checks of a task; the ways of items are counted when they are complete."""
        self.size_bytes += outcome.size_bytes
        self.file_bytes[outcome.file] += outcome.size_bytes
        self.busy_s[outcome.file] = self.busy_s.get(outcome.file, 0.0) + outcome.elapsed_s
        self.verified += outcome.verified
        self.unverifiable += outcome.unverifiable

    def report(self, *, elapsed_s: float, choice: Choice, pace: str | None, io: str) -> ReadReport:
        """The report; `pace`: what was seen of workers that were too many."""
        files = tuple(
            FileReport(name, self.items[name], self.file_bytes[name], self.busy_s.get(name, 0.0))
            for name in sorted(self.items)
        )
        return ReadReport(
            size_bytes=self.size_bytes,
            elapsed_s=elapsed_s,
            workers=choice.workers,
            why_workers=choice.why,
            io=io,
            direct=self.direct,
            bounced=self.bounced,
            grouped=self.grouped,
            fallback=self.fallback,
            failed=self.failed,
            why=dict(self.why),
            verified=self.verified,
            unverifiable=self.unverifiable,
            files=files,
            advice=pace or choice.advice,
        )
