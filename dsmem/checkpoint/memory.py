"""New memory for tensors, in huge pages where the system gives them to who asks (`madvise`), as long as they are cheap.

Filling fresh memory is bound by page faults: with pages of 2 MiB there are 512 times fewer of them. But a huge page
that the kernel first has to put together, or that a virtual machine first has to get back from its host, takes many
times as long as the 4 KiB pages that were freed a moment ago: each is timed, and no more are asked for when they lose.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import time
from collections.abc import Callable
from functools import cache

from dsmem import proc

_MADV_POPULATE_WRITE = 23
"""Linux 5.14, madvise(2); Python 3.11's mmap has no name for it, and would hold the lock meanwhile."""
_EXTENT_BYTES = 2 << 20
"""A huge page of x86-64, and of arm64 with pages of 4 KiB; where it is another, none are asked for."""
_WORTH_S = 0.0008
"""CPU time in which 2 MiB are filled in by 4 KiB pages (measured); a huge page that is at hand takes 0.1 ms."""
_MOST_LOST_S = 0.005
"""The second one that the host has to bring ends it: some 4 ms of CPU each, and three times as long by the clock."""
log = logging.getLogger(__name__)


class Pages:
    """Huge pages for the memory of one load; threads may ask for different parts of it at once."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock`: seconds of CPU of the calling thread, the kernel's work for it included."""
        self._clock = clock
        self._lost_s = 0.0
        self._asking = proc.huge_page_bytes() == _EXTENT_BYTES

    def prepare(self, address: int, size_bytes: int) -> None:
        """See that memory which is about to be filled is there, in huge pages where whole ones lie in it.

        The memory beside it is left as it is. What is not got this way comes when it is written to.
        """
        end = (address + size_bytes) // _EXTENT_BYTES * _EXTENT_BYTES
        at = -(-address // _EXTENT_BYTES) * _EXTENT_BYTES
        while self._asking and at < end:
            began = self._clock()
            failure = advise(at, _EXTENT_BYTES, mmap.MADV_HUGEPAGE)
            failure = failure or advise(at, _EXTENT_BYTES, _MADV_POPULATE_WRITE)
            # What brings the memory is this thread, in the kernel: its CPU time tells, however busy the machine is.
            self._lost_s = max(0.0, self._lost_s + self._clock() - began - _WORTH_S)
            if failure not in (0, errno.EINTR) or self._lost_s > _MOST_LOST_S:
                why = os.strerror(failure) if failure else f"{1e3 * self._lost_s:.0f} ms lost by them"
                log.info("no more huge pages are asked for: %s", why)
                self._asking = False
            at += _EXTENT_BYTES


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def advise(address: int, size_bytes: int, advice: int) -> int:
    """madvise(2), of whole pages, so that memory of others is left as it is; Python's own would hold its lock.

    Returns the errno, 0 when it was done.
    """
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= begin:
        return 0
    if not _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice):
        return 0
    failure = ctypes.get_errno()
    log.debug("madvise %d: %s", advice, os.strerror(failure))
    return failure
