"""Limits that control groups lay on this process, v1 and v2 at once, from its own group up to the root.

A group without a limit is none, however the kernel writes that. Source: admin-guide/cgroup-v1/memory.rst and
admin-guide/cgroup-v2.rst of the kernel's documentation.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsmem.proc.mounts import Mount, mounts

Version = Literal[1, 2]

_PROC = Path("/proc")
_NO_LIMIT = 1 << 60
"""v1 writes 'unlimited' as the largest multiple of the page size below 2**63; no machine has 2**60 bytes."""


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """A control group with a memory limit, with all below it. Pages of tmpfs are used, not reclaimable."""

    path: str
    """The group's directory."""
    version: Version
    limit_bytes: int
    usage_bytes: int
    reclaimable_bytes: int
    """Page cache that the kernel drops when it needs room (inactive_file)."""

    @property
    def free_bytes(self) -> int:
        """What can still be allocated before the group's OOM killer comes."""
        return max(0, self.limit_bytes - self.usage_bytes + self.reclaimable_bytes)


def cgroup_memory(*, proc: Path = _PROC) -> tuple[CgroupMemory, ...]:
    """Every group that limits this process's memory, its own first; empty where none does."""
    read = {1: _memory_v1, 2: _memory_v2}
    groups = (read[version](directory) for directory, version in _groups("memory", proc))
    return tuple(group for group in groups if group is not None)


def cgroup_charged(*, proc: Path = _PROC) -> str | None:
    """Directory of the group that pays for the memory this process takes, pages of tmpfs among it; None = none counts.

    The page stays charged to that group, also after the process has ended, until the page is freed.
    """
    counter = {1: "memory.usage_in_bytes", 2: "memory.current"}  # a v2 group has it where the controller is enabled
    for directory, version in _groups("memory", proc):
        if (directory / counter[version]).exists():
            return str(directory)
    return None


def cgroup_cpus(*, proc: Path = _PROC) -> float | None:
    """The CPUs that this process may use by quota, the smallest of its groups'; None without a quota."""
    read = {1: _cpus_v1, 2: _cpus_v2}
    quotas = (read[version](directory) for directory, version in _groups("cpu", proc))
    return min((quota for quota in quotas if quota is not None), default=None)


def usable_cpus(*, proc: Path = _PROC) -> int:
    """How many threads can run at once: the affinity mask's, or the quota rounded up where that is less."""
    quota = cgroup_cpus(proc=proc)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _groups(controller: str, proc: Path) -> list[tuple[Path, Version]]:
    """Directories of this process's groups for a controller: its own, then each parent up to the mount."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except FileNotFoundError:  # a kernel without control groups
        return []
    found: list[tuple[Path, Version]] = []
    table = mounts(fstypes=("cgroup", "cgroup2"), proc=proc)
    for line in lines:
        number, controllers, group = line.split(":", 2)
        version: Version
        if number == "0" and not controllers:
            version, mount = 2, _mounted(table, "cgroup2", None)
        elif controller in controllers.split(","):
            version, mount = 1, _mounted(table, "cgroup", controller)
        else:
            continue
        if mount is not None:
            found += [(directory, version) for directory in _upwards(mount, group)]
    return found


def _mounted(table: tuple[Mount, ...], fstype: str, controller: str | None) -> Mount | None:
    for mount in table:
        if mount.fstype == fstype and (controller is None or controller in mount.options):
            return mount
    return None


def _upwards(mount: Mount, group: str) -> list[Path]:
    """In a container the mount shows only a part of the hierarchy, which begins at `mount.root`."""
    top = Path(mount.point)
    root = mount.root.rstrip("/")
    inside = group == root or group.startswith(root + "/")
    parts = [part for part in group[len(root) :].split("/") if part] if inside else []
    if ".." in parts:  # a group outside of our cgroup namespace
        parts = []
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _memory_v1(directory: Path) -> CgroupMemory | None:
    limit = _number(directory / "memory.limit_in_bytes")
    usage = _number(directory / "memory.usage_in_bytes")
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    stat = _table(directory / "memory.stat")
    return CgroupMemory(
        path=str(directory),
        version=1,
        limit_bytes=limit,
        usage_bytes=usage,
        reclaimable_bytes=stat.get("total_inactive_file", stat.get("inactive_file", 0)),
    )


def _memory_v2(directory: Path) -> CgroupMemory | None:
    limit = _number(directory / "memory.max")
    usage = _number(directory / "memory.current")
    if limit is None or usage is None:  # no limit, the root group, or the memory controller is v1's
        return None
    return CgroupMemory(
        path=str(directory),
        version=2,
        limit_bytes=limit,
        usage_bytes=usage,
        reclaimable_bytes=_table(directory / "memory.stat").get("inactive_file", 0),
    )


def _cpus_v1(directory: Path) -> float | None:
    quota = _number(directory / "cpu.cfs_quota_us")
    period = _number(directory / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _cpus_v2(directory: Path) -> float | None:
    words = _text(directory / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text and text != "max" else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def _text(path: Path) -> str:
    """'' for a file that this group does not have, and for a group that is not visible from here."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
