"""`dsmem pin`: put HDF5 files into shared memory and show what is there now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dsmem import units
from dsmem.cli import explained, progress, rows
from dsmem.cli.commands import Algo, Budget, Json, Keep
from dsmem.cli.errors import Failures, because
from dsmem.cli.output import Column, Output, quote
from dsmem.cli.pinned import sum_up, tell_evicted
from dsmem.errors import UsageError

if TYPE_CHECKING:
    from dsmem.errors import Allow
    from dsmem.pinning.pin import Pinned

_SHOWN = 100
"""Datasets of a file, on a terminal."""
EXAMPLES = (
    "dsmem pin train.h5",
    "dsmem pin data/ 'more/*.h5' --budget 40GiB",
    "dsmem pin train.h5 --only 'images*' --name images",
    "dsmem pin --explain train.h5",
)


def pin(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, directories that hold some, or globs.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Pin only the datasets that match; may be repeated."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The name to attach by."),
    ] = None,
    algo: Algo = "xxh3-tree",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with what h5py reads, not a sample.")
    ] = False,
    no_hash_cache: Annotated[
        bool,
        typer.Option("--no-hash-cache", help="Compute the digest even where it is known."),
    ] = False,
    skip_unsupported: Annotated[
        bool, typer.Option("--skip-unsupported", help="Leave out what can't be pinned exactly.")
    ] = False,
    budget: Budget = None,
    keep: Keep = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="external|oversized",
            help="For a file that you trust: read the other files that it names, or take sizes that can hardly be.",
        ),
    ] = None,
    untrusted: Annotated[
        bool,
        typer.Option(
            "--untrusted", help="For a file from elsewhere: read it in a child process, which may crash (0.3 s more)."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how each dataset would be read, and pin nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Put HDF5 files into shared memory, once.

    Every process then maps the same copy: `dsmem.File("train.h5")` in place of `h5py.File("train.h5")`.
    """
    out = Output(as_json=json)
    budget_bytes = None if budget is None else units.parse_bytes(budget)
    allowed = cast("list[Allow]", allow or [])  # the library looks at each
    failures = Failures()
    files = _gathered(paths, failures)
    if explain:
        explained.explain(files, failures, out, only=only, allow=allowed, untrusted=untrusted)
        failures.end()
        return
    from dsmem.pinning.pin import pin as pin_file

    if name is not None and len(files) > 1:
        raise UsageError(f"--name names one file; these are {len(files)}")
    pinned: list[Pinned] = []
    with progress.bar("pinning", files) as bar:
        for path in files:
            work = partial(
                pin_file,
                path,
                only=only,
                name=name,
                algo=algo,
                verify=verify,
                skip_unsupported=skip_unsupported,
                allow=allowed,
                hash_cache=not no_hash_cache,
                budget=budget_bytes,
                keep=keep,
                untrusted=untrusted,
                progress=bar.follow(path),
            )
            one = failures.attempt(path, work)
            if one is None:
                continue
            pinned.append(one)
            if one.evicted:
                with bar.aside():
                    tell_evicted(one)
            if out.terminal:
                with bar.aside():
                    _show(out, one, more=len(pinned) > 1)
    if json:
        out.json({"pinned": pinned, "failed": failures.as_rows()})
    elif not out.terminal and pinned:
        _show_rows(out, pinned)
    failures.end()


def _gathered(paths: Sequence[str], failures: Failures) -> list[str]:
    """The files that the paths mean, each once, in the order given."""
    from dsmem.pinning.gather import gather

    files: list[str] = []
    for path in paths:
        files += failures.attempt(path, partial(gather, [path])) or ()
    return list(dict.fromkeys(files))


def _show(out: Output, pinned: Pinned, *, more: bool) -> None:
    if more:
        out.line("")
    out.record([("name", pinned.name), ("source", pinned.source), ("digest", f"{pinned.algo}:{pinned.digest}")])
    out.table(rows.DATASET, [rows.dataset(one) for one in pinned.datasets[:_SHOWN]])
    if len(pinned.datasets) > _SHOWN:
        more_of_them = len(pinned.datasets) - _SHOWN
        out.line(f"… and {more_of_them:,} more: dsmem shm ls --h5 {quote(pinned.source)}")
    _end(out, pinned)


def _show_rows(out: Output, pinned: Sequence[Pinned]) -> None:
    """A row a dataset, led by what it belongs to; a file without datasets has one row all the same."""
    columns = (
        Column("name", "name"),
        Column("source", "source"),
        Column("digest", "digest"),
        *rows.DATASET,
    )
    cells: list[list[object]] = []
    for one in pinned:
        about = [one.name, one.source, f"{one.algo}:{one.digest}"]
        cells += [[*about, *rows.dataset(dataset)] for dataset in one.datasets]
        if not one.datasets:
            cells.append([*about, None, None, None, 0])
    out.table(columns, cells)
    for one in pinned:
        _end(out, one)


def _end(out: Output, pinned: Pinned) -> None:
    for refusal in pinned.refused:
        out.warning(f"left out: {refusal.path}: {because(refusal)}")
    sum_up(out, pinned)
