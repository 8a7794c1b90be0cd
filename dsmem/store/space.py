"""Room for an object, looked at before anything is written: file system, cgroups, memory of the machine."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsmem import proc, units
from dsmem.errors import FILE_SIZE, NoSpace
from dsmem.store import objects
from dsmem.store.objects import Object
from dsmem.store.root import Store

BOOKKEEPING_BYTES = 32 << 10
"""What a loader takes beside its object: a lock, a ref (as long as two paths), their replacements, whole pages each."""

_ADDRESSES = "address space of this process, ulimit -v"


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes by the tightest limit, and the name of that limit."""

    free_bytes: int
    limit: str
    is_memory: bool = False
    """It holds for all memory of this process, not only for what is written to the store."""

    def left_of(self, beside_bytes: int) -> int:
        """What may be written where so much memory is taken beside it."""
        return self.free_bytes - (beside_bytes if self.is_memory else 0)


def room(store: Store, beside_bytes: int = 0) -> Room:
    """What may still be written to the store, where so much memory is taken beside what is written."""
    vfs = os.statvfs(store.root)
    mount = store.file_system()
    rooms = [Room(vfs.f_bavail * vfs.f_frsize, f"{mount.fstype} at {mount.point}")]
    if vfs.f_files and vfs.f_favail == 0:
        rooms.append(Room(0, f"inodes of {mount.fstype} at {mount.point}"))
    if mount.fstype in ("tmpfs", "ramfs"):
        rooms.append(Room(proc.memory_available(), "memory of this machine", is_memory=True))
        rooms.extend(
            Room(
                max(group.limit_bytes - group.usage_bytes + group.reclaimable_bytes, 0),
                f"cgroup {group.path}",
                is_memory=True,
            )
            for group in proc.cgroup_memory()
            if group.limit_bytes is not None
        )
    return min(rooms, key=lambda one: one.left_of(beside_bytes))


def require(store: Store, need_bytes: int, beside_bytes: int = 0) -> None:
    """Raise NoSpace, with all the numbers, unless `need_bytes` and the store's bookkeeping fit.

    `beside_bytes`: of memory that will be taken beside the store, which a cgroup and the machine must hold, too.
    """
    found = room(store, beside_bytes)
    if need_bytes + BOOKKEEPING_BYTES > found.left_of(beside_bytes):
        raise no_space(store, need_bytes + BOOKKEEPING_BYTES, beside_bytes)


@contextmanager
def translated(store: Store) -> Iterator[None]:
    """Turn "no space left" for the store's own small files into NoSpace."""
    try:
        yield
    except NoSpace:
        raise
    except OSError as exc:
        if exc.errno == errno.EFBIG:
            raise file_too_large(BOOKKEEPING_BYTES) from exc
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_space(store, BOOKKEEPING_BYTES) from exc


def no_space(store: Store, need_bytes: int, beside_bytes: int = 0) -> NoSpace:
    """The error for `need_bytes` that do not fit, with what is free and what nobody uses.

    Where there is room, a map was refused because of the limit of this process, or others have made room since the file
    system refused: then it says what was free at that time, nothing.
    """
    found = room(store, beside_bytes)
    if found.left_of(beside_bytes) >= need_bytes:
        mount = store.file_system()
        found = _address_space()
        if found.free_bytes >= need_bytes:
            found = Room(0, f"{mount.fstype} at {mount.point}, a moment ago")
    paid_by = payer(store) if found.limit != _ADDRESSES else ""
    unused_bytes = sum(one.size_bytes for one in unused(store))
    return NoSpace(
        f"{units.format_bytes(need_bytes)} needed{said_beside(found, beside_bytes)}, "
        f"{units.format_bytes(found.free_bytes)} free ({found.limit}"
        f"{paid_by}); unused objects hold {units.format_bytes(unused_bytes)}",
        need_bytes=need_bytes,
        free_bytes=found.free_bytes,
        limit=found.limit,
        reclaimable_bytes=unused_bytes,
    )


def said_beside(found: Room, beside_bytes: int) -> str:
    """' and … to read with', where that limit holds for it."""
    return f" and {units.format_bytes(beside_bytes)} to read with" if found.is_memory and beside_bytes else ""


def file_too_large(size_bytes: int) -> NoSpace:
    """The error for a file in the store which would be larger than this process may make one, or its file system."""
    limit_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    is_limited = limit_bytes != resource.RLIM_INFINITY
    most = f"{units.format_bytes(limit_bytes)} ({FILE_SIZE})" if is_limited else "its file system allows"
    return NoSpace(
        f"{units.format_bytes(size_bytes)} needed for a file of the store, which may not be larger than {most}",
        need_bytes=size_bytes,
        free_bytes=limit_bytes if is_limited else 0,
        limit=FILE_SIZE if is_limited else "",
    )


def _address_space() -> Room:
    """What this process may still map: all there is, unless it has a limit, as batch systems set it."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return Room(sys.maxsize, _ADDRESSES)
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return Room(max(limit - mapped_bytes, 0), _ADDRESSES)


def payer(store: Store) -> str:
    """', charged to cgroup …' where what is written to the store is memory that a control group pays for; else ''."""
    group = proc.cgroup_charged() if store.file_system().fstype in ("tmpfs", "ramfs") else None
    return f", charged to cgroup {group}" if group is not None else ""


def unused(store: Store) -> list[Object]:
    """Objects that no process holds, as far as /proc shows, and that are not kept."""
    found = list(objects.scan(store))
    held = objects.holders(found).by_name
    return [one for one in found if not one.kept and not held[one.name]]
