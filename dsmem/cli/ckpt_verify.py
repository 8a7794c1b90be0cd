"""`dsmem ckpt verify`: whether a checkpoint is whole."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import units
from dsmem.cli import progress, rows
from dsmem.cli.ckpt_options import Checkpoint
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output, escape, paint

if TYPE_CHECKING:
    from dsmem.checkpoint import Check

EXAMPLES = ("dsmem ckpt verify step-1000/", "dsmem ckpt verify weights.pt --json")

_MARKS = {"ok": ("✓", "green"), "note": ("-", "yellow"), "bad": ("✗", "red")}
_CHECK = tuple(Column(name, name) for name in ("state", "name", "file", "tensor", "detail"))


def verify(
    path: Checkpoint,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Threads; else one a CPU.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Check structure, files, index, tensors and checksums of a checkpoint; every fault is named, exit 1 on any.

    No pickle is run. safetensors has no checksums: there only what can be known without them is checked.
    """
    from dsmem import checkpoint

    out = Output(as_json=json)
    with progress.bar("verifying", [path]) as bar:
        found = checkpoint.verify(path, workers=workers or "auto", progress=bar.follow(path))
    if json:
        out.json(found)
    elif out.terminal:
        for check in found.checks:
            _show(out, check)
    else:
        out.table(_CHECK, [[one.state, one.name, one.file, one.tensor, one.detail] for one in found.checks])
    faults = rows.count(len(found.faults), "fault") if found.faults else "no faults"
    out.result(
        f"{found.format}: {rows.count(found.tensors, 'tensor')}, {units.format_bytes(found.size_bytes)} in "
        f"{units.format_duration(found.elapsed_s)}: {faults}"
    )
    if not found.ok:
        raise typer.Exit(1)


def _show(out: Output, check: Check) -> None:
    mark, style = _MARKS[check.state]
    where = ": ".join(part for part in (check.file, check.tensor) if part is not None)
    told = f"{where}: {check.detail}" if where else check.detail
    out.line(f"{paint(mark, style, sys.stdout)} {check.name:<9}  {escape(told)}")
