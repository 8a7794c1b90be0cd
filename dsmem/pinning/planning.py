"""Where everything of a scanned file goes in an object."""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsmem.arrays import dtypes, header, layout, tree, views
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

    def __init__(self, items: Items, attribute_bytes: int) -> None:
        self._items = items
        self._attribute_bytes = attribute_bytes
        self._first = array("I")
        """Of each item, the number of its first tensor: where it has none, of the next item's."""
        self.total_bytes = 0
        """Of all fixed-size arrays."""
        self.layout: Layout = layout.place(self._planned())

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
        for number in self.layout.order[self.layout.known :].tolist():
            yield self._item_of(number)

    def put(self, item: Item, begin: int, end: int) -> None:
        """Enter where the values of a dataset of variable length lie."""
        values = self._first[item.number] + 1
        self.layout.begins[values], self.layout.sizes[values] = begin, end - begin

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, in the order of the file; with the widest numbers what is not known yet."""
        begins, sizes = self.layout.begins, self.layout.sizes
        for number in map(int, self.layout.order):
            planned = self._planned_at(number)
            begin, size_bytes = int(begins[number]), int(sizes[number])
            if planned.shape is not None:
                yield planned.name, Tensor(planned.dtype, planned.shape, begin, begin + size_bytes)
                continue
            rest = _item_shape(self._item_of(number))
            if size_bytes == UNKNOWN:
                yield planned.name, Tensor(planned.dtype, (WIDEST_NUMBER, *rest), WIDEST_NUMBER, WIDEST_NUMBER)
            else:
                elements = size_bytes // header.shape_bytes(planned.dtype, rest)
                yield planned.name, Tensor(planned.dtype, (elements, *rest), begin, begin + size_bytes)

    def _planned(self) -> Iterator[Planned]:
        number = 0
        for item in self._items:
            self._first.append(number)
            self.total_bytes += item.size_bytes
            for planned in _tensors(item):
                yield planned
                number += 1
        if self._attribute_bytes:
            yield Planned(tree.ATTRIBUTES_NAME, "U8", (self._attribute_bytes,), 1)

    def _planned_at(self, number: int) -> Planned:
        if self._attribute_bytes and number == len(self.layout.sizes) - 1:
            return Planned(tree.ATTRIBUTES_NAME, "U8", (self._attribute_bytes,), 1)
        item = self._item_of(number)
        return _tensors(item)[number - self._first[item.number]]

    def _item_of(self, number: int) -> Item:
        """The dataset that a tensor belongs to."""
        return self._items[bisect.bisect_right(self._first, number) - 1]


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
    tensors = Tensors(scan.items, scan.noted.apart_bytes)
    metadata: dict[str, header.Text] = {
        PROVENANCE_KEY: provenance.dump(),
        views.DATA_BYTES_KEY: _WIDEST,
        views.TREE_KEY: scan.dumped,
        views.ATTRIBUTES_KEY: lambda: tree.dumped_table(scan.noted.items()),
    }
    return Plan(scan, tensors, header.reserve(tensors, metadata, spare_bytes=64), metadata)
