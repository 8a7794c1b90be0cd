"""What glibc's malloc does with large memory that was freed: by itself that depends on what the process did before.

Once asked, malloc no longer moves its thresholds: afterwards they are those that it comes to by itself in a process
that frees large tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsmem import malloc

_SMALL_BYTES, _LARGEST_BYTES = 64 << 10, 32 << 20
"""The largest is malloc's own bound."""
_NEVER = 2**31 - 1


@contextmanager
def given_back() -> Iterator[None]:
    """What is freed goes back to the system: every load fills new pages."""
    with _set(_SMALL_BYTES, _SMALL_BYTES):
        malloc.give_back()
        yield


@contextmanager
def kept() -> Iterator[None]:
    """What is freed, up to 32 MiB a piece, is used again with the pages that it has."""
    with _set(_LARGEST_BYTES, _NEVER):
        yield


@contextmanager
def _set(mmap_bytes: int, trim_bytes: int) -> Iterator[None]:
    malloc.tune(mapped_bytes=mmap_bytes, trimmed_bytes=trim_bytes)
    try:
        yield
    finally:
        malloc.tune(mapped_bytes=_LARGEST_BYTES, trimmed_bytes=2 * _LARGEST_BYTES)
