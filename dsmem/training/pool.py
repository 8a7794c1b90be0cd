"""Memory of batches in the process that makes them and uses them, taken again once nothing of a batch is left.

New memory costs more than what is copied into it, in pages taken and zeroed. No block is taken while a tensor, an
array or a view of it is there.
"""

from __future__ import annotations

import threading

import torch
from torch.utils.data import get_worker_info

from dsmem.arrays import pages
from dsmem.training.lending import uses


class Pool:
    """Blocks of one process, shared by its threads. Not for a loader's workers, whose batches another process gets."""

    def __init__(self, blocks: int) -> None:
        """`blocks`: how many it keeps at most."""
        self._most = blocks
        self._lock = threading.Lock()
        self._flats: list[tuple[torch.Tensor, int]] = []
        """Each with its `uses` when there is no tensor but this one."""

    def __reduce__(self) -> tuple[type[Pool], tuple[int]]:
        return Pool, (self._most,)  # in another process it begins with nothing

    def take(self, size_bytes: int) -> torch.Tensor | None:
        """uint8 [size_bytes], at the beginning of a page, in memory that nobody uses; None where there is none."""
        if get_worker_info() is not None:
            return None
        with self._lock:
            # What was sent to another process lies in shared memory now, which that one reads.
            self._flats = [one for one in self._flats if not one[0].is_shared()]  # type: ignore[no-untyped-call]
            free = [flat for flat, at_rest in self._flats if uses(flat) == at_rest]
            for flat in free:
                if len(flat) >= size_bytes:
                    return flat[:size_bytes]
            if len(self._flats) == self._most:
                if not free:
                    return None
                self._flats = [one for one in self._flats if one[0] is not free[0]]  # too small for what is asked now
            made = torch.from_numpy(pages.empty(size_bytes, least_bytes=0))
            at_rest = uses(made)
            if at_rest is not None:
                self._flats.append((made, at_rest))
            return made[:]

    def clear(self) -> None:
        """Keep nothing; what is in use stays with those who use it."""
        with self._lock:
            self._flats.clear()
