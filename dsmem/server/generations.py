"""What a published table says of itself, and what the next generation takes over: shards whose files are unchanged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from dsmem.arrow import writing
from dsmem.arrow.writing import Shard, Table
from dsmem.errors import DamagedObject, NotPinned
from dsmem.server.gathering import Fact
from dsmem.server.spec import Spec
from dsmem.store import directories, leases, refs
from dsmem.store.root import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the anchor of a table."""

    revision: str
    """The commit of a hub that was read; '' where it is not known."""
    spec: Spec
    tables: Mapping[str, Table]
    """Directory below the object → what lies there; '' = the object itself, which then holds no other."""
    files: Mapping[str, list[list[Fact]]] = field(default_factory=dict)
    """Directory → the source files of each shard, where a shard is of whole files."""
    generation: int = 1
    """How often the rows of this request have changed, from 1 on: one more than that of what it took the place of."""

    @property
    def rows(self) -> int:
        """Of all splits."""
        return sum(table.rows for table in self.tables.values())

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        tables = {key: asdict(table) for key, table in self.tables.items()}
        about = {"revision": self.revision, "spec": self.spec.as_dict(), "generation": self.generation}
        return {**about, "tables": tables, "files": dict(self.files)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Facts:
        """The inverse of `as_dict`; raises ValueError."""
        try:
            tables = {key: _table(one) for key, one in record["tables"].items()}
            files = {key: [[_fact(one) for one in some] for some in groups] for key, groups in record["files"].items()}
            generation = int(record.get("generation", 1))
            return cls(str(record["revision"]), Spec.from_dict(record["spec"]), tables, files, generation)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError("its anchor is not the one of a table") from exc


@dataclass(frozen=True, slots=True)
class Older:
    """The generation before, leased."""

    path: str = ""
    facts: Facts | None = None

    @property
    def generation(self) -> int:
        """Its number; 0 where there is none."""
        return self.facts.generation if self.facts is not None else 0

    def files(self, key: str) -> list[list[Fact]]:
        """The source files of each shard in a directory; [] where nothing can be taken over."""
        return self.facts.files.get(key, []) if self.facts is not None else []

    def table(self, key: str) -> Table:
        """What lies in a directory."""
        assert self.facts is not None
        return self.facts.tables[key]

    def shard_path(self, key: str, number: int) -> str:
        """Of a shard."""
        return "/".join(part for part in (self.path, key, writing.shard_name(number)) if part)


@contextmanager
def older(store: Store, spec: Spec) -> Iterator[Older]:
    """What the ref leads to now, held while shards of it are linked; empty where nothing is to be had."""
    ref = refs.find_source(store, spec.source, spec.selection)
    if ref is None:
        yield Older()
        return
    try:
        held = leases.lease(store, ref.object)
    except (NotPinned, DamagedObject) as exc:
        _log.info("%s: nothing of the older generation is used: %s", spec.label, exc)
        yield Older()
        return
    try:
        yield _read(store.object_path(ref.object))
    finally:
        held.map.close()


def _read(path: str) -> Older:
    try:
        anchor = directories.read_anchor(path)
        directories.check(path, anchor)
        return Older(path, Facts.from_dict(anchor.facts))
    except (NotPinned, DamagedObject, ValueError) as exc:
        _log.warning("nothing of the older generation is used: %s", exc)
        return Older()


def _table(record: Mapping[str, Any]) -> Table:
    shards = tuple(Shard(**one) for one in record["shards"])
    split = record["split"]
    if not isinstance(record["info"], dict) or not (split is None or isinstance(split, str)):
        raise TypeError("not a table")
    return Table(int(record["rows"]), split, str(record["fingerprint"]), shards, record["info"])


def _fact(values: Any) -> Fact:
    path, dev, ino, size_bytes, mtime_ns = values
    return (str(path), int(dev), int(ino), int(size_bytes), int(mtime_ns))
