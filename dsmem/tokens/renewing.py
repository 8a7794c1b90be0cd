"""Memory that grows as an engine encodes, given back before it is much.

fastokens remembers words in memory of the thread that encodes, and keeps there what the longest took; it forgets all
that when the thread ends, and no id depends on it. Batches are encoded by the thread of the process until it has grown
by its share, and from then on by threads of their own, each until it has: who meets few new words pays for no change of
threads. What may take more is encoded by such a thread from the first, and what takes much by one that ends with it.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from dsmem.tokens.engines import Engine, Ids, Lengths
    from dsmem.tokens.seams import Seams

_ALL_BYTES, _LEAST_BYTES = 96 << 20, 12 << 20
"""For all workers together, for one."""
_HERE_BYTES, _ONCE_BYTES = 3 << 18, 21 << 16
"""Of text: more than a batch has, and more than a piece of a long document."""
_RESIDENT, _SHARED = 1, 2
"""Fields of /proc/PID/statm, in pages."""


def share_bytes(workers: int) -> int:
    """How much each of so many workers may grow by."""
    return max(_LEAST_BYTES, _ALL_BYTES // workers)


def give_back() -> None:
    """Free memory goes back to the kernel; where the C library has no call for that, it does so by itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def own_bytes() -> int:
    """Memory of this process that no file backs."""
    fields = Path("/proc/self/statm").read_bytes().split()
    return (int(fields[_RESIDENT]) - int(fields[_SHARED])) * resource.getpagesize()


class Renewing:
    """An engine whose threads end when they have made the process grow by a share."""

    def __init__(self, engine: Engine, share_bytes: int, waiting_bytes: Callable[[], int]) -> None:
        """`waiting_bytes`: of what grows in this process and is bounded by others."""
        self._engine = engine
        self._share_bytes = share_bytes
        self._waiting_bytes = waiting_bytes
        self._thread: ThreadPoolExecutor | None = None
        self._base_bytes: int | None = None
        self.name = engine.name
        self.renewals = 0

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As the engine does."""
        if self._base_bytes is None:
            self._base_bytes = self._now_bytes()
        size = sum(map(len, texts))
        if self._thread is None and size > _HERE_BYTES:
            self._thread = _thread()
        if self._thread is None:
            encoded = self._engine.encode(texts)
        else:
            encoded = self._thread.submit(self._engine.encode, texts).result()
        now_bytes = self._now_bytes()
        if size > _ONCE_BYTES or now_bytes > self._base_bytes + self._share_bytes:
            self._renew()
        else:
            self._base_bytes = min(self._base_bytes, now_bytes)
        return encoded

    def _renew(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        give_back()
        self._thread = _thread()
        self._base_bytes = self._now_bytes()
        self.renewals += 1

    def _now_bytes(self) -> int:
        return own_bytes() - self._waiting_bytes()

    def seams(self) -> Seams:
        """As the engine tells."""
        return self._engine.seams()


def _thread() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, "engine")
