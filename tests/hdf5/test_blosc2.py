"""Frames of Blosc2 decode to what hdf5plugin, which wrote them, reads; damaged ones are errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmem
from dsmem.hdf5 import blosc2
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline, Undecodable

SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((1000,), (300,)),
    ((60_000,), (60_000,)),
    ((500, 700), (500, 700)),
    ((2048, 2048), (2048, 2048)),
    ((40, 50, 60), (40, 50, 60)),
    ((200, 300, 77), (150, 299, 70)),
    ((9, 8, 7, 6, 5), (9, 3, 7, 5, 2)),
]


def stored(path: Path, data: np.ndarray[Any, Any], chunks: tuple[int, ...], **options: Any) -> tuple[bytes, bytes]:
    """The first chunk as it is stored, and its bytes as h5py reads them."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=data, chunks=chunks, **hdf5plugin.Blosc2(**options))
        _, raw = made.id.read_direct_chunk((0,) * data.ndim)
        return raw, made[tuple(slice(0, n) for n in chunks)].tobytes()


@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "<f8", "S7"])
@pytest.mark.parametrize("content", ["noise", "zeros", "alike"])
def test_decodes(tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, content: str) -> None:
    numbers = (
        np.random.default_rng(0).integers(0, 40, shape) if content == "noise" else np.full(shape, content == "alike")
    )
    raw, expected = stored(tmp_path / "x.h5", numbers.astype("u1").astype(dtype), chunks)
    out = np.full(len(expected), 7, np.uint8)
    assert blosc2.decode(memoryview(raw), out) is out
    assert out.tobytes() == expected


def test_some_are_cut_into_blocks(tmp_path: Path) -> None:
    """Or those above would say nothing of them."""
    ways = set()
    for shape, chunks in SHAPES:
        raw, _ = stored(tmp_path / "x.h5", np.ones(shape, "<f8"), chunks)
        blocks = blosc2._blocks(memoryview(raw))
        ways.add("none" if blocks is None else (blocks.are_in_order, math.prod(blocks.counts) > 1))
    assert {"none", (True, False), (False, True)} <= ways


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_frames(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw, expected = stored(
        tmp_path_factory.mktemp("x") / "x.h5", np.arange(64 * 64, dtype="<i4").reshape(64, 64), (64, 60)
    )
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, min(len(raw), 400) - 1))] ^= data.draw(st.integers(1, 255))
    del damaged[data.draw(st.integers(1, len(raw))) :]
    pipeline = Pipeline([Filter(32026, (1, 0, 4, len(expected), 5, 1, 5), "blosc2")], len(expected))
    out = np.zeros(len(expected), np.uint8)
    try:
        pipeline.decode(memoryview(damaged), out, 0)
    except Undecodable:
        return
    assert len(out) == len(expected)


def test_a_description_that_ends_early(tmp_path: Path) -> None:
    raw, expected = stored(tmp_path / "x.h5", np.arange(64 * 64, dtype="<i4").reshape(64, 64), (64, 60))
    start = int.from_bytes(raw[raw.find(b"b2nd") + 5 :][:4], "big")
    damaged = bytearray(raw)
    damaged[start + 1 : start + 5] = bytes(4)  # its length
    pipeline = Pipeline([Filter(32026, (1, 0, 4, len(expected), 5, 1, 5), "blosc2")], len(expected))
    with pytest.raises(Undecodable, match="0 bytes that say"):
        pipeline.decode(memoryview(damaged), np.zeros(len(expected), np.uint8), 0)


@pytest.mark.parametrize(
    "values", [(1, 0, 4), (1, 0, 4, 99, 5, 7, 5), (1, 0, 4, 99, 5, 1, 33), (1, 0, 300, 99, 5, 1, 5)]
)
def test_plugins_of_it_are_left_to_hdf5(values: tuple[int, ...]) -> None:
    with pytest.raises(NotKnown, match="only HDF5 decodes blosc2"):
        Pipeline([Filter(32026, values, "blosc2")], 100)


@pytest.mark.parametrize("edge", [False, True])
def test_pinned(tmp_path: Path, edge: bool) -> None:
    path, shape = tmp_path / "x.h5", (130, 90, 21) if edge else (128, 90, 20)
    data = np.random.default_rng(0).normal(100, 3, shape).astype("<i2")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=data, chunks=(64, 90, 20), **hdf5plugin.Blosc2(cname="zstd"))
    assert [one.tier for one in dsmem.explain(path).datasets] == ["chunked"]
    dsmem.pin(path, verify=True)
    with dsmem.attach(path) as found:
        np.testing.assert_array_equal(found["x"][()], data)
