"""A directory for what `datasets` writes on the way, beside its caches, where the disk is large.

It is locked while it is used; what a killed process left behind goes when the next one begins.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dsmem import files

_PREFIX = "dsmem-"


@contextmanager
def directory() -> Iterator[str]:
    """An empty directory, gone after the block."""
    import datasets

    base = str(datasets.config.HF_DATASETS_CACHE)
    os.makedirs(base, exist_ok=True)
    _sweep(base)
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # a sweep took it for an abandoned one, before it was locked
            continue
        try:
            if not files.try_lock(fd, exclusive=True) or not files.names_inode(path, os.fstat(fd)):
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(fd)


def _sweep(base: str) -> None:
    with os.scandir(base) as entries:
        paths = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone, or not ours
            continue
        try:
            if files.try_lock(fd, exclusive=True):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
