"""Bytes of an array that belong to no value: gaps in compounds, and what a long double of 10 bytes has beyond them.

numpy leaves there what was in memory before: it must not reach what others read, nor make equal values differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_X87_MANTISSA_BITS = 63
_X87_BYTES = 10


def tobytes(array: np.ndarray[Any, Any]) -> bytes:
    """Its bytes in C order, zeros where they belong to no value; for dtypes without objects."""
    used = _used(array.dtype)
    if used.all():
        return array.tobytes()
    raw = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.dtype.itemsize)
    return np.where(used, raw, 0).astype(np.uint8).tobytes()


def _used(dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which bytes of an item belong to a value."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.tile(_used(base), int(np.prod(shape, dtype=np.int64)))
    if dtype.fields is not None:
        used = np.zeros(dtype.itemsize, np.bool_)
        for field, offset, *_ in dtype.fields.values():
            used[offset : offset + field.itemsize] |= _used(field)
        return used
    if dtype.char in "gG" and np.finfo(np.longdouble).nmant == _X87_MANTISSA_BITS:
        each = np.zeros(np.dtype(np.longdouble).itemsize, np.bool_)
        each[:_X87_BYTES] = True
        each = each if dtype.isnative else each[::-1]
        return np.tile(each, 2 if dtype.char == "G" else 1)
    return np.ones(dtype.itemsize, np.bool_)
