"""What was found, as text: for `DatasetOptimizer.report`. The command line has tables of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsmem import units
from dsmem.tune.estimating import Estimate
from dsmem.tune.facts import Data, Storage, System

if TYPE_CHECKING:
    from dsmem.tune.optimizer import Analysis
    from dsmem.tune.settings import Settings


def lines(found: Analysis) -> Iterator[str]:
    """A block each for machine, files and recommendation."""
    yield "machine"
    yield from (f"  {name}: {value}" for name, value in system(found.system))
    yield "files"
    yield from (f"  {name}: {value}" for name, value in data(found.data))
    for one in found.data.storages:
        yield f"  {one.name}: {stored(one)}{_measured(one)}"
    yield "preset" if found.preset is not None else "recommendation"
    chosen = found.preset or found.recommendation.chosen
    yield from (f"  {name}: {value}" for name, value in estimate(chosen))
    yield from (f"  because {reason.text}" for reason in found.recommendation.reasons)
    for change in found.recommendation.changes:
        now, then = shape(change.chunks), shape(change.better)
        yield f"  {change.name}: chunks {now} cost {change.times:g} times what {then} would"


def system(found: System) -> list[tuple[str, str]]:
    """The machine, a line a fact."""
    return [
        ("CPUs", str(found.cpus)),
        ("GPUs", str(found.gpus)),
        ("memory", f"{units.format_bytes(found.available_bytes)} free of {units.format_bytes(found.memory_bytes)}"),
        ("shared memory", f"{units.format_bytes(found.shared_free_bytes)} free, {found.shared_point}"),
        ("huge pages", found.huge_pages),
    ]


def data(found: Data) -> list[tuple[str, str]]:
    """The files, a line a fact."""
    size, stored_size = units.format_bytes(found.data_bytes), units.format_bytes(found.file_bytes)
    return [
        ("files", f"{found.files} ({', '.join(found.layouts)}), {found.episodes} episodes, {found.steps:,} steps"),
        ("size", f"{size} decoded, {stored_size} in the files"),
        ("cameras", ", ".join(found.cameras)),
    ]


def shape(extents: Sequence[int]) -> str:
    """'480×640×3'."""
    return "×".join(map(str, extents))


def stored(one: Storage) -> str:
    """'chunked 1×480×640×3 gzip'."""
    chunks = "" if one.chunks is None else shape(one.chunks)
    encoded = "encoded frames" if one.is_encoded else ""
    return " ".join(part for part in (one.layout, chunks, " + ".join(one.filters), encoded) if part)


def _measured(one: Storage) -> str:
    if one.step_s is None or one.decode_bytes_per_s is None:
        return ""
    speed = units.format_rate(round(one.decode_bytes_per_s), 1)
    return f", {units.format_duration(one.step_s)} a step, {speed}"


def _cache(settings: Settings) -> str:
    if settings.cache_bytes is None:
        return "as it comes"
    whose = "one for all" if settings.cache_scope == "shared" else "of each process"
    return f"{units.format_bytes(settings.cache_bytes)}, {whose}"


def estimate(one: Estimate) -> list[tuple[str, str]]:
    """The settings, and what they are expected to cost."""
    settings = one.settings
    shared = "yes" if settings.use_shared_memory else "no"
    if settings.use_shared_memory and settings.memory_limit is not None:
        shared += f", up to {units.format_bytes(settings.memory_limit)}"
    return [
        ("shared memory", shared),
        ("workers", f"{settings.num_workers}, {settings.prefetch_factor} batches ahead"),
        ("cache", _cache(settings)),
        ("files kept open", str(settings.cache_size)),
        ("expected", f"{units.format_duration(one.batch_s)} a batch, {units.format_duration(one.first_pass_s)} for the "
         f"first pass, {units.format_bytes(one.memory_bytes)} of memory"),
    ]  # fmt: skip
