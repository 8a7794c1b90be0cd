"""`dsmem server status` and `ls`: what runs and what it serves; also when nothing runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dsmem import units
from dsmem.cli import server_rows
from dsmem.cli.commands import Json
from dsmem.cli.output import Output
from dsmem.cli.server_options import Config, DataDir, PidFile, chosen
from dsmem.errors import UsageError

if TYPE_CHECKING:
    from dsmem.server.status import Status

STATUS_EXAMPLES = (
    "dsmem server status",
    "dsmem server status --memory",
    "dsmem server status --prometheus > /var/lib/node_exporter/dsmem.prom",
    "dsmem server status --json",
)
LS_EXAMPLES = ("dsmem server ls", "dsmem server ls --json")


def status(
    memory: Annotated[bool, typer.Option("--memory", help="What each client takes: PSS and anonymous memory.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also where each setting comes from.")] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print metrics for Prometheus.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    pid_file: PidFile = None,
    json: Json = False,
) -> None:
    """Show the server and its datasets.

    Exit codes: 0 it runs, 1 it died and left its pid file, 3 it does not run.
    """
    if json and prometheus:
        raise UsageError("--json and --prometheus are two forms of the same")
    out = Output(as_json=json)
    found = _look(config, data_dir, pid_file, memory=memory)
    if json:
        out.json({key: value for key, value in asdict(found).items() if key != "settings" or verbose})
    elif prometheus:
        from dsmem.server import metrics

        out.raw(metrics.prometheus(found).encode())
    else:
        _show(out, found, memory=memory, verbose=verbose)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def ls(config: Config = None, data_dir: DataDir = None, json: Json = False) -> None:
    """List the datasets of the server.

    Where no server runs, those that it has left in the store.
    """
    out = Output(as_json=json)
    found = _look(config, data_dir, None)
    if json:
        out.json(found.datasets)
    else:
        out.table(server_rows.DATASET, [server_rows.dataset(one) for one in found.datasets])


def _look(config: str | None, data_dir: str | None, pid_file: str | None, *, memory: bool = False) -> Status:
    from dsmem.server import places
    from dsmem.server.status import status as look

    settings = chosen(config=config, data_dir=data_dir, pid_file=pid_file)
    return look(places.find(settings), settings=settings.rows(), memory=memory)


def _show(out: Output, found: Status, *, memory: bool, verbose: bool) -> None:
    out.record(
        [
            ("running", "yes" if found.running else "no"),
            ("status", found.status),
            ("pid", str(found.pid) if found.pid is not None else "none"),
            *([("uptime", units.format_duration(found.uptime_s))] if found.uptime_s is not None else []),
            ("data", found.mmap_file),
            ("size", f"{found.mmap_size_mb:.1f} MiB"),
            ("socket", found.socket),
            ("log", found.log),
        ]
    )
    if found.datasets:
        out.table(server_rows.DATASET, [server_rows.dataset(one) for one in found.datasets])
    if memory:
        out.table(server_rows.CLIENT, [server_rows.client(one) for one in found.clients])
    if verbose:
        out.table(server_rows.SETTING, [server_rows.setting(row) for row in found.settings])
    for one in found.datasets:
        if one.error:
            out.warning(f"{one.name}: {one.error}")
    if found.exit_code == 1:
        out.hint("it died; what it loaded is still served: dsmem server start")
    elif not found.running:
        out.hint("start it: dsmem server start")
