"""`dsmem ckpt read`: all of a checkpoint into memory, and how fast that was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import progress, rows
from dsmem.cli.ckpt_options import Checkpoint, Trusted, Workers
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output
from dsmem.errors import BadSource

if TYPE_CHECKING:
    from dsmem.checkpoint import ReadReport
    from dsmem.checkpoint.fitting import Fit

EXAMPLES = (
    "dsmem ckpt read step-1000/",
    "dsmem ckpt read model/ --only '*.attn.*' --workers 4",
    "dsmem ckpt read weights.pt --io pread --json",
)

_FILE = (
    Column("file", "file"),
    Column("items", "items", right=True),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("busy", "busy_s", show=units.format_duration, right=True),
)


def read(
    path: Checkpoint,
    workers: Workers = None,
    io: Annotated[
        Literal["auto", "pread", "mmap"], typer.Option("--io", help="How bytes get to their places.")
    ] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Read only the tensors that match; may be repeated."),
    ] = None,
    trusted: Trusted = False,
    json: Json = False,
) -> None:
    """Read a checkpoint into memory and say how fast, from which files, and which way the tensors took.

    It is refused where it does not fit into memory. What was read is dropped at the end.
    """
    from dsmem import checkpoint
    from dsmem.checkpoint.fitting import fit

    out = Output(as_json=json)
    takes = fit(path, only=only, trusted=trusted)
    if only and not takes.tensors and not takes.unknown:
        raise BadSource(f"{path}: nothing matches {', '.join(only)}")
    reports: list[ReadReport] = []
    with progress.files("reading") as shown:
        loaded = checkpoint.load(
            path,
            only=only,
            workers=workers or "auto",
            io=io,
            trusted=trusted,
            progress=shown.files,
            bytes_progress=shown.bytes,
            report=reports.append,
        )
    (report,) = reports
    if json:
        out.json(
            {"path": path, "tensors": len(loaded), "bytes_per_s": report.bytes_per_s, "report": report, "fit": takes}
        )
        return
    out.table(_FILE, [[file.name, file.items, file.size_bytes, file.busy_s] for file in report.files])
    if out.terminal:
        out.line("")
        out.record(_told(report, takes))
    else:
        for key, value in _told(report, takes):
            out.result(f"{key}: {value}")
    out.result(
        f"{rows.count(len(loaded), 'tensor')}, {units.format_bytes(report.size_bytes)} in "
        f"{units.format_duration(report.elapsed_s)}: {units.format_rate(report.size_bytes, report.elapsed_s)}"
    )


def _told(report: ReadReport, takes: Fit) -> list[tuple[str, str]]:
    ways = {
        "direct": "straight to their places",
        "grouped": "small, read together",
        "bounced": "through a buffer",
        "fallback": "by torch's own code",
    }
    counts = [(getattr(report, name), told) for name, told in ways.items()]
    return [
        ("workers", f"{report.workers} ({report.why_workers})"),
        *([("advice", report.advice)] if report.advice else []),
        ("io", report.io),
        ("ways", ", ".join(f"{number:,} {told}" for number, told in counts if number) or "nothing to read"),
        *[("torch", f"{number:,} for: {why}") for why, number in report.why.items()],
        ("memory", f"{units.format_bytes(takes.need_bytes)} of the {units.format_bytes(takes.free_bytes)} it may take"),
    ]
