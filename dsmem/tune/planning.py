"""The recommendation: which settings, why, and when not to share. Pure: from facts to settings, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dsmem import units
from dsmem.tune import chunking, estimating
from dsmem.tune.chunking import Change
from dsmem.tune.estimating import Estimate
from dsmem.tune.facts import Data, Speeds, System, Workload
from dsmem.tune.settings import Preset, Settings, preset_of

Code = Literal[
    "shared", "one-process", "larger-than-memory", "changing", "mapped", "in-part", "as-fast", "cache",
    "workers", "no-workers", "untried", "overlap", "encoded", "network",
]  # fmt: skip
_MOST_WORKERS = 16
_ALIKE = 1.05
"""Settings whose batches take up to 5 % longer than the fastest are as fast: the one that takes less memory wins."""
_PART_PAYS = 1.25
"""Sharing a part of what does not fit must make batches so many times as fast: the memory is missing elsewhere."""
_LITTLE = 5
"""A cache that holds less than a fifth is kept small."""
_CHOICES = 5
_FEW_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a setting is as it is."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What is recommended."""

    chosen: Estimate
    reasons: tuple[Reason, ...]
    not_shared: Code | None
    """Why it is better not to share; None where sharing is recommended."""
    size_class: Preset
    """The preset for data of this size."""
    alternatives: tuple[Estimate, ...]
    """The next best, the fastest first, and the best of those that share, or do not, where the chosen one does the
    opposite."""
    changes: tuple[Change, ...]
    """What to change in the files."""


def recommend(
    system: System, data: Data, speeds: Speeds, workload: Workload, *, chunk_size: int = 100
) -> Recommendation:
    """The settings with the fastest batches, of those that are as fast the one that takes the least memory.

    With a GPU and a step whose time is not known at least one worker loads meanwhile.
    """
    barred = _barred(data)
    estimates = [
        estimating.estimate(system, data, speeds, workload, settings)
        for settings in candidates(system, data, workload)
        if (barred is None or not settings.use_shared_memory) and (speeds.untried is None or settings.num_workers == 0)
    ]
    possible = [one for one in estimates if _is_sensible(one, system, workload)] or estimates
    chosen = _best(possible)
    unshared = [one for one in possible if not one.settings.use_shared_memory]
    if chosen.settings.use_shared_memory and unshared:
        best = _best(unshared)
        alone = estimating.readers(chosen.settings, workload) == 1
        in_part = chosen.shared_bytes < data.pinned_bytes
        if (alone and best.batch_s <= _ALIKE * chosen.batch_s) or (
            in_part and best.batch_s < _PART_PAYS * chosen.batch_s
        ):
            chosen = best
    not_shared = None if chosen.settings.use_shared_memory else barred or _why_not(system, data, workload, chosen)
    return Recommendation(
        chosen=chosen,
        reasons=tuple(_reasons(system, data, speeds, workload, chosen, not_shared, estimates)),
        not_shared=not_shared,
        size_class=preset_of(data.data_bytes),
        alternatives=_alternatives(chosen, possible),
        changes=chunking.changes(data.storages, chunk_size=chunk_size),
    )


def candidates(system: System, data: Data, workload: Workload) -> Iterator[Settings]:
    """Every setting that is considered."""
    have = estimating.room(system)
    batch_bytes = data.step_bytes * workload.batch_size
    for shared in (True, False):
        fits = data.pinned_bytes <= have.shared_bytes
        limit = None if fits or not shared else have.shared_bytes
        base = Settings(
            use_shared_memory=shared,
            memory_limit=limit,
            cache_size=_files_open(system, data),
            pin_memory=system.gpus > 0,
            prefetch_factor=2 if batch_bytes >= _FEW_BATCH_BYTES else 4,
        )
        pinned = estimating.pinned_share(data, base, have)
        need = estimating.cache_need_bytes(data, pinned)
        for workers in _worker_counts(system, workload):
            made = replace(base, num_workers=workers)
            taken = int(pinned * data.pinned_bytes) + estimating.under_way_bytes(data, workload, made)
            left = max(have.all_bytes - taken, 0) // workload.processes
            yield replace(made, cache_bytes=_ceiling(need * max(workers, 1), left) if need else None)
            if need and estimating.readers(made, workload) > 1:
                in_store = max(have.shared_bytes - int(pinned * data.pinned_bytes), 0)
                ceiling = _ceiling(need, min(left * workload.processes, in_store))
                yield replace(made, cache_bytes=ceiling, cache_scope="shared")


def _ceiling(need_bytes: int, left_bytes: int) -> int:
    """Of the cache of a training process: it begins with half, and with twice the data nothing has to go first.

    Where it could hold only a little of the data, memory is worth more as page cache.
    """
    return min(2 * need_bytes, left_bytes if left_bytes >= need_bytes // _LITTLE else left_bytes // 8)


def _worker_counts(system: System, workload: Workload) -> list[int]:
    """None, and up to a worker a CPU of each training process."""
    most = max(min(-(-system.cpus // workload.processes), _MOST_WORKERS), 1)
    return sorted({0, 1, *(count for count in (2, 3, 4, 6, 8, 12, 16) if count < most), most})


def _files_open(system: System, data: Data) -> int:
    """All files, as far as descriptors go (a quarter of them): with a file goes what was decoded of it."""
    return max(min(max(data.files, 100), system.open_files // 4), 1)


def _is_sensible(one: Estimate, system: System, workload: Workload) -> bool:
    """Not where a GPU would wait for each batch, nor where batches under way alone fill the memory."""
    waits = system.gpus > 0 and workload.step_s is None and one.settings.num_workers == 0
    return not waits and one.memory_bytes <= estimating.room(system).all_bytes


def _best(estimates: Sequence[Estimate]) -> Estimate:
    fastest = min(one.batch_s for one in estimates)
    alike = [one for one in estimates if one.batch_s <= _ALIKE * fastest]
    return min(alike, key=lambda one: (_coarse(one.memory_bytes), one.settings.num_workers, one.batch_s))


def _coarse(size_bytes: int) -> int:
    """Memory in steps of a quarter: less than that is no reason to prefer anything."""
    return int(np.log2(max(size_bytes, 1 << 20)) * 3)


def _alternatives(chosen: Estimate, possible: Sequence[Estimate]) -> tuple[Estimate, ...]:
    others = sorted((one for one in possible if one is not chosen), key=lambda one: one.batch_s)
    kept = others[: _CHOICES - 1]
    opposite = [one for one in others if one.settings.use_shared_memory != chosen.settings.use_shared_memory]
    if opposite and not any(one in kept for one in opposite):
        kept.append(opposite[0])
    return tuple(kept)


def _barred(data: Data) -> Code | None:
    """Why sharing is out of the question."""
    return "changing" if data.changing else None


def _why_not(system: System, data: Data, workload: Workload, chosen: Estimate) -> Code:
    if data.mapped_bytes >= 0.9 * data.data_bytes:
        return "larger-than-memory" if data.data_bytes > estimating.room(system).all_bytes else "mapped"
    if data.pinned_bytes > estimating.room(system).shared_bytes:
        return "larger-than-memory"
    if estimating.readers(chosen.settings, workload) == 1:
        return "one-process"
    return "as-fast"


def _reasons(
    system: System,
    data: Data,
    speeds: Speeds,
    workload: Workload,
    chosen: Estimate,
    not_shared: Code | None,
    estimates: Sequence[Estimate],
) -> Iterator[Reason]:
    settings = chosen.settings
    have = estimating.room(system)
    number = estimating.readers(settings, workload)
    size, free = units.format_bytes(data.pinned_bytes), units.format_bytes(have.shared_bytes)
    whole = units.format_bytes(data.data_bytes)
    if not_shared is None and chosen.shared_bytes >= data.pinned_bytes:
        yield Reason("shared", f"{number} processes read the same {size}, which fits ({free}): one copy, decoded once")
    elif not_shared is None:
        part = units.format_bytes(chosen.shared_bytes)
        yield Reason("in-part", f"{size} do not fit into {free}: actions and states, then whole files, up to {part}")
    elif not_shared == "changing":
        first = data.changing[0] + (f" and {len(data.changing) - 1} more" if len(data.changing) > 1 else "")
        yield Reason("changing", f"{first} keeps changing: each change would be pinned anew, and the old copy stays")
    elif not_shared == "one-process":
        yield Reason("one-process", "one process reads the data: its own cache holds it as well, and goes with it")
    elif not_shared == "larger-than-memory":
        yield Reason("larger-than-memory", f"{whole} of data, {free} of memory for it: what is pinned would be missed")
    elif not_shared == "mapped":
        yield Reason("mapped", "contiguous: all processes map the file's own pages, which are one copy already")
    else:
        yield Reason("as-fast", "the caches of its processes hold it all, as fast")
    if data.is_encoded:
        took = units.format_duration(speeds.frames_s)
        yield Reason("encoded", f"frames are encoded ({took} a sample): pinned they stay so, decoded ones are cached")
    if not data.is_local:
        yield Reason("network", "on a network file system, where files are not mapped: pinning reads each once")
    if settings.cache_bytes is not None:
        need = estimating.cache_need_bytes(data, estimating.pinned_share(data, settings, have))
        one_for_all = settings.cache_scope == "shared"
        holds = min(settings.cache_bytes / (1 if one_for_all else max(settings.num_workers, 1)) / max(need, 1), 1.0)
        whose = f"one cache for all {number} processes, of" if one_for_all else "a cache for"
        yield Reason("cache", f"{whose} {100 * holds:.0f} % of the {units.format_bytes(need)} that are decoded")
    if speeds.untried is None:
        yield _about_workers(system, workload, chosen, estimates)
    else:
        yield Reason("untried", f"no workers: one that was tried could not load batches here ({speeds.untried})")


def _about_workers(system: System, workload: Workload, chosen: Estimate, estimates: Sequence[Estimate]) -> Reason:
    settings = chosen.settings
    same = [one for one in estimates if one.settings.use_shared_memory == settings.use_shared_memory]
    alone = next(one for one in same if one.settings.num_workers == 0)
    helped = min((one for one in same if one.settings.num_workers), key=lambda one: one.batch_s)
    without, with_workers = units.format_duration(alone.batch_s), units.format_duration(helped.batch_s)
    if settings.num_workers == 0:
        text = f"handing a batch over takes longer than copying it: {with_workers} with workers, {without} without"
        return Reason("no-workers", text)
    now = units.format_duration(chosen.batch_s)
    per = f"{system.cpus} CPUs for {workload.processes} training process{'es' if workload.processes > 1 else ''}"
    if chosen.batch_s >= alone.batch_s:
        text = f"{settings.num_workers} load while the GPU works; without a step to hide behind: {without} alone"
        return Reason("overlap", text)
    return Reason("workers", f"{settings.num_workers} of {per}: {now} a batch, {without} without")
