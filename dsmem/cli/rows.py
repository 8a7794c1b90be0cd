"""Objects and datasets as rows: the same columns wherever a command shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dsmem import units
from dsmem.cli.output import Column

if TYPE_CHECKING:
    from dsmem.shm.listing import Entry, SourceState

DATASET = (
    Column("dataset", "dataset"),
    Column("shape", "shape"),
    Column("dtype", "dtype"),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
)
OBJECT = (
    Column("name", "name"),
    Column("kind", "kind"),
    Column("size", "size_bytes", show=units.format_bytes, right=True),
    Column("source", "source"),
    Column("age", "age_s", show=units.format_duration, right=True),
    Column("held by", "held_by"),
    Column("kept", "kept"),
)


class Dataset(Protocol):
    """What `pin` and `shm ls --h5` report about one dataset."""

    @property
    def path(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


def dataset(one: Dataset) -> list[object]:
    """Cells for DATASET: the shape as numpy shows it, 'empty' for a null dataspace."""
    shape = "empty" if one.shape is None else str(one.shape)
    return [one.path, shape, one.dtype, one.size_bytes]


def entry(one: Entry) -> list[object]:
    """Cells for OBJECT."""
    kind = one.kind if one.damaged is None else "damaged"
    return [one.name, kind, one.size_bytes, sources(one), one.age_s, holders(one), "kept" if one.kept else None]


def sources(one: Entry) -> list[str]:
    """The files an object was made of, each with what has become of it."""
    return [_source(source) for source in one.sources]


def _source(source: SourceState) -> str:
    remarks = [*(["partial"] if source.partial else []), *([] if source.state == "same" else [source.state])]
    return f"{source.path} ({', '.join(remarks)})" if remarks else source.path


def holders(one: Entry) -> list[str]:
    """'pid command' of each process that holds an object; 'unknown' where that can't be seen."""
    if one.holders is None:
        return ["unknown"]
    return [f"{holder.pid} {holder.command}" for holder in one.holders]


def count(number: int, noun: str = "object") -> str:
    """'1 object', '3 objects'."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
