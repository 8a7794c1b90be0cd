"""Facts about the machine that figures need beside them, and its plain speeds, measured in a fraction of a second."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

import dsmem
from dsmem import proc
from dsmem.bench import limits
from dsmem.bench.results import Machine
from dsmem.shm.limits import space_of

_TRY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes a second of one thread: what the length of a run is estimated from."""

    memcpy: float
    md5: float
    fill: float
    """Writing to new shared memory."""


def speeds(shared: Path) -> Speeds:
    """Measure on 32 MiB, or less where shared memory is small."""
    size_bytes = max(1 << 20, min(_TRY_BYTES, os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize // 4))
    data = memoryview(bytes(size_bytes))

    def fill() -> None:
        with limits.new_file(shared) as file:
            for offset in range(0, size_bytes, 1 << 20):
                os.pwrite(file.fileno(), data[offset : offset + (1 << 20)], offset)

    return Speeds(
        memcpy=size_bytes / _usual_s(limits.copy_memory(size_bytes)),
        md5=size_bytes / _usual_s(lambda: hashlib.md5(data)),
        fill=size_bytes / _usual_s(fill),
    )


def machine(shared: Path, measured: Speeds) -> Machine:
    """What this machine is, with the mount that holds the private store."""
    memory, space = proc.memory(), space_of(shared)
    return Machine(
        kernel=os.uname().release,
        python=platform.python_version(),
        dsmem=dsmem.__version__,
        numpy=np.__version__,
        h5py=h5py.__version__,
        hdf5=h5py.version.hdf5_version,
        cpu=_cpu(),
        cpus=proc.usable_cpus(),
        memory_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        shared_point=space.point,
        shared_fstype=space.fstype,
        shared_huge_pages=space.huge_pages,
        shared_size_bytes=space.size_bytes,
        shared_free_bytes=space.free_bytes,
        shmem_enabled=proc.shmem_enabled(),
        page_bytes=mmap.PAGESIZE,
        memcpy_bytes_per_s=measured.memcpy,
        md5_bytes_per_s=measured.md5,
        fill_bytes_per_s=measured.fill,
    )


def _usual_s(work: Callable[[], object]) -> float:
    taken_s = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - began)
    return statistics.median(taken_s)


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()
