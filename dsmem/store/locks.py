"""Short exclusive turns in a store, by name: one process at a time. Whoever dies in its turn leaves a free lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dsmem import files
from dsmem.store import space
from dsmem.store.root import Store

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.1


@contextmanager
def exclusive(store: Store, name: str) -> Iterator[None]:
    """Waits for the turn; its lock file is there only while somebody has it or waits."""
    path = f"{store.locks}/{name}"
    while True:
        with space.translated(store):
            fd = files.open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            pause_s = FIRST_PAUSE_S
            while not files.try_lock(fd, exclusive=True):
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
            if not files.names_inode(path, os.fstat(fd)):
                continue
            try:
                yield
            finally:
                files.unlink_if_there(path)
            return
        finally:
            os.close(fd)
