"""What reading came from and what it took, counted in memory that the workers of a DataLoader share.

Every process has a row of its own, so nothing is locked. Latencies go into buckets a quarter of an octave wide: p50 and
p99 are right to 19 %.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dsmem import proc, units
from dsmem.training.cache import CacheState
from dsmem.training.lending import shared_integers

Source = Literal["pinned", "mapped", "cache", "decoded", "h5py", "fallback"]
SOURCES: tuple[Source, ...] = ("pinned", "mapped", "cache", "decoded", "h5py", "fallback")
"""Shared memory; pages of the file; decoded before; decoded now; through h5py; by `_fallback_load_onestep`."""
PROCESSES = 128
"""Rows: the process that made the dataset, then the workers by number; all others share the last."""
_READS, _BYTES, _FAILURES, _FIRST_BUCKET = 0, 1, 2, 3
_BUCKETS = 96
_LEAST_S = 1e-6
_SHOWN = 6
_NUMBERS: dict[Source, int] = {source: number for number, source in enumerate(SOURCES)}
_PID, _CACHE_BYTES, _CACHE_LIMIT, _NOTED, _EVERY, _FIRST_NOTE = range(6)
"""Words of a process's state: _NOTED points of its history, one kept of _EVERY that were looked at."""
_NOTES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one source did, all processes together."""

    source: Source
    reads: int
    size_bytes: int
    failures: int
    """Reads, or openings, that the next source had to do."""
    p50_s: float | None
    p99_s: float | None
    """None unless monitoring was enabled, and where nothing was read."""


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One process: its cache, and its memory now."""

    pid: int
    pss_bytes: int | None
    """A page that n processes map counts as 1/n; None once it has ended."""
    cache_bytes: int
    cache_limit_bytes: int
    """0 where the processes share one."""
    cache_history: tuple[tuple[float, int], ...]
    """(seconds since the dataset was made, bytes in the cache), thinned out as it grows long."""


@dataclass(frozen=True, slots=True)
class Report:
    """How reading went so far."""

    sources: tuple[SourceReport, ...]
    processes: tuple[ProcessReport, ...]
    shared_cache: CacheState | None
    """The cache of all processes; its hits and misses are those of this process. None where each has its own."""
    hits: int
    """Reads that found their rows at hand: pinned, mapped or cached."""
    misses: int
    """Reads that had to decode, or to ask h5py or the fallback."""
    hit_rate: float | None
    """Hits as a share of all reads."""
    reasons: tuple[str, ...]
    """Why sources were passed over, in this process."""


class Monitor:
    """Counts; made before the workers are, and taken along by fork and by pickling to a spawned one."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._counts = _shared(PROCESSES, len(SOURCES), _FIRST_BUCKET + (_BUCKETS if enabled else 0))
        self._states = _shared(PROCESSES, _FIRST_NOTE + 2 * _NOTES)
        self._began_ns = time.monotonic_ns()
        self._row = 0
        self._maker = os.getpid()
        self._begin()

    def _begin(self) -> None:
        self._looked = 0
        mine: Any = self._counts.numpy()[self._row]
        self._mine: memoryview = memoryview(mine)  # counting there takes half of what numpy takes for it
        self._state: Any = self._states.numpy()[self._row]

    def enter(self, worker: int | None) -> None:
        """Count in the row of a DataLoader's worker; None = this is none."""
        if worker is None:
            self._row = 0 if os.getpid() == self._maker else PROCESSES - 1
        else:
            self._row = min(worker + 1, PROCESSES - 1)
        self._begin()
        self._state[_PID] = os.getpid()

    def count(self, source: Source, size_bytes: int, elapsed_s: float) -> None:
        """One read."""
        mine, row = self._mine, _NUMBERS[source]
        mine[row, _READS] += 1
        mine[row, _BYTES] += size_bytes
        if self.enabled:
            mine[row, _FIRST_BUCKET + _bucket(elapsed_s)] += 1

    def failed(self, source: Source) -> None:
        """A source that could not do what it should have."""
        self._mine[_NUMBERS[source], _FAILURES] += 1

    def note_cache(self, size_bytes: int, limit_bytes: int) -> None:
        """What this process's cache, or the shared one, holds now."""
        state = self._state
        state[_CACHE_BYTES], state[_CACHE_LIMIT] = size_bytes, limit_bytes
        every = max(int(state[_EVERY]), 1)
        self._looked += 1
        if self._looked % every:
            return
        notes = state[_FIRST_NOTE:].reshape(_NOTES, 2)
        if state[_NOTED] == _NOTES:
            notes[: _NOTES // 2] = notes[1::2].copy()
            state[_NOTED], state[_EVERY] = _NOTES // 2, 2 * every
            if self._looked % (2 * every):
                return
        notes[int(state[_NOTED])] = (time.monotonic_ns() - self._began_ns, size_bytes)
        state[_NOTED] += 1

    def report(self, shared_cache: CacheState | None, reasons: tuple[str, ...]) -> Report:
        """The sum over all processes."""
        counts: Any = self._counts.numpy().sum(axis=0)
        sources = tuple(
            SourceReport(
                source=source,
                reads=int(row[_READS]),
                size_bytes=int(row[_BYTES]),
                failures=int(row[_FAILURES]),
                p50_s=_quantile(row[_FIRST_BUCKET:], 0.5),
                p99_s=_quantile(row[_FIRST_BUCKET:], 0.99),
            )
            for source, row in zip(SOURCES, counts, strict=True)
        )
        total = sum(one.reads for one in sources)
        hits = sum(one.reads for one in sources if one.source in ("pinned", "mapped", "cache"))
        return Report(
            sources=sources,
            processes=tuple(_process(row, shared_cache) for row in self._states.numpy() if row[_PID]),
            shared_cache=shared_cache,
            hits=hits,
            misses=total - hits,
            hit_rate=hits / total if total else None,
            reasons=reasons,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_mine", "_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _shared(*shape: int) -> torch.Tensor:
    try:
        return shared_integers(*shape)
    except (RuntimeError, OSError) as exc:  # no shared memory, or no descriptors, left
        _log.warning("counts of workers are lost: %s", exc)
        return torch.from_numpy(np.zeros(shape, np.int64))


def _bucket(elapsed_s: float) -> int:
    return min(max(int(4 * math.log2(max(elapsed_s, _LEAST_S) / _LEAST_S)), 0), _BUCKETS - 1)


def _quantile(buckets: Any, share: float) -> float | None:
    total = int(buckets.sum())
    if not total:
        return None
    where = int(np.searchsorted(np.cumsum(buckets), share * total))
    return float(_LEAST_S * 2 ** ((where + 0.5) / 4))


def _process(row: Any, shared_cache: CacheState | None) -> ProcessReport:
    notes = row[_FIRST_NOTE : _FIRST_NOTE + 2 * int(row[_NOTED])].reshape(-1, 2).tolist()
    return ProcessReport(
        pid=int(row[_PID]),
        pss_bytes=_pss_bytes(int(row[_PID])),
        cache_bytes=int(row[_CACHE_BYTES]) if shared_cache is None else 0,
        cache_limit_bytes=int(row[_CACHE_LIMIT]) if shared_cache is None else 0,
        cache_history=tuple((elapsed_ns / 1e9, size_bytes) for elapsed_ns, size_bytes in notes),
    )


def _pss_bytes(pid: int) -> int | None:
    try:
        return proc.memory_of(pid).pss_bytes
    except (ProcessLookupError, PermissionError):
        return None


def lines(report: Report) -> list[str]:
    """The report as text: a table of the sources, then the processes."""
    shown = [f"{'source':<10}{'reads':>10}{'bytes':>12}{'p50':>10}{'p99':>10}{'failures':>10}"]
    for one in report.sources:
        if one.reads or one.failures:
            p50, p99 = ("–" if value is None else units.format_duration(value) for value in (one.p50_s, one.p99_s))
            size = units.format_bytes(one.size_bytes)
            shown.append(f"{one.source:<10}{one.reads:>10}{size:>12}{p50:>10}{p99:>10}{one.failures:>10}")
    if report.hit_rate is not None:
        share = f"{100 * report.hit_rate:.1f} %"
        shown.append(f"at hand (pinned, mapped or cached): {report.hits} hits, {report.misses} misses, {share}")
    shared = report.shared_cache
    if shared is not None:
        size, limit = units.format_bytes(shared.size_bytes), units.format_bytes(shared.limit_bytes)
        back = units.format_bytes(shared.given_back_bytes)
        shown.append(f"shared cache: {size} of {limit}, {shared.evicted} items evicted, {back} given back")
        shown += _over_time(sorted(note for process in report.processes for note in process.cache_history))
    for process in report.processes:
        pss = "ended" if process.pss_bytes is None else f"PSS {units.format_bytes(process.pss_bytes)}"
        cache, limit = units.format_bytes(process.cache_bytes), units.format_bytes(process.cache_limit_bytes)
        shown.append(f"process {process.pid}: {pss}" + ("" if shared is not None else f", cache {cache} of {limit}"))
        if shared is None:
            shown += _over_time(process.cache_history)
    shown += [f"passed over: {reason}" for reason in report.reasons]
    return shown


def _over_time(history: Sequence[tuple[float, int]]) -> list[str]:
    """At most _SHOWN points of a history, the last one among them."""
    step = -(-len(history) // _SHOWN) or 1
    points = history[::-step][::-1]
    said = ", ".join(f"{units.format_bytes(size)} at {units.format_duration(elapsed)}" for elapsed, size in points)
    return [f"  cache over time: {said}"] if said else []
