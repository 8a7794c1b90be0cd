"""Datasets kept as bytes are what they were, each with its number, and in little memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsmem.arrays import tree
from dsmem.arrays.dtypes import UnsupportedType
from dsmem.hdf5.codecs import DEFLATE, Filter
from dsmem.hdf5.datasets import Item, inspect
from dsmem.hdf5.items import Items

DEFLATED = Filter(DEFLATE, (4,), "gzip")


def item(path: str, shape: tuple[int, ...] | None = (3,), dtype: object = "<f4", **options: object) -> Item:
    info = tree.Dataset(shape, np.dtype(dtype), **options)  # type: ignore[call-overload, arg-type]
    return Item(path, info, "contiguous", "contiguous", 2048, 12)


ENUM = h5py.enum_dtype({"a": 0, "b": 1}, "i4")
OTHER_ENUM = h5py.enum_dtype({"c": 0, "d": 1}, "i4")
VARIOUS: dict[str, Item] = {
    "plain": item("a/x"),
    "alike": item("a/y", (4, 5)),
    "without items": item("z", (0, 2)),
    "scalar": item("s", ()),
    "null": replace(item("n", None), tier="empty", why="a null dataspace", offset=None, storage_bytes=0),
    "not UTF-8": item("\udcff/\udc80x"),
    "growing": item("g", (3, 4), maxshape=(None, 4)),
    "another byte order": item("b", dtype=">f4"),
    "chunked": replace(
        item("c", (100, 9), chunks=(10, 9), compression="gzip", compression_opts=4),
        tier="chunked",
        why="chunked, gzip",
        offset=None,
        storage_bytes=None,
        filters=(DEFLATED,),
        layout="chunked",
        fill=b"\0\0\0\0",
        few=b"0123456789abcdef",
    ),
    "text": replace(item("t", (2,), h5py.string_dtype()), tier="h5py", why="variable length", offset=None),
    "enum": item("e", dtype=ENUM),
    "other enum": item("f", dtype=OTHER_ENUM),
    "integer": item("i", dtype="i4"),
    "fill value": item("v", fillvalue=np.float32(7)),
    "other fill value": item("w", fillvalue=np.float32(8)),
    "outside": replace(item("o"), tier="h5py", why="in another file", offset=None, is_outside=True, layout="external"),
    "noted": item("h", note="a 16-bit float in the file"),
    "large": replace(item("l", (2**40,)), offset=2**50, storage_bytes=2**42),
}


def test_each_is_what_it_was() -> None:
    items = Items()
    for one in VARIOUS.values():
        items.append(one)
    assert len(items) == len(VARIOUS)
    for number, (name, found) in enumerate(zip(VARIOUS, items, strict=True)):
        want = VARIOUS[name]
        assert found == replace(want, number=number), name
        assert found.info.dtype.metadata == want.info.dtype.metadata, name
        assert items[number] == items.numbered(number) == found


def test_their_records() -> None:
    items = Items()
    for one in VARIOUS.values():
        items.append(one)
    records = dict(items.records())
    assert records["a/x"] == {}
    assert records["g"] == {"maxshape": [None, 4]}
    assert records["c"] == {"chunks": [10, 9], "compression": "gzip", "compression_opts": 4}
    assert records["n"] == {"null": True, "dtype": "<f4"}
    assert records["v"]["fillvalue"] != records["w"]["fillvalue"]
    assert records["e"] != records["f"] != records["i"]


def test_some_of_them() -> None:
    items = Items()
    for one in VARIOUS.values():
        items.append(one)
    names = list(VARIOUS)
    copied = items.where(lambda one: one.tier == "contiguous")
    assert [names[one.number] for one in copied] == [name for name in names if VARIOUS[name].tier == "contiguous"]
    fitting = copied.where(lambda one: one.info.dtype == np.dtype("<f4"))
    assert {names[one.number] for one in fitting} == {
        name for name in names if VARIOUS[name].tier == "contiguous" and VARIOUS[name].info.dtype == np.dtype("<f4")
    }
    assert [one.number for one in copied.chosen([5, 1, 3])] == [5, 1, 3]
    assert dict(fitting.records()).keys() == {one.path for one in fitting}
    left = items.kept(lambda path: path in ("c", "z"))
    assert [(one.path, one.number) for one in left] == [("z", 0), ("c", 1)]
    assert left[1] == replace(VARIOUS["chunked"], number=1)
    left.forget_chunks()
    assert left[1] == replace(VARIOUS["chunked"], number=1, few=b"")


def test_a_fill_value_that_can_not_be_kept_adds_nothing() -> None:
    items = Items()
    with pytest.raises(UnsupportedType):
        items.append(item("x", fillvalue=object()))
    items.append(item("y"))
    assert [one.path for one in items] == ["y"]


@pytest.mark.parametrize("alike", [True, False])
def test_little_memory(tmp_path: Path, alike: bool) -> None:
    """Datasets of one shape, and of as many as there are."""
    items, count = Items(), 20_000
    tracemalloc.start()
    try:
        for number in range(count):
            extent = 16 if alike else number + 1
            items.append(item(f"sample_{number:07}", (extent, 7), chunks=(extent, 7)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * count
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(3)
        found = Items()
        found.append(inspect(file["x"].id, "x", 10**6))
        assert found[0] == replace(inspect(file["x"].id, "x", 10**6), number=0)
