"""madvise(2) without Python's lock, which its own would hold meanwhile; and huge pages only while they pay.

Linux only. `ctypes` is imported with the first call: it takes 5 ms, which commands that only look need not take.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

HUGE_PAGE_BYTES = 2 << 20
"""A huge page of x86-64, and of arm64 with pages of 4 KiB; where it is another, dsmem asks for none."""
POPULATE_READ, POPULATE_WRITE, COLLAPSE = 22, 23, 25
"""Linux 5.14, 5.14 and 6.1; Python 3.11's mmap has no names for them."""
_log = logging.getLogger(__name__)


@cache
def libc() -> ctypes.CDLL:
    """The C library, with the types of mmap, munmap, mincore and madvise."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def advise(address: int, size_bytes: int, advice: int) -> int:
    """Advise the kernel on memory that begins at a page; returns the errno, 0 when it was done."""
    import ctypes

    if not libc().madvise(address, size_bytes, advice):
        return 0
    failure = ctypes.get_errno()
    _log.debug("madvise %d: %s", advice, os.strerror(failure))
    return failure


class Patience:
    """How long huge pages are asked for: each is timed, and after some loss against 4 KiB pages no more are.

    One that is at hand takes 0.1 ms; one that the kernel has to put together first, or that a virtual machine has to
    get back from its host, some milliseconds. What others save is not saved up.
    """

    def __init__(self, *, worth_s: float, most_lost_s: float, clock: Callable[[], float] = time.thread_time) -> None:
        """`worth_s`: seconds of CPU in which 4 KiB pages would be there instead; `most_lost_s`: beyond that, in all.

        `clock`: seconds of CPU of the calling thread. What brings the memory is this thread, in the kernel: its CPU
        time tells, however busy the machine is.
        """
        self._worth_s = worth_s
        self._most_lost_s = most_lost_s
        self._clock = clock
        self._lost_s = 0.0
        self.is_over = False

    def ask(self, get: Callable[[], int]) -> int:
        """Get one huge page, and time that; returns what `get` does (an errno, 0 when it is there)."""
        began = self._clock()
        failure = get()
        self._lost_s = max(0.0, self._lost_s + self._clock() - began - self._worth_s)
        if self._lost_s > self._most_lost_s:
            self.end(f"{1e3 * self._lost_s:.0f} ms lost by waiting for them")
        return failure

    def end(self, why: str) -> None:
        """Ask for no more."""
        if not self.is_over:
            _log.info("no more huge pages are asked for here: %s", why)
        self.is_over = True
