"""`dsmem ckpt pin`: a checkpoint into shared memory, once."""

from __future__ import annotations

from typing import Annotated

import typer

from dsmem import units
from dsmem.cli import progress
from dsmem.cli.ckpt_options import Checkpoint, SkipUnsupported, Trusted, Workers
from dsmem.cli.commands import Budget, Json, Keep
from dsmem.cli.output import Column, Output
from dsmem.cli.pinned import sum_up, tell_evicted

EXAMPLES = (
    "dsmem ckpt pin step-1000/ --name weights",
    "dsmem ckpt pin model/ --only '*.attn.*'",
    "dsmem ckpt pin weights.pt --budget 40GiB --json",
)

_COLUMNS = (
    Column("name", "name"),
    Column("source", "source"),
    Column("tensors", "tensors", right=True),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
)


def pin(
    path: Checkpoint,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="The name to attach by.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Pin only the tensors that match; may be repeated."),
    ] = None,
    workers: Workers = None,
    budget: Budget = None,
    keep: Keep = None,
    skip_unsupported: SkipUnsupported = False,
    trusted: Trusted = False,
    json: Json = False,
) -> None:
    """Put the tensors of a checkpoint into shared memory, once.

    Every process then maps the same copy: `dsmem.checkpoint.attach(PATH or NAME)` gives the tensors by name.
    """
    from dsmem import checkpoint

    out = Output(as_json=json)
    budget_bytes = None if budget is None else units.parse_bytes(budget)
    with progress.bar("pinning", [path]) as bar:
        pinned = checkpoint.pin(
            path,
            name=name,
            only=only,
            workers="auto" if workers is None else workers,
            budget=budget_bytes,
            keep=keep,
            skip_unsupported=skip_unsupported,
            trusted=trusted,
            progress=bar.follow(path),
        )
    tell_evicted(pinned)
    if json:
        out.json(pinned)
        return
    out.table(_COLUMNS, [[pinned.name, pinned.source, pinned.tensors, pinned.size_bytes]])
    if pinned.left_out:
        more = f" and {len(pinned.left_out) - 3} more" if len(pinned.left_out) > 3 else ""
        out.warning(f"left out: {', '.join(pinned.left_out[:3])}{more}")
    sum_up(out, pinned)
