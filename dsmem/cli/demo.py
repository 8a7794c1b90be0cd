"""`dsmem demo`: the main job shown on data that is made for it, without touching the user's own store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import settings, units
from dsmem.cli import rows
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output, note

if TYPE_CHECKING:
    from dsmem.bench.team import Held
    from dsmem.demo import Demo

EXAMPLES = ("dsmem demo", "dsmem demo --size 1GiB", "dsmem demo --json")

_COLUMNS = (
    Column("4 processes", "way"),
    Column("ready in", "ready_s", show=units.format_duration, right=True),
    Column("all read in", "read_s", show=units.format_duration, right=True),
    Column("memory", "data_pss_bytes", show=units.format_bytes, right=True),
    Column("× data", "times_data", show="{:.2f}".format, right=True),
)


def demo(
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="How much data to make: 64MiB, 1GB.")] = "256MiB",
    json: Json = False,
) -> None:
    """Show what dsmem does, on data that it makes.

    It makes an HDF5 file, lets 4 processes load it, pins it, lets them attach, and removes everything again.
    """
    from dsmem.demo import demo as show

    out = Output(as_json=json)
    say = note if sys.stderr.isatty() and not settings.read().no_progress else None
    done = show(size_bytes=units.parse_bytes(size), say=say)
    if done.why_smaller is not None:
        smaller, asked = units.format_bytes(done.size_bytes), units.format_bytes(done.asked_bytes)
        out.warning(f"{smaller} instead of {asked}: {done.why_smaller}")
    if json:
        out.json(done)
    else:
        _show(out, done)
    out.hint("on a file of your own: dsmem pin train.h5, then dsmem.File('train.h5') in place of h5py.File('train.h5')")


def _show(out: Output, done: Demo) -> None:
    size, took = units.format_bytes(done.pinned.size_bytes), units.format_duration(done.pinned.elapsed_s)
    out.table(_COLUMNS, [_row("h5py [...] in each", done.plain, done), _row("dsmem.attach", done.attached, done)])
    out.result(f"pinned once: {size} in {took}, {units.format_rate(done.pinned.size_bytes, done.pinned.elapsed_s)}")
    plain, attached = done.plain.data_pss_bytes, done.attached.data_pss_bytes
    out.result(f"memory saved: {100 * (1 - attached / max(plain, 1)):.0f} %; every byte read both ways was the same")
    out.line("")
    out.line("$ dsmem shm ls" if out.terminal else "# dsmem shm ls")
    out.table(rows.OBJECT, [rows.entry(entry) for entry in done.listing.entries])
    out.result("everything is removed again")


def _row(way: str, held: Held, done: Demo) -> list[object]:
    """PSS of all processes together, beyond interpreter and libraries."""
    import statistics

    ready_s = statistics.median(answer.ready_s for answer in held.answers)
    read_s = statistics.median(answer.read_s for answer in held.answers)
    return [way, ready_s, read_s, held.data_pss_bytes, held.data_pss_bytes / done.size_bytes]
