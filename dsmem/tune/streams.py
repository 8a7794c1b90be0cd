"""A descriptor as a file object for HDF5, which never sees it fail: HDF5 2.0 crashes over a write that raises."""

from __future__ import annotations

import errno
import os
from typing import Any

from dsmem import files


class Stream:
    """What h5py's `fileobj` driver needs: seek, readinto, write, truncate, flush. `check` raises the first failure.

    After a failure writes go nowhere, so that HDF5 can close the file; what was written is to be thrown away.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._end = 0
        self._failure: OSError | None = None

    def stop(self) -> None:
        """Let `check` raise from now on."""
        self._failure = self._failure or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where it is then; from the end as HDF5 knows it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            done = files.pread_full(self._fd, view, self._at)
        except OSError as exc:
            self._failure = self._failure or exc
        view[done:] = bytes(len(view) - done)
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Write it all."""
        view = memoryview(data).cast("B")
        if self._failure is None:
            try:
                files.pwrite_full(self._fd, view, self._at)
            except OSError as exc:
                self._failure = exc
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def truncate(self, size_bytes: int) -> int:
        """Make it so long."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as exc:
            self._failure = self._failure or exc
        self._end = size_bytes
        return size_bytes

    def flush(self) -> None:
        """Nothing is held back."""
