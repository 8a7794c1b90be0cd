"""The machine as a recommendation needs to know it."""

from __future__ import annotations

from dsmem import proc
from dsmem.shm import limits
from dsmem.tune.facts import System

_MANY_FILES = 1 << 16
"""Where descriptors have no limit."""


def look(*, gpus: int | None = None) -> System:
    """Look at this machine; `gpus`: as many as are told instead of those that are found."""
    found = limits.system_limits()
    available = min([found.memory.available_bytes, *(group.free_bytes for group in found.cgroups)])
    free = found.store.free_bytes
    room = available if free is None else free
    return System(
        cpus=proc.usable_cpus(),
        memory_bytes=min([found.memory.total_bytes, *(group.limit_bytes for group in found.cgroups)]),
        available_bytes=available,
        shared_free_bytes=min(room, available) if found.store.in_memory else room,
        shared_point=found.store.point,
        gpus=proc.visible_gpus() if gpus is None else gpus,
        open_files=found.open_files or _MANY_FILES,
        huge_pages=found.store.huge_pages,
    )
