"""The datasets of a file in little memory: what many have alike is held once, and the rest of each as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from dsmem.arrays import attributes, tree
from dsmem.arrays.columns import Column, Numbers, windows
from dsmem.arrays.rows import Blobs, Rows
from dsmem.hdf5.datasets import Item
from dsmem.hdf5.properties import kept

_Extents = tuple[int, ...] | None
_Own = tuple[str, int, _Extents, _Extents, tuple[int | None, ...] | None, int | None, int | None]
"""Path, number of its kind, shape, chunks, maxshape, `Item.offset`, `Item.storage_bytes`."""


class _Kind(NamedTuple):
    """What datasets have alike: an item without what each has of its own, and its fill value as JSON."""

    item: Item
    fill: dict[str, Any] | None


class Items:
    """Datasets in order. Each `Item` is made anew whenever it is asked for."""

    def __init__(self, packed: _Packed | None = None, numbers: Numbers | None = None) -> None:
        self._packed = packed or _Packed()
        self._numbers = numbers
        """None: all that there are."""

    def __len__(self) -> int:
        return len(self._packed.own if self._numbers is None else self._numbers)

    def __getitem__(self, index: int) -> Item:
        return self._packed.item(index if self._numbers is None else int(self._numbers[index]))

    def __iter__(self) -> Iterator[Item]:
        return map(self._packed.item, self._each())

    def numbered(self, number: int) -> Item:
        """The one with that number (`Item.number`)."""
        return self._packed.item(number)

    def append(self, item: Item) -> None:
        """Add a dataset behind all; raises UnsupportedType for a fill value that can't be JSON."""
        assert self._numbers is None
        self._packed.append(item)

    def where(self, wanted: Callable[[Item], bool]) -> Items:
        """Those that are wanted for what many have alike: its path, extents, places and sizes are not told."""
        kinds = [wanted(kind.item) for kind in self._packed.kinds]
        if all(kinds) or not any(kinds):
            return self if all(kinds) else self.chosen(())
        return self.chosen(number for number in self._each() if kinds[self._packed.own[number][1]])

    def chosen(self, numbers: Iterable[int]) -> Items:
        """Those with these numbers (`Item.number`), in that order."""
        column = Column("I")
        for number in numbers:
            column.append(number)
        return Items(self._packed, column.array())

    def parted(self, wanted: Callable[[Item], bool]) -> tuple[Items, Items]:
        """Those that are wanted, and the others."""
        columns = Column("I"), Column("I")
        for item in self:
            columns[0 if wanted(item) else 1].append(item.number)
        wanted_items, others = (Items(self._packed, column.array()) for column in columns)
        return wanted_items, others

    def kept(self, wanted: Callable[[str], bool]) -> Items:
        """Those of wanted paths, in memory of their own, with numbers of their own."""
        items = Items()
        for item in self:
            if wanted(item.path):
                items.append(item)
        return items

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each one's path, and its record in the tree."""
        return map(self._packed.record, self._each())

    def forget_chunks(self) -> None:
        """Let go of where the chunks of each lie: they have been read."""
        self._packed.few = None

    def _each(self) -> Iterator[int]:
        if self._numbers is None:
            return iter(range(len(self._packed.own)))
        numbers = self._numbers
        return (number for window in windows(len(numbers)) for number in numbers[window].tolist())


class _Packed:
    """All datasets of a file, by their numbers."""

    def __init__(self) -> None:
        self.own: Rows[_Own] = Rows()
        self.kinds: list[_Kind] = []
        self.few: Blobs | None = Blobs()
        """`Item.few` of each, until it is not needed any more."""
        self._known: dict[tuple[object, ...], int] = {}
        self._infos: dict[tuple[object, ...], tree.Dataset] = {}
        self._records: dict[tuple[object, ...], dict[str, Any]] = {}

    def append(self, item: Item) -> None:
        info, kind = item.info, self._kind_of(item)
        self.own.append((item.path, kind, info.shape, info.chunks, info.maxshape, item.offset, item.storage_bytes))
        assert self.few is not None
        self.few.append(item.few)

    def _kind_of(self, item: Item) -> int:
        info = item.info
        fill = None if info.fillvalue is None else attributes.to_json(info.fillvalue)
        # Not the dtype: what HDF5 has beyond numpy is in its metadata, at which `==` does not look.
        of_info = (id(info.dtype), info.compression, info.compression_opts, info.shuffle, info.fletcher32)
        of_item = (item.tier, item.why, item.filters, item.layout, item.is_outside, item.fill)
        known = (*of_info, info.scaleoffset, info.note, None if fill is None else json.dumps(fill), *of_item)
        kind = self._known.get(known)
        if kind is None:
            kind = self._known[known] = len(self.kinds)
            alike = replace(item, path="", info=replace(info, shape=None, chunks=None, maxshape=None))
            self.kinds.append(_Kind(replace(alike, offset=None, storage_bytes=None, few=b""), fill))
        return kind

    def item(self, number: int) -> Item:
        path, kind, shape, chunks, maxshape, offset, storage_bytes = self.own[number]
        alike = self.kinds[kind].item
        return Item(
            path,
            self._info(kind, shape, chunks, maxshape),
            alike.tier,
            alike.why,
            offset,
            storage_bytes,
            alike.filters,
            alike.layout,
            alike.is_outside,
            alike.fill,
            b"" if self.few is None else self.few[number],
            number,
        )

    def record(self, number: int) -> tuple[str, dict[str, Any]]:
        path, kind, shape, chunks, maxshape, *_ = self.own[number]
        key = (kind, shape, chunks, maxshape)
        record = self._records.get(key)
        if record is None:
            record = tree.describe(self._info(*key), self.kinds[kind].fill)
            kept(self._records, key, record)
        return path, record

    def _info(
        self,
        kind: int,
        shape: _Extents,
        chunks: _Extents,
        maxshape: tuple[int | None, ...] | None,
    ) -> tree.Dataset:
        key = (kind, shape, chunks, maxshape)
        info = self._infos.get(key)
        if info is None:
            alike = self.kinds[kind].item.info
            info = tree.Dataset(
                shape,
                alike.dtype,
                chunks,
                maxshape,
                alike.compression,
                alike.compression_opts,
                alike.shuffle,
                alike.fletcher32,
                alike.scaleoffset,
                alike.fillvalue,
                alike.note,
            )
            kept(self._infos, key, info)
        return info
