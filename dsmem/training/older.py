"""The names of an older system, over `dsmem.File` and the store."""

from __future__ import annotations

import os

from dsmem.pinning.arrayfile import ArrayFile
from dsmem.pinning.opening import File
from dsmem.pinning.pin import Pinned, pin
from dsmem.shm import cleaning
from dsmem.shm.cleaning import Cleaned
from dsmem.shm.listing import Entry, survey
from dsmem.store.root import open_store

MemoryMappedHDF5 = File


class SharedMemoryManager:
    """What lies in the store: put a file there, open it, list, clean. It holds nothing; objects outlive it."""

    def pin(self, path: str | os.PathLike[str]) -> Pinned:
        """Put a file into shared memory, unless it is there; see `dsmem.pin`."""
        return pin(path)

    def open(self, path: str | os.PathLike[str]) -> ArrayFile:
        """The file from shared memory; the first process puts it there."""
        return File(path, pin="auto")

    def list(self) -> tuple[Entry, ...]:
        """All objects, as `dsmem shm ls` shows them."""
        store = open_store()
        return survey(store) if store is not None else ()

    def cleanup(self, path: str | os.PathLike[str]) -> Cleaned:
        """Remove what was pinned of a file, unless somebody uses it; raises NotPinned."""
        return cleaning.clean(cleaning.plan(h5=[os.fspath(path)]))

    def cleanup_all(self) -> Cleaned:
        """Remove everything that nobody uses."""
        return cleaning.clean(cleaning.plan(everything=True))
