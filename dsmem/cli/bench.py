"""`dsmem bench`: every claim measured beside the usual recipe and the machine's limit."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import settings, units
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output, escape, note

if TYPE_CHECKING:
    from dsmem.bench.results import Compared, Measured, Report
    from dsmem.bench.workbench import Case

EXAMPLES = (
    "dsmem bench",
    "dsmem bench pin attach --size 4GiB --runs 9",
    "dsmem bench read --file train.h5",
    "dsmem bench tokenize --peer datatrove=peers/datatrove/bin/python",
)

CASES = (
    "hash",
    "pin",
    "decode",
    "attach",
    "memory",
    "read",
    "tokenize",
    "tokens",
    "ckpt",
    "dataset",
    "server",
    "training",
    "tune",
    "all",
)
"""What may be typed; a test compares it with what there is, which would be too much to import for `--help`."""

_ROLES = {"dsmem": "dsmem", "recipe": "usual recipe", "limit": "machine's limit", "predicted": "a prediction"}


def _rate(bytes_per_s: float) -> str:
    return units.format_rate(round(bytes_per_s), 1)


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def _spread(one: Measured) -> str | None:
    if one.min_s is None or one.max_s is None:
        return None
    return f"{units.format_duration(one.min_s)}–{units.format_duration(one.max_s)}"


# What a terminal shows of one contender, where it was measured; a pipe and JSON get every field.
_SHOWN: tuple[tuple[Column, Callable[[Measured], object]], ...] = (
    (Column("", "name"), lambda one: one.name),
    (Column("", "role"), lambda one: _ROLES[one.role]),
    (Column("median", "median_s", show=units.format_duration, right=True), lambda one: one.median_s),
    (Column("p99", "p99_s", show=units.format_duration, right=True), lambda one: one.p99_s),
    (Column("min–max", "spread", right=True), _spread),
    (Column("rate", "bytes_per_s", show=_rate, right=True), lambda one: one.bytes_per_s),
    (Column("memory", "median_bytes", show=units.format_bytes, right=True), lambda one: one.median_bytes),
    (Column("× data", "times_data", show="{:.2f}".format, right=True), lambda one: one.times_data),
    (Column("× recipe", "ratio_to_recipe", show="{:.3g}".format, right=True), lambda one: one.ratio_to_recipe),
    (Column("of limit", "percent_of_limit", show=_percent, right=True), lambda one: one.percent_of_limit),
    (Column("peak memory", "peak_bytes", show=units.format_bytes, right=True), lambda one: one.peak_bytes),
)


def _complete(incomplete: str) -> list[str]:
    return [case for case in CASES if case.startswith(incomplete)]


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help=f"{', '.join(CASES)}.", autocompletion=_complete),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="An HDF5 file of your own to measure with.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="How much data to make; else what a minute allows, up to 1GiB."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="How often each is measured.")] = 5,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=PYTHON",
            help="Also measure datatrove, megatron, fastsafetensors or runai, which that interpreter has.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure dsmem beside what people do without it.

    The machine's limit stands beside both. All take turns in one run, and speeds are shown only when the results were
    equal. Without a size it ends in a minute; without a case it then leaves out the long ones.
    """
    from dsmem.bench.run import run

    out = Output(as_json=json)
    say = note if sys.stderr.isatty() and not settings.read().no_progress else None
    report = run(
        cases or (),
        file=file,
        size_bytes=None if size is None else units.parse_bytes(size),
        runs=runs,
        peers=peer or (),
        show=(lambda case, compared: _show(out, case, compared)) if out.terminal else None,
        say=say,
        warn=out.warning,
    )
    if json:
        out.json(report)
    elif not out.terminal:
        _show_rows(out, report)
    _sum_up(out, report)


def _show(out: Output, case: Case, compared: Compared) -> None:
    """A block a comparison; a column in which nothing was measured is left out."""
    out.line(escape(f"{case.name}: {compared.title}"), style="bold")
    cells = [[value(one) for _, value in _SHOWN] for one in compared.measured]
    filled = [index for index in range(len(_SHOWN)) if any(row[index] is not None for row in cells)]
    out.table([_SHOWN[index][0] for index in filled], [[row[index] for index in filled] for row in cells])
    out.line("")


def _show_rows(out: Output, report: Report) -> None:
    """A row a contender, with everything that was measured."""
    about = ("case", "comparison", "size_bytes", "runs")
    fields = [field.name for field in dataclasses.fields(report.cases[0].compared[0].measured[0])]
    rows: list[list[object]] = []
    for case in report.cases:
        for compared in case.compared:
            here = [case.name, compared.title, compared.size_bytes, compared.runs]
            rows += [[*here, *(getattr(one, field) for field in fields)] for one in compared.measured]
    out.table([Column(field, field) for field in (*about, *fields)], rows)


def _sum_up(out: Output, report: Report) -> None:
    machine = report.machine
    out.result(
        f"{machine.cpus} CPUs ({machine.cpu}), {units.format_bytes(machine.memory_bytes)}, Linux {machine.kernel}, "
        f"{machine.shared_fstype} with huge pages: {machine.shared_huge_pages}, "
        f"memcpy {_rate(machine.memcpy_bytes_per_s)}"
    )
    out.result(
        f"{units.format_bytes(report.size_bytes)} of data, {report.runs} runs, equal results; "
        f"{units.format_duration(report.elapsed_s)} in all"
    )
