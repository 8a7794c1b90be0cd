"""Szip chunks decode to what h5py reads; one whose stream ends early is an error, never memory that nobody wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from purity import decoded

import dsmem
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline, Undecodable
from dsmem.hdf5.filters import filters_of

CASES: list[tuple[str, tuple[int, ...], tuple[str, int]]] = [
    ("u1", (4096,), ("nn", 8)),  # lines of whole blocks
    ("u1", (30, 50), ("nn", 8)),  # padded lines
    ("<i2", (30, 50), ("ec", 16)),
    (">i2", (37, 29), ("nn", 10)),
    ("<f4", (512,), ("nn", 32)),  # in planes of bytes
    ("<f4", (30, 50), ("nn", 8)),  # both
    (">f8", (21, 33), ("ec", 4)),
]


def stored(path: Path, dtype: str, shape: tuple[int, ...], opts: tuple[str, int]) -> tuple[Pipeline, bytes, bytes]:
    """What decodes a chunk, the chunk as it is stored, and its bytes as h5py reads them."""
    values = (np.arange(np.prod(shape)) // 7 % 50).astype(dtype).reshape(shape)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=values, chunks=shape, compression="szip", compression_opts=opts)
        mask, raw = made.id.read_direct_chunk((0,) * len(shape))
        assert mask == 0
        return Pipeline(filters_of(made.id.get_create_plist()), values.nbytes), raw, made[()].tobytes()


@pytest.mark.parametrize(("dtype", "shape", "opts"), CASES)
def test_decodes(tmp_path: Path, dtype: str, shape: tuple[int, ...], opts: tuple[str, int]) -> None:
    pipeline, raw, expected = stored(tmp_path / "x.h5", dtype, shape, opts)
    assert decoded(pipeline, raw, len(expected)) == {expected}


@pytest.mark.parametrize(("dtype", "shape", "opts"), CASES)
def test_a_stream_that_ends_early(tmp_path: Path, dtype: str, shape: tuple[int, ...], opts: tuple[str, int]) -> None:
    pipeline, raw, expected = stored(tmp_path / "x.h5", dtype, shape, opts)
    for end in (4, 5, len(raw) // 2, len(raw) * 9 // 10):
        assert decoded(pipeline, raw[:end], len(expected)) == {None}


@pytest.mark.parametrize(("dtype", "shape", "opts"), CASES)
def test_flipped_bits(tmp_path: Path, dtype: str, shape: tuple[int, ...], opts: tuple[str, int]) -> None:
    """An error, or what the stream says, and no other byte."""
    pipeline, raw, expected = stored(tmp_path / "x.h5", dtype, shape, opts)
    for bit in range(4 * 8, len(raw) * 8, max(len(raw) * 8 // 500, 1)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert len(decoded(pipeline, bytes(damaged), len(expected))) == 1, bit


def test_a_pinned_file_whose_chunk_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", (8192,), "u1", chunks=(4096,), compression="szip")
        made[:] = np.arange(8192) // 7 % 50
        _, raw = made.id.read_direct_chunk((4096,))
        made.id.write_direct_chunk((4096,), raw[: len(raw) // 2])
    with pytest.raises(dsmem.BadSource, match=r"/x: the chunk at \(4096,\) can't be decoded: decodes to"):
        dsmem.pin(path)


@pytest.mark.parametrize("values", [(141, 0, 8, 64), (141, 8, 8, 7), (141, 30, 8, 4093)])
def test_what_hdf5_does_not_write_is_left_to_it(values: tuple[int, ...]) -> None:
    with pytest.raises(NotKnown, match="only HDF5 decodes szip"):
        Pipeline([Filter(4, values, "szip")], 4096)


def test_items_that_are_not_whole() -> None:
    data: Any = (10).to_bytes(4, "little") + bytes(30)
    with pytest.raises(Undecodable):
        Pipeline([Filter(4, (141, 8, 32, 9), "szip")], 10).decode(memoryview(data), np.zeros(10, np.uint8), 0)


def test_an_szip_chunk_that_announces_nothing_is_an_error() -> None:
    with pytest.raises(Undecodable, match="0 bytes announced instead of 40"):
        Pipeline([Filter(4, (177, 8, 16, 20))], 40).decode(memoryview(bytes(18)), np.zeros(40, np.uint8), 0)
