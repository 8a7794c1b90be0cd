"""Read a file once without pushing other people's data out of the page cache: what was not there before goes again."""

from __future__ import annotations

import os
import threading

from dsmem import digest

_LAG = 2
"""A slice is let go when reading is this many slices further: what is decoded from it has been read by then."""
_PROBES = 7


class PageCache:
    """Which slices were not cached before they were read; those are dropped from the cache behind the reading.

    What is left of them goes at the end of a `with` block.

    Measured: pinning a cold file of 3 GiB left the cache 0.05–0.2 GiB larger, not 3.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._cold: set[int] = set()
        self._read: set[int] = set()
        self._dropped: set[int] = set()
        self._lock = threading.Lock()

    def expect(self, index: int) -> None:
        """A slice is about to be read: ask for it all at once if it is not cached."""
        start, length = self._span(index)
        if length and self._is_cold(start, length):
            with self._lock:
                self._cold.add(index)
            os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_WILLNEED)

    def passed(self, index: int) -> None:
        """A slice has been read: let go of those before it that have been read too."""
        with self._lock:
            self._read.add(index)
            due = {one for one in self._cold & self._read if one <= index - _LAG} - self._dropped
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

    def _is_cold(self, start: int, length: int) -> bool:
        """Whether most of some bytes inside are absent: a chunk index that was just read lies scattered in the file.

        A file system that can't say counts as warm, and is left alone.
        """
        probe = bytearray(1)
        present = absent = 0
        for part in range(_PROBES):
            try:
                os.preadv(self._fd, [probe], start + length * (2 * part + 1) // (2 * _PROBES), os.RWF_NOWAIT)
                present += 1
            except BlockingIOError:
                absent += 1
            except OSError:
                return False
            if max(present, absent) > _PROBES // 2:
                break
        return absent > present

    def _span(self, index: int) -> tuple[int, int]:
        start = index * digest.SLICE_BYTES
        return start, max(min(digest.SLICE_BYTES, self._size_bytes - start), 0)
