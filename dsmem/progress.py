"""How library code reports progress: through a callback that it is given, never by printing."""

from __future__ import annotations

import threading
from typing import Protocol


class Progress(Protocol):
    """Called with bytes done and bytes in all, from any thread, one call after another, however little was done.

    The bytes done become fewer only where reading begins anew: whom we waited for has failed, or `verify` compares.
    """

    def __call__(self, done_bytes: int, total_bytes: int, /) -> None: ...


def ignore(done_bytes: int, total_bytes: int, /) -> None:
    """The progress callback for those who don't ask."""


class ByteCounter:
    """Bytes that several threads have done, told in the order in which they were counted."""

    def __init__(self, progress: Progress, total_bytes: int = 0) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done_bytes = 0
        self.total_bytes = total_bytes
        """More than these are never told; may be set before the first is counted."""

    def add(self, size_bytes: int) -> None:
        """So many more are done; 0 says that work goes on."""
        with self._lock:
            self._done_bytes += size_bytes
            self._progress(min(self._done_bytes, self.total_bytes), self.total_bytes)
