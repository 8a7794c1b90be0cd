"""The file that is pinned, and what of it."""

from __future__ import annotations

from dataclasses import dataclass

from dsmem.errors import Allow


@dataclass(frozen=True, slots=True)
class Source:
    """The file to read, open as `fd`, and what of it."""

    fd: int
    path: str
    size_bytes: int
    only: tuple[str, ...] = ()
    allow: frozenset[Allow] = frozenset()
    is_distrusted: bool = False
    """HDF5 is asked for every chunk whether it finds it where the index lists it: 5 µs each."""

    def label(self, path: str) -> str:
        """What messages call a dataset."""
        return f"{self.path}: /{path}"
