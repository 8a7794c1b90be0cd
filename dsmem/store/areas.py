"""Areas: files of the store that processes of one user write together, such as a cache.

An object never changes; an area does, and it is worth nothing without those who use it: whoever leaves last removes it,
and one that nobody holds goes with the next sweep. It is held by a shared flock, of a descriptor of its own in every
process. Names are random; who belongs together finds an area by the tag at its beginning.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dsmem import files
from dsmem.errors import InUse, UnsafeRoot
from dsmem.store.objects import Object
from dsmem.store.root import Store, occupied

PREFIX = ".cache-"
KIND = "cache"
"""As the store's lists have it."""
TAG_BYTES = 32
_PATIENCE_S = 5.0
_PAUSE_S = 0.001
_MOST_MAPPED_BYTES = 1 << 40
_BLOCK_BYTES = 512
"""The unit of st_blocks, stat(2)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Area:
    """An area as one process has it: its name, a descriptor to read and write, and one that is the lease."""

    name: str
    fd: int
    lease_fd: int

    def close(self) -> None:
        """Give up the descriptors, and the lease with them; the name stays."""
        os.close(self.fd)
        os.close(self.lease_fd)


def obtain(store: Store, tag: bytes, fill: Callable[[int], None]) -> Area:
    """The area with that tag, of TAG_BYTES; where there is none it is made, and `fill` is given its descriptor.

    What `fill` writes lies behind the tag. Abandoned areas are removed. Raises InUse after 5 s in which others were at
    it, UnsafeRoot, NoSpace or OSError, and leaves nothing behind then.
    """
    if len(tag) != TAG_BYTES or not any(tag):
        raise ValueError(f"a tag has {TAG_BYTES} bytes, not all of them 0")
    with occupied(store), _alone(store):
        for name in _names(store):
            found = _attach(store, name, tag)
            if found is not None:
                return found
        return _make(store, tag, fill)


def again(area: Area) -> Area:
    """The same area with descriptors, and a lease, of one's own: for a forked child, also where the name is gone."""
    fd = os.open(f"/proc/self/fd/{area.fd}", os.O_RDWR | os.O_CLOEXEC)
    return _held(area.name, fd)


def leave(store: Store, area: Area) -> bool:
    """Close it; whether this process was the last one, and has removed it, its memory too.

    For the process that took the lease: a child that was forked for something else, and has it open and mapped all the
    same, loses its copy of the lease, and sees zeros.
    """
    fcntl.flock(area.lease_fd, fcntl.LOCK_UN)
    area.close()
    path = store.object_path(area.name)
    try:
        fd = files.open_own(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not files.try_lock(fd, exclusive=True) or not files.names_inode(path, os.fstat(fd)):
            return False
        gone = files.unlink_if_there(path)
        with suppress(OSError):  # not on this file system: then it goes with the last who has it open
            free(fd, 0, os.fstat(fd).st_size)
        return gone
    finally:
        os.close(fd)


def free(fd: int, first: int, size_bytes: int) -> None:
    """Give the pages of a stretch back, which reads as zeros then; raises OSError."""
    end = min(first + size_bytes, os.fstat(fd).st_size)
    for offset in range(first, end, _MOST_MAPPED_BYTES):
        with mmap.mmap(fd, min(_MOST_MAPPED_BYTES, end - offset), offset=offset) as piece:
            piece.madvise(mmap.MADV_REMOVE)


def is_free(store: Store, name: str) -> bool:
    """Whether nobody holds it."""
    try:
        fd = files.open_own(store.object_path(name))
    except (FileNotFoundError, UnsafeRoot):
        return True
    try:
        return files.try_lock(fd, exclusive=True)
    finally:
        os.close(fd)


def scan(store: Store) -> Iterator[Object]:
    """Every area, as the store lists what is in it."""
    for name in _names(store):
        try:
            status = os.lstat(store.object_path(name))
        except FileNotFoundError:
            continue
        inode = (status.st_dev, status.st_ino)
        yield Object(
            name=name,
            size_bytes=status.st_blocks * _BLOCK_BYTES,
            dev=status.st_dev,
            ino=status.st_ino,
            made_s=status.st_mtime,
            provenance=None,
            kind=KIND,
            inodes=frozenset({inode}),
        )


def _names(store: Store) -> list[str]:
    try:
        with os.scandir(store.objects) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(PREFIX))
    except FileNotFoundError:
        return []


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Nobody else makes an area, or looks for one, meanwhile: a lock of the directory of locks itself."""
    fd = os.open(store.locks, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not files.try_lock(fd, exclusive=True):
            if time.monotonic() > deadline:
                raise InUse(f"{store.locks} has been locked for {_PATIENCE_S:.0f} s", names=[])
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(fd)


def _attach(store: Store, name: str, tag: bytes) -> Area | None:
    """The area of that name if it has that tag; one that nobody holds is removed."""
    path = store.object_path(name)
    try:
        fd = files.open_own(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    except UnsafeRoot as exc:
        _log.warning("left alone: %s", exc)
        return None
    found: Area | None = None
    try:
        if files.try_lock(fd, exclusive=True) and files.names_inode(path, os.fstat(fd)):
            files.unlink_if_there(path)  # what a killed process left
        elif (
            os.pread(fd, TAG_BYTES, 0) == tag
            and files.try_lock(fd, exclusive=False)
            and files.names_inode(path, os.fstat(fd))  # its holder may have left between the two locks
        ):
            found = Area(name, os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), fd)
    finally:
        if found is None:
            os.close(fd)
    return found


def _make(store: Store, tag: bytes, fill: Callable[[int], None]) -> Area:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        path = store.object_path(name)
        area = _held(name, os.open(path, flags, 0o600))
        try:
            if files.names_inode(path, os.fstat(area.fd)):  # else a sweep took it for abandoned before it was locked
                fill(area.fd)
                os.pwrite(area.fd, tag, 0)  # last: nobody finds what is not filled
                return area
        except BaseException:
            area.close()
            files.unlink_if_there(path)
            raise
        area.close()


def _held(name: str, fd: int) -> Area:
    try:
        lease_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(fd)
        raise
    deadline = time.monotonic() + _PATIENCE_S
    while not files.try_lock(lease_fd, exclusive=False):  # somebody looks whether it is abandoned
        if time.monotonic() > deadline:
            os.close(fd)
            os.close(lease_fd)
            raise InUse(f"{name} has been locked for {_PATIENCE_S:.0f} s by someone who removes it", names=[name])
        time.sleep(_PAUSE_S)
    return Area(name, fd, lease_fd)
