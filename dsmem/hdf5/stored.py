"""The stored bytes of chunks: read many at a time, and inflated where deflate is the only filter.

No numpy here: a process that helps to decode starts in a third of the time without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from operator import add

import deflate

from dsmem import files
from dsmem.buffers import Buffer
from dsmem.errors import BadSource

MISSING = -1
"""The offset of a chunk that was never written."""
_SPAN_BYTES = 8 << 20
_HOLE_BYTES = 64 << 10


class StoredChunks:
    """Reads the stored bytes of a file's chunks; threads share it, each has a buffer of its own."""

    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self._label = label
        self._local = threading.local()

    def read(self, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[memoryview | None]:
        """Each chunk's bytes, valid until the next is taken; one read for what lies together; None: never written.

        Raises BadSource when the file is shorter.
        """
        i = 0
        while i < len(offsets):
            if offsets[i] == MISSING:
                yield None
                i += 1
                continue
            j, low, high = _together(offsets, sizes, i)
            buffer = self._span(low, high)
            for k in range(i, j):
                start = offsets[k] - low
                yield buffer[start : start + sizes[k]]
            i = j

    def inflated(self, offsets: Sequence[int], sizes: Sequence[int], chunk_bytes: int) -> list[bytearray] | None:
        """Chunks of which deflate is the only filter, none of them missing, decoded into memory of their own.

        It is the quickest way for small ones. None when not all decode to that size.
        """
        low, high = min(offsets), max(map(add, offsets, sizes))
        stored: Iterator[memoryview | None]
        if _is_dense(low, high, sum(sizes)):  # the usual case, without a generator's turn for each chunk
            buffer = self._span(low, high)
            stored = (buffer[offset - low : offset - low + size] for offset, size in zip(offsets, sizes, strict=True))
        else:
            stored = self.read(offsets, sizes)
        inflate = deflate.zlib_decompress
        try:
            decoded: list[bytearray] = [inflate(data, chunk_bytes) for data in stored]
        except deflate.DeflateError:
            return None
        return decoded if all(len(one) == chunk_bytes for one in decoded) else None

    def _span(self, low: int, high: int) -> memoryview:
        """Bytes [low, high) of the file, in this thread's buffer."""
        buffer: Buffer | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = Buffer()
        span = buffer.at(low, high - low)
        if files.pread_full(self._fd, span, low) < high - low:
            raise BadSource(f"{self._label}: the file ends within its chunks")
        return span


def _together(offsets: Sequence[int], sizes: Sequence[int], first: int) -> tuple[int, int, int]:
    """How many chunks from the first on are read at once (the index of the next), and from where to where."""
    j, low, high, wanted = first, offsets[first], offsets[first] + sizes[first], 0
    while j < len(offsets) and offsets[j] != MISSING:
        low_, high_ = min(low, offsets[j]), max(high, offsets[j] + sizes[j])
        if j > first and not _is_dense(low_, high_, wanted + sizes[j]):
            break
        low, high, wanted, j = low_, high_, wanted + sizes[j], j + 1
    return j, low, high


def _is_dense(low: int, high: int, wanted_bytes: int) -> bool:
    """Whether a span is worth one read: not too long, and most of it is wanted."""
    return high - low <= _SPAN_BYTES and high - low <= 2 * wanted_bytes + _HOLE_BYTES
