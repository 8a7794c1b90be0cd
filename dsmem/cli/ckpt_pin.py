"""`dsmem ckpt pin`: a checkpoint into shared memory, once."""

from __future__ import annotations

from typing import Annotated

import typer

from dsmem import units
from dsmem.cli import progress, rows
from dsmem.cli.ckpt_ls import Checkpoint
from dsmem.cli.commands import Budget, Json, Keep
from dsmem.cli.output import Column, Output, note

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
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Threads; else by CPUs, memory, size.", show_default=False),
    ] = None,
    budget: Budget = None,
    keep: Keep = None,
    skip_unsupported: Annotated[
        bool, typer.Option("--skip-unsupported", help="Leave out tensors that safetensors has no place for.")
    ] = False,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Unpickle whatever it holds: that can run code of who made it.")
    ] = False,
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
    if pinned.evicted:
        note(f"evicted {rows.count(len(pinned.evicted))}, {units.format_bytes(pinned.evicted_bytes)}")
    if json:
        out.json(pinned)
        return
    out.table(_COLUMNS, [[pinned.name, pinned.source, pinned.tensors, pinned.size_bytes]])
    if pinned.left_out:
        more = f" and {len(pinned.left_out) - 3} more" if len(pinned.left_out) > 3 else ""
        out.warning(f"left out: {', '.join(pinned.left_out[:3])}{more}")
    size, took = units.format_bytes(pinned.size_bytes), units.format_duration(pinned.elapsed_s)
    if pinned.already:
        out.result(f"{pinned.name} is already pinned: {size}, found in {took}")
    elif pinned.waited:
        out.result(f"{pinned.name} was pinned by another process meanwhile: {size}, waited {took}")
    else:
        rate = units.format_rate(pinned.size_bytes, pinned.elapsed_s)
        out.result(f"pinned {pinned.name}: {size} in {took}, {rate}")
