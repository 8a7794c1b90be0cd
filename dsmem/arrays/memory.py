"""New memory for tensors and frames, in huge pages where the system gives them to who asks, as long as they are cheap.

Filling fresh memory is bound by page faults: with pages of 2 MiB there are 512 times fewer of them. But a huge page
that the kernel first has to put together, or that a virtual machine first has to get back from its host, takes many
times as long as the 4 KiB pages that were freed a moment ago: each is timed, and no more are asked for when they lose.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from functools import partial

from dsmem import madvise, proc
from dsmem.madvise import HUGE_PAGE_BYTES, Patience

_WORTH_S = 0.0008
"""CPU time in which 2 MiB are filled in by 4 KiB pages (measured); a huge page that is at hand takes 0.1 ms."""
_MOST_LOST_S = 0.005
"""The second one that the host has to bring ends it: some 4 ms of CPU each, and three times as long by the clock."""


class Pages:
    """Huge pages for the memory of one load, or one cache; threads may ask for different parts of it at once."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock`: seconds of CPU of the calling thread, the kernel's work for it included."""
        self._patience = Patience(worth_s=_WORTH_S, most_lost_s=_MOST_LOST_S, clock=clock)
        self._exist = proc.huge_page_bytes() == HUGE_PAGE_BYTES

    @property
    def are_had(self) -> bool:
        """Whether all were got that were asked for."""
        return self._exist and not self._patience.is_over

    def prepare(self, address: int, size_bytes: int) -> None:
        """See that memory which is about to be filled is there, in huge pages where whole ones lie in it.

        The memory beside it is left as it is. What is not got this way comes when it is written to.
        """
        end = (address + size_bytes) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        at = -(-address // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        while self._exist and not self._patience.is_over and at < end:
            failure = self._patience.ask(partial(_get, at))
            if failure not in (0, errno.EINTR):
                self._patience.end(os.strerror(failure))
            at += HUGE_PAGE_BYTES


def _get(address: int) -> int:
    failure = advise(address, HUGE_PAGE_BYTES, mmap.MADV_HUGEPAGE)
    return failure or advise(address, HUGE_PAGE_BYTES, madvise.POPULATE_WRITE)


def advise(address: int, size_bytes: int, advice: int) -> int:
    """madvise(2) of the whole pages in there, so that memory of others is left as it is.

    Returns the errno, 0 when it was done.
    """
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return madvise.advise(begin, end - begin, advice) if end > begin else 0
