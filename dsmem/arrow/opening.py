"""Arrow files in shared memory as a `datasets.Dataset`, with no copy: every buffer of it keeps the map, and a lease.

The table says that it lies at `paths`: that is what a pickled dataset opens in another process, and where `.map` puts
its caches. It need not be where the files are.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Split:
    """One split on disk."""

    files: tuple[str, ...]
    """Where the bytes are."""
    paths: tuple[str, ...]
    """Where the dataset says that they are; as many."""
    fingerprint: str
    info: Mapping[str, object]
    """The record of dataset_info.json."""
    name: str | None
    """'train' …"""


def open_split(split: Split, lease: object) -> Dataset:
    """The rows of a split; `lease` lives as long as any slice of them. Raises OSError, and ValueError for damage."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, NamedSplit
    from datasets.table import MemoryMappedTable, concat_tables

    tables = []
    for file, path in zip(split.files, split.paths, strict=True):
        try:
            tables.append(MemoryMappedTable(_read(file, lease), path))
        except pa.ArrowInvalid as exc:
            raise ValueError(f"{file}: {exc}") from exc
    table = tables[0] if len(tables) == 1 else concat_tables(tables)
    name = NamedSplit(split.name) if split.name is not None else None
    # The files' schema holds the features; given once more they would be copied and compared, a quarter of the time.
    found = Dataset(table, split=name, fingerprint=split.fingerprint)
    info = DatasetInfo.from_dict({key: value for key, value in split.info.items() if key != "features"})
    for field in fields(info):
        if field.name != "features":
            setattr(found.info, field.name, getattr(info, field.name))
    return found


def _read(file: str, lease: object) -> pa.Table:
    import pyarrow as pa

    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mapped = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    whole = pa.py_buffer(mapped)
    held = pa.foreign_buffer(whole.address, whole.size, base=(whole, lease))
    return pa.ipc.open_stream(pa.BufferReader(held)).read_all()


def file_paths(directory: str, names: Sequence[str]) -> tuple[str, ...]:
    """Paths of files in a directory."""
    return tuple(f"{directory}/{name}" for name in names)
