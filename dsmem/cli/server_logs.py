"""`dsmem server logs` and `unit`: what the server says, and how systemd runs it."""

from __future__ import annotations

from typing import Annotated

import typer

from dsmem.cli.output import Output, escape
from dsmem.cli.server_options import Config, DataDir, Datasets, LogFile, PidFile, SampleLimit, absolute, chosen, planned

LOGS_EXAMPLES = ("dsmem server logs", "dsmem server logs -n 20 -f")
UNIT_EXAMPLES = (
    "dsmem server unit --config ~/dsmem.yaml > ~/.config/systemd/user/dsmem.service",
    "dsmem server unit --dataset train=train.jsonl",
)


def logs(
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="So many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines are written, until Ctrl-C.")] = False,
    config: Config = None,
    log_file: LogFile = None,
) -> None:
    """Show the server's log, which is rotated at 1 MiB."""
    from dsmem.server import logs as log
    from dsmem.server import places

    out = Output()
    path = places.find(chosen(config=config, log_file=log_file)).log
    growing = log.follow(path) if follow else iter(())  # opened first: no line is lost in between
    for line in log.tail(path, lines):
        out.line(escape(line))
    for line in growing:
        out.line(escape(line))


def unit(
    config: Config = None,
    dataset: Datasets = None,
    sample_limit: SampleLimit = None,
    data_dir: DataDir = None,
    pid_file: PidFile = None,
    log_file: LogFile = None,
) -> None:
    """Print a systemd user unit that runs the server.

    The server is run with the options that are given here.
    """
    from dsmem.server.unit import unit as text

    found = chosen(config=config, sample_limit=sample_limit, data_dir=data_dir, pid_file=pid_file, log_file=log_file)
    planned(found, dataset, None)  # what can't be meant is said here, not by systemd
    arguments = [f"--dataset={absolute(text)}" for text in dataset or ()]
    for flag, value in (
        ("--config", found.config.value if config is not None else None),
        ("--sample-limit", sample_limit),
        ("--data-dir", found.data_dir.value if data_dir is not None else None),
        ("--pid-file", found.pid_file.value if pid_file is not None else None),
        ("--log-file", found.log_file.value if log_file is not None else None),
    ):
        if value is not None:
            arguments += [flag, str(value)]
    Output().raw(text(arguments).encode("utf-8", "surrogateescape"))
