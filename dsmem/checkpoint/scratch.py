"""The memory of one worker: 4 MiB, made when it is first used, used for all that does not go straight to its place."""

from __future__ import annotations

import ctypes

GROUP_BYTES = 4 << 20
"""Small items that lie side by side are read so many bytes at a time."""
BOUNCE_BYTES = 1 << 20


class Scratch:
    """A buffer, and the address where it lies."""

    __slots__ = ("_address", "_data", "_view")

    def __init__(self) -> None:
        self._data: bytearray | None = None
        self._view = memoryview(b"")
        self._address = 0

    @property
    def data(self) -> bytearray:
        """The buffer."""
        if self._data is None:
            self._data = bytearray(GROUP_BYTES)
            self._view = memoryview(self._data)
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        return self._data

    @property
    def view(self) -> memoryview:
        """The same bytes."""
        assert self.data
        return self._view

    @property
    def address(self) -> int:
        """Where it lies."""
        assert self.data
        return self._address
