"""Sizes that hardly can be, over 4 GiB and over 1000 times what is stored: a small file could fill the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from dsmem import units
from dsmem.errors import Allow
from dsmem.hdf5.elsewhere import NotAllowed

if TYPE_CHECKING:
    from dsmem.hdf5.datasets import Item
    from dsmem.hdf5.items import Items

LEAST_BYTES = 4 << 30
_LEAST_CHUNKS = 1 << 20
_MOST_RATIO = 1000
"""Deflate, the usual filter, packs at most 1032 to 1."""


def is_oversized(size_bytes: int, stored_bytes: int) -> bool:
    """Whether so much hardly can come of what is stored."""
    return size_bytes > max(LEAST_BYTES, _MOST_RATIO * stored_bytes)


def check(size_bytes: int, stored_bytes: int, allow: Collection[Allow]) -> None:
    """Raise NotAllowed for the size of a dataset that is oversized."""
    if is_oversized(size_bytes, stored_bytes) and "oversized" not in allow:
        declared, stored = units.format_bytes(size_bytes), units.format_bytes(stored_bytes)
        raise NotAllowed(f"{declared} declared, {stored} stored", allow="oversized")


def check_chunks(chunks: int, file_bytes: int, allow: Collection[Allow]) -> None:
    """Raise NotAllowed for so many chunks in a file of that size: each that was written takes some bytes of it.

    Beside what they hold, HDF5 and dsmem take time and memory for each, whether it was written or not.
    """
    if chunks > max(_LEAST_CHUNKS, file_bytes) and "oversized" not in allow:
        held = units.format_bytes(file_bytes)
        raise NotAllowed(f"{chunks:,} chunks declared in a file of {held}", allow="oversized")


def too_many(items: Items, file_bytes: int, stored: Callable[[Item], int]) -> tuple[list[Item], str]:
    """The datasets without which the others together are not oversized, those that declare the most first; and why.

    What is stored in the file itself is no more than the file, however many datasets share it. `stored` tells it of one
    dataset, and is asked only as long as it matters: adding up chunks takes HDF5 1 µs for each.
    """
    declared_bytes = sum(map(_declared, items))
    if declared_bytes <= LEAST_BYTES:
        return [], ""
    within = outside = 0
    known: dict[str, int] = {}
    for item in items:
        known[item.path] = stored(item)
        outside += known[item.path] if item.is_outside else 0
        within += 0 if item.is_outside else known[item.path]
        if not is_oversized(declared_bytes, min(within, file_bytes) + outside):
            return [], ""
    total, held = units.format_bytes(declared_bytes), units.format_bytes(min(within, file_bytes) + outside)
    chosen: list[Item] = []
    for item in sorted(items, key=lambda one: _MOST_RATIO * known[one.path] - _declared(one)):
        if not is_oversized(declared_bytes, min(within, file_bytes) + outside):
            break
        chosen.append(item)
        declared_bytes -= _declared(item)
        outside -= known[item.path] if item.is_outside else 0
        within -= 0 if item.is_outside else known[item.path]
    return chosen, f"{total} declared by all datasets together, {held} stored"


def _declared(item: Item) -> int:
    """Bytes of the array, or of what tells where each text or list begins."""
    return math.prod(item.info.shape) * item.info.dtype.itemsize if item.info.shape is not None else 0
