"""Datasets of variable length are read whole, in their order, and no more of them at once than fit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dsmem.arrays import dtypes
from dsmem.errors import BadSource
from dsmem.hdf5 import chunks, datasets, variable
from dsmem.hdf5.globalheap import Heap

SHAPES = [(), (1,), (70,), (5, 7), (100, 2), (2, 300), (3, 4, 5), (1, 1, 130), (4, 1, 3)]
STORED: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks that cut rows": {"chunks": True, "odd": True},
    "gzip": {"chunks": True, "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": True, "odd": True, "compression": "lzf"},
    "resizable": {"chunks": True, "odd": True, "resizable": True},
}


@pytest.fixture(params=["latest", "earliest"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with h5py.File(tmp_path / "x.h5", "w", libver=request.param) as file:
        yield file


def options(shape: tuple[int, ...], stored: str) -> dict[str, Any]:
    chosen = dict(STORED[stored])
    is_odd, is_resizable = chosen.pop("odd", False), chosen.pop("resizable", False)
    if "chunks" not in chosen or not shape:
        return {}
    chosen["chunks"] = tuple(max(n // 3, 1) if is_odd else n for n in shape)
    return {**chosen, "maxshape": (*shape[:-1], None)} if is_resizable else chosen


def read(made: Any, largest: list[int] | None = None) -> tuple[bytes, list[int]]:
    """All of a dataset; `largest` gets the bytes of each piece."""
    made.file.flush()
    item = datasets.inspect(made.id, "x", os.path.getsize(made.file.filename))
    base = dtypes.variable_base(item.info.dtype)
    assert base is not None
    data, lengths = [], []
    with open(made.file.filename, "rb") as source:
        size = os.path.getsize(made.file.filename)
        for piece, some in variable.read(
            made, base, variable.Counts(made, item, base, source.fileno(), size, "a file")
        ):
            data.append(bytes(piece))
            lengths += some.tolist()
            if largest is not None:
                largest.append(len(piece))
    return b"".join(data), lengths


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_text(file: Any, shape: tuple[int, ...], stored: str) -> None:
    words = [(f"é{i}" * (i % 4)).encode() for i in range(math.prod(shape))]
    items = np.empty(shape, object)
    items.reshape(-1)[:] = words
    data, lengths = read(file.create_dataset("x", data=items, dtype=h5py.string_dtype(), **options(shape, stored)))
    assert data == b"".join(words)
    assert lengths == [len(word) for word in words]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_lists(file: Any, shape: tuple[int, ...], stored: str) -> None:
    made = file.create_dataset("x", shape, h5py.vlen_dtype(np.dtype("<i4")), **options(shape, stored))
    items = np.empty(math.prod(shape), object)
    items[:] = [np.arange(i % 5, dtype="<i4") for i in range(math.prod(shape))]
    if shape == ():
        made[()] = items[0]
    for i, where in enumerate(np.ndindex(*shape)):
        made[where] = items[i]
    data, lengths = read(made)
    assert data == b"".join(item.tobytes() for item in items)
    assert lengths == [len(item) for item in items]


WITH_FILL = [
    (stored, fill) for stored in ("contiguous", "chunked", "compact") for fill in (None, "a text to fill with")
]


@pytest.mark.parametrize(("stored", "fill"), [*WITH_FILL, ("virtual", None)])
def test_what_was_never_written(file: Any, stored: str, fill: str | None) -> None:
    words = np.array(["x" * i for i in range(12)], object)
    if stored == "virtual":
        source = file.create_dataset("source", data=words, dtype=h5py.string_dtype())
        layout = h5py.VirtualLayout((50,), h5py.string_dtype())
        layout[20:32] = h5py.VirtualSource(source)
        made = file.create_virtual_dataset("x", layout)
    else:
        kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if stored == "compact":
            kept.set_layout(h5py.h5d.COMPACT)
        chunks = {"chunks": (7,)} if stored == "chunked" else {}
        made = file.create_dataset("x", (50,), h5py.string_dtype(), dcpl=kept, fillvalue=fill, **chunks)
        if stored != "contiguous":
            made[20:32] = words
    expected = made[...]
    data, lengths = read(made)
    assert data == b"".join(expected)
    assert lengths == [len(item) for item in expected]
    assert fill is None or sum(lengths) >= 38 * len(fill)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    block_bytes = 1 << 16
    monkeypatch.setattr(variable, "BLOCK_BYTES", block_bytes)
    return block_bytes


@pytest.mark.parametrize("chunks", [None, (900,), (15_090,)])
def test_long_items_after_short_ones_are_read_one_by_one(
    file: Any, small_blocks: int, chunks: tuple[int, ...] | None
) -> None:
    texts = [b"short"] * 15_000 + [b"l" * 40_000] * 40 + [b"end"] * 50
    items = np.array(texts, object)
    made = file.create_dataset("x", data=items, dtype=h5py.string_dtype(), chunks=chunks)
    pieces: list[int] = []
    data, lengths = read(made, pieces)
    assert data == b"".join(texts)
    assert lengths == [len(text) for text in texts]
    assert max(pieces) <= small_blocks
    assert pieces.count(40_000) >= 38


def test_what_hdf5_alone_can_tell_is_read_as_if_each_were_the_whole_file(
    file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kept.set_layout(h5py.h5d.COMPACT)
    made = file.create_dataset("x", data=np.array(["word"] * 300, object), dtype=h5py.string_dtype(), dcpl=kept)
    file.flush()
    monkeypatch.setattr(variable, "_UNKNOWN_BYTES", 10 * os.path.getsize(file.filename))
    pieces: list[int] = []
    assert read(made, pieces) == (b"word" * 300, [4] * 300)
    assert pieces == [40] * 30


def test_rows_are_read_together(file: Any) -> None:
    items = np.array([b"ab"] * 3000, object).reshape(1000, 3)
    pieces: list[int] = []
    data, _ = read(file.create_dataset("x", data=items, dtype=h5py.string_dtype()), pieces)
    assert data == b"ab" * 3000
    assert len(pieces) == 1


def test_pointers_that_end_with_the_file(file: Any) -> None:
    made = file.create_dataset("x", data=np.array(["word"] * 300, object), dtype=h5py.string_dtype())
    file.flush()
    size = os.path.getsize(file.filename)
    item = datasets.inspect(made.id, "x", size)
    with open(file.filename, "rb") as source, open(f"{file.filename}.cut", "w+b") as cut:
        cut.write(source.read()[: made.id.get_offset() + 100])
        cut.flush()
        counts = variable.Counts(made, item, np.dtype("u1"), cut.fileno(), size, "a file")
        with pytest.raises(BadSource, match="a file: the file ends within it"):
            list(counts)


def test_of_what_was_never_written_many_are_read_at_once(file: Any) -> None:
    made = file.create_dataset("x", (300_000,), h5py.string_dtype())
    file["much"] = np.zeros(1 << 20)
    pieces: list[int] = []
    assert read(made, pieces) == (b"", [0] * 300_000)
    assert len(pieces) == 3


def test_where_lengths_are_not_known_reads_grow(file: Any) -> None:
    words = np.array([f"{i:04}" for i in range(3000)], object)
    source = file.create_dataset("source", data=words, dtype=h5py.string_dtype())
    layout = h5py.VirtualLayout((3000,), h5py.string_dtype())
    layout[:] = h5py.VirtualSource(source)
    pieces: list[int] = []
    data, lengths = read(file.create_virtual_dataset("x", layout), pieces)
    assert data == "".join(words).encode()
    assert lengths == [4] * 3000
    assert pieces == [4 * 64, 4 * 256, 4 * 1024, 4 * 1656]


def test_a_row_of_several_chunks_that_is_decoded_in_parts(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LARGEST_BAND_BYTES", 1000)
    monkeypatch.setattr(chunks, "BAND_BYTES", 500)
    words = np.array([b"w" * (i % 7) for i in range(40 * 90)], object).reshape(40, 90)
    made = file.create_dataset("x", data=words, dtype=h5py.string_dtype(), chunks=(3, 10), compression="gzip")
    data, lengths = read(made)
    assert data == b"".join(words.ravel())
    assert lengths == [len(word) for word in words.ravel()]


LONG = 5000


@pytest.fixture
def long_items(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Items of LONG bytes are long; how many HDF5 was asked for, each time."""
    monkeypatch.setattr(variable, "LONG_BYTES", LONG)
    monkeypatch.setattr(variable, "_PIECE_BYTES", 4096)
    asked: list[int] = []
    original = variable._box

    def box(shape: tuple[int, ...], start: int, most: int) -> tuple[tuple[int | slice, ...], int]:
        found = original(shape, start, most)
        asked.append(found[1])
        return found

    monkeypatch.setattr(variable, "_box", box)
    return asked


def lists(counts: list[int], dtype: str = "<f8") -> Any:
    items = np.empty(len(counts), object)
    items[:] = [np.arange(i, i + n).astype(dtype) for i, n in enumerate(counts)]
    return items


@pytest.mark.parametrize("userblock_bytes", [0, 1024])
@pytest.mark.parametrize("chunked", [{}, {"chunks": (3,), "compression": "gzip"}])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_long_items_are_read_without_hdf5(
    libver: str, chunked: dict[str, Any], userblock_bytes: int, tmp_path: Path, long_items: list[int]
) -> None:
    counts = [700, 3, 0, 625, 624, 2000, 1, 5, 9999, 7, 1024]
    items = lists(counts)
    with h5py.File(tmp_path / "x.h5", "w", libver=libver, userblock_size=userblock_bytes) as file:
        made = file.create_dataset("x", (len(counts),), h5py.vlen_dtype(np.dtype("<f8")), **chunked)
        for i, item in enumerate(items):
            made[i] = item
        pieces: list[int] = []
        data, lengths = read(made, pieces)
    assert data == b"".join(item.tobytes() for item in items)
    assert lengths == counts
    assert sum(long_items) == sum(8 * n < LONG for n in counts), "HDF5 read the short ones"
    assert max(pieces) < LONG


def test_long_items_that_hdf5_would_convert_are_left_to_it(file: Any, long_items: list[int]) -> None:
    made = file.create_dataset("x", (2,), h5py.vlen_dtype(np.dtype("<i2")))
    made[0] = np.arange(3000)
    file.flush()
    size = os.path.getsize(file.filename)
    with open(file.filename, "rb") as source:
        assert Heap.of(made, np.dtype("<i2"), source.fileno(), size) is not None
        for other in ("<i4", ">i2", "<u2", "<f2"):
            assert Heap.of(made, np.dtype(other), source.fileno(), size) is None


@pytest.mark.parametrize("nul", [None, 0, 1, 4095, 4096, 4097, 8191, 8192, 8999])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_long_text_ends_at_its_first_nul(
    libver: str, encoding: str, nul: int | None, tmp_path: Path, long_items: list[int]
) -> None:
    """However long it is said to be: as HDF5 reads it."""
    path = tmp_path / "x.h5"
    texts = [b"x" * 9000, b"short", b"y" * 5000, b"z" * 4999]
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("x", data=np.array(texts, object), dtype=h5py.string_dtype(encoding))
    if nul is not None:
        written = bytearray(path.read_bytes())
        written[written.index(texts[0]) + nul] = 0
        path.write_bytes(written)
    with h5py.File(path) as file:
        expected = list(file["x"][()])
        data, lengths = read(file["x"])
    assert len(expected[0]) == (9000 if nul is None else nul)
    assert data == b"".join(expected)
    assert lengths == list(map(len, expected))
    assert sum(long_items) == 2, "HDF5 read the short ones"


@pytest.mark.parametrize(
    "damage",
    [
        lambda heap, at: heap.__setitem__(slice(0, 4), b"GCOX"),
        lambda heap, at: heap.__setitem__(4, 2),
        lambda heap, at: heap.__setitem__(slice(8, 16), (1 << 60).to_bytes(8, "little")),
        lambda heap, at: heap.__setitem__(slice(16, 18), b"\x07\x00"),
        lambda heap, at: heap.__setitem__(slice(24, 32), (8).to_bytes(8, "little")),
        lambda heap, at: heap.__setitem__(slice(24, 32), (1 << 63).to_bytes(8, "little")),
    ],
    ids=["signature", "version", "size", "number", "shorter", "endless"],
)
def test_a_heap_in_doubt_is_left_to_hdf5(damage: Any, file: Any, long_items: list[int]) -> None:
    made = file.create_dataset("x", (1,), h5py.vlen_dtype(np.dtype("<f8")))
    made[0] = np.arange(1000.0)
    file.flush()
    pointer = Path(file.filename).read_bytes()[made.id.get_offset() :][:16]
    address = int.from_bytes(pointer[4:12], "little")
    size = os.path.getsize(file.filename)
    with open(file.filename, "rb") as source:
        heap = Heap.of(made, np.dtype("<f8"), source.fileno(), size)
        assert heap is not None
        assert heap.find(pointer, 8000) == address + 32
        assert heap.find(pointer, 7992) is None
        assert heap.find(pointer[:4] + bytes(8) + pointer[12:], 8000) is None
        assert heap.find(pointer[:4] + b"\xff" * 8 + pointer[12:], 8000) is None
    data = bytearray(Path(file.filename).read_bytes())
    part = data[address : address + 64]
    damage(part, address)
    data[address : address + 64] = part
    Path(f"{file.filename}.bad").write_bytes(data)
    with open(f"{file.filename}.bad", "rb") as source:
        damaged = Heap.of(made, np.dtype("<f8"), source.fileno(), size)
        assert damaged is not None
        assert damaged.find(pointer, 8000) is None
