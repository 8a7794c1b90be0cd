"""How many workers a read gets: what CPUs, memory and the size of the read make sense of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dsmem import proc, units
from dsmem.errors import UsageError

Workers = int | Literal["auto"]
BYTES_PER_WORKER = 32 << 20
"""Less than this is read before a thread more has paid for itself."""
MEMORY_PER_WORKER = 8 << 20
KEPT_FREE = 0.2
MEMORY = "memory of this machine"
"""What limits a read, as errors have it."""
_NETWORK_FACTOR = 4
_MOST_ON_NETWORK = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """The number, and what decided it."""

    workers: int
    why: str
    advice: str | None = None
    """What would be faster than what was asked for, as far as that is known before."""


def check(workers: Workers) -> None:
    """Raises UsageError for what is no number of workers."""
    if workers != "auto" and (type(workers) is not int or workers < 1):
        raise UsageError(f"workers={workers!r} means nothing; it is 'auto' or a number from 1 on")


def choose(
    workers: Workers,
    size_bytes: int,
    *,
    largest_copy_bytes: int,
    budget_bytes: int,
    sequential_below: int,
    network: bool,
    small_bytes: int = 0,
    parallel: bool = True,
) -> Choice:
    """For a read of so many bytes, of which `small_bytes` are of tensors that are read in groups.

    `largest_copy_bytes`: what a worker holds for the largest item of the stock code.
    """
    if not parallel:
        return Choice(1, "parallel reading is switched off")
    # Giving each small tensor its bytes is Python's work, which threads do in turns.
    large_bytes = size_bytes if network else size_bytes - small_bytes
    one = None
    if size_bytes < sequential_below:
        one = f"less than {units.format_bytes(sequential_below)}"
    elif large_bytes < sequential_below:
        one = f"less than {units.format_bytes(sequential_below)} but for small tensors"
    if workers != "auto":
        slow = one is not None and workers > 1 and not network
        return Choice(workers, "as asked", f"--workers 1 is faster here: it is {one}" if slow else None)
    if one is not None:
        return Choice(1, one)
    cpus = proc.usable_cpus()
    bounds = [
        (math.ceil(large_bytes / BYTES_PER_WORKER), f"one for {units.format_bytes(BYTES_PER_WORKER)}"),
        (max(1, budget_bytes // (MEMORY_PER_WORKER + largest_copy_bytes)), "memory"),
    ]
    if network:
        bounds.append((min(cpus * _NETWORK_FACTOR, _MOST_ON_NETWORK), "a network file system"))
    else:
        bounds.append((cpus, f"{cpus} CPUs"))
    number, why = min(bounds)
    return Choice(number, why)


def available_bytes() -> int:
    """Memory that a read may take, a fifth of what there is left free."""
    free = min([proc.memory().available_bytes, *(group.free_bytes for group in proc.cgroup_memory())])
    return int(free * (1 - KEPT_FREE))
