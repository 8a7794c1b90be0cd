"""How much data a run can use on this machine: what was asked for, or what memory and time allow, with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dsmem import proc, units
from dsmem.bench.scratch import Scratch
from dsmem.errors import NoSpace
from dsmem.shm import limits

LEAST_BYTES = 1 << 20
_SHARE = 0.8
"""Of what is free; the rest is for everyone else."""


@dataclass(frozen=True, slots=True)
class Need:
    """How often the data is there at once, at the worst moment."""

    memory: float
    """In RAM, shared memory included."""
    shared: float
    """In shared memory."""
    files: float
    """In files."""


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes."""

    memory_bytes: int
    shared_bytes: int
    files_bytes: int
    files_in_memory: bool = False
    """Files lie in RAM too (/tmp is a tmpfs)."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size to use; `why` says what made it smaller than `asked_bytes`."""

    size_bytes: int
    asked_bytes: int
    why: str | None = None


def room(place: Scratch) -> Room:
    """What is free for a run in that place: machine, control groups and both file systems."""
    files = limits.space_of(place.files)
    memory_bytes = min([proc.memory_available(), *(group.free_bytes for group in proc.cgroup_memory())])
    return Room(
        memory_bytes, _free_bytes(os.statvfs(place.shared)), _free_bytes(os.statvfs(place.files)), files.in_memory
    )


def fit(asked_bytes: int, need: Need, free: Room, *, seconds_per_byte: float = 0.0, within_s: float = 0.0) -> Size:
    """The largest size up to `asked_bytes`; raises NoSpace when not even 1 MiB of data fits.

    With `within_s`, also what is done in that time at an expected `seconds_per_byte`.
    """
    memory = need.memory + (need.files if free.files_in_memory else 0)
    bounds = [
        (_SHARE * free.memory_bytes / memory, "memory", free.memory_bytes, memory),
        (_SHARE * free.shared_bytes / need.shared, "shared memory", free.shared_bytes, need.shared),
        (_SHARE * free.files_bytes / need.files, "room for temporary files", free.files_bytes, need.files),
    ]
    largest, what, free_bytes, times = min(bounds)
    if largest < min(LEAST_BYTES, asked_bytes):
        need_bytes = int(LEAST_BYTES * times / _SHARE)
        raise NoSpace(
            f"{units.format_bytes(need_bytes)} of {what} needed, {units.format_bytes(free_bytes)} free",
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            limit=what,
        )
    why = f"{units.format_bytes(free_bytes)} of {what} is free and {times:g} times the data is needed"
    if within_s and seconds_per_byte and largest > within_s / seconds_per_byte:
        largest = max(within_s / seconds_per_byte, LEAST_BYTES)
        why = "more would take too long"
    if largest >= asked_bytes:
        return Size(asked_bytes, asked_bytes)
    return Size(int(largest), asked_bytes, why)


def _free_bytes(found: os.statvfs_result) -> int:
    # A tmpfs of size=0 has no limit of its own: the machine's memory is counted beside it.
    return found.f_bavail * found.f_frsize if found.f_blocks else 1 << 62
