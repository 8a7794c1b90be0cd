"""`dsmem tokens export`: a token file in the form of another trainer."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import progress
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output

EXAMPLES = (
    "dsmem tokens export train.bin --to llm.c -o fineweb_train.bin",
    "dsmem tokens export train.bin --to datatrove -o train.ds",
    "dsmem tokens export train.bin --to olmo -o train.npy",
)

Form = Literal["llm.c", "datatrove", "olmo"]


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A token file whose documents are known.")],
    to: Annotated[Form, typer.Option("--to", help="Whose form to write.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="The file to write.")],
    eot: Annotated[
        int | None,
        typer.Option("--eot", metavar="ID", help="For llm.c: what begins each document; else its bos, else its eos."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there under the names of the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a token file in the form of llm.c, datatrove or OLMo.

    What is there under its names is replaced with --force only, once all is written. In llm.c's form each document
    begins with the end-of-text token and none ends with it; where documents begin with bos, that stands for it.
    """
    from dsmem.tokens.exporting import export as export_file

    out = Output(as_json=json)
    with progress.bar("exporting", [file]) as bar:
        done = export_file(file, output, to, eot=eot, overwrite=force, progress=bar.follow(file))
    if json:
        out.json(done)
        return
    columns = [Column("file", "path"), Column("size", "size_bytes", show=units.format_bytes, right=True)]
    out.table(columns, [[path, os.stat(path).st_size] for path in done.paths])
    out.result(f"{done.tokens:,} tokens, {done.documents:,} documents")
