"""Leases: a shared flock on an object, held by the map of it, for as long as any view of the map lives.

Python's mmap keeps a duplicate of the descriptor, so the lock lives through closed files and forks, and the kernel
drops it at any death. It is never unlocked by hand: a forked child's LOCK_UN would free the parent's too.
An object's atime is when it was last leased, whatever the mount says of atimes: nothing else of dsmem moves it.
Of an object that is a directory, its anchor is locked and mapped.
"""

from __future__ import annotations

import logging
import mmap
import os
import stat
import time
from dataclasses import dataclass
from typing import Literal

from dsmem import files, proc
from dsmem.errors import DamagedObject, InUse, NotPinned
from dsmem.store import hugepages
from dsmem.store.directories import ANCHOR
from dsmem.store.root import Store

_PATIENCE_S = 5.0
_BLOCK_BYTES = 512
"""The unit of st_blocks, stat(2)."""
_MAP_NORESERVE = 0x4000
"""Linux, asm-generic/mman.h; Python 3.11 has no name for it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """A map of an object that holds it; views of the map keep it, whatever becomes of this record."""

    map: mmap.mmap
    name: str
    ino: int


def lease(store: Store, name: str) -> Lease:
    """Map an object read-only and shared, holding it against removal.

    Raises NotPinned when it is not there, DamagedObject when it can't be one, InUse after 5 s of an exclusive lock.
    """
    path = store.object_path(name)
    deadline = time.monotonic() + _PATIENCE_S
    pause_s = 0.0005
    while True:
        fd = open_object(path, name)
        try:
            if files.try_lock(fd, exclusive=False):
                status = os.fstat(fd)
                if leads_to(path, status):
                    _note_use(fd, status)
                    return Lease(_map(fd, status, name, "shared"), name, status.st_ino)
                continue
        finally:
            os.close(fd)
        if time.monotonic() > deadline:
            raise InUse(f"{name} has been locked for {_PATIENCE_S:.0f} s by someone who removes it", names=[name])
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)


def private_map(store: Store, held: Lease) -> mmap.mmap | None:
    """A copy-on-write map of a leased object, a lease of its own; None when the name no longer leads to it."""
    try:
        fd = open_object(store.object_path(held.name), held.name)
    except NotPinned:
        return None
    try:
        status = os.fstat(fd)
        if status.st_ino != held.ino or not files.try_lock(fd, exclusive=False):
            return None
        return _map(fd, status, held.name, "private")
    finally:
        os.close(fd)


def is_free(store: Store, name: str) -> bool:
    """Whether nobody has a lease on it: its exclusive lock is had, for an instant in which who attaches waits."""
    try:
        fd = open_object(store.object_path(name), name)
    except (NotPinned, DamagedObject):  # what can't be opened can't be leased
        return True
    try:
        return files.try_lock(fd, exclusive=True)
    finally:
        os.close(fd)


def leads_to(path: str, status: os.stat_result) -> bool:
    """Whether the path still leads to the inode that was opened there by `open_object`."""
    return files.names_inode(f"{path}/{ANCHOR}" if os.path.isdir(path) else path, status)


def open_object(path: str, name: str) -> int:
    """A read-only descriptor of an object that is a file of our own, or of a directory's anchor.

    Raises NotPinned or DamagedObject.
    """
    try:
        fd = _open(path)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            directory = fd
            try:
                fd = _open_anchor(directory, path, name)
            finally:
                os.close(directory)
    except FileNotFoundError as exc:
        raise NotPinned(f"{name} is not in the store", target=name) from exc
    except OSError as exc:
        raise DamagedObject(f"{name} in the store can't be opened: {exc.strerror}", name=name) from exc
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise DamagedObject(f"{name} in the store is not a regular file of uid {os.geteuid()}", name=name)
    if status.st_blocks * _BLOCK_BYTES < status.st_size and proc.mount_of(path).fstype == "tmpfs":
        # No object has holes. Reading one through a map takes memory: where none is left, that is a SIGBUS.
        os.close(fd)
        raise DamagedObject(f"{name} in the store has holes", name=name)
    return fd


def _open_anchor(directory: int, path: str, name: str) -> int:
    try:
        return _open(ANCHOR, within=directory)
    except FileNotFoundError as exc:
        if files.names_inode(path, os.fstat(directory)):
            raise DamagedObject(f"{name} in the store is a directory without an anchor", name=name) from exc
        raise  # it was removed since it was opened; the name may lead to another one already


def _open(path: str, *, within: int | None = None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=within)
    except PermissionError:  # another user's: said by the caller
        return os.open(path, flags, dir_fd=within)


def _note_use(fd: int, status: os.stat_result) -> None:
    """Set the atime to now (1–2 µs); mtime stays: it is when the object was made."""
    try:
        os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
    except OSError as exc:  # a read-only mount: attaching works all the same
        _log.debug("the use of an object can't be noted: %s", exc.strerror)


def _map(fd: int, status: os.stat_result, name: str, sharing: Literal["shared", "private"]) -> mmap.mmap:
    if status.st_size == 0:
        raise DamagedObject(f"{name} in the store is empty", name=name)
    if sharing == "shared":
        return hugepages.mapped(fd, status.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    return hugepages.mapped(fd, status.st_size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
