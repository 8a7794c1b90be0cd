"""New memory that begins at a page, as what is mapped does.

numpy's own begins 16 bytes later: copying between arrays that differ in this takes up to twice the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PAGE_BYTES = 4096
"""The processor compares the last 12 bits of addresses, whatever a page of the system is."""
LEAST_BYTES = 16 << 10
"""Of a smaller array the rest of a page would be a large part, and there is little to gain."""


def empty(size_bytes: int, *, least_bytes: int = LEAST_BYTES) -> Array:
    """uint8 [size_bytes], not initialized; from `least_bytes` on at the beginning of a page, and a page more."""
    if size_bytes < least_bytes:
        return np.empty(size_bytes, np.uint8)
    raw = np.empty(size_bytes + PAGE_BYTES - 1, np.uint8)
    first = -raw.ctypes.data % PAGE_BYTES
    return raw[first : first + size_bytes]


def copied(array: Array, empty: Callable[[int], Array] = empty) -> Array:
    """A copy, in C order; of numbers, not of objects. `empty`: gives the memory."""
    copy = empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
