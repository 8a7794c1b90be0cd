"""Arguments and options that several commands of `dsmem ckpt` have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A directory or a file: DCP, safetensors, its index, .pt, .pth, .bin.", show_default=False
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, metavar="N", help="Threads; else by CPUs, memory, size.", show_default=False),
]
SkipUnsupported = Annotated[
    bool, typer.Option("--skip-unsupported", help="Leave out what safetensors has no place for.")
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Unpickle whatever it holds: that can run code of who made it.")
]
