"""Read a file once without pushing other people's data out of the page cache: what was not there before goes again."""

from __future__ import annotations

import os
import threading

from dsmem import digest, residency

AHEAD = 4
"""So many slices may be read before the first of what is decoded from them, which has been read when so many more are:
only then a slice is let go."""
_LOOKED_AHEAD = 2
"""So many slices further it is looked what is cached: reading one asks the kernel for some of those behind it."""


class PageCache:
    """Which slices were not cached before they were read; those are dropped from the cache behind the reading.

    What is left of them goes at the end of a `with` block.

    Measured: pinning a cold file of 3 GiB left the cache 0.05–0.2 GiB larger, not 3.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._cold: set[int] = set()
        self._looked_at = 0
        """Slices before this one."""
        self._read: set[int] = set()
        self._dropped: set[int] = set()
        self._lock = threading.Lock()

    def expect(self, index: int) -> None:
        """A slice is about to be read, and those before it are or were: ask for it all at once if it is not cached."""
        with self._lock:
            for one in range(self._looked_at, index + _LOOKED_AHEAD + 1):
                self._looked_at = one + 1
                start, length = self._span(one)
                if length and residency.is_cached(self._fd, start, length) is False:
                    self._cold.add(one)  # of a file system that can't say nothing is let go
            is_cold = index in self._cold
        if is_cold:
            os.posix_fadvise(self._fd, *self._span(index), os.POSIX_FADV_WILLNEED)

    def passed(self, index: int) -> None:
        """A slice has been read: let go of those before it that have been read too."""
        with self._lock:
            self._read.add(index)
            due = {one for one in self._cold & self._read if one <= index - AHEAD} - self._dropped
            self._dropped |= due
        for one in due:
            self._drop(one)

    def __enter__(self) -> PageCache:
        return self

    def __exit__(self, *error: object) -> None:
        """Some of it was read twice (by decodings, by a comparison): let go of it all."""
        for index in self._cold:
            self._drop(index)

    def _drop(self, index: int) -> None:
        start, length = self._span(index)
        os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)

    def _span(self, index: int) -> tuple[int, int]:
        start = index * digest.SLICE_BYTES
        return start, max(min(digest.SLICE_BYTES, self._size_bytes - start), 0)
