"""Whether the page cache holds a file, asked without reading any of it where the kernel tells that."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dsmem.madvise import libc

_PROBES = 7


def is_cached(fd: int, start: int, size_bytes: int) -> bool | None:
    """Whether most of some bytes of a file, looked at here and there, are in the page cache; None where nobody can say.

    `start` is a multiple of the page size. mincore(2) tells it of a file that this process owns or may write (of
    others it says that all is there: Linux 5.2). Of those a read that must not wait tells it: since Linux 5.9 such a
    read begins to bring what is absent, and finds it there if the disk is faster than the kernel's next look.
    """
    present = absent = 0
    probes = [start + size_bytes * (2 * part + 1) // (2 * _PROBES) for part in range(_PROBES)]
    try:
        for answer in _told(fd, start, size_bytes, probes) if _is_told(fd) else _tried(fd, probes):
            present, absent = present + answer, absent + (not answer)
            if max(present, absent) > _PROBES // 2:
                break
    except OSError:
        return None
    return present > absent


def _is_told(fd: int) -> bool:
    """Whether mincore says the truth of this file."""
    return os.fstat(fd).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


def _told(fd: int, start: int, size_bytes: int, probes: list[int]) -> Iterator[bool]:
    with _mapped(fd, start, size_bytes) as address:
        found = ctypes.c_ubyte()
        for probe in probes:
            page = address + (probe - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if libc().mincore(page, mmap.PAGESIZE, ctypes.byref(found)):
                raise OSError(ctypes.get_errno(), "mincore")
            yield bool(found.value & 1)


@contextmanager
def _mapped(fd: int, start: int, size_bytes: int) -> Iterator[int]:
    """A range of a file at an address that nobody reads, so that a file that becomes shorter does no harm."""
    address = libc().mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        yield address
    finally:
        libc().munmap(address, size_bytes)


def _tried(fd: int, probes: list[int]) -> Iterator[bool]:
    byte = bytearray(1)
    for probe in probes:
        try:
            os.preadv(fd, [byte], probe, os.RWF_NOWAIT)
        except BlockingIOError:
            yield False
        else:
            yield True
