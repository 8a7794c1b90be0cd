"""What `dsmem tune` found: tables for people, one table of facts for a pipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsmem import units
from dsmem.cli.output import Column, Output, escape

if TYPE_CHECKING:
    from dsmem.tune.estimating import Estimate
    from dsmem.tune.facts import Storage
    from dsmem.tune.optimizer import Analysis
    from dsmem.tune.rechunking import Rechunked
    from dsmem.tune.settings import Settings
    from dsmem.tune.trials import Tried


def _rate(bytes_per_s: float) -> str:
    return units.format_rate(round(bytes_per_s), 1)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


STORAGE = (
    Column("dataset", "dataset"),
    Column("count", "count", right=True),
    Column("a step", "item"),
    Column("stored", "stored"),
    Column("ratio", "ratio", show="{:.1f}".format, right=True),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("read", "step_s", show=units.format_duration, right=True),
    Column("decoding", "decode_bytes_per_s", show=_rate, right=True),
)
CHOICE = (
    Column("", "which"),
    Column("shared", "use_shared_memory", show=_yes),
    Column("workers", "num_workers", right=True),
    Column("cache", "cache_bytes", show=units.format_bytes, right=True),
    Column("of", "cache_scope"),
    Column("a batch", "batch_s", show=units.format_duration, right=True),
    Column("first pass", "first_pass_s", show=units.format_duration, right=True),
    Column("memory", "memory_bytes", show=units.format_bytes, right=True),
)
TRIED = (
    Column("tried", "kept", show=lambda kept: "kept" if kept else ""),
    *CHOICE[1:6],
    Column("fastest", "min_s", show=units.format_duration, right=True),
    Column("slowest", "max_s", show=units.format_duration, right=True),
    Column("opened in", "opened_s", show=units.format_duration, right=True),
)
FACT = (Column("section", "section"), Column("item", "item"), Column("field", "field"), Column("value", "value"))


def show(out: Output, found: Analysis) -> None:
    """For people."""
    from dsmem.tune import reporting

    out.record(reporting.system(found.system))
    out.line("")
    out.record(reporting.data(found.data))
    out.table(STORAGE, [_storage(one) for one in found.data.storages])
    out.line("")
    recommended = found.recommendation
    estimates = [("recommended", recommended.chosen), *(("", one) for one in recommended.alternatives)]
    if found.preset is not None:
        estimates.insert(0, ("the preset", found.preset))
    out.table(CHOICE, [_choice(which, one) for which, one in estimates])
    out.line("")
    if found.measured:
        out.table(TRIED, [_tried(one, one.settings == found.settings) for one in found.measured])
        out.line("")
    out.record(settings(found.settings))
    if found.preset is None:
        for reason in recommended.reasons:
            out.line(f"– {escape(reason.text)}")
    for change in recommended.changes:
        out.warning(
            f"{change.name}: a read of chunks {reporting.shape(change.chunks)} costs {change.times:g} times what it "
            f"would of {reporting.shape(change.better)}"
        )
    out.result(f"data of this size: preset {recommended.size_class}; {found.speeds.samples} samples measured")
    out.result("the files are in the page cache then: what a disk takes on the first pass is not in these times")


def show_rechunked(out: Output, one: Rechunked) -> None:
    """A sentence about a file that was, or was not, written anew."""
    for path, why in one.left.items():
        out.warning(f"{one.source}: /{path} stays as it is: {why}")
    if one.destination is None:
        out.result(f"{one.source}: nothing to rechunk, nothing written")
        return
    before, after = units.format_bytes(one.before_bytes), units.format_bytes(one.after_bytes)
    count = f"{len(one.datasets)} dataset{'s' if len(one.datasets) > 1 else ''}"
    took = units.format_duration(one.elapsed_s)
    out.result(f"{one.destination}: {count} rechunked, {before} before, {after} now, equal; {took}")


def settings(one: Settings) -> list[tuple[str, str]]:
    """As dsmem.yaml says it, a line a key."""
    return [
        (f"{section}.{key}", str(value).lower() if isinstance(value, bool) else str(value))
        for section, table in one.sections().items()
        for key, value in table.items()
        if value is not None
    ]


def show_rows(out: Output, found: Analysis) -> None:
    """For a pipe: every fact a row."""
    out.table(FACT, list(_facts(found)))


def _facts(found: Analysis) -> Iterator[Sequence[object]]:
    from dsmem.tune import reporting

    for section in ("system", "data", "speeds", "workload"):
        about = getattr(found, section)
        for field in dataclasses.fields(about):
            if field.name != "storages":
                value = getattr(about, field.name)
                yield section, None, field.name, list(value) if isinstance(value, tuple) else value
    for one in found.data.storages:
        for column, value in zip(STORAGE[1:], _storage(one)[1:], strict=True):
            yield "storage", one.name, column.field, value
    recommended = found.recommendation
    estimates = [("recommended", recommended.chosen), *(("alternative", one) for one in recommended.alternatives)]
    if found.preset is not None:
        estimates.insert(0, ("preset", found.preset))
    for number, (which, estimate) in enumerate(estimates):
        for column, value in zip(CHOICE[1:], _choice(which, estimate)[1:], strict=True):
            yield which, number if which == "alternative" else None, column.field, value
    for number, tried in enumerate(found.measured):
        for column, value in zip(TRIED, _tried(tried, tried.settings == found.settings), strict=True):
            yield "tried", number, column.field, value
    for name, value in settings(found.settings):
        yield "setting", None, name, value
    for reason in recommended.reasons:
        yield "reason", None, reason.code, reason.text
    yield "recommended", None, "not_shared", recommended.not_shared
    yield "recommended", None, "size_class", recommended.size_class
    for change in recommended.changes:
        yield "change", change.name, "chunks", reporting.shape(change.chunks)
        yield "change", change.name, "better", reporting.shape(change.better)
        yield "change", change.name, "times", change.times


def _storage(one: Storage) -> list[object]:
    from dsmem.tune import reporting

    about = [one.name, one.count, f"{reporting.shape(one.item_shape)} {one.dtype}", reporting.stored(one)]
    return [*about, one.ratio, one.size_bytes, one.step_s, one.decode_bytes_per_s]


def _choice(which: str, one: Estimate) -> list[object]:
    chosen = one.settings
    about = [which, chosen.use_shared_memory, chosen.num_workers, *_cache(chosen)]
    return [*about, one.batch_s, one.first_pass_s, one.memory_bytes]


def _tried(one: Tried, kept: bool) -> list[object]:
    chosen = one.settings
    about = [kept, chosen.use_shared_memory, chosen.num_workers, *_cache(chosen), one.batch_s]
    return [*about, min(one.samples), max(one.samples), one.opened_s]


def _cache(chosen: Settings) -> list[object]:
    return [chosen.cache_bytes, None if chosen.cache_bytes is None else chosen.cache_scope]
