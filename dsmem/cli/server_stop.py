"""`dsmem server stop`: ends the server; the data stays unless it is released."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from dsmem import units
from dsmem.cli import rows
from dsmem.cli.commands import Json
from dsmem.cli.output import Output
from dsmem.cli.server_options import Config, DataDir, PidFile, Timeout, chosen

EXAMPLES = ("dsmem server stop", "dsmem server stop --release")


def stop(
    release: Annotated[bool, typer.Option("--release", help="Also free the data that nobody holds.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    pid_file: PidFile = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Stop the server. What it loaded stays in the store, and clients still open it."""
    from dsmem.server import lifecycle, places
    from dsmem.server.status import status

    out = Output(as_json=json)
    found = chosen(config=config, data_dir=data_dir, pid_file=pid_file, timeout=timeout)
    where = places.find(found)
    stopped = lifecycle.stop(where, timeout_s=max(min(found.timeout_s.value, 600.0), 1.0))
    if stopped.facts:
        where = replace(where, data_root=stopped.facts["root"], overflow_root=stopped.facts["overflow_root"])
    freed = lifecycle.release(where) if release else None
    left = status(where)
    left_bytes = sum(one.size_bytes for one in left.datasets)
    if json:
        facts = {"pid": stopped.pid or None, "killed": stopped.killed, "released": freed, "left_bytes": left_bytes}
        out.json({"stopped": bool(stopped.pid), **facts})
        return
    if not stopped.pid:
        out.result("no server runs")
    else:
        out.result(f"stopped the server, pid {stopped.pid}" + (", which had to be killed" if stopped.killed else ""))
    if freed is not None:
        out.result(f"freed {rows.count(len(freed.freed))}, {units.format_bytes(freed.freed_bytes)}")
        for name in freed.held:
            out.warning(f"{name} stays: somebody holds it")
    if left_bytes:
        out.result(f"{units.format_bytes(left_bytes)} of data stay in {where.data_root}")
        out.hint("to free what nobody holds: dsmem server stop --release")
