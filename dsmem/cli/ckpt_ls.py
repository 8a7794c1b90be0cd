"""`dsmem ckpt ls`: what a checkpoint holds, without running or reading it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem import units
from dsmem.cli import rows
from dsmem.cli.ckpt_options import Checkpoint
from dsmem.cli.commands import Json
from dsmem.cli.output import Column, Output

if TYPE_CHECKING:
    from dsmem.checkpoint import Contents, TensorEntry

EXAMPLES = ("dsmem ckpt ls step-1000/", "dsmem ckpt ls model/ --sort size", "dsmem ckpt ls weights.pt --json")

_MOST_NAMED = 8
Sort = Literal["name", "size"]

_TENSOR = (
    Column("tensor", "tensor"),
    Column("dtype", "dtype"),
    Column("shape", "shape"),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("file", "file"),
)


def ls(
    path: Checkpoint,
    sort: Annotated[
        Sort | None,
        typer.Option("--sort", help="The order, largest first; else that of the checkpoint.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the tensors of a checkpoint: dtypes, shapes, sizes, files. No pickle is run, no tensor read."""
    from dsmem.checkpoint import contents

    out = Output(as_json=json)
    found = contents(path)
    tensors = list(found.tensors)
    if sort == "name":
        tensors.sort(key=lambda tensor: tensor.name)
    elif sort == "size":
        tensors.sort(key=lambda tensor: (-tensor.size_bytes, tensor.name))
    if json:
        out.json(_as_json(found, tensors))
    elif tensors or not out.terminal:
        out.table(_TENSOR, [_cells(tensor) for tensor in tensors])
    if found.others and not json:
        out.result(f"besides tensors: {_first(found.others)}")
    for file in found.files:
        if file.size_bytes is None:
            out.warning(f"{file.name} is missing")
    if found.note is not None:
        out.warning(f"not all tensors can be told without loading them: {found.note}")
    files_bytes = sum(file.size_bytes or 0 for file in found.files)
    out.result(
        f"{found.format}: {rows.count(len(tensors), 'tensor')}, {units.format_bytes(found.size_bytes)}, "
        f"in {rows.count(len(found.files), 'file')} of {units.format_bytes(files_bytes)}"
    )


def dtype_name(tensor: TensorEntry) -> str:
    """'bfloat16'."""
    return str(tensor.dtype).removeprefix("torch.")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


def _cells(tensor: TensorEntry) -> list[object]:
    files = list(dict.fromkeys(part.file for part in tensor.parts))
    return [tensor.name, dtype_name(tensor), str(tensor.shape), tensor.size_bytes, files]


def _as_json(found: Contents, tensors: list[TensorEntry]) -> dict[str, object]:
    return {
        "path": found.path,
        "format": found.format,
        "directory": found.directory,
        "size_bytes": found.size_bytes,
        "tensors": [
            {
                "name": tensor.name,
                "dtype": dtype_name(tensor),
                "shape": tensor.shape,
                "size_bytes": tensor.size_bytes,
                "parts": tensor.parts,
            }
            for tensor in tensors
        ],
        "others": found.others,
        "files": found.files,
        "note": found.note,
    }
