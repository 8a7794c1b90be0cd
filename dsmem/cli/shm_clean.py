"""`dsmem shm clean`: show what and how much, ask, remove; what is in use stays unless forced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import units
from dsmem.cli import complete, rows
from dsmem.cli.commands import DryRun, Yes
from dsmem.cli.output import Output
from dsmem.errors import InUse

if TYPE_CHECKING:
    from dsmem.shm.cleaning import CleanPlan, Kept

EXAMPLES = (
    "dsmem shm clean",
    "dsmem shm clean train.h5 --dry-run",
    "dsmem shm clean --all --older-than 2d --yes",
    "dsmem shm clean --stale",
)


def clean(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|FILE]...",
            help="Objects, or files: all that was pinned from them.",
            autocompletion=complete.names,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All but what is in use or kept.")] = False,
    unused: Annotated[bool, typer.Option("--unused", help="What nobody uses (the default).")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="What was pinned from files since changed or gone.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="What is older: 30m, 12h, 2d.")
    ] = None,
    h5: Annotated[
        list[str] | None, typer.Option("--h5", metavar="FILE", help="All that was pinned from this file.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also what is in use; its memory comes back when the holders end. With --all also the kept."
        ),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove objects: shows what and how much, asks, removes."""
    from dsmem.shm.cleaning import clean as remove
    from dsmem.shm.cleaning import plan

    out = Output()
    older_than_s = None if older_than is None else units.parse_duration(older_than)
    chosen = bool(targets or h5 or everything or stale or older_than_s is not None)
    todo = plan(
        tuple(targets or ()),
        h5=tuple(h5 or ()),
        everything=everything,
        unused=unused or not chosen,
        stale=stale,
        older_than_s=older_than_s,
        force=force,
    )
    _show(out, todo)
    kept = todo.kept
    what = _what(todo)
    if not what:
        if todo.everything and not dry_run:
            remove(todo)  # the empty directories of the store go, too
        out.result("nothing to remove")
    elif dry_run:
        out.result(f"would {what}")
    else:
        out.confirm(f"{what[0].upper()}{what[1:]}?", yes=yes)
        done = remove(todo, force=force)
        kept = done.kept
        for late in kept[len(todo.kept) :]:
            out.warning(f"{late.entry.name} stays: {late.reason}")
        out.result(f"removed {rows.count(len(done.removed))}, freed {units.format_bytes(done.freed_bytes)}")
        if done.deferred_bytes:
            later = units.format_bytes(done.deferred_bytes)
            out.result(f"{later} come back when the processes that hold them end")
    if targets or h5:
        _refuse_held(kept)


def _show(out: Output, todo: CleanPlan) -> None:
    if todo.remove:
        out.table(rows.OBJECT, [rows.entry(entry) for entry in todo.remove])
    for entry in todo.remove:
        if entry.holders:
            who = ", ".join(rows.holders(entry))
            out.warning(f"{entry.name} is in use; its memory comes back when these end: {who}")
    for kept in todo.kept:
        out.warning(f"{kept.entry.name} stays: {kept.reason}")


def _what(todo: CleanPlan) -> str:
    """What would be done, as `remove … and forget …`; empty if nothing would."""
    parts = []
    if todo.remove:
        size = units.format_bytes(sum(entry.size_bytes for entry in todo.remove))
        parts.append(f"remove {rows.count(len(todo.remove))} ({size})")
    if todo.forget:
        parts.append(f"forget {', '.join(one.path for one in todo.forget)}")
    elif todo.sweep_bytes:
        parts.append(f"sweep up {units.format_bytes(todo.sweep_bytes)} left by interrupted commands")
    return " and ".join(parts)


def _refuse_held(kept: Sequence[Kept]) -> None:
    """What was asked for by name and is in use is an error; `--all` only passes it over."""
    held = [one for one in kept if one.in_use]
    if held:
        raise InUse(
            "; ".join(f"{one.entry.name} is {one.reason}" for one in held),
            names=[one.entry.name for one in held],
            pids=sorted({holder.pid for one in held for holder in one.entry.holders or ()}),
        )
