"""A directory for what `datasets` writes on the way, beside its caches, where the disk is large.

It is locked while it is used; what a killed process left behind goes when the next one begins.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from dsmem import files

_NAME = re.compile(r"\.dsmem-[0-9a-f]{16}\.tmp")
"""Of nothing that `datasets` puts there, whose directories are named after datasets."""


@contextmanager
def directory() -> Iterator[str]:
    """An empty directory, gone after the block."""
    import datasets

    base = str(datasets.config.HF_DATASETS_CACHE)
    os.makedirs(base, exist_ok=True)
    _sweep(base)
    while True:
        path = os.path.join(base, f".dsmem-{secrets.token_hex(8)}.tmp")
        os.mkdir(path, 0o700)
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
        paths = [entry.path for entry in entries if _NAME.fullmatch(entry.name)]
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone, or not ours
            continue
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and files.try_lock(fd, exclusive=True) and files.names_inode(path, status):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
