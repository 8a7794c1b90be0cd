"""Memory of the machine and of one process, and the limits of this process; raw bytes, read when asked.

Source: proc(5), Documentation/filesystems/proc.rst of the kernel.
"""

from __future__ import annotations

import re
import resource
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_HUGE_ORDER = 9


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory, in bytes."""

    total_bytes: int
    available_bytes: int
    """What programs can still get without swapping (MemAvailable)."""
    shared_bytes: int
    """Held by tmpfs and shared anonymous memory (Shmem)."""
    swap_total_bytes: int
    swap_free_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """The memory of one process. PSS counts a page that n processes map as 1/n: sums of it are true."""

    pss_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    private_bytes: int
    """Resident pages that no other process maps: what its end would give back, tmpfs apart."""
    shared_bytes: int
    pss_shared_memory_bytes: int | None
    """The share of PSS that lies in tmpfs; None before Linux 5.4."""
    swap_bytes: int


def memory(*, proc: Path = _PROC) -> Memory:
    """The machine's memory now."""
    table = _kilobytes((proc / "meminfo").read_text())
    return Memory(
        total_bytes=table["MemTotal"],
        available_bytes=table["MemAvailable"],
        shared_bytes=table["Shmem"],
        swap_total_bytes=table["SwapTotal"],
        swap_free_bytes=table["SwapFree"],
    )


def free_huge_pages(*, proc: Path = _PROC) -> int | None:
    """Pages of 2 MiB (512 of 4 KiB) that lie in one piece in the kernel's free lists; None where it does not tell.

    Source: /proc/buddyinfo, proc(5). Memory for devices (zone DMA) is not counted.
    """
    try:
        lines = (proc / "buddyinfo").read_text().splitlines()
    except OSError:  # not there, or kept from us
        return None
    zones = (line.partition("zone")[2].split() for line in lines if "zone" in line)
    return sum(
        int(count) << (order - _HUGE_ORDER)
        for zone, *counts in zones
        if zone != "DMA"
        for order, count in enumerate(counts)
        if order >= _HUGE_ORDER
    )


def memory_available(*, proc: Path = _PROC) -> int:
    """Bytes that can still be taken before the OOM killer comes: available memory and free swap."""
    now = memory(proc=proc)
    return now.available_bytes + now.swap_free_bytes


def memory_of(pid: int, *, proc: Path = _PROC) -> ProcessMemory:
    """The memory of a process, from smaps_rollup (smaps before Linux 4.14).

    Raises ProcessLookupError when there is no such process, PermissionError when it is another user's.
    """
    directory = proc / str(pid)
    try:
        try:
            text = (directory / "smaps_rollup").read_text()
        except FileNotFoundError:
            text = (directory / "smaps").read_text(errors="replace")
    except FileNotFoundError as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    table = _kilobytes(text)
    return ProcessMemory(
        pss_bytes=table["Pss"],
        rss_bytes=table["Rss"],
        anonymous_bytes=table["Anonymous"],
        private_bytes=table["Private_Clean"] + table["Private_Dirty"],
        shared_bytes=table["Shared_Clean"] + table["Shared_Dirty"],
        pss_shared_memory_bytes=table.get("Pss_Shmem"),
        swap_bytes=table["Swap"],
    )


def process_start_time(pid: int, *, proc: Path = _PROC) -> int:
    """Clock ticks from boot to the start of a process: with the pid, a name that is never used twice.

    Raises ProcessLookupError when there is no such process.
    """
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except FileNotFoundError as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    # Field 2 is the command in parentheses and may hold blanks and parentheses itself; field 22 is the start.
    return int(stat[stat.rindex(b")") + 2 :].split()[22 - 3])


def sysctl(name: str, *, proc: Path = _PROC) -> int | None:
    """The number that a kernel setting holds ('kernel.shmmax'); None where the kernel does not have it."""
    try:
        return int((proc / "sys" / name.replace(".", "/")).read_text())
    except FileNotFoundError:
        return None


def kernel_release(*, proc: Path = _PROC) -> tuple[int, int] | None:
    """The kernel's version, (6, 1); None where it does not say."""
    try:
        text = (proc / "sys/kernel/osrelease").read_text()
    except OSError:
        return None
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def rlimit_memlock() -> tuple[int | None, int | None]:
    """How many bytes this process may lock in memory, soft and hard limit; None = no limit."""
    return _rlimit(resource.RLIMIT_MEMLOCK)


def rlimit_open_files() -> tuple[int | None, int | None]:
    """How many descriptors this process may have, soft and hard limit; None = no limit."""
    return _rlimit(resource.RLIMIT_NOFILE)


def _rlimit(which: int) -> tuple[int | None, int | None]:
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which))
    return soft, hard


def _kilobytes(text: str) -> Counter[str]:
    """'Name:  12 kB' lines as bytes, lines of one name added up (smaps has them once a map)."""
    table: Counter[str] = Counter()
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            table[words[0].rstrip(":")] += int(words[1]) * 1024
    return table
