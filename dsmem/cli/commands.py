"""How commands are declared: help ends with examples, errors are caught where the command's name is known.

A command module holds a function and its EXAMPLES; `app.py` adds both with `add`. Options that several
commands have are declared here, once, so that they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from dsmem.cli import errors

Algorithm = Literal["xxh3-tree", "xxh3-128", "blake3", "sha256", "md5"]

Algo = Annotated[Algorithm, typer.Option("--algo", help="The digest to compute.")]
Dtype = Annotated[
    Literal["uint16", "uint32"] | None,
    typer.Option("--dtype", help="The type of the ids, whatever is told by what lies beside the file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: sizes in bytes, times in seconds.")]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="SIZE", help="Hold no more than this, say 40GiB: what is longest unused goes."),
]
Keep = Annotated[bool | None, typer.Option("--keep/--no-keep", help="Never evict it, and clean it only by its name.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would be done, and do nothing.")]


# Contexts are `Any` below: Click's own class, of which the signatures speak, is private to typer.


class Command(TyperCommand):
    """A command whose errors are shown by the table of `errors`, with its own name in the hint."""

    def invoke(self, ctx: Any) -> Any:
        with errors.caught(ctx.command_path, ctx.obj):
            return super().invoke(ctx)


class Group(TyperGroup):
    """A group of commands, whose own callback may fail too."""

    def invoke(self, ctx: Any) -> Any:
        with errors.caught(ctx.command_path, ctx.obj):
            return super().invoke(ctx)


def group(
    name: str, *, help: str, examples: Sequence[str], cls: type[Group] = Group, add_completion: bool = False
) -> typer.Typer:
    """A group to which `add` adds commands; `add_completion`: the options that install the shell's completion."""
    return typer.Typer(
        name=name,
        add_completion=add_completion,
        help=help,
        epilog=_epilog(examples),
        cls=cls,
        callback=show_help_if_alone,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def alone(function: Callable[..., None], *, examples: Sequence[str]) -> typer.Typer:
    """What holds this command only: the function, by its name."""
    app = typer.Typer(
        help=function.__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    add(app, function, examples=examples)
    return app


def add(app: typer.Typer, function: Callable[..., None], *, examples: Sequence[str]) -> None:
    """Adds the function as a command of its name; its docstring is the help, the examples end it."""
    app.command(function.__name__.rstrip("_"), cls=Command, epilog=_epilog(examples))(function)


def show_help_if_alone(ctx: typer.Context) -> None:
    """A group without a command: its help, and exit 2 as for any command line that can't be meant."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def _epilog(examples: Sequence[str]) -> str:
    # \b keeps the lines as they are.
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
