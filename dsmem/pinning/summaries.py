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

    def __init__(self, count: int, made: Callable[[int], DatasetSummary]) -> None:
        self._count = count
        self._made = made

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> DatasetSummary: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[DatasetSummary, ...]: ...
    def __getitem__(self, index: int | slice) -> DatasetSummary | tuple[DatasetSummary, ...]:
        numbers = range(len(self))[index]
        return self._made(numbers) if isinstance(numbers, int) else tuple(map(self._made, numbers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | Summaries) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def summaries(count: int, made: Callable[[int], DatasetSummary]) -> Sequence[DatasetSummary]:
    """So many, each made of its number: a tuple, but of very many."""
    found = Summaries(count, made)
    return found if count > _MOST_AT_ONCE else tuple(found)


def of_items(items: Items, size_bytes: Callable[[Item], int]) -> Sequence[DatasetSummary]:
    """What was pinned now."""

    def made(number: int) -> DatasetSummary:
        item = items[number]
        if item.info.shape is None:
            return DatasetSummary(item.path, None, label(item.info.dtype), 0)
        return DatasetSummary(item.path, item.info.shape, label(item.info.dtype), size_bytes(item))

    return summaries(len(items), made)
