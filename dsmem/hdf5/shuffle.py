"""HDF5's shuffle undone: byte k of all items lies together; what is left over at the end lies as it was.

numpy moves one byte at a time. Blosc does it by vector instructions, but for chunks of its own only: so some items at a
time are put behind the header of one that is shuffled and not compressed (README_HEADER.rst of
https://github.com/Blosc/c-blosc). They are few, so that they stay in the cache of a core.
"""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_codecs: Any = imagecodecs
_HEADER = struct.Struct("<4B5I")
"""Versions, flags, bytes of an item; sizes of all, of a block, and as stored; where the only block is, and its size."""
_VERSION, _ANY_CODEC, _SHUFFLED_IN_ONE = 2, 1, 0x11
_ITEM_BYTES = frozenset({2, 4, 8, *range(16, 256)})
"""What Blosc has vector instructions for, of the sizes that its header can name."""
_PIECE_BYTES = 128 << 10
_LEAST_BYTES = 32 << 10
"""Below, a call costs more than it saves. Above, it is 2 (items of 4 bytes) to 8 times (of 100) as fast as numpy."""


def undo(item_bytes: int, data: Any, out: Array) -> Array:
    """Unshuffle bytes into `out`: uint8, as many; returns it. Raises ValueError for another number."""
    shuffled = np.frombuffer(data, np.uint8)
    if len(shuffled) != len(out):
        raise ValueError(f"{len(shuffled)} shuffled bytes instead of {len(out)}")
    items = len(out) // item_bytes if item_bytes > 1 else 0
    whole = items * item_bytes
    if items:
        planes, rows = shuffled[:whole].reshape(item_bytes, items), out[:whole].reshape(items, item_bytes)
        if item_bytes in _ITEM_BYTES and whole >= _LEAST_BYTES:
            _by_blosc(planes, rows)
        else:
            for k in range(item_bytes):
                rows[:, k] = planes[k]
    out[whole:] = shuffled[whole:]
    return out


def _by_blosc(planes: Array, rows: Array) -> None:
    items, item_bytes = rows.shape
    step = _PIECE_BYTES // item_bytes
    chunk = np.empty(0, np.uint8)
    for first in range(0, items, step):
        count = min(step, items - first)
        size = count * item_bytes
        if len(chunk) != _HEADER.size + size:
            chunk = np.empty(_HEADER.size + size, np.uint8)
            begin = _HEADER.size - 4
            numbers = (_VERSION, _ANY_CODEC, _SHUFFLED_IN_ONE, item_bytes, size, size, len(chunk), begin, size)
            chunk[: _HEADER.size] = np.frombuffer(_HEADER.pack(*numbers), np.uint8)
            inside = chunk[_HEADER.size :].reshape(item_bytes, count)
        inside[...] = planes[:, first : first + count]
        _codecs.blosc_decode(chunk, numthreads=1, out=rows[first : first + count].reshape(-1))
