"""Whether a checkpoint fits into memory, told before any of it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from dsmem import units
from dsmem.checkpoint import formats, listing, loading, safetensors_files, torch_files, workers
from dsmem.checkpoint.formats import Found
from dsmem.checkpoint.torch_files import NeedsTorch
from dsmem.errors import NoSpace, SourceMissing


@dataclass(frozen=True, slots=True)
class Fit:
    """What a read takes and may take."""

    tensors: int
    """Those that are chosen; files that only torch can read are not counted."""
    need_bytes: int
    free_bytes: int
    """A fifth of what the machine or the control group has left stays out of it."""
    unknown: tuple[str, ...]
    """Files whose tensors are not told without loading them: `need_bytes` counts the whole file."""


def fit(path: str | os.PathLike[str], *, only: str | Iterable[str] | None = None, trusted: bool = False) -> Fit:
    """What `load` would take. Raises what `load` raises about the checkpoint, and NoSpace where it does not fit."""
    found = formats.detect(path)
    count, need_bytes, unknown = _needed(found, None if only is None or isinstance(only, str) else list(only), trusted)
    free_bytes = workers.available_bytes()
    if need_bytes > free_bytes:
        raise NoSpace(
            f"{os.fspath(path)} takes {units.format_bytes(need_bytes)} of memory, and {units.format_bytes(free_bytes)} "
            "is what a read may take here",
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            limit=workers.MEMORY,
        )
    return Fit(count, need_bytes, free_bytes, unknown)


def _needed(found: Found, only: str | list[str] | None, trusted: bool) -> tuple[int, int, tuple[str, ...]]:
    chosen = loading.chooser(only)
    if found.format == "dcp":
        metadata = listing.metadata_of(found, trusted=trusted)
        listed, _, _ = listing.of_metadata(metadata, os.path.join(found.directory, formats.METADATA))
        wanted = [entry for entry in listed if chosen(entry.name)]
        return len(wanted), sum(entry.size_bytes for entry in wanted), ()
    count = need_bytes = 0
    unknown = []
    for file in found.files:
        if found.format == "safetensors":
            entries = [one for one in safetensors_files.entries(found.directory, file) if chosen(one.name)]
            count += len(entries)
            need_bytes += sum(entry.size_bytes for entry in entries)
            continue
        try:
            looked = torch_files.look_at(found.directory, file)
        except NeedsTorch:
            unknown.append(file)
            need_bytes += _file_bytes(os.path.join(found.directory, file))
            continue
        names = [name for name in looked.tensors if chosen(name)]
        count += len(names)
        # A storage is read whole and once, whichever of its tensors are wanted.
        storages = {looked.tensors[name].storage for name in names}
        need_bytes += sum(looked.storages[key].size_bytes for key in storages)
    return count, need_bytes, tuple(unknown)


def _file_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
