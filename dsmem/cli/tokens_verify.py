"""`dsmem tokens verify`: whether token files are whole, and agree with what lies beside them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem.cli import progress
from dsmem.cli.commands import Json
from dsmem.cli.errors import Failures
from dsmem.cli.output import Column, Output, escape, paint

if TYPE_CHECKING:
    from dsmem.tokens.verifying import Check, Verified

EXAMPLES = ("dsmem tokens verify train.bin", "dsmem tokens verify owt-*.bin", "dsmem tokens verify train.bin --json")

_MARKS = {"ok": ("✓", "green"), "absent": ("-", "yellow"), "bad": ("✗", "red")}


def verify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Token files.")],
    json: Json = False,
) -> None:
    """Check that token files are whole; exit 1 on any fault.

    Size, manifest, document ends, index, ids and checksum are checked. It also counts what looks like the end of a
    document within one: who scans for it would cut there.
    """
    from dsmem.tokens.verifying import verify as verify_file

    out = Output(as_json=json)
    failures = Failures()
    done: list[Verified] = []
    with progress.bar("verifying", files) as bar:
        for path in files:
            found = failures.attempt(path, partial(verify_file, path, progress=bar.follow(path)))
            if found is None:
                continue
            done.append(found)
            if out.terminal:
                with bar.aside():
                    _show(out, found, headed=len(files) > 1)
    if json:
        out.json({"files": done, "failed": failures.as_rows()})
    elif not out.terminal:
        columns = [Column(name, name) for name in ("path", "state", "name", "detail")]
        rows: list[list[object]] = [[one.path, *_cells(check)] for one in done for check in one.checks]
        rows += [[one.path, "", "phantom eos", one.phantom_eos] for one in done if one.phantom_eos is not None]
        out.table(columns, rows)
    failures.end()
    if not all(one.ok for one in done):
        raise typer.Exit(1)


def _show(out: Output, found: Verified, *, headed: bool) -> None:
    if headed:
        out.line(escape(found.path), style="bold")
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        mark, style = _MARKS[check.state]
        out.line(f"{paint(mark, style, sys.stdout)} {check.name:<{width}}  {escape(check.detail)}")
    if found.phantom_eos:
        out.line(
            f"  {found.phantom_eos:,} tokens look like the end of a document and are not; the stored ends are right"
        )


def _cells(check: Check) -> list[object]:
    return [check.state, check.name, check.detail]
