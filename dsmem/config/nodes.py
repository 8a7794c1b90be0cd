"""YAML as bare values with their lines: text, numbers, yes and no, lists, mappings with text for keys; nothing else.

Only the safe loader reads, no tag makes an object, and what a file may hold is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmem.errors import SourceMissing, UsageError

LIMIT_BYTES = 1 << 20
LIMIT_NODES = 100_000
"""Aliases let a short text stand for a long one; each use counts."""
LIMIT_DEPTH = 20
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line on which it begins, counted from 1."""

    value: bool | int | float | str | Sequence[Node] | Mapping[str, Node] | None
    line: int


def read(path: str) -> Node:
    """The content of a YAML file; raises UsageError with the line, SourceMissing when there is no such file."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError as exc:
        raise SourceMissing(f"the configuration {path} is not there") from exc
    except OSError as exc:
        raise UsageError(f"the configuration {path} can't be read: {exc.strerror}") from exc
    if len(data) > LIMIT_BYTES:
        raise UsageError(f"the configuration {path} is larger than {LIMIT_BYTES >> 20} MiB")
    return parse(data, path)


def parse(data: bytes | str, name: str) -> Node:
    """YAML text as nodes; an empty text is an empty mapping. `name` is what errors call it."""
    import yaml

    try:
        loader = yaml.SafeLoader(data)
        try:
            root = loader.get_single_node()
            return Node({}, 1) if root is None else _Reader(loader, name).node(root, 0)
        finally:
            loader.dispose()
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark is not None else name
        raise UsageError(f"{place}: not YAML: {getattr(exc, 'problem', None) or exc}") from exc
    except RecursionError as exc:
        raise UsageError(f"{name}: nested too deeply") from exc


class _Reader:
    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name
        self._count = 0

    def node(self, found: Any, depth: int) -> Node:
        """A node of PyYAML as ours."""
        line = found.start_mark.line + 1
        self._count += 1
        if self._count > LIMIT_NODES or depth > LIMIT_DEPTH:
            raise UsageError(f"{self._name}:{line}: more than a configuration may hold")
        if found.id == "sequence":
            return Node([self.node(one, depth + 1) for one in found.value], line)
        if found.id == "mapping":
            return Node(self._mapping(found, depth), line)
        if found.tag not in _SCALARS:
            raise UsageError(f"{self._name}:{line}: {found.value!r} is neither text, a number nor yes or no; quote it")
        try:
            return Node(self._loader.construct_object(found), line)
        except ValueError as exc:
            raise UsageError(f"{self._name}:{line}: {found.value!r}: {exc}") from exc

    def _mapping(self, found: Any, depth: int) -> dict[str, Node]:
        table: dict[str, Node] = {}
        for key, value in found.value:
            line = key.start_mark.line + 1
            if key.id != "scalar" or key.tag != "tag:yaml.org,2002:str":
                raise UsageError(f"{self._name}:{line}: a key must be text")
            if key.value in table:
                raise UsageError(f"{self._name}:{line}: {key.value!r} is there twice")
            table[key.value] = self.node(value, depth + 1)
        return table
