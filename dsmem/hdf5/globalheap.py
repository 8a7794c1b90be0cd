"""Where a long item of variable length lies in a file: HDF5 takes five times its size to read it, and reads it whole.

Format: HDF5 File Format Specification, "Disk Format: Level 1E - Global Heap". Only what leaves no doubt is found: of
anything else HDF5 is asked.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Self

import numpy as np
from h5py import h5i, h5t

_POINTER = struct.Struct("<IQI")
"""Number of elements, address of the collection, number of the object in it."""
_COLLECTION = struct.Struct("<4sB3xQ")
"""Signature, version, size with this header."""
_OBJECT = struct.Struct("<HH4xQ")
"""Number (0: free room, whose size counts this header, too), references, size."""
_ADDRESS_BYTES = 8
_MOST_OBJECTS = 64
"""Of a collection with a long one, which HDF5 makes for it alone."""


def is_text(dataset: Any) -> bool:
    """Whether its items are texts, which end at their first NUL, however long they are said to be."""
    kind = dataset.id.get_type()
    return isinstance(kind, h5t.TypeStringID) and bool(kind.is_variable_str())


class Heap:
    """The global heap of an open file."""

    def __init__(self, fd: int, file_bytes: int, base_address: int) -> None:
        self._fd = fd
        self._file_bytes = file_bytes
        self._base_address = base_address

    @classmethod
    def of(cls, dataset: Any, base: np.dtype[Any], fd: int, file_bytes: int) -> Self | None:
        """That of the file that a dataset lies in, if its elements need no conversion to be `base` in memory."""
        properties = h5i.get_file_id(dataset.id).get_create_plist()
        if properties.get_sizes() != (_ADDRESS_BYTES, _ADDRESS_BYTES) or base.hasobject:
            return None
        kind = dataset.id.get_type()
        is_list = isinstance(kind, h5t.TypeVlenID) and kind.get_super().equal(h5t.py_create(base, logical=True))
        return cls(fd, file_bytes, properties.get_userblock()) if is_list or is_text(dataset) else None

    def find(self, pointer: bytes, size_bytes: int) -> int | None:
        """Where in the file the object of that size begins; None where HDF5 is to be asked."""
        _, address, wanted = _POINTER.unpack(pointer)
        at = self._base_address + address
        signature, version, heap_bytes = _COLLECTION.unpack(self._read(at, _COLLECTION.size))
        end = at + heap_bytes
        if (signature, version) != (b"GCOL", 1) or end > self._file_bytes:
            return None
        at += _COLLECTION.size
        found: int | None = None
        for _ in range(_MOST_OBJECTS):
            if at + _OBJECT.size > end:
                return found
            number, _, object_bytes = _OBJECT.unpack(self._read(at, _OBJECT.size))
            begin = at + _OBJECT.size
            at = begin + -(-object_bytes // 8) * 8 if number else at + object_bytes
            if at > end or at < begin:
                return None
            if number and number == wanted:
                if found is not None or object_bytes != size_bytes:
                    return None
                found = begin
        return None

    def _read(self, offset: int, size_bytes: int) -> bytes:
        """Zeros where there is no such place."""
        if not 0 <= offset <= self._file_bytes - size_bytes:
            return bytes(size_bytes)
        return os.pread(self._fd, size_bytes, offset).ljust(size_bytes, b"\0")
