"""What the daemon knows of each dataset: a record that it alone changes, and that clients get as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsmem.files import FileIdentity
from dsmem.server.spec import Spec

DatasetState = Literal["waiting", "loading", "ready", "failed", "evicted"]
ServerState = Literal["starting", "loading", "ready", "degraded", "stopped"]


@dataclass(frozen=True, slots=True)
class Published:
    """A table that is in the store now."""

    object: str
    rows: int
    """Of all its splits."""
    size_bytes: int
    identity: FileIdentity
    """Of the source when it was read."""
    generation: int
    """How often its rows have changed, from 1 on."""
    root: str = ""
    """Of the second store, where it is there; '' = the first."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"object": self.object, "root": self.root, "rows": self.rows, "size_bytes": self.size_bytes}
        return {**facts, "generation": self.generation, "identity": self.identity.as_list()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Published:
        """The inverse of `as_dict`; raises ValueError."""
        name, rows, size_bytes = record.get("object"), record.get("rows"), record.get("size_bytes")
        generation = record.get("generation")
        root = record.get("root", "")
        if not isinstance(name, str) or "/" in name or not isinstance(root, str):
            raise ValueError("not a published table")
        if not all(type(n) is int for n in (rows, size_bytes, generation)):
            raise ValueError("not a published table")
        assert isinstance(rows, int) and isinstance(size_bytes, int) and isinstance(generation, int)
        return cls(name, rows, size_bytes, FileIdentity.from_list(record.get("identity")), generation, root)


@dataclass(slots=True)
class Record:
    """One dataset of a running server."""

    name: str
    spec: Spec
    state: DatasetState = "waiting"
    """A dataset that is ready stays so while a newer generation is built. 'evicted': its object was removed, to make
    room or by hand; it is loaded again when somebody asks for it."""
    refreshing: bool = False
    object: str = ""
    """In the store; '' until it is ready."""
    root: str = ""
    """Of the store that it is in."""
    rows: int = 0
    size_bytes: int = 0
    generation: int = 0
    """Of its rows, from 1 on; kept with the table."""
    error: str = ""
    """Why the last attempt failed; '' after one that worked."""
    done_bytes: int = 0
    total_bytes: int = 0
    since_s: float = field(default_factory=time.time)
    """When it got into its state, seconds since 1970."""
    identity: FileIdentity | None = None
    """Of the source when it was read."""
    loads: int = 0
    failures: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "source": self.spec.label,
            "spec": self.spec.as_dict(),
            "state": self.state,
            "refreshing": self.refreshing,
            "object": self.object,
            "root": self.root,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "generation": self.generation,
            "error": self.error,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "since_s": self.since_s,
            "loads": self.loads,
            "failures": self.failures,
        }


def state_of(records: list[Record]) -> ServerState:
    """The state of the server as a whole: what is loading counts before what has failed."""
    if any(one.state in ("waiting", "loading") for one in records):
        return "loading"
    if any(one.state == "failed" or one.error for one in records):
        return "degraded"
    return "ready"
