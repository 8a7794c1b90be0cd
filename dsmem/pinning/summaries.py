"""What was pinned, a line a dataset; of very many each is made when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from dsmem.arrays.summary import DatasetSummary, label
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.items import Items

_MOST_AT_ONCE = 10_000
"""Datasets, 300 bytes each."""


class Summaries(Sequence[DatasetSummary]):
    """Equal to the tuple of what it holds; pickled and copied it is that tuple."""

    def __init__(self, items: Items, size_bytes: Callable[[Item], int]) -> None:
        self._items = items
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> DatasetSummary: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[DatasetSummary, ...]: ...
    def __getitem__(self, index: int | slice) -> DatasetSummary | tuple[DatasetSummary, ...]:
        numbers = range(len(self))[index]
        return self._at(numbers) if isinstance(numbers, int) else tuple(map(self._at, numbers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | Summaries) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)

    def _at(self, number: int) -> DatasetSummary:
        item = self._items[number]
        if item.info.shape is None:
            return DatasetSummary(item.path, None, label(item.info.dtype), 0)
        return DatasetSummary(item.path, item.info.shape, label(item.info.dtype), self._size_bytes(item))


def summaries(items: Items, size_bytes: Callable[[Item], int]) -> Sequence[DatasetSummary]:
    """What was pinned: a tuple, but of very many."""
    found = Summaries(items, size_bytes)
    return found if len(found) > _MOST_AT_ONCE else tuple(found)
