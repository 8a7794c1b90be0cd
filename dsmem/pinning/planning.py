"""Where everything of a scanned file goes in an object."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsmem.arrays import dtypes, header, layout, tree, views
from dsmem.arrays.columns import Column, Numbers, windows
from dsmem.arrays.header import WIDEST_NUMBER, Tensor
from dsmem.arrays.layout import UNKNOWN, Layout, Planned
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.found import Scan
from dsmem.hdf5.items import Items
from dsmem.store.objects import PROVENANCE_KEY
from dsmem.store.refs import Provenance

_WIDEST = "9" * 19


class Tensors:
    """The tensors of an object, each made when it is asked for: a file may have hundreds of thousands.

    A dataset has one, and one of variable length another before it, for its offsets; the last is for long attributes.
    """

    def __init__(self, items: Items, attribute_bytes: int, seen: Callable[[], object]) -> None:
        self._items = items
        self._seen = seen
        self._attribute_bytes = attribute_bytes
        self.total_bytes = 0
        """Of all fixed-size arrays."""
        first = Column("I")
        self.layout: Layout = layout.place(self._planned(first))
        self._first = first.array()
        """Of each item, the number of its first tensor: where it has none, of the next item's."""

    def begin(self, item: Item) -> int:
        """Where a fixed-size dataset begins, or the offsets of one of variable length; from where tensors do."""
        return int(self.layout.begins[self._first[item.number]])

    def attributes_begin(self) -> int:
        """Where long attributes begin."""
        return int(self.layout.begins[-1])

    def size_bytes(self, item: Item) -> int:
        """Of all tensors of a dataset."""
        first = self._first[item.number]
        return int(self.layout.sizes[first : first + len(_tensors(item))].sum())

    def unknown(self) -> Iterator[Item]:
        """The datasets of variable length, in the order to append their values."""
        for item, *_ in self._placed(self.layout.order[self.layout.known :]):
            assert item is not None
            yield item

    def put(self, item: Item, begin: int, end: int) -> None:
        """Enter where the values of a dataset of variable length lie."""
        self.layout.put(int(self._first[item.number]) + 1, begin, end - begin)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, in the order of the file; with the widest numbers what is not known yet."""
        for item, planned, begin, size_bytes in self._placed(self.layout.order):
            if planned.shape is not None:
                yield planned.name, Tensor(planned.dtype, planned.shape, begin, begin + size_bytes)
                continue
            assert item is not None
            rest = _item_shape(item)
            if size_bytes == UNKNOWN:
                yield planned.name, Tensor(planned.dtype, (WIDEST_NUMBER, *rest), WIDEST_NUMBER, WIDEST_NUMBER)
            else:
                elements = size_bytes // header.shape_bytes(planned.dtype, rest)
                yield planned.name, Tensor(planned.dtype, (elements, *rest), begin, begin + size_bytes)

    def _placed(self, numbers: Numbers) -> Iterator[tuple[Item | None, Planned, int, int]]:
        """Tensors by their numbers: which dataset each belongs to, if to one, where it begins, and its size."""
        last = len(self.layout.sizes) - 1 if self._attribute_bytes else None
        for window in windows(len(numbers)):
            self._seen()
            some = numbers[window]
            owners = np.searchsorted(self._first, some, side="right") - 1
            columns = (some, owners, self.layout.begins[some], self.layout.sizes[some])
            for number, owner, begin, size_bytes in zip(*(column.tolist() for column in columns), strict=True):
                if number == last:
                    yield None, self._of_attributes(), begin, size_bytes
                    continue
                item = self._items[owner]
                yield item, _tensors(item)[number - int(self._first[owner])], begin, size_bytes

    def _planned(self, first: Column) -> Iterator[Planned]:
        number = 0
        for item in self._items:
            self._seen()
            first.append(number)
            self.total_bytes += item.size_bytes
            for planned in _tensors(item):
                yield planned
                number += 1
        if self._attribute_bytes:
            yield self._of_attributes()

    def _of_attributes(self) -> Planned:
        return Planned(tree.ATTRIBUTES_NAME, "U8", (self._attribute_bytes,), 1)


def _tensors(item: Item) -> Sequence[Planned]:
    info, name = item.info, tree.tensor_name(item.path)
    if info.shape is None:
        return ()
    base = dtypes.variable_base(info.dtype)
    carrier = dtypes.carrier(info.dtype if base is None else base)
    if base is None:
        shape = (*info.shape, *carrier.item_shape) if carrier.item_shape else info.shape
        return (Planned(name, carrier.code, shape, carrier.align),)
    offsets = Planned(tree.offsets_name(item.path), "I64", (math.prod(info.shape) + 1,), 8)
    return offsets, Planned(name, carrier.code, None, carrier.align)


def _item_shape(item: Item) -> tuple[int, ...]:
    """Of an element of a dataset of variable length, as its tensor has it."""
    base = dtypes.variable_base(item.info.dtype)
    assert base is not None
    return dtypes.carrier(base).item_shape


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes in an object; what varies in length is appended as it is read."""

    scan: Scan
    tensors: Tensors
    data_start: int
    metadata: Mapping[str, header.Text]

    @property
    def known_bytes(self) -> int:
        """Size of the object without what varies in length."""
        return self.data_start + self.tensors.layout.end

    def begin(self, item: Item) -> int:
        """Where in the object a fixed-size dataset begins, or the offsets of one of variable length."""
        return self.data_start + self.tensors.begin(item)

    @property
    def need_bytes(self) -> int:
        """The best guess of the size before reading."""
        return self.known_bytes + sum(item.storage_bytes or 0 for item in self.tensors.unknown())


def plan(scan: Scan, provenance: Provenance) -> Plan:
    """Lay out the arrays of a scan; `provenance` is as wide as the one that will be sealed in.

    Raises HeaderTooLong, TooLarge.
    """
    tensors = Tensors(scan.items, scan.noted.apart_bytes, scan.seen)
    metadata: dict[str, header.Text] = {
        PROVENANCE_KEY: provenance.dump(),
        views.DATA_BYTES_KEY: _WIDEST,
        views.TREE_KEY: scan.dumped,
        views.ATTRIBUTES_KEY: lambda: tree.dumped_table(scan.noted.items()),
    }
    return Plan(scan, tensors, header.reserve(tensors, metadata, spare_bytes=64), metadata)
