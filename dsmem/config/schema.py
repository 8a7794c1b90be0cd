"""The one schema of dsmem.yaml, for the server, for training and for what `dsmem tune` writes.

Every key is known: a misspelt one is an error with its line. Units: seconds, rows, items.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dsmem import units
from dsmem.config import nodes
from dsmem.config.nodes import Node
from dsmem.errors import UsageError

_Check = Callable[[Node, "_Place"], Any]


@dataclass(frozen=True, slots=True)
class MemoryMapping:
    """`memory_mapping`: files mapped instead of read."""

    enabled: bool = True
    cache_size: int = 100
    """Items."""
    cache_bytes: int | None = None
    """The ceiling of the cache of decoded data; None = a share of the memory that is available."""
    cache_scope: Literal["process", "shared"] = "process"
    """A cache in each process, or one for all of the machine that read the same files."""


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """`shared_memory`: what a training dataset keeps in the store."""

    enabled: bool = True
    preload_critical_data: bool = True
    memory_limit: int | None = None
    """Bytes, also written '40GiB', of shared memory and cache together; None = what fits."""


@dataclass(frozen=True, slots=True)
class Dataloader:
    """`dataloader`: arguments of torch's DataLoader."""

    num_workers: int = 4
    pin_memory: bool = True
    persistent_workers: bool = True
    prefetch_factor: int = 2


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """One of `dataset.datasets`."""

    name: str
    """A hub id or a path."""
    dataset_name: str | None = None
    """The name in the catalogue; None = made of `name`."""
    subset: str | None = None
    """The configuration of the dataset on the hub."""
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """`dataset.shared_memory`: the server and how clients wait for it."""

    server_timeout: float = 30.0
    """Seconds that a client waits for a dataset that is loading, or for a server that it starts."""
    auto_start: bool = False
    sample_limit: int | None = None
    """Rows of each dataset; None = all."""
    data_dir: str | None = None
    overflow_dir: str | None = None
    pid_file: str | None = None
    log_file: str | None = None


@dataclass(frozen=True, slots=True)
class Datasets:
    """`dataset`: tables that the server shares."""

    use_shared_memory: bool = False
    shared_memory: Access = Access()
    datasets: tuple[DatasetEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole dsmem.yaml."""

    dataset: Datasets = Datasets()
    memory_mapping: MemoryMapping = MemoryMapping()
    shared_memory: SharedMemory = SharedMemory()
    dataloader: Dataloader = Dataloader()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Key ('dataset.shared_memory.auto_start') → line, for the keys that the file has."""


def read(path: str) -> Config:
    """The configuration in a file; raises UsageError with file and line, or SourceMissing."""
    return load(nodes.read(path), path)


def load(node: Node, name: str) -> Config:
    """Nodes as a configuration; `name` is the file's, for errors."""
    lines: dict[str, int] = {}
    place = _Place(name, "", lines)
    table = _table(node, place, ("dataset", "memory_mapping", "shared_memory", "dataloader"))
    made = {key: _SECTIONS[key](value, place.below(key)) for key, value in table.items()}
    return Config(**made, lines=lines)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a file we are."""

    file: str
    key: str
    lines: dict[str, int]

    def below(self, key: str) -> _Place:
        return _Place(self.file, f"{self.key}.{key}" if self.key else key, self.lines)

    def error(self, line: int, problem: str) -> UsageError:
        return UsageError(f"{self.file}:{line}: {problem}")


def _table(node: Node, place: _Place, known: tuple[str, ...]) -> Mapping[str, Node]:
    """A mapping with none but known keys; `key:` with nothing behind it is an empty one."""
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        raise place.error(node.line, f"{place.key or 'the file'} must be a mapping of {', '.join(known)}")
    for key, value in node.value.items():
        place.lines[place.below(key).key] = value.line
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise place.error(value.line, f"unknown key {place.below(key).key!r}{meant}")
    return node.value


def _section(kind: type[Any], **checks: _Check) -> _Check:
    """A mapping as a frozen dataclass, its fields checked one by one; those without a default must be there."""

    def check(node: Node, place: _Place) -> Any:
        table = _table(node, place, tuple(one.name for one in fields(kind)))
        made = {key: checks[key](value, place.below(key)) for key, value in table.items()}
        try:
            return kind(**made)
        except TypeError as exc:
            missing = [one.name for one in fields(kind) if one.name not in made and one.name == "name"]
            raise place.error(node.line, f"{place.key} needs {', '.join(missing)}") from exc

    return check


def _yes(node: Node, place: _Place) -> bool:
    if not isinstance(node.value, bool):
        raise place.error(node.line, f"{place.key} is true or false, not {node.value!r}")
    return node.value


def _count(least: int) -> _Check:
    def check(node: Node, place: _Place) -> int:
        if type(node.value) is not int or node.value < least:
            raise place.error(node.line, f"{place.key} is a whole number from {least} on, not {node.value!r}")
        return node.value

    return check


def _scope(node: Node, place: _Place) -> str:
    if node.value not in ("process", "shared"):
        raise place.error(node.line, f"{place.key} is process or shared, not {node.value!r}")
    return str(node.value)


def _size(node: Node, place: _Place) -> int:
    if isinstance(node.value, str):
        try:
            return units.parse_bytes(node.value)
        except UsageError as exc:
            raise place.error(node.line, f"{place.key}: {exc}") from exc
    if type(node.value) is not int or node.value < 0:
        raise place.error(node.line, f"{place.key} is a size, such as 40GiB, not {node.value!r}")
    return node.value


def _seconds(node: Node, place: _Place) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float) or not 0 <= node.value < 1e9:
        raise place.error(node.line, f"{place.key} is a number of seconds, not {node.value!r}")
    return float(node.value)


def _text(node: Node, place: _Place) -> str:
    if not isinstance(node.value, str) or not node.value or not node.value.isprintable():
        raise place.error(node.line, f"{place.key} is a text, not {node.value!r}")
    return node.value


def _or_none(check: _Check) -> _Check:
    return lambda node, place: None if node.value is None else check(node, place)


def _entries(node: Node, place: _Place) -> tuple[DatasetEntry, ...]:
    if node.value is None:
        return ()
    if not isinstance(node.value, list):
        raise place.error(node.line, f"{place.key} is a list of mappings with name, dataset_name, subset, split")
    made: tuple[DatasetEntry, ...] = tuple(
        _ENTRY(one, place.below(str(position))) for position, one in enumerate(node.value)
    )
    return made


_ENTRY = _section(DatasetEntry, name=_text, dataset_name=_or_none(_text), subset=_or_none(_text), split=_or_none(_text))
_SECTIONS: Mapping[str, _Check] = {
    "dataset": _section(
        Datasets,
        use_shared_memory=_yes,
        shared_memory=_section(
            Access,
            server_timeout=_seconds,
            auto_start=_yes,
            sample_limit=_or_none(_count(1)),
            data_dir=_or_none(_text),
            overflow_dir=_or_none(_text),
            pid_file=_or_none(_text),
            log_file=_or_none(_text),
        ),
        datasets=_entries,
    ),
    "memory_mapping": _section(
        MemoryMapping, enabled=_yes, cache_size=_count(0), cache_bytes=_or_none(_size), cache_scope=_scope
    ),
    "shared_memory": _section(SharedMemory, enabled=_yes, preload_critical_data=_yes, memory_limit=_or_none(_size)),
    "dataloader": _section(
        Dataloader, num_workers=_count(0), pin_memory=_yes, persistent_workers=_yes, prefetch_factor=_count(1)
    ),
}
