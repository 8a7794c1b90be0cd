"""Blocks cover every item exactly once, in order and within their bound; what they read is what h5py reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsmem.hdf5 import reading

Chunked = tuple[list[int], list[int] | None]


@st.composite
def shapes(draw: st.DrawFn) -> Chunked:
    shape = draw(st.lists(st.integers(1, 9), max_size=4))
    is_chunked = draw(st.booleans())
    return shape, [draw(st.integers(1, n)) for n in shape] if shape and is_chunked else None


@given(shaped=shapes(), item_bytes=st.integers(1, 40), limit_bytes=st.integers(1, 2000))
def test_blocks_cover_exactly_once_in_order(shaped: Chunked, item_bytes: int, limit_bytes: int) -> None:
    shape, chunks = shaped
    everything = np.arange(math.prod(shape)).reshape(shape)
    done = 0
    for first, count, selection in reading.blocks(shape, item_bytes, chunks, limit_bytes):
        assert first == done
        np.testing.assert_array_equal(everything[selection].reshape(-1), np.arange(first, first + count))
        assert count * item_bytes <= max(limit_bytes, _least(shape, chunks) * item_bytes)
        done += count
    assert done == everything.size


def _least(shape: list[int], chunks: list[int] | None) -> int:
    """Items that a block has to have whatever the limit: one, or a row of chunks along the last axis cut."""
    return max(chunks[-1], 1) if chunks and shape else 1


@example(shaped=([9], [2]), item_bytes=1, limit_bytes=5)
@example(shaped=([9, 9], [2, 5]), item_bytes=10, limit_bytes=500)
@given(shaped=shapes(), item_bytes=st.integers(1, 8), limit_bytes=st.integers(1, 400))
def test_blocks_cut_between_chunks_where_the_limit_allows(shaped: Chunked, item_bytes: int, limit_bytes: int) -> None:
    shape, chunks = shaped
    if chunks is None:
        return
    for _, _, selection in reading.blocks(shape, item_bytes, chunks, limit_bytes):
        if not selection:
            continue
        axis = len(selection) - 1
        cut = selection[-1]
        below = math.prod(shape[axis + 1 :]) * item_bytes
        if below * chunks[axis] <= limit_bytes:
            assert cut.start % chunks[axis] == 0
            assert cut.stop % chunks[axis] == 0 or cut.stop == shape[axis]


def test_a_large_array_in_blocks() -> None:
    found = list(reading.blocks((1000, 1000, 3), 8, (10, 100, 3)))
    assert sum(count for _, count, _ in found) == 3_000_000
    assert max(count for _, count, _ in found) * 8 <= 16 << 20
    assert len(found) == 2


@pytest.fixture
def file(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        yield file


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["<f4", ">i8", "S3", "i1"])
def test_read_fixed(file: Any, shape: tuple[int, ...], dtype: str) -> None:
    count = math.prod(shape)
    data = (
        np.random.default_rng(1).integers(1, 255, count * np.dtype(dtype).itemsize, np.uint8).view(dtype).reshape(shape)
    )
    options = {"chunks": tuple(-(-n // 2) for n in shape), "compression": "gzip"} if shape else {}
    file.create_dataset("x", data=data, **options)
    whole = bytearray(data.nbytes)
    done = 0
    for offset, piece in reading.read_fixed(file["x"], data.itemsize):
        assert offset == done
        whole[offset : offset + len(piece)] = piece
        done += len(piece)
    assert bytes(whole) == data.tobytes()


SHAPES = [(), (1,), (70,), (5, 7), (100, 2), (2, 300), (3, 4, 5), (1, 1, 130)]


@pytest.mark.parametrize("shape", SHAPES)
def test_read_variable_text(file: Any, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    words = [(f"é{i}" * (i % 4)).encode() for i in range(count)]
    items = np.empty(shape, object)
    items.reshape(-1)[:] = words
    file.create_dataset("x", data=items, dtype=h5py.string_dtype())
    data, lengths = _joined(file["x"], np.dtype("u1"))
    assert data == b"".join(words)
    assert lengths == [len(word) for word in words]


@pytest.mark.parametrize("shape", SHAPES)
def test_read_variable_lists(file: Any, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    made = file.create_dataset("x", shape=shape, dtype=h5py.vlen_dtype(np.dtype("<i4")))
    items = np.empty(count, object)
    items[:] = [np.arange(i % 5, dtype="<i4") for i in range(count)]
    if shape == ():
        made[()] = items[0]
    else:
        for i, where in enumerate(np.ndindex(*shape)):
            made[where] = items[i]
    data, lengths = _joined(file["x"], np.dtype("<i4"))
    assert data == b"".join(item.tobytes() for item in items)
    assert lengths == [len(item) for item in items]


def test_read_variable_grows_and_bounds_its_blocks(file: Any) -> None:
    file.create_dataset("small", data=np.array(["ab"] * 3000, object), dtype=h5py.string_dtype())
    sizes = [len(lengths) for _, lengths in reading.read_variable(file["small"], np.dtype("u1"))]
    assert sizes == [64, 256, 1024, 1656]
    file.create_dataset("large", data=np.array(["x" * (1 << 20)] * 70, object), dtype=h5py.string_dtype())
    sizes = [len(lengths) for _, lengths in reading.read_variable(file["large"], np.dtype("u1"))]
    assert sizes == [64, 6], "16 MiB of 1 MiB items after the first 64"


def _joined(dataset: Any, base: np.dtype[Any]) -> tuple[bytes, list[int]]:
    pieces = list(reading.read_variable(dataset, base))
    return b"".join(bytes(data) for data, _ in pieces), [n for _, lengths in pieces for n in lengths.tolist()]


def test_as_bytes() -> None:
    array = np.arange(12, dtype=">i2").reshape(3, 4)
    assert bytes(reading.as_bytes(array)) == array.tobytes()
    assert bytes(reading.as_bytes(array[:, ::2])) == array[:, ::2].tobytes()
    assert bytes(reading.as_bytes(np.array(5.0))) == np.array(5.0).tobytes()
