"""`dsmem ckpt convert`: a checkpoint in another format."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import progress
from dsmem.cli.ckpt_options import SkipUnsupported, Trusted
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output

EXAMPLES = (
    "dsmem ckpt convert step-1000/ model/ --to safetensors --max-shard 5GB",
    "dsmem ckpt convert step-1000/ weights.pt",
    "dsmem ckpt convert model/ step-0/ --to dcp",
)

Form = Literal["dcp", "safetensors", "pt"]


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint of any format.", show_default=False)],
    destination: Annotated[str, typer.Argument(metavar="DST", help="What to write.", show_default=False)],
    to: Annotated[
        Form | None,
        typer.Option("--to", help="The format; else by the suffix: .safetensors, .pt, .pth, .bin.", show_default=False),
    ] = None,
    max_shard: Annotated[
        str, typer.Option("--max-shard", metavar="SIZE", help="The largest file of sharded safetensors.")
    ] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    skip_unsupported: SkipUnsupported = False,
    trusted: Trusted = False,
    json: Json = False,
) -> None:
    """Write a checkpoint in another format, bit for bit, in little memory.

    What is written is there when it is whole, or not at all.
    """
    from dsmem import checkpoint

    out = Output(as_json=json)
    with progress.bar("converting", [source]) as bar:
        done = checkpoint.convert(
            source,
            destination,
            to=to,
            max_shard=units.parse_bytes(max_shard),
            force=force,
            skip_unsupported=skip_unsupported,
            trusted=trusted,
            progress=bar.follow(source),
        )
    if json:
        out.json(done)
        return
    where = done.path if os.path.isdir(done.path) else os.path.dirname(done.path)
    columns = (Column("file", "file"), Column("size", "size_bytes", show=units.format_bytes, right=True))
    out.table(columns, [[name, os.stat(os.path.join(where, name)).st_size] for name in done.files])
    if done.copied:
        out.warning(f"{len(done.copied)} tied tensors became tensors of their own, the first is {done.copied[0]}")
    if done.left_out:
        out.warning(f"left out: {', '.join(done.left_out[:3])}{', …' if len(done.left_out) > 3 else ''}")
    size, took = units.format_bytes(done.size_bytes), units.format_duration(done.elapsed_s)
    out.result(f"{done.tensors:,} tensors, {size} in {took}, {units.format_rate(done.size_bytes, done.elapsed_s)}")
