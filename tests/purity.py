"""Whether what comes of a chunk is decided by the chunk alone."""

from __future__ import annotations

import ctypes

import numpy as np

from dsmem.hdf5.codecs import Pipeline, Undecodable

_M_PERTURB = -6
"""malloc.h: fills memory that is handed out or given back with a byte."""


def decoded(pipeline: Pipeline, data: bytes, size: int) -> set[bytes | None]:
    """What comes out of it into memory of two contents; None: an error."""
    found: set[bytes | None] = set()
    perturb = ctypes.CDLL(None).mallopt
    try:
        for before in (0xAA, 0x55):
            perturb(_M_PERTURB, before)
            out = np.full(size, before, np.uint8)
            try:
                pipeline.decode(memoryview(data), out, 0)
                found.add(out.tobytes())
            except Undecodable:
                found.add(None)
    finally:
        perturb(_M_PERTURB, 0)
    return found
