"""The root command: global options, the list of commands, and the one way in (`main`).

Commands import what they need when they run; this module imports none of the library but light floors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer

import dsmem
from dsmem import settings
from dsmem.cli import bench, ckpt, commands, demo, errors, hash, logs, pin, server, shm, tokenize, tokens, tune
from dsmem.cli.output import note

# The order of `dsmem --help`: what one types first comes first.
ORDER = ("pin", "server", "tokenize", "tune", "shm", "tokens", "ckpt", "hash", "demo", "bench")


class Root(commands.Group):
    """The root group, with its commands in the order of ORDER."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dsmem {dsmem.__version__}")
        raise typer.Exit


def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, show_default=False, help="Say what is done; -vv says more."),
    ] = 0,
) -> None:
    """Machine-learning data in shared memory, once per machine: every process maps the same copy."""
    logs.show(("debug" if verbose > 1 else "info") if verbose else settings.read().log_level or "warning")
    commands.show_help_if_alone(ctx)


app = commands.group(
    "dsmem",
    help=root.__doc__ or "",
    examples=("dsmem pin train.h5", "dsmem shm ls", "dsmem shm clean"),
    cls=Root,
)
app.callback()(root)
commands.add(app, pin.pin, examples=pin.EXAMPLES)
commands.add(app, hash.hash_, examples=hash.EXAMPLES)
app.add_typer(server.app)
app.add_typer(shm.app)
app.add_typer(tokens.app)
app.add_typer(ckpt.app)
commands.add(app, tokenize.tokenize, examples=tokenize.EXAMPLES)
commands.add(app, tune.tune, examples=tune.EXAMPLES)
commands.add(app, demo.demo, examples=demo.EXAMPLES)
commands.add(app, bench.bench, examples=bench.EXAMPLES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code (the table is in `errors`)."""
    if sys.platform != "linux":
        note(f"error: dsmem needs Linux's shared memory; this is {sys.platform}")
        sys.exit(errors.ERROR)
    typed = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no locale makes a command fail
    try:
        exit_code = app(typed, prog_name="dsmem", standalone_mode=False, obj=tuple(typed))
    except typer.TyperException as exc:
        exit_code = errors.report_misuse(exc)
    except typer.Abort:
        note("interrupted")
        exit_code = errors.INTERRUPTED
    sys.exit(exit_code)
