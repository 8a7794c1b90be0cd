"""The one place that reads /proc, cgroups and mounts; it only looks and never changes anything.

Every reader takes its roots (`proc`, `sys`) as parameters, so that tests can show it another machine.
"""

from __future__ import annotations

from dsmem.proc.cgroup import CgroupMemory, cgroup_charged, cgroup_cpus, cgroup_memory, usable_cpus
from dsmem.proc.gpus import visible_gpus
from dsmem.proc.maps import Holder, Holders, holders
from dsmem.proc.memory import (
    Memory,
    ProcessMemory,
    free_huge_pages,
    kernel_release,
    memory,
    memory_available,
    memory_of,
    process_start_time,
    rlimit_memlock,
    rlimit_open_files,
    sysctl,
)
from dsmem.proc.mounts import (
    HugePages,
    Mount,
    huge_page_bytes,
    huge_pages,
    is_network_fs,
    mount_of,
    mounts,
    require_proc,
    shmem_enabled,
)

__all__ = [
    "CgroupMemory",
    "Holder",
    "Holders",
    "HugePages",
    "Memory",
    "Mount",
    "ProcessMemory",
    "cgroup_charged",
    "cgroup_cpus",
    "cgroup_memory",
    "free_huge_pages",
    "holders",
    "huge_page_bytes",
    "huge_pages",
    "is_network_fs",
    "kernel_release",
    "memory",
    "memory_available",
    "memory_of",
    "mount_of",
    "mounts",
    "process_start_time",
    "require_proc",
    "rlimit_memlock",
    "rlimit_open_files",
    "shmem_enabled",
    "sysctl",
    "usable_cpus",
    "visible_gpus",
]
