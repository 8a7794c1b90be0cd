"""`dsmem shm ls`: everything that is pinned, or what was pinned from one file, in detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import rows
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output
from dsmem.errors import NotPinned

if TYPE_CHECKING:
    from dsmem.shm.listing import Entry, Listing

EXAMPLES = ("dsmem shm ls --sort size", "dsmem shm ls --h5 train.h5", "dsmem shm ls --all --json")

Sort = Literal["name", "size", "age"]


def ls(
    h5: Annotated[
        str | None, typer.Option("--h5", metavar="FILE", help="Only what was pinned from it, in detail.")
    ] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="The order; largest and oldest first.")] = "name",
    everything: Annotated[
        bool, typer.Option("--all", help="Also what other tools left behind in shared memory.")
    ] = False,
    json: Json = False,
) -> None:
    """List what is pinned: sizes, sources, ages, and who holds it."""
    from dsmem.shm.listing import list_objects

    out = Output(as_json=json)
    listing = list_objects(sort=sort, h5=h5, everything=everything)
    if json:
        out.json(listing)
    elif h5 is None:
        _show_all(out, listing)
    elif listing.entries:
        _show_in_detail(out, listing.entries)
    for entry in listing.entries:
        if entry.damaged is not None:
            out.warning(f"{entry.name} is damaged: {entry.damaged}")
    if h5 is not None and not listing.entries:
        raise NotPinned(f"{h5} is not pinned", target=h5)


def _show_all(out: Output, listing: Listing) -> None:
    cells = [rows.entry(entry) for entry in listing.entries]
    cells += [[left.path, "leftover", left.size_bytes, None, None, None, None] for left in listing.leftovers]
    if cells or not out.terminal:
        out.table(rows.OBJECT, cells)
    where = "/dev/shm" if listing.root.startswith("/dev/shm/") else listing.root
    size = units.format_bytes(listing.total_bytes)
    used, total = units.format_bytes(listing.shm_used_bytes), units.format_bytes(listing.shm_total_bytes)
    of_total = f" of {total}" if listing.shm_total_bytes else ""
    out.result(f"{rows.count(len(listing.entries))}, {size}; {where}: {used}{of_total} in use")


def _show_in_detail(out: Output, entries: Sequence[Entry]) -> None:
    """One block an object on a terminal, one row a dataset on a pipe."""
    if not out.terminal:
        about = (Column("name", "name"), Column("digest", "digest"), Column("source", "source"))
        cells = [
            [entry.name, entry.digest, rows.sources(entry), *rows.dataset(dataset)]
            for entry in entries
            for dataset in entry.datasets
        ]
        out.table((*about, *rows.DATASET), cells)
        return
    for number, entry in enumerate(entries):
        if number:
            out.line("")
        out.record(
            [
                ("name", entry.name),
                ("digest", entry.digest or "unknown"),
                *(("source", source) for source in rows.sources(entry)),
                ("size", units.format_bytes(entry.size_bytes)),
                ("age", units.format_duration(entry.age_s)),
                ("held by", ", ".join(rows.holders(entry)) or "nobody"),
                *([("kept", "until it is named, or pinned with --no-keep")] if entry.kept else []),
            ]
        )
        out.table(rows.DATASET, [rows.dataset(dataset) for dataset in entry.datasets])
