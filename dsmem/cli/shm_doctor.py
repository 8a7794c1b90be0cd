"""`dsmem shm doctor`: what limits shared memory on this machine, a line each, and how to mend it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output, escape, paint

if TYPE_CHECKING:
    from dsmem.shm.doctor import Check

EXAMPLES = ("dsmem shm doctor", "dsmem shm doctor --json")

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "bad": ("✗", "red")}


def doctor(json: Json = False) -> None:
    """Check what limits shared memory on this machine.

    Each line that is not well ends with the command that mends it; exit 1 if something must be mended.
    """
    from dsmem.shm.doctor import examine

    out = Output(as_json=json)
    diagnosis = examine()
    if json:
        out.json(diagnosis)
    elif out.terminal:
        width = max((len(check.name) for check in diagnosis.checks), default=0)
        for check in diagnosis.checks:
            out.line(_line(check, width))
    else:
        columns = [Column(name, name) for name in ("state", "name", "detail", "mend")]
        out.table(columns, [[check.state, check.name, check.detail, check.mend] for check in diagnosis.checks])
    if any(check.state == "bad" for check in diagnosis.checks):
        raise typer.Exit(1)


def _line(check: Check, width: int) -> str:
    mark, style = _MARKS[check.state]
    mend = f"; mend: {check.mend}" if check.mend else ""
    return f"{paint(mark, style, sys.stdout)} {check.name:<{width}}  {escape(check.detail + mend)}"
