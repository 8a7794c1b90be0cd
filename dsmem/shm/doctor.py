"""Is this machine fit for shared memory? One check a matter, with its numbers and the command that mends it.

Checks judge `Limits` and touch nothing, so that every state of a machine can be shown to them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from dsmem import proc
from dsmem.shm.limits import Limits, system_limits
from dsmem.store import hugepages
from dsmem.units import format_bytes

State = Literal["ok", "warn", "bad"]

_GIB = 1 << 30
_DOCKER_DEFAULT_BYTES = 64 << 20
_SHARE_OF_RAM = 0.25
"""Kernels give /dev/shm half of the RAM; less than a quarter was somebody's choice, or a mistake."""
_NEARLY_FULL = 0.9
_FULL = 0.99
_TIGHT = 0.1
_FEW_FILES = 1024
_NO_LIMIT = "no limit"
_SYSV_NO_LIMIT = 1 << 60
"""Kernels since 3.16 set shmmax and shmall to nearly 2**64."""
_CLEAN = "dsmem shm clean --unused"
_ORDER: tuple[State, ...] = ("ok", "warn", "bad")


@dataclass(frozen=True, slots=True)
class Check:
    """One matter: what was found, and the command that mends it where there is one."""

    name: str
    state: State
    detail: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and the plain numbers they rest on."""

    checks: tuple[Check, ...]
    limits: Limits

    @property
    def worst(self) -> State:
        """The state of the worst check."""
        return max((check.state for check in self.checks), key=_ORDER.index)


def examine(root: Path | None = None, *, limits: Limits | None = None) -> Diagnosis:
    """Check this machine for the store at `root` (else where it would lie), or the machine of `limits`."""
    known = system_limits(root) if limits is None else limits
    return Diagnosis(tuple(check(known) for check in _CHECKS), known)


def _shared_memory(limits: Limits) -> Check:
    check = _dev_shm(limits)
    if check.state == "bad" and limits.store.in_memory and limits.store.point != "/dev/shm":
        detail = f"{check.detail}; the store lies on {limits.store.point} and does not need it"
        return Check(check.name, "warn", detail, check.mend)
    return check


def _dev_shm(limits: Limits) -> Check:
    name = "shared memory"
    space = limits.shared_memory
    make = _as_root(limits, "mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm")
    if space is None:
        return Check(name, "bad", "/dev/shm is missing", make)
    if not space.in_memory:
        return Check(name, "bad", f"/dev/shm is not in memory: it lies on {space.fstype} at {space.point}", make)
    if space.read_only:
        return Check(name, "bad", "/dev/shm is read-only", _as_root(limits, "mount -o remount,rw /dev/shm"))
    if space.size_bytes is None or space.free_bytes is None:
        return Check(name, "ok", "/dev/shm has no size limit: memory is the limit")
    used = space.size_bytes - space.free_bytes
    detail = f"/dev/shm: {format_bytes(used)} of {format_bytes(space.size_bytes)} used"
    if space.size_bytes <= _DOCKER_DEFAULT_BYTES:
        origin = ", Docker's default" if space.size_bytes == _DOCKER_DEFAULT_BYTES else ""
        return Check(name, "bad", f"{detail}: too small for data{origin}", _enlarge(limits))
    if space.files_free == 0:
        return Check(name, "bad", f"{detail}, but no more files can be made (inodes)", _CLEAN)
    if used >= _FULL * space.size_bytes:
        return Check(name, "bad", f"{detail}: full", _CLEAN)
    if used >= _NEARLY_FULL * space.size_bytes:
        return Check(name, "warn", f"{detail}: nearly full", _CLEAN)
    if space.size_bytes < _SHARE_OF_RAM * limits.memory.total_bytes:
        ram = format_bytes(limits.memory.total_bytes)
        return Check(name, "warn", f"{detail}: small for {ram} of memory", _enlarge(limits))
    return Check(name, "ok", detail)


def _store(limits: Limits) -> Check:
    root = limits.root
    path = shlex.quote(root.path)
    elsewhere = f"export DSMEM_ROOT=$(mktemp -d /dev/shm/dsmem-{limits.uid}-XXXXXX)"

    def bad(why: str, mend: str = elsewhere) -> Check:
        return Check("store", "bad", f"{root.path} {why}", mend)

    if root.owner_uid not in (None, limits.uid):
        return bad(f"belongs to uid {root.owner_uid}, not to {limits.uid}")
    if root.kind == "symlink":
        return bad("is a symlink", f"rm {path}")
    if root.kind == "other":
        return bad("is not a directory")
    if root.kind == "unreachable":
        return bad("cannot be reached: a directory above it is closed to you")
    if root.network:
        return bad(f"is on {limits.store.fstype}, a network file system, where locks do not hold")
    if limits.store.read_only:
        return bad(f"is on {limits.store.point}, which is read-only")
    if root.mode is not None and root.mode & 0o022:
        return bad(f"can be written by others (mode {root.mode:o})", f"chmod 700 {path}")
    state = "not made yet" if root.mode is None else f"mode {root.mode:o}, yours"
    where = f"{root.path} ({limits.store.fstype}): {state}"
    if not limits.store.in_memory:
        return Check("store", "warn", f"{where}; on a disk, where memory only caches it")
    return Check("store", "ok", where)


def _memory(limits: Limits) -> Check:
    memory = limits.memory
    free = memory.available_bytes + memory.swap_free_bytes
    detail = (
        f"{format_bytes(memory.available_bytes)} of {format_bytes(memory.total_bytes)} available, "
        f"shared memory holds {format_bytes(memory.shared_bytes)}"
    )
    promised = limits.store.free_bytes
    if limits.store.in_memory and (promised is None or promised > free):
        room = "any size" if promised is None else format_bytes(promised)
        detail += f"; {limits.store.point} shows {room} free, but no more than {format_bytes(free)} fit"
        if free < _TIGHT * memory.total_bytes:
            return Check("memory", "warn", detail, _CLEAN)
    return Check("memory", "ok", detail)


def _cgroup(limits: Limits) -> Check:
    name = "cgroup"
    payer = limits.charged_cgroup
    charged = "what is pinned is charged to the group of who pins it, also after its end"
    if payer is not None:
        charged += f": here {payer}"
    if not limits.cgroups:
        return Check(name, "ok", "no memory limit" if payer is None else f"no memory limit; {charged}")
    group = min(limits.cgroups, key=lambda one: one.free_bytes)
    detail = (
        f"{format_bytes(group.free_bytes)} free of {format_bytes(group.limit_bytes)} "
        f"(v{group.version}, {group.path}); {charged}"
    )
    if group.limit_bytes >= limits.memory.total_bytes:
        return Check(name, "ok", detail)
    if group.free_bytes == 0:
        return Check(name, "bad", detail, _raise_limit(limits, group))
    size = limits.store.size_bytes
    if group.free_bytes < _TIGHT * group.limit_bytes:
        return Check(name, "warn", f"nearly used up: {detail}", _raise_limit(limits, group))
    if limits.store.in_memory and (size is None or size > group.limit_bytes):
        detail = f"reached before {limits.store.point} is full: {detail}"
        return Check(name, "warn", detail, _raise_limit(limits, group))
    return Check(name, "ok", detail)


def _swap(limits: Limits) -> Check:
    total, free = limits.memory.swap_total_bytes, limits.memory.swap_free_bytes
    if total == 0:
        return Check("swap", "ok", "none: shared memory stays in RAM")
    detail = f"{format_bytes(total - free)} of {format_bytes(total)} used"
    if total - free > total // 2:
        return Check("swap", "warn", f"{detail}: pinned data may lie there and be slow to read", _CLEAN)
    return Check("swap", "ok", detail)


def _huge_pages(limits: Limits) -> Check:
    name = "huge pages"
    space = limits.store
    if space.fstype != "tmpfs":
        return Check(name, "ok", f"{space.fstype} at {space.point} has none")
    if space.huge_pages != "never":
        return Check(name, "ok", f"{space.huge_pages} on {space.point}")
    if limits.shmem_enabled is None:
        return Check(name, "ok", "this kernel has none for tmpfs")
    remount = _as_root(limits, f"mount -o remount,huge=within_size {shlex.quote(space.point)}")
    if limits.shmem_enabled == "deny":
        switch = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
        allow = f"sh -c {shlex.quote(f'echo never > {switch}')}"
        detail = f"denied by the kernel's setting shmem_enabled: pinning into {space.point} is slower"
        return Check(name, "warn", detail, f"{_as_root(limits, allow)} && {remount}")
    free = limits.free_huge_pages
    if free is None:
        return Check(name, "warn", f"never on {space.point}: pinning is several times slower than it can be", remount)
    if not hugepages.are_enough(free):
        detail = f"{free} are free: memory is in small pieces, and pinning several times slower than it can be"
        return Check(name, "warn", detail, _as_root(limits, "sh -c 'echo 1 > /proc/sys/vm/compact_memory'"))
    return Check(name, "ok", f"taken one by one, {free} ({format_bytes(free * hugepages.EXTENT_BYTES)}) are free")


def _unnamed_files(limits: Limits) -> Check:
    name = "O_TMPFILE"
    if limits.root.unnamed_files is None:
        return Check(name, "ok", "not tried: no file can be made there now")
    if limits.root.unnamed_files:
        return Check(name, "ok", "works: a pin that is killed leaves nothing")
    detail = f"{limits.store.fstype} has none: what a killed pin leaves stays until the next command"
    return Check(name, "warn", detail, "unset DSMEM_ROOT" if limits.shared_memory else None)


def _remove_ipc(limits: Limits) -> Check:
    name = "RemoveIPC"
    if not limits.ipc_removed_at_logout:
        return Check(name, "ok", "shared memory outlives your logout")
    if limits.store.point != "/dev/shm":
        return Check(name, "ok", f"systemd-logind clears /dev/shm, but the store lies on {limits.store.point}")
    detail = "systemd-logind deletes your files in /dev/shm when your last session ends"
    return Check(name, "warn", detail, "loginctl enable-linger")


def _open_files(limits: Limits) -> Check:
    name = "open files"
    soft, hard = limits.open_files, limits.open_files_hard
    detail = f"{_count(soft)} (at most {_count(hard)}); each attached file takes one"
    if soft is None or soft >= _FEW_FILES:
        return Check(name, "ok", detail)
    more = hard is None or hard >= _FEW_FILES
    return Check(name, "warn", detail, f"ulimit -n {65536 if hard is None else hard}" if more else None)


def _memlock(limits: Limits) -> Check:
    name = "memlock"
    soft, hard = limits.memlock_bytes, limits.memlock_hard_bytes
    if soft is None:
        return Check(name, "ok", "no limit on page-locked memory")
    detail = f"{format_bytes(soft)} of page-locked (pinned) host memory; dsmem itself locks none"
    if not limits.rdma:
        return Check(name, "ok", detail)
    detail += ", but the buffers of the RDMA device here count against it"
    if limits.container:
        return Check(name, "warn", detail, "docker run --ulimit memlock=-1 …")
    if hard is None:
        return Check(name, "warn", detail, "ulimit -l unlimited")
    line = shlex.quote("echo '* - memlock unlimited' > /etc/security/limits.d/90-memlock.conf")
    return Check(name, "warn", f"{detail}; log in again after mending", _as_root(limits, f"sh -c {line}"))


def _system_v(limits: Limits) -> Check:
    size, pages = limits.shmmax_bytes, limits.shmall_pages
    largest = _NO_LIMIT if size is None or size >= _SYSV_NO_LIMIT else format_bytes(size)
    total = _NO_LIMIT if pages is None or pages >= _SYSV_NO_LIMIT else f"{pages:,} pages"
    detail = f"{largest}, kernel.shmall {total}: System V only, dsmem needs neither"
    return Check("kernel.shmmax", "ok", detail)


_CHECKS: tuple[Callable[[Limits], Check], ...] = (
    _shared_memory,
    _store,
    _memory,
    _cgroup,
    _swap,
    _huge_pages,
    _unnamed_files,
    _remove_ipc,
    _open_files,
    _memlock,
    _system_v,
)


def _enlarge(limits: Limits) -> str:
    """Half of the memory, the kernel's own default."""
    if limits.container:
        return f"docker run --shm-size={max(1, limits.memory.total_bytes // 2 // _GIB)}g …"
    return _as_root(limits, "mount -o remount,size=50% /dev/shm")


def _raise_limit(limits: Limits, group: proc.CgroupMemory) -> str:
    """Twice the limit, and no more than the machine has."""
    size = min(2 * group.limit_bytes, limits.memory.total_bytes)
    unit = PurePosixPath(group.path).name
    if limits.container:
        return f"docker update --memory={size} --memory-swap={size} CONTAINER"
    if unit.endswith((".scope", ".service", ".slice")):
        if "/user@" in group.path:
            return f"systemctl --user set-property {shlex.quote(unit)} MemoryMax={size}"
        return _as_root(limits, f"systemctl set-property {shlex.quote(unit)} MemoryMax={size}")
    file = f"{group.path}/{'memory.max' if group.version == 2 else 'memory.limit_in_bytes'}"
    return _as_root(limits, f"sh -c {shlex.quote(f'echo {size} > {shlex.quote(file)}')}")


def _as_root(limits: Limits, command: str) -> str:
    return command if limits.uid == 0 else f"sudo {command}"


def _count(number: int | None) -> str:
    return _NO_LIMIT if number is None else f"{number:,}"
