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
    times = np.zeros(shape, int)
    begins, ends = [-1], [0]
    for block in reading.blocks(shape, item_bytes, chunks, limit_bytes):
        places = everything[block.selection]
        times[block.selection] += 1
        assert [int(places.min()), places.size, int(np.ptp(places)) + 1] == [block.first, block.count, block.span]
        assert block.count * item_bytes <= max(limit_bytes, math.prod(chunks or [1]) * item_bytes)
        assert block.is_contiguous or chunks is not None
        begins.append(block.first)
        ends.append(block.first + block.span)
    assert (times == 1).all()
    assert begins == sorted(set(begins))
    assert ends == sorted(set(ends))


@example(shaped=([9, 9], [9, 2]), item_bytes=10, limit_bytes=1)
@example(shaped=([9, 9], [2, 5]), item_bytes=10, limit_bytes=500)
@given(shaped=shapes(), item_bytes=st.integers(1, 8), limit_bytes=st.integers(1, 400))
def test_no_chunk_is_cut(shaped: Chunked, item_bytes: int, limit_bytes: int) -> None:
    shape, chunks = shaped
    if chunks is None:
        return
    for block in reading.blocks(shape, item_bytes, chunks, limit_bytes):
        for part, chunk, length in zip(block.selection, chunks, shape, strict=True):
            assert part.start % chunk == 0
            assert part.stop % chunk == 0 or part.stop == length


def test_blocks_are_long_along_the_last_axes_and_about_even() -> None:
    deep = list(reading.blocks((64, 1024, 1024), 2, (64, 128, 128), 16 << 20))
    assert [block.selection for block in deep] == [
        (slice(0, 64), slice(start, start + 128), slice(0, 1024)) for start in range(0, 1024, 128)
    ]
    assert [block.count for block in reading.blocks((9, 5), 1, (1, 5), 40)] == [25, 20]
    assert list(reading.blocks((0, 5), 1, (2, 2), 40)) == list(reading.blocks((5, 0), 1, (2, 2), 40)) == []


@given(shaped=shapes(), limit_bytes=st.integers(1, 2000))
def test_some_block_is_one_of_them(shaped: Chunked, limit_bytes: int) -> None:
    shape, chunks = shaped
    assert reading.some_block(shape, 4, chunks, limit_bytes) in list(reading.blocks(shape, 4, None, limit_bytes))


def test_blocks_of_tiny_chunks_are_of_few() -> None:
    """Each costs HDF5 6 KB while it is read: a block of 64 KiB took 100 MiB."""
    assert reading.some_block((8192, 4), 1, (1, 4), 64 << 10).count == 2048 * 4
    assert {block.count for block in reading.blocks((8192, 4), 1, (1, 4))} == {2048 * 4}
    assert reading.some_block((8192, 8192), 4, (64, 64), 64 << 10).count == 16 << 10


def test_a_large_array_in_blocks() -> None:
    found = list(reading.blocks((1000, 1000, 3), 8, (10, 100, 3), 16 << 20))
    assert sum(block.count for block in found) == 3_000_000
    assert max(block.count for block in found) * 8 <= 16 << 20
    assert len(found) == 2


@pytest.fixture
def file(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        yield file


DTYPES = ["<f4", ">i8", "S3", "i1", "?", "<c8", "(3,)<i2", [("a", "<i2"), ("b", ">f8", (2,))]]


@pytest.mark.parametrize("limit_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (7, 5, 4), (2, 3, 1, 5), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_block_to_its_place(file: Any, shape: tuple[int, ...], dtype: Any, limit_bytes: int) -> None:
    made = file.create_dataset("x", shape, np.dtype(dtype), chunks=tuple(-(-n // 2) for n in shape), compression="gzip")
    size_bytes = math.prod(shape) * made.dtype.itemsize
    content = np.random.default_rng(1).integers(0, 2, size_bytes, np.uint8)
    whole = np.zeros(math.prod(shape), np.dtype([("x", made.dtype)]))
    whole.view(np.uint8)[:] = content
    made[...] = whole["x"].reshape((*shape, *made.dtype.shape))
    expected = reading.read_block(made, ())
    straight, read = bytearray(size_bytes), bytearray(size_bytes)
    for block in reading.blocks(shape, made.dtype.itemsize, made.chunks, limit_bytes):
        begin, end = (where * made.dtype.itemsize for where in (block.first, block.first + block.span))
        reading.read_into(made, block.selection, memoryview(straight)[begin:end])
        rows = reading.rows_of(memoryview(read)[begin:end], shape, made.dtype.itemsize, block.selection)
        assert not rows.any(), "what other blocks have filled is not this one's"
        rows[...] = np.frombuffer(reading.read_block(made, block.selection), np.uint8).reshape(rows.shape)
    assert bytes(straight) == bytes(read) == bytes(expected)


def test_a_span_of_another_size_is_refused(file: Any) -> None:
    made = file.create_dataset("x", (4, 6), "<i4")
    with pytest.raises(ValueError, match="changed"):
        reading.read_into(made, (slice(0, 2), slice(0, 2)), memoryview(bytearray(31)))


def test_read_block_of_a_scalar_keeps_its_byte_order(file: Any) -> None:
    file["x"] = np.array(5, ">i8")
    (block,) = reading.blocks((), 8, None)
    assert bytes(reading.read_block(file["x"], block.selection)) == np.array(5, ">i8").tobytes()


def test_as_bytes() -> None:
    array = np.arange(12, dtype=">i2").reshape(3, 4)
    assert bytes(reading.as_bytes(array)) == array.tobytes()
    assert bytes(reading.as_bytes(array[:, ::2])) == array[:, ::2].tobytes()
    assert bytes(reading.as_bytes(np.array(5.0))) == np.array(5.0).tobytes()
