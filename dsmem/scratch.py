"""Files without a name on a disk, for what would take much memory and is read again soon; gone with their process.

What lies there is in the kernel's page cache, which it takes back when memory is short: it is no memory of ours. Where
there is no disk, or no more room on it, what would go there stays in memory: that is the caller's.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress

from dsmem import files, proc, settings

_log = logging.getLogger(__name__)
_IN_MEMORY = ("tmpfs", "ramfs", "rootfs", "unknown")


class Scratch:
    """Bytes after bytes in such a file, which is made for the first of them: one thread appends, any may read."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._end = 0
        self._is_over = False

    def append(self, data: bytes | memoryview) -> int | None:
        """Where it begins there; None where it found no room: then nothing is appended any more."""
        if self._is_over:
            return None
        try:
            if self._fd is None:
                self._fd = _made()
                weakref.finalize(self, os.close, self._fd)
            files.pwrite_full(self._fd, memoryview(data), self._end)
        except OSError as exc:
            # Not `exc` itself, with which a log that keeps records would keep `data`, too.
            _log.info("kept in memory, for want of a temporary file: %s", str(exc))
            self._is_over = True
            return None
        begin, self._end = self._end, self._end + len(data)
        return begin

    def read(self, begin: int, size_bytes: int) -> bytes:
        """What lies there; raises OSError."""
        assert self._fd is not None
        return os.pread(self._fd, size_bytes, begin)

    def rewrite(self, begin: int, data: bytes) -> None:
        """Put other bytes in the place of some; maps show them. Raises OSError."""
        assert self._fd is not None
        files.pwrite_full(self._fd, memoryview(data), begin)

    def mapped(self) -> mmap.mmap:
        """All that was appended, to be read; raises OSError."""
        assert self._fd is not None
        return mmap.mmap(self._fd, self._end, prot=mmap.PROT_READ)


def _made() -> int:
    """A file in the first directory of those for such that lies on a disk of this machine; raises OSError."""
    why: list[str] = []
    for directory in _directories():
        try:
            fstype = proc.mount_of(directory).fstype
            if fstype in _IN_MEMORY or proc.is_network_fs(fstype):
                raise OSError(f"{directory} is on {fstype}")
            with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
                return files.copied_above_standard(file.fileno())
        except OSError as exc:
            why.append(str(exc))
    raise OSError("; ".join(why))


def _directories() -> Iterator[str]:
    with suppress(OSError):  # not one that can be written to
        yield tempfile.gettempdir()
    yield "/var/tmp"
    with suppress(RuntimeError):  # a user without a home
        yield str(settings.cache_directory())
