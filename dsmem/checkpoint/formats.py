"""Which kind of checkpoint a path is, and the files that make it up; nothing of it is read but a few bytes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsmem.checkpoint.opened import check_relative
from dsmem.errors import Ambiguous, BadSource, SourceMissing

Format = Literal["dcp", "safetensors", "torch"]
METADATA = ".metadata"
_INDEX = ".index.json"
_MAX_INDEX_BYTES = 512 << 20
_TORCH = (".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint: names of files are relative to `directory`."""

    format: Format
    directory: str
    files: tuple[str, ...]
    """Those that hold tensors; for `dcp` the metadata tells them."""
    index: str | None = None
    weight_map: dict[str, str] | None = None
    """Tensor → file, of a sharded checkpoint."""


def detect(path: str | os.PathLike[str]) -> Found:
    """Look at a directory or a file. Raises SourceMissing, BadSource, Ambiguous, UntrustedPickle."""
    name = os.fspath(path)
    if os.path.isdir(name):
        return _in_directory(name)
    if not os.path.exists(name):
        raise SourceMissing(f"{name}: no such file or directory")
    directory, file = os.path.split(name)
    if file == METADATA:
        return Found("dcp", directory or ".", ())
    if file.endswith(_INDEX):
        return _sharded(directory or ".", file)
    return Found(_format_of(name), directory or ".", (file,))


def _in_directory(name: str) -> Found:
    entries = sorted(os.listdir(name))
    if METADATA in entries:
        return Found("dcp", name, ())
    indices = [entry for entry in entries if entry.endswith((".safetensors" + _INDEX, ".bin" + _INDEX))]
    # Repositories hold the same weights in both formats: safetensors is the one that needs no pickle.
    for ending in (".safetensors" + _INDEX, ".safetensors", ".bin" + _INDEX, _TORCH):
        some = [entry for entry in entries if entry.endswith(ending)]
        if len(some) > 1:
            kind = "indices" if some[0] in indices else "checkpoints"
            paths = [os.path.join(name, one) for one in some]
            raise Ambiguous(f"{name} holds several {kind}; name one of them", candidates=paths)
        if some:
            return detect(os.path.join(name, some[0]))
    raise BadSource(f"{name} holds no checkpoint: no {METADATA}, no .safetensors, no {', '.join(_TORCH)}")


def _sharded(directory: str, file: str) -> Found:
    path = Path(directory, file)
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise BadSource(f"{path} is too large for an index")
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        valid = all(type(one) is str for pair in weight_map.items() for one in pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BadSource(f"{path} is no index of a sharded checkpoint") from exc
    if not valid:
        raise BadSource(f"{path} is no index of a sharded checkpoint")
    files = tuple(sorted(set(weight_map.values())))
    for one in files:
        check_relative(one)
    kind: Format = "safetensors" if file.endswith(".safetensors" + _INDEX) else "torch"
    return Found(kind, directory, files, file, weight_map)


def _format_of(name: str) -> Format:
    if not os.path.isfile(name):
        raise BadSource(f"{name} is no regular file")
    with Path(name).open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return "torch"
    if name.endswith(".safetensors") or head[8:] == b"{":
        return "safetensors"
    if name.endswith(_TORCH):
        return "torch"
    raise BadSource(f"{name} is no checkpoint: neither safetensors nor a file of torch.save")
