"""What a setting would cost on a machine: seconds for a batch once it runs, for the first pass, and memory. Pure.

The model: a worker reads its batches one after the other, the training process reads each once. The slowest of a
worker's share, the training process and all CPUs together sets the pace; handing a batch over costs what it was
measured to cost. Without workers the training process reads. Disks are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsmem.tune.facts import Data, Speeds, System, Workload
from dsmem.tune.settings import Settings

USABLE = 0.8
"""Of the available memory; the rest is for the training itself, and for the page cache."""
_FILL_BYTES_PER_S = 2.5e9
"""New memory is filled at this rate (4 KiB pages: DESIGN's measurements)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a setting is expected to cost; seconds and memory of one machine."""

    settings: Settings
    batch_s: float
    """Of each training process, once everything is in its place; with a known step, that included."""
    first_pass_s: float
    """Pinning included."""
    pin_s: float
    memory_bytes: int
    """Shared memory, caches and batches under way; not the page cache."""
    shared_bytes: int
    at_hand: float
    """Which share of the data needs no decoding, once the caches are warm."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that may be used."""

    shared_bytes: int
    """Of it, for objects."""
    all_bytes: int


def room(system: System) -> Room:
    """What may be used of a machine."""
    usable = int(system.available_bytes * USABLE)
    return Room(min(int(system.shared_free_bytes * 0.9), usable), usable)


def readers(settings: Settings, workload: Workload) -> int:
    """Processes that read files."""
    return workload.processes * max(settings.num_workers, 1)


def pinned_share(data: Data, settings: Settings, have: Room) -> float:
    """Which share of the data is pinned."""
    if not settings.use_shared_memory:
        return 0.0
    limit = have.shared_bytes if settings.memory_limit is None else min(settings.memory_limit, have.shared_bytes)
    return min(limit / max(data.pinned_bytes, 1), 1.0)


def cache_need_bytes(data: Data, pinned: float) -> int:
    """What there is for a cache to hold: decoded, and neither pinned nor mapped. Encoded frames are never pinned so."""
    encoded = sum(one.size_bytes for one in data.storages if one.is_encoded)
    rest = max(data.data_bytes - data.mapped_bytes - encoded, 0)
    return encoded + int((1.0 - pinned) * rest)


def under_way_bytes(data: Data, workload: Workload, settings: Settings) -> int:
    """Batches that are made and not used yet, of all training processes."""
    batches = settings.num_workers * settings.prefetch_factor + 1
    return workload.processes * batches * data.step_bytes * workload.batch_size


def estimate(system: System, data: Data, speeds: Speeds, workload: Workload, settings: Settings) -> Estimate:
    """The cost of a setting."""
    have = room(system)
    pinned = pinned_share(data, settings, have)
    need = cache_need_bytes(data, pinned)
    ceiling = settings.cache_bytes if settings.cache_bytes is not None else have.all_bytes // 4
    one_for_all = settings.cache_scope == "shared"
    each = ceiling if one_for_all else ceiling // max(settings.num_workers, 1)
    cached = min(each / need, 1.0) if need else 1.0
    raw_s = speeds.decode_s - speeds.frames_s if data.is_encoded else speeds.decode_s
    unpinned_s = speeds.frames_s + (1.0 - pinned) * raw_s  # of a sample that no cache has
    read_s = (1.0 - cached) * unpinned_s
    if one_for_all and need:
        read_s += cached * min(need / max(data.data_bytes, 1), 1.0) * speeds.copy_s  # it gives out copies
    batch_s = _batch_s(system, speeds, workload, settings, read_s)
    batches = max(data.steps // workload.batch_size // workload.processes, 1)
    pin_s = pinned * (data.steps * speeds.unpacked_s / system.cpus + data.pinned_bytes / _FILL_BYTES_PER_S)
    first_s = _batch_s(system, speeds, workload, settings, unpinned_s)
    shared_bytes = int(pinned * data.pinned_bytes)
    caches = (1 if one_for_all else readers(settings, workload)) * min(each, need)
    return Estimate(
        settings=settings,
        batch_s=batch_s,
        first_pass_s=pin_s + batches * first_s,
        pin_s=pin_s,
        memory_bytes=shared_bytes + caches + under_way_bytes(data, workload, settings),
        shared_bytes=shared_bytes,
        at_hand=1.0 - (1.0 - cached) * unpinned_s / speeds.decode_s if speeds.decode_s else 1.0,
    )


def _batch_s(system: System, speeds: Speeds, workload: Workload, settings: Settings, read_s: float) -> float:
    """Seconds from batch to batch, when reading a sample takes `read_s` beyond copying it."""
    count, workers = workload.batch_size, settings.num_workers
    cpus = max(system.cpus / workload.processes, 1e-3)
    step_s = workload.step_s or 0.0
    if workers == 0:
        alone = count * (read_s + speeds.copy_s + speeds.consume_s)
        return max(alone, alone / cpus) + step_s
    work_s = count * (read_s + speeds.copy_s)
    take_s = count * speeds.consume_s
    if step_s >= speeds.exchange_s:
        # What handing over takes goes on beside the step.
        return max(work_s / workers, take_s + step_s, (work_s + take_s) / cpus)
    return max(work_s / workers, take_s + step_s, (work_s + take_s) / cpus) + speeds.exchange_s - step_s
