"""One item of a plan on its way from a file to its place, and what a task says about those it dealt with."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dsmem.checkpoint.scratch import Scratch
from dsmem.errors import BadSource, ReadFailure


class Item:
    """A request, where its bytes lie, and where they go. Only the thread that reads a plan changes it."""

    __slots__ = ("file", "info", "key", "left", "length", "name", "offset", "request", "straight", "target")

    def __init__(self, request: Any, info: Any) -> None:
        self.request = request
        self.info = info
        self.name: str = request.storage_index.fqn
        self.file: str = info.relative_path
        self.offset: int = info.offset
        self.length: int = info.length
        self.target: torch.Tensor = _NONE
        self.straight = False
        """The destination is ordinary, contiguous memory."""
        self.key: object = None
        """Items of one key very likely have equal prefixes."""
        self.left = 1
        """Pieces that are not read yet."""

    def failure(self, error: BaseException) -> ReadFailure:
        """The error, told in text: it must survive pickling."""
        return failure_of(error, self.file, (self.name,), self.offset)


def items_of(requests: Sequence[Any], storage_data: Mapping[Any, Any], *, path: Any) -> list[Item]:
    """An item of each request. Raises BadSource where the metadata has no place for one."""
    try:
        return [Item(request, storage_data[request.storage_index]) for request in requests]
    except KeyError:
        lacking = [request.storage_index.fqn for request in requests if request.storage_index not in storage_data]
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        told = f"the metadata of {path} does not tell where {', '.join(lacking[:3])}{more} lie in the files"
        raise BadSource(told) from None


def failure_of(error: BaseException, file: str, names: tuple[str, ...], offset: int) -> ReadFailure:
    """An error at a place in a file, in text."""
    return ReadFailure(
        file=file,
        tensors=names,
        offset=offset,
        kind=type(error).__name__,
        message=str(error) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
    )


_NONE = torch.empty(0)


@dataclass(slots=True)
class Outcome:
    """What one task did, for the thread that reads the plan."""

    file: str
    elapsed_s: float = 0.0
    size_bytes: int = 0
    grouped: list[Item] = field(default_factory=list)
    direct: list[Item] = field(default_factory=list)
    """A piece of each was read."""
    bounced: list[Item] = field(default_factory=list)
    again: list[tuple[Item, str]] = field(default_factory=list)
    """Left to the stock code, and why."""
    loaded: list[tuple[Item, torch.Tensor | io.BytesIO]] = field(default_factory=list)
    """By the stock code; still to be copied to their places."""
    failed: list[tuple[Item, ReadFailure]] = field(default_factory=list)
    verified: int = 0
    unverifiable: int = 0
    more: list[Callable[[Scratch], Outcome]] = field(default_factory=list)
    pieces: int = 1
    """Into how many an item was cut, of which this task read the first."""
