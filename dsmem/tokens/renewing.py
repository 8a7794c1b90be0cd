"""Memory that grows as an engine encodes, given back before it is much.

fastokens remembers words in memory of the thread that encodes, and keeps there what the longest took; it forgets all
that when the thread ends, and no id depends on it. Batches are encoded by the thread of the process until it has grown
by its share, and from then on by threads of their own, each until it has: who meets few new words pays for no change of
threads. What may take more is encoded by such a thread from the first, and what takes much by one that ends with it;
of long texts the ids of the last few are kept instead, for those that come again (a run of zeros takes seconds).
One of many workers uses such threads only, and looks more often: what the thread of the process has remembered stays,
and half a MiB of new words makes an engine grow by four times the share of one of 16.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dsmem import malloc

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from dsmem.tokens.engines import Engine, Ids, Lengths
    from dsmem.tokens.seams import Seams

_ALL_BYTES, _LEAST_BYTES = 96 << 20, 6 << 20
"""For all workers together, for one."""
_HERE_BYTES, _ONCE_BYTES = 3 << 18, 21 << 16
"""Of text: more than a batch has, and more than a piece of a long document."""
_KEPT_BYTES, _LONG_S = 4 << 20, 0.1
"""Of ids of long texts, and how long one must have taken."""
FIRST = ["\n"]
"""What each thread encodes before anything else."""
_FEW_WORKERS = 8
MANY_IDS, _FEW_OF_MANY_IDS = 1 << 16, 2
"""Each thread that encodes has 16 to 32 MiB for so many: with them the one of the process is not to be one of these."""
_LITTLE_CHARACTERS = 128 << 10
"""Encoded between two looks by one of many."""
_MAPPED_BYTES, _TRIMMED_BYTES = 4 << 20, 8 << 20
"""An allocation that is a map of its own, and what may lie free at the end of the heap."""
_PAGE_BYTES = resource.getpagesize()
_RESIDENT, _SHARED = 1, 2
"""Fields of /proc/PID/statm, in pages."""


def share_bytes(workers: int, largest_id: int = 0) -> int:
    """How much each of so many workers may grow by, with ids that large: the table of a thread becomes twice as large
    when the words in it have some 11 MiB with 200,000."""
    if largest_id >= MANY_IDS and are_many(workers, largest_id):
        return _LEAST_BYTES
    return max(_LEAST_BYTES, _ALL_BYTES // workers)


def are_many(workers: int, largest_id: int = 0) -> bool:
    """Whether there are so many that each is to take little, with ids that large."""
    return workers > (_FEW_WORKERS if largest_id < MANY_IDS else _FEW_OF_MANY_IDS)


def hold_little(workers: int) -> None:
    """In one of many workers: what is large goes back to the kernel as soon as it is freed, where the C library is
    glibc, which else learns from each large array that more of that size should be kept (and is faster for it)."""
    if are_many(workers):
        malloc.tune(mapped_bytes=_MAPPED_BYTES, trimmed_bytes=_TRIMMED_BYTES)


def own_bytes() -> int:
    """Memory of this process that no file backs."""
    fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # asked for often: Path takes five times as long
    try:
        fields = os.read(fd, 256).split()
    finally:
        os.close(fd)
    return (int(fields[_RESIDENT]) - int(fields[_SHARED])) * _PAGE_BYTES


class Renewing:
    """An engine whose threads end when they have made the process grow by a share."""

    def __init__(
        self, engine: Engine, share_bytes: int, waiting_bytes: Callable[[], int], *, is_one_of_many: bool = False
    ) -> None:
        """`waiting_bytes`: of what grows in this process and is bounded by others."""
        self._engine = engine
        self._share_bytes = share_bytes
        self._waiting_bytes = waiting_bytes
        self._is_one_of_many = is_one_of_many
        self._thread: ThreadPoolExecutor | None = None
        self._is_busy = False
        self._base_bytes: int | None = None
        self._long = _Remembered()
        self.name = engine.name
        self.renewals = 0

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As the engine does."""
        if self._base_bytes is None:
            self._base_bytes = self._now_bytes()
        size = sum(map(len, texts))
        if len(texts) == 1 and size > _HERE_BYTES:
            return self._long.encode(texts[0], lambda: self._encode(texts, size))
        if not self._is_one_of_many or size <= _LITTLE_CHARACTERS:
            return self._encode(texts, size)
        import numpy as np

        from dsmem.tokens.sampling import portions

        some = [self._encode(few, sum(map(len, few))) for few in portions(list(texts), size, _LITTLE_CHARACTERS)]
        return np.concatenate([ids for ids, _ in some]), np.concatenate([lengths for _, lengths in some])

    def _encode(self, texts: Sequence[str], size: int) -> tuple[Ids, Lengths]:
        assert self._base_bytes is not None
        if self._thread is None and (self._is_one_of_many or size > _HERE_BYTES):
            self._begin_thread()
        if self._thread is None:
            encoded = self._engine.encode(texts)
        else:
            self._is_busy = True
            try:
                encoded = self._thread.submit(self._engine.encode, texts).result()
            finally:
                self._is_busy = False
        now_bytes = self._now_bytes()
        if size > _ONCE_BYTES or (now_bytes > self._base_bytes + self._share_bytes and self._has_grown()):
            self._renew()
        else:
            self._base_bytes = min(self._base_bytes, now_bytes)
        return encoded

    def _has_grown(self) -> bool:
        """Whether the engine holds most of the share: what else has grown are free blocks of the heap."""
        assert self._base_bytes is not None
        malloc.give_back()
        return self._now_bytes() > self._base_bytes + self._share_bytes * 3 // 4

    def _renew(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        malloc.give_back()
        self._begin_thread()
        self.renewals += 1

    def _begin_thread(self) -> None:
        """And let it make what each has from the first, up to 32 MiB by the vocabulary: that is no growth."""
        self._thread = _thread()
        self._thread.submit(self._engine.encode, FIRST).result()
        self._base_bytes = self._now_bytes()

    def rest(self) -> None:
        """While it is not to encode for long: what many have for each thread is given back, and all that is free."""
        if self._is_one_of_many and self._thread is not None and not self._is_busy:
            self._thread.shutdown()
            self._thread = None
        malloc.give_back()

    def _now_bytes(self) -> int:
        return own_bytes() - self._waiting_bytes()

    def seams(self) -> Seams:
        """As the engine tells."""
        return self._engine.seams()


class _Remembered:
    """The ids of the last long texts that took long, as far as they take little memory."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[int, bytes], tuple[Ids, Lengths]] = OrderedDict()
        self._held_bytes = 0

    def encode(self, text: str, encode: Callable[[], tuple[Ids, Lengths]]) -> tuple[Ids, Lengths]:
        """What `encode` gives for this text, or gave."""
        size = len(text)
        key: tuple[int, bytes] | None = None
        if any(size == of_size for of_size, _ in self._found):
            key = size, _digest(text)
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        began = time.perf_counter()
        encoded = encode()
        if time.perf_counter() - began > _LONG_S:
            self._found[key or (size, _digest(text))] = encoded
            self._held_bytes += encoded[0].nbytes
            while self._held_bytes > _KEPT_BYTES:
                _, (ids, _) = self._found.popitem(last=False)
                self._held_bytes -= ids.nbytes
        return encoded


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _thread() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, "engine")
