"""Memory that files are read into, as far into a page as the bytes are in theirs: there the kernel copies fastest.

The kernel copies with `rep movsb`, which AMD's processors (measured: Zen 4) do at half of their speed, or a fifth, when
the target lies 1 to 31 bytes further into its page than the source into its own: a GiB of a cached file takes 65 ms of
CPU, 127 at a distance of 16 and 330 at 8. What malloc gives for a large buffer begins 16 bytes into a page.
"""

from __future__ import annotations

import mmap

_NEAR_BYTES = 32


def are_near(source: int, target: int) -> bool:
    """Whether copying from the one address, or offset, to the other is slow."""
    return 0 < (target - source) % mmap.PAGESIZE < _NEAR_BYTES


class Buffer:
    """A buffer that is made, or made anew, when it is first used for so much; of one thread."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = memory(mmap.PAGESIZE)

    def at(self, offset: int, size_bytes: int) -> memoryview:
        """So many writable bytes, for what is read at this offset of a file; what was in them before is anything.

        Raises MemoryError.
        """
        begin = offset % mmap.PAGESIZE
        if begin + size_bytes > len(self._memory):
            self._memory = memory(mmap.PAGESIZE + size_bytes)
        return self._memory[begin : begin + size_bytes]

    def between(self, source: int, target: int, size_bytes: int) -> memoryview:
        """The same for bytes that go on from there to an offset of another file."""
        return self.at(source + (mmap.PAGESIZE // 2 if are_near(source, target) else 0), size_bytes)


def memory(size_bytes: int) -> memoryview:
    """So many writable bytes that go back to the kernel at once when nobody has them any more; raises MemoryError.

    What malloc gives for less than 32 MiB, its heaps may hold for the next who asks, that of each thread by itself.
    """
    try:
        return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as exc:
        raise MemoryError(f"no {size_bytes:,} bytes for a buffer") from exc
