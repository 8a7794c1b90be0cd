"""What `pin` and `ckpt pin` say of what they put into the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dsmem import units
from dsmem.cli import rows
from dsmem.cli.output import Output, note


class Pinned(Protocol):
    """What both commands are told of one object."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def already(self) -> bool: ...
    @property
    def waited(self) -> bool: ...
    @property
    def evicted(self) -> Sequence[str]: ...
    @property
    def evicted_bytes(self) -> int: ...


def tell_evicted(pinned: Pinned) -> None:
    """What made room for it, if anything did."""
    if pinned.evicted:
        note(f"evicted {rows.count(len(pinned.evicted))}, {units.format_bytes(pinned.evicted_bytes)}")


def sum_up(out: Output, pinned: Pinned) -> None:
    """The last line: whether it was there, waited for, or pinned now, and how fast."""
    size, took = units.format_bytes(pinned.size_bytes), units.format_duration(pinned.elapsed_s)
    if pinned.already:
        out.result(f"{pinned.name} is already pinned: {size}, found in {took}")
    elif pinned.waited:
        out.result(f"{pinned.name} was pinned by another process meanwhile: {size}, waited {took}")
    else:
        rate = units.format_rate(pinned.size_bytes, pinned.elapsed_s)
        out.result(f"pinned {pinned.name}: {size} in {took}, {rate}")
