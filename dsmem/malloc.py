"""glibc's malloc told what to do with memory that is freed; another C library's does as it does by itself."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""


def give_back() -> None:
    """Free memory goes back to the kernel."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def tune(*, mapped_bytes: int, trimmed_bytes: int) -> None:
    """An allocation of so many bytes is a map of its own, and so many may lie free at the end of the heap."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mapped_bytes)
        mallopt(_M_TRIM_THRESHOLD, trimmed_bytes)
