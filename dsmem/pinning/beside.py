"""What filling an object takes of memory beside it: guessed before anything is read, so that a cgroup which could hold
the object alone is not filled up to where the kernel kills whoever pins.

Measured (private memory of all processes from the plan on, two CPUs): 2 MiB to copy, 8 to 12 to decode in threads, 24
to 30 with a process that decodes small chunks, 61 for 20 MB of short texts.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import NamedTuple

from dsmem import proc
from dsmem.hdf5.items import Items
from dsmem.pinning import decoding, processes

_COPYING_BYTES, _DECODING_BYTES, _READING_BYTES = 2 << 20, 4 << 20, 8 << 20
"""Of a thread that copies, one that decodes, beside its chunk, and of h5py, beside its own."""
_PROCESS_BYTES = 24 << 20
"""Of an interpreter that decodes, or has h5py do so."""
_VARIABLE_BYTES, _VARYING_BYTES = 64 << 20, 320
"""Of what varies in length: at most, and for each item."""
_LOOKED_AT = 1000
"""Datasets of a kind: who has more has small ones."""


class Need(NamedTuple):
    """What an object needs, at a good guess."""

    object_bytes: int
    beside_bytes: int
    """Of memory, while it is filled."""


def beside_bytes(items: Items) -> int:
    """Of memory that all processes take beside an object while these datasets are read into it."""
    cpus = proc.usable_cpus()
    total = _COPYING_BYTES * cpus
    chunked = items.where(lambda item: item.tier == "chunked")
    if chunked:
        some = chunked.chosen(item.number for item in islice(chunked, _LOOKED_AT))
        total += cpus * (max(item.chunk_bytes for item in some) + _DECODING_BYTES)
        if len(chunked) > _LOOKED_AT or decoding.in_processes(some):
            total += (cpus - 1) * _PROCESS_BYTES
    slow = items.where(lambda item: item.tier == "h5py" and item.info.dtype.kind != "O")
    if slow:
        few = list(islice(slow, _LOOKED_AT))
        total += max(item.chunk_bytes for item in few) + _READING_BYTES
        if sum(item.size_bytes for item in few) >= processes.WORTH_BYTES:
            total += (cpus - 1) * (max(item.chunk_bytes for item in few) + _PROCESS_BYTES)
    varying = items.where(lambda item: item.info.dtype.kind == "O")
    elements = sum(math.prod(item.info.shape or ()) for item in islice(varying, _LOOKED_AT))
    return total + min(_VARIABLE_BYTES, elements * _VARYING_BYTES)
