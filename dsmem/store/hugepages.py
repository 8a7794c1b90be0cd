"""Huge pages for the file of an object on a mount that gives none by itself: taken one by one, before they are filled.

MADV_COLLAPSE (Linux 6.1, madvise(2)) makes one huge page of 2 MiB of a file, whatever the `huge=` of its tmpfs is; the
first 4 KiB have to be there, the rest is zeros. Only speed depends on it: what can't be had stays 4 KiB pages.
Measured: 0.1 ms for 2 MiB where 4 KiB pages take 0.5; some milliseconds where the kernel first has to move memory of
others together (so nothing is asked for once its free lists hold no page of that size), or where a virtual machine has
given back to its host what was free for a while (so nothing more is asked for once that has cost too much).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from functools import partial
from typing import TYPE_CHECKING

from dsmem import madvise, proc, settings
from dsmem.madvise import Patience, libc
from dsmem.proc import Mount

if TYPE_CHECKING:
    from collections.abc import Callable

EXTENT_BYTES = madvise.HUGE_PAGE_BYTES
LEAST_BYTES = 16 << 20
"""A smaller object is filled in a few milliseconds anyway."""
SINCE = (6, 1)
"""The first Linux that makes them on request."""
_KEPT_PAGES = 64
"""Free huge pages that are left to others."""
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0, 0x10, 0x4000, 0x100000
"""sys/mman.h of Linux; Python 3.11 has no names for them."""
_LOOK_EVERY = 64
"""Extents between two looks at how many are free; a look takes some 50 µs."""
_WORTH_S = 0.001
"""CPU time in which 2 MiB of 4 KiB pages are made: a huge page that takes longer is a loss."""
_MOST_LOST_S = 0.02
"""Then no more are asked for, for this object."""
_UNUSED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_FIRST_PAGE_BYTES = 4096
_MAP_FAILED = (1 << 8 * struct.calcsize("P")) - 1
_PLACINGS = 64
"""One does, but where earlier maps have left holes of nearly that size."""


def can_be_taken(mount: Mount | None) -> bool:
    """Whether it is worth asking on this mount, or, with None, in a memfd: nothing forbids it, and it needs asking."""
    if settings.read().huge_pages == "never" or proc.huge_page_bytes() != EXTENT_BYTES:
        return False
    if mount is not None and (mount.fstype != "tmpfs" or proc.huge_pages(mount) != "never"):
        return False
    return proc.shmem_enabled() not in (None, "deny")


def are_enough(free_pages: int) -> bool:
    """Whether so many free huge pages are worth asking for some of them."""
    return free_pages >= _KEPT_PAGES + _LOOK_EVERY


class Extents:
    """Which extents of a file have their huge page; threads may ask for different ones at once."""

    def __init__(self, fd: int, place: Callable[[], int] | None = None) -> None:
        """`fd`: open for reading and writing, on a tmpfs or a memfd; it stays the caller's.

        `place`: gives the address of a shared, writable map of the whole file, if there is one: that saves mapping each
        extent for itself (10 % of the time of filling it). One that is no multiple of an extent does not do.
        """
        self._fd = fd
        self._place = place
        self._known: list[bool | None] = []
        self._allowance = 0
        self._patience = Patience(worth_s=_WORTH_S, most_lost_s=_MOST_LOST_S)

    def resize(self, size_bytes: int) -> None:
        """The size of the file, known or changed; only whole extents count."""
        count = size_bytes // EXTENT_BYTES if size_bytes >= LEAST_BYTES else 0
        self._known = [*self._known[:count], *[None] * (count - len(self._known))]

    def take(self, offset: int, size_bytes: int) -> bool:
        """See that these bytes have huge pages where they can be had; whether all of them have.

        Raises OSError where not even the first 4 KiB of an extent can be had (ENOSPC: the mount is full).
        """
        last = -(-(offset + size_bytes) // EXTENT_BYTES)
        answers = [self._has(index) for index in range(offset // EXTENT_BYTES, last)]
        return all(answers)

    def _has(self, index: int) -> bool:
        if index >= len(self._known):
            return False
        found = self._known[index]
        if found is None:
            found = self._known[index] = self._may_ask() and self._ask(index * EXTENT_BYTES)
        return found

    def _may_ask(self) -> bool:
        if self._patience.is_over:
            return False
        if self._allowance <= 0:
            free = proc.free_huge_pages()
            if free is None or not are_enough(free):
                self._patience.end(f"{free} are free, {_KEPT_PAGES} of them others'")
                return False
            self._allowance = _LOOK_EVERY
        self._allowance -= 1
        return True

    def _ask(self, offset: int) -> bool:
        os.posix_fallocate(self._fd, offset, _FIRST_PAGE_BYTES)
        failure = self._patience.ask(partial(_collapse, self._fd, offset, self._place))
        if failure == errno.EINVAL:
            self._patience.end("this kernel is one before Linux 6.1")
        return not failure


def mapped(fd: int, size_bytes: int, *, flags: int, prot: int) -> mmap.mmap:
    """A map of a file, from its beginning, at a multiple of a huge page, so that it is mapped by huge pages, too.

    Where a mount gives none by itself the kernel maps anywhere: what lies in huge pages is then mapped 4 KiB by 4 KiB
    (44 ms for a GiB; 0.5 by huge pages). The kernel puts a map at the end of the highest hole that it fits into: while
    the last pages of that are held, it comes to lie right. Another thread may prevent that; then it is as it is.
    """
    whole = mmap.mmap(fd, size_bytes, flags=flags, prot=prot)
    if size_bytes < LEAST_BYTES:
        return whole
    end_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    held: list[tuple[int, int]] = []
    try:
        for _ in range(_PLACINGS):
            place = address_of(whole)
            beyond = place % EXTENT_BYTES
            if beyond == 0:
                break
            whole.close()
            is_held = _hold(place + end_bytes - beyond, beyond)
            if is_held:
                held.append((place + end_bytes - beyond, beyond))
            whole = mmap.mmap(fd, size_bytes, flags=flags, prot=prot)
            if not is_held:
                break
    except OSError:  # as many addresses as it takes were there, and these few more were not
        _release(held)
        whole = mmap.mmap(fd, size_bytes, flags=flags, prot=prot)
    finally:
        _release(held)
    return whole


def _release(held: list[tuple[int, int]]) -> None:
    while held:
        libc().munmap(*held.pop())


def _hold(place: int, size_bytes: int) -> bool:
    """Take addresses that are free, and no memory; False where somebody else was first."""
    found = libc().mmap(place, size_bytes, _PROT_NONE, _UNUSED | _MAP_FIXED_NOREPLACE, -1, 0)
    if found == place:
        return True
    if found is not None and found != _MAP_FAILED:  # before Linux 4.17, elsewhere
        libc().munmap(found, size_bytes)
    return False


def address_of(whole: mmap.mmap) -> int:
    """Where a map lies."""
    import numpy as np

    return int(np.frombuffer(whole, np.uint8).ctypes.data)


def _place(of_file: Callable[[], int] | None) -> int | None:
    """Where the map of a file begins; None where none does, or where it takes more addresses than may be had."""
    try:
        place = None if of_file is None else of_file()
    except OSError:
        return None
    return place if place is not None and place % EXTENT_BYTES == 0 else None


def _collapse(fd: int, offset: int, place_of_file: Callable[[], int] | None) -> int:
    """One huge page for an extent, through the map of the file or, where there is none that does, one of it alone.

    Returns 0 or an errno.
    """
    import ctypes

    if (whole := _place(place_of_file)) is not None:
        return madvise.advise(whole + offset, EXTENT_BYTES, madvise.COLLAPSE)
    reserved = libc().mmap(None, 2 * EXTENT_BYTES, _PROT_NONE, _UNUSED, -1, 0)
    if reserved is None or reserved == _MAP_FAILED:
        return ctypes.get_errno()
    try:
        place = -(-reserved // EXTENT_BYTES) * EXTENT_BYTES
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if libc().mmap(place, EXTENT_BYTES, access, mmap.MAP_SHARED | _MAP_FIXED, fd, offset) != place:
            return ctypes.get_errno()
        madvise.advise(place, EXTENT_BYTES, mmap.MADV_DONTFORK)  # a child would have it for good
        return madvise.advise(place, EXTENT_BYTES, madvise.COLLAPSE)
    finally:
        libc().munmap(reserved, 2 * EXTENT_BYTES)
