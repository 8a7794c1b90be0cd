"""What lies in a store, looked at from outside: no code of dsmem is used for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")
SHARED_MEMORY = "/dev/shm"


class InTmpfs(Protocol):
    """Run a function in a child whose DSMEM_ROOT is on a tmpfs of its own; it gets the mount point."""

    def __call__(self, body: Callable[[Path], T], *, size: str = "4m", huge: str = "never") -> T: ...


def refuse(root: Path) -> list[str]:
    """What lies in a store and is neither an object nor a ref: locks, drafts, trash, half-written refs."""
    if not root.is_dir() or root.is_symlink():
        return []
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(str(path) for path in files if path.parts[0] not in ("objects", "refs") or path.name.startswith("."))


def used_bytes(point: Path) -> int:
    """Bytes in use on a file system, named or not."""
    found = os.statvfs(point)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def named_bytes(point: Path) -> int:
    """Bytes of the files that have a name."""
    inodes = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (p.lstat() for p in point.rglob("*") if p.is_file())}
    return sum(inodes.values())


def unnamed_bytes(point: Path) -> int:
    """Bytes that no name leads to: leaked while no process holds them. The kernel is given a moment to free them."""
    deadline = time.monotonic() + 2
    while (found := used_bytes(point) - named_bytes(point)) > 0 and time.monotonic() < deadline:
        time.sleep(0.002)
    return found
