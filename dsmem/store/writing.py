"""Bytes into the file of an object: by write(2), or through a map that gets huge pages.

A page of the map is taken before anyone stores into it: who did so without would risk a SIGBUS. Light on purpose: a
process that helps to fill imports this, not the store.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from dsmem import files, madvise

_POPULATE_BYTES = 4 << 20
_MOST_PIECES = 1024
"""IOV_MAX of Linux."""


def mapped(fd: int, size_bytes: int) -> mmap.mmap:
    """A shared, writable map of a file that gets huge pages where the mount has them."""
    whole = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED)
    whole.madvise(mmap.MADV_HUGEPAGE)
    return whole


def populated(whole: mmap.mmap, offset: int, size_bytes: int) -> memoryview:
    """A part of such a map, its pages there for certain; raises OSError (EFAULT: no room)."""
    start = offset - offset % mmap.PAGESIZE
    for piece in range(start, offset + size_bytes, _POPULATE_BYTES):
        whole.madvise(madvise.POPULATE_WRITE, piece, min(_POPULATE_BYTES, offset + size_bytes - piece))
    return memoryview(whole)[offset : offset + size_bytes]


def pwrite_pieces(fd: int, pieces: Sequence[bytearray], offset: int) -> None:
    """Write bytes that lie in many places, one after the other; raises OSError."""
    for first in range(0, len(pieces), _MOST_PIECES):
        some = pieces[first : first + _MOST_PIECES]
        size_bytes = sum(map(len, some))
        if os.pwritev(fd, some, offset) < size_bytes:
            files.pwrite_full(fd, memoryview(b"".join(some)), offset)
        offset += size_bytes
