"""Data whose size is known only once it is read: room is looked at while an object grows, not when it is published."""

from __future__ import annotations

from collections.abc import Collection

from dsmem import units
from dsmem.errors import Allow, BadSource
from dsmem.hdf5 import sizes
from dsmem.hdf5.datasets import Item
from dsmem.store.draft import Draft

STEP_BYTES = 64 << 20
"""An object exceeds what room was made for by no more, before it is made anew."""


class Growth:
    """Asks for room, before it is taken, for an object that room was made for once; `end` is where it ends by now."""

    def __init__(self, draft: Draft, room_bytes: int) -> None:
        self._draft = draft
        self._room_bytes = room_bytes

    def to(self, end: int) -> None:
        """Raises NoSpace when so much does not fit."""
        if end > self._room_bytes + STEP_BYTES:
            self._draft.make_more_room(end)
            self._room_bytes = end


class Variable:
    """What came of variable-length data so far: many references to one text cost a file 16 bytes each."""

    def __init__(self, path: str, file_bytes: int, allow: Collection[Allow]) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._is_allowed = "oversized" in allow
        self._size_bytes = 0

    def add(self, item: Item, size_bytes: int) -> None:
        """Raises BadSource, with the dataset's name, when it is more than a file of that size can hold."""
        if self._is_allowed or item.is_outside:
            return
        self._size_bytes += size_bytes
        if sizes.is_oversized(self._size_bytes, self._file_bytes):
            read, held = units.format_bytes(self._size_bytes), units.format_bytes(self._file_bytes)
            raise BadSource(
                f"{self._path}: /{item.path}: {read} of variable length came out of a file of {held}; "
                "such sizes are refused unless oversized ones are allowed"
            )
