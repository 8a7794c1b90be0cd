"""How a checkpoint is read, said once for all formats."""

from __future__ import annotations

from dataclasses import dataclass

from dsmem.arrays.memory import Pages
from dsmem.checkpoint import workers
from dsmem.checkpoint.direct import Verify
from dsmem.checkpoint.opened import Io
from dsmem.checkpoint.stock import Executor
from dsmem.checkpoint.workers import Workers
from dsmem.errors import UsageError


@dataclass(frozen=True, slots=True)
class Options:
    """How to read; the words are those of ParallelFileSystemReader. Raises UsageError for what none of them means."""

    workers: Workers = "auto"
    executor: Executor = "thread"
    io: Io = "auto"
    verify: Verify = "none"
    memory_budget: int | None = None
    sequential_below: int = 32 << 20
    parallel: bool = True
    fail_fast: bool = False
    trusted: bool = False
    pages: Pages | None = None
    """Where all destinations are new memory: what makes it."""

    def __post_init__(self) -> None:
        workers.check(self.workers)
        for name, value, known in (
            ("executor", self.executor, ("thread", "process")),
            ("io", self.io, ("auto", "pread", "mmap")),
            ("verify", self.verify, ("none", "crc")),
        ):
            if value not in known:
                raise UsageError(f"{name}={value!r} means nothing; it is {' or '.join(repr(one) for one in known)}")
        if self.memory_budget is not None and self.memory_budget < 1:
            raise UsageError(f"memory_budget={self.memory_budget} is no number of bytes")
