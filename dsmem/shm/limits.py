"""What this machine, and this session on it, allow shared memory: plain data; gathering it changes nothing.

Judging it is `dsmem.shm.doctor`'s; `dataclasses.asdict(system_limits())` is JSON.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsmem import proc, settings
from dsmem.store import hugepages
from dsmem.store.root import SHARED_MEMORY, default_root

RootKind = Literal["missing", "directory", "symlink", "other", "unreachable"]

_MACHINE = Path("/")
_SYSTEM_UID_MAX = 999
"""systemd's own default where login.defs says nothing."""
_CONFIGURATION = ("etc", "run", "usr/local/lib", "usr/lib")
"""Where systemd looks, the strongest first (systemd.unit(5), logind.conf(5))."""
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Space:
    """A file system and what is left of it."""

    point: str
    fstype: str
    size_bytes: int | None
    """None = without a limit of its own."""
    free_bytes: int | None
    files_free: int | None
    read_only: bool
    huge_pages: proc.HugePages

    @property
    def in_memory(self) -> bool:
        """Whether files there live in RAM."""
        return self.fstype in ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Root:
    """The store's root as it is found, links not followed."""

    path: str
    kind: RootKind
    owner_uid: int | None
    mode: int | None
    network: bool
    unnamed_files: bool | None
    """O_TMPFILE works there; None where that could not be tried."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that bounds shared memory here. Bytes, but for what is named otherwise; None = no limit."""

    uid: int
    shared_memory: Space | None
    """/dev/shm; None where it is missing."""
    store: Space
    """The file system on which the store's root lies, or would lie."""
    root: Root
    memory: proc.Memory
    cgroups: tuple[proc.CgroupMemory, ...]
    shmmax_bytes: int | None
    shmall_pages: int | None
    shmem_enabled: str | None
    """The kernel's switch of huge pages in tmpfs; None where the kernel has none."""
    memlock_bytes: int | None
    memlock_hard_bytes: int | None
    rdma: bool
    """There is an RDMA device, whose buffers count against memlock."""
    open_files: int | None
    open_files_hard: int | None
    ipc_removed_at_logout: bool
    container: bool
    free_huge_pages: int | None = None
    """What pins can take where the mount gives none by itself; None where the kernel makes none on request, does not
    tell, or DSMEM_HUGE_PAGES forbids it."""
    charged_cgroup: str | None = None
    """Directory of the group that pays for what this process pins; None = none counts."""


def system_limits(
    root: Path | None = None,
    *,
    shared_memory: Path = Path(SHARED_MEMORY),
    machine: Path = _MACHINE,
    uid: int | None = None,
) -> Limits:
    """Look at the machine below `machine`, for the store at `root` (else where the store would lie)."""
    proc_root, sys_root = machine / "proc", machine / "sys"
    path = Path(os.path.abspath(root)) if root is not None else Path(default_root())
    user = os.geteuid() if uid is None else uid
    memlock, memlock_hard = proc.rlimit_memlock()
    files, files_hard = proc.rlimit_open_files()
    return Limits(
        uid=user,
        shared_memory=space_of(shared_memory, machine=machine) if shared_memory.is_dir() else None,
        store=space_of(_nearest(path), machine=machine),
        root=root_of(path, machine=machine),
        memory=proc.memory(proc=proc_root),
        cgroups=proc.cgroup_memory(proc=proc_root),
        shmmax_bytes=proc.sysctl("kernel.shmmax", proc=proc_root),
        shmall_pages=proc.sysctl("kernel.shmall", proc=proc_root),
        shmem_enabled=proc.shmem_enabled(sys=sys_root),
        memlock_bytes=memlock,
        memlock_hard_bytes=memlock_hard,
        rdma=any((sys_root / "class/infiniband").glob("*")),
        open_files=files,
        open_files_hard=files_hard,
        ipc_removed_at_logout=ipc_removed_at_logout(user, machine=machine),
        container=in_container(machine=machine),
        free_huge_pages=_free_huge_pages(proc_root, sys_root),
        charged_cgroup=proc.cgroup_charged(proc=proc_root),
    )


def _free_huge_pages(proc_root: Path, sys_root: Path) -> int | None:
    release = proc.kernel_release(proc=proc_root)
    if settings.read().huge_pages == "never":
        return None
    if release is None or release < hugepages.SINCE or proc.huge_page_bytes(sys=sys_root) != hugepages.EXTENT_BYTES:
        return None
    return None if proc.shmem_enabled(sys=sys_root) in (None, "deny") else proc.free_huge_pages(proc=proc_root)


def space_of(directory: Path, *, machine: Path = _MACHINE) -> Space:
    """The file system that holds an existing directory."""
    mount = proc.mount_of(directory, proc=machine / "proc")
    found = os.statvfs(directory)
    bounded = found.f_blocks > 0  # tmpfs with size=0 has no size
    return Space(
        point=mount.point,
        fstype=mount.fstype,
        size_bytes=found.f_blocks * found.f_frsize if bounded else None,
        free_bytes=found.f_bavail * found.f_frsize if bounded else None,
        files_free=found.f_favail if found.f_files > 0 else None,
        read_only=mount.read_only,
        huge_pages=proc.huge_pages(mount, sys=machine / "sys"),
    )


def root_of(path: Path, *, machine: Path = _MACHINE) -> Root:
    """The state of a store's root that may not be there yet."""
    nearest = _nearest(path)
    network = proc.is_network_fs(proc.mount_of(nearest, proc=machine / "proc").fstype)
    kind: RootKind = "missing"
    owner = mode = None
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except PermissionError:
        status, kind = None, "unreachable"
    if status is not None:
        owner, mode = status.st_uid, stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            kind = "directory"
        elif stat.S_ISLNK(status.st_mode):
            kind = "symlink"
        else:
            kind = "other"
    tryable = kind in ("missing", "directory")
    return Root(str(path), kind, owner, mode, network, _unnamed_files(nearest) if tryable else None)


def ipc_removed_at_logout(uid: int, *, user: str | None = None, machine: Path = _MACHINE) -> bool:
    """Whether systemd-logind deletes the user's files below /dev/shm when their last session ends.

    It does so by default (RemoveIPC, logind.conf(5)), but not for root, system users and users who linger.
    """
    if not (machine / "run/systemd/system").is_dir() or uid <= _system_uid_max(machine):
        return False
    if user is None:
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:  # a uid without a name can't have a session
            return False
    lingers = (machine / "var/lib/systemd/linger" / user).exists()
    return _remove_ipc(machine) and not lingers


def in_container(*, machine: Path = _MACHINE) -> bool:
    """Whether this looks like a container, in which mounts and limits are its runtime's to change."""
    marks = (".dockerenv", "run/.containerenv", "run/systemd/container")
    if any((machine / mark).exists() for mark in marks):
        return True
    return proc.mount_of("/", proc=machine / "proc").fstype == "overlay"


def _nearest(path: Path) -> Path:
    """The path or the first of its parents that is a directory."""
    return next(part for part in (path, *path.parents) if os.path.isdir(part))


def _unnamed_files(directory: Path) -> bool | None:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        return False if exc.errno in _NO_UNNAMED_FILES else None
    os.close(fd)
    return True


def _system_uid_max(machine: Path) -> int:
    text = _text(machine / "etc/login.defs")
    match = re.search(r"^\s*SYS_UID_MAX\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else _SYSTEM_UID_MAX


def _remove_ipc(machine: Path) -> bool:
    """The last assignment wins: the main file, then drop-ins by name; a stronger place hides namesakes."""
    homes = [machine / home / "systemd" for home in _CONFIGURATION]
    main = next((text for home in homes if (text := _text(home / "logind.conf"))), "")
    dropins: dict[str, str] = {}
    for home in reversed(homes):
        dropins |= {path.name: _text(path) for path in (home / "logind.conf.d").glob("*.conf")}
    # The default is chosen when systemd is built (Red Hat: no) and shown in the main file as a comment.
    shown = re.search(r"^#\s*RemoveIPC=(\w+)", main, re.MULTILINE)
    answer = shown[1] if shown else "yes"
    for text in (main, *(dropins[name] for name in sorted(dropins))):
        for value in re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)\s*$", text, re.MULTILINE):
            answer = value
    return answer.lower() in ("1", "yes", "y", "true", "t", "on")


def _text(path: Path) -> str:
    """'' for a file that is not there or not for us: the defaults hold then."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
