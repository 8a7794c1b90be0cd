"""`explain`: what pinning a file would do with each dataset, and what it would refuse. No data is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dsmem import digest
from dsmem.arrays import tree
from dsmem.arrays.summary import label
from dsmem.errors import Allow, Refusal
from dsmem.pinning.pin import checked_allow

if TYPE_CHECKING:
    from dsmem.hdf5.datasets import Item
    from dsmem.pinning.source import Source

Tier = Literal["contiguous", "chunked", "h5py", "empty"]


@dataclass(frozen=True, slots=True)
class ExplainedDataset:
    """How one dataset would come into memory."""

    path: str
    shape: tuple[int, ...] | None
    """None = a null dataspace."""
    dtype: str
    layout: str
    """'contiguous', 'chunked', 'compact', 'virtual', 'external' or 'unknown'."""
    chunks: tuple[int, ...] | None
    filters: tuple[str, ...]
    """In the order in which they were applied; one that is not HDF5's own says where its code comes from."""
    size_bytes: int
    """In memory; 0 for what varies in length, which is known only after reading."""
    stored_bytes: int
    ratio: float | None
    """Size in memory by size in the file; None where either is 0."""
    tier: Tier
    """"contiguous": copied as it lies; "chunked": decoded by dsmem; "h5py": read by it; "empty": nothing to read."""
    why: str
    """Why that tier."""
    is_outside: bool
    """Some of it lies in other files."""
    note: str | None
    """What a user should know of how it is stored."""
    in_processes: bool = False
    """Whether its chunks, being many and small, are decoded by processes, not by threads."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `pin` would do with a file; with `refused` not empty it needs `skip_unsupported`, `only` or `allow`."""

    path: str
    size_bytes: int
    """Of the file."""
    datasets: tuple[ExplainedDataset, ...]
    refused: tuple[Refusal, ...]


def explain(
    path: str | os.PathLike[str],
    *,
    only: Sequence[str] | None = None,
    allow: Collection[Allow] = (),
    untrusted: bool = False,
) -> Explanation:
    """What `pin` would do with an HDF5 file, found without reading data and without a store.

    `only`, `allow` and `untrusted` are those of `pin`. Raises SourceMissing, BadSource, SourceBusy (open for writing),
    UsageError.
    """
    from dsmem.hdf5 import opening
    from dsmem.pinning import untrusted as child
    from dsmem.pinning.source import Source

    where = os.path.realpath(path)
    allowed = checked_allow(allow)
    fd = digest.open_source(where)
    try:
        opening.lock_source(fd, where)
        opening.check_signature(fd, where)
        source = Source(fd, where, os.fstat(fd).st_size, tuple(only or ()), allowed)
        return child.explain(source) if untrusted else explain_source(source)
    finally:
        os.close(fd)


def explain_source(source: Source, seen: Callable[[], None] | None = None) -> Explanation:
    """`explain` of a file that is open; `seen` is called for every object in it."""
    from dsmem.hdf5 import opening, scan
    from dsmem.pinning import decoding
    from dsmem.pinning.loading import nothing_selected

    path, only, allow = source.path, source.only, source.allow
    with opening.opened(source.fd, path, by_name="external" in allow) as file:
        found = scan.scan(file, path, only=only, allow=allow, file_bytes=source.size_bytes, seen=seen)
        if only and not found.items and not found.refusals:
            raise nothing_selected(file, path, only)
        small = {item.number for item in decoding.in_processes(found.items)}
        explained = tuple(_explained(item, file, path, item.number in small) for item in found.items)
    return Explanation(path, source.size_bytes, explained, tuple(found.refusals))


def _explained(item: Item, file: Any, source: str, in_processes: bool) -> ExplainedDataset:
    from h5py import h5d

    from dsmem.hdf5 import chunkindex, filters, opening

    info, size_bytes, stored_bytes = item.info, item.size_bytes, item.storage_bytes
    if stored_bytes is None:
        with opening.translated(source, f"/{item.path}"):
            stored_bytes = chunkindex.stored_bytes(h5d.open(file.id, tree.raw(item.path)))
    origins = [(one.name, filters.origin(one.code)) for one in item.filters]
    return ExplainedDataset(
        path=item.path,
        shape=info.shape,
        dtype=label(info.dtype),
        layout=item.layout,
        chunks=info.chunks,
        filters=tuple(name if origin is None else f"{name} ({origin})" for name, origin in origins),
        size_bytes=size_bytes,
        stored_bytes=stored_bytes,
        ratio=round(size_bytes / stored_bytes, 3) if size_bytes and stored_bytes else None,
        tier=item.tier,
        why=f"{item.why}; many small chunks: in processes" if in_processes else item.why,
        is_outside=item.is_outside,
        note=info.note,
        in_processes=in_processes,
    )
