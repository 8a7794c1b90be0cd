"""The root command: global options, the list of commands, and the one way in (`main`).

Only the command that is typed is imported and built: building all of them takes as long as importing typer does.
Commands import what they need when they run; this module imports none of the library but light floors.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

import dsmem
from dsmem import settings
from dsmem.cli import commands, errors, logs
from dsmem.cli.output import note

# The order of `dsmem --help`: what one types first comes first. Each is a module beside this one.
ORDER = ("pin", "server", "tokenize", "tune", "shm", "tokens", "ckpt", "hash", "demo", "bench")


@cache
def _declared(name: str) -> typer.Typer:
    """What the module of a command declares: a group as `app`, or a function of its name and EXAMPLES."""
    module = import_module(f"dsmem.cli.{name}")
    if hasattr(module, "app"):
        app: typer.Typer = module.app
        return app
    function = getattr(module, name, None) or getattr(module, f"{name}_")
    return commands.alone(function, examples=module.EXAMPLES)


@cache
def _built(name: str) -> Any:
    return typer.main.get_command(_declared(name))


class _Commands(Mapping[str, Any]):
    """All commands by name, each built when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in ORDER:
            raise KeyError(name)
        return _built(name)

    def __iter__(self) -> Iterator[str]:
        return iter(ORDER)

    def __len__(self) -> int:
        return len(ORDER)


class Root(commands.Group):
    """The root group, with its commands in the order of ORDER."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(ORDER)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The same as for other groups, of what is declared only."""
        width = formatter.width - 6 - max(map(len, ORDER))
        helps = ((name, inspect.cleandoc(str(_declared(name).info.help))) for name in ORDER)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, commands.Command(name, help=text).get_short_help_str(width)) for name, text in helps]
            )


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
    add_completion=True,
)
app.callback()(root)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code (the table is in `errors`)."""
    if sys.platform != "linux":
        note(f"error: dsmem needs Linux's shared memory; this is {sys.platform}")
        sys.exit(errors.ERROR)
    if sys.stderr is None:  # closed: nobody listens
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it stays until the end
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
