"""What a bench found, as data: raw numbers with the unit in the name. `SCHEMA` changes when a field's meaning does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA = 1
Role = Literal["dsmem", "recipe", "limit", "predicted"]
"""dsmem; what people write without it; what the machine can do at best; what dsmem would do: computed, not measured."""
Quantity = Literal["time", "memory"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender of a comparison. Times are of one operation; None = not measured, or nothing to compare with."""

    name: str
    role: Role
    samples: int
    median_s: float | None
    min_s: float | None
    max_s: float | None
    median_bytes: int | None
    min_bytes: int | None
    max_bytes: int | None
    bytes_per_s: float | None
    ratio_to_recipe: float | None
    """How many times as fast, or as small, as the first recipe."""
    percent_of_limit: float | None
    """100 = as fast, or as small, as the best limit."""
    times_data: float | None
    """Memory as a multiple of the data."""
    peak_bytes: int | None
    """PSS of the process at its peak, without shared memory, plus what shared memory grew by; above what was before."""
    p99_s: float | None = None
    """Of a hundred samples at least."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Contenders that did the same, in turns, with equal results."""

    title: str
    quantity: Quantity
    size_bytes: int
    """Of one operation."""
    runs: int
    """Rounds that were counted."""
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case of the bench."""

    name: str
    claim: str
    compared: tuple[Compared, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    kernel: str
    python: str
    dsmem: str
    numpy: str
    h5py: str
    hdf5: str
    cpu: str
    cpus: int
    """Usable by this process."""
    memory_bytes: int
    memory_available_bytes: int
    shared_point: str
    """The mount on which the private store lay."""
    shared_fstype: str
    shared_huge_pages: str
    shared_size_bytes: int | None
    shared_free_bytes: int | None
    shmem_enabled: str | None
    page_bytes: int
    memcpy_bytes_per_s: float
    md5_bytes_per_s: float
    fill_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run of the bench found."""

    schema: int
    machine: Machine
    size_bytes: int
    asked_bytes: int
    runs: int
    file: str | None
    notes: tuple[str, ...]
    """What is smaller or shorter than was asked for, and why."""
    cases: tuple[CaseResult, ...]
    elapsed_s: float
