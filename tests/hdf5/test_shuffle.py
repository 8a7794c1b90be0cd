"""Unshuffled bytes are what h5py reads, by whichever way, and a damaged pipeline's sizes change nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmem.hdf5 import shuffle


def shuffled(raw: bytes, item_bytes: int) -> bytes:
    items = len(raw) // item_bytes
    whole = np.frombuffer(raw, np.uint8, items * item_bytes).reshape(items, item_bytes)
    return whole.T.tobytes() + raw[items * item_bytes :]


@pytest.mark.parametrize("dtype", ["<i2", ">f4", "<f8", "<c16", "S5", "S24", "S100", "S255", "S300"])
@pytest.mark.parametrize(
    "size_bytes", [shuffle._LEAST_BYTES // 2, shuffle._PIECE_BYTES, 3 * shuffle._PIECE_BYTES + 999]
)
def test_as_hdf5_does(dtype: str, size_bytes: int) -> None:
    item_bytes = np.dtype(dtype).itemsize
    count = size_bytes // item_bytes
    raw = np.random.default_rng(0).integers(0, 256, count * item_bytes, np.uint8)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        made = file.create_dataset("x", (count,), dtype, chunks=(count,), shuffle=True)
        made.write_direct(raw.view(dtype))
        file.flush()
        _, stored = made.id.read_direct_chunk((0,))
    out = np.zeros(len(raw), np.uint8)
    assert shuffle.undo(item_bytes, memoryview(stored), out) is out
    assert out.tobytes() == raw.tobytes()


@settings(max_examples=200, deadline=None)
@given(
    item_bytes=st.one_of(st.integers(1, 300), st.sampled_from([2, 4, 8, 16])),
    size_bytes=st.integers(0, 2 * shuffle._PIECE_BYTES + 999),
    kind=st.sampled_from([bytes, bytearray, lambda data: np.frombuffer(data, np.uint8)]),
)
def test_any_size(item_bytes: int, size_bytes: int, kind: Callable[[bytes], Any]) -> None:
    raw = np.random.default_rng(size_bytes).bytes(size_bytes)
    around = np.full(size_bytes + 64, 7, np.uint8)
    shuffle.undo(item_bytes, kind(shuffled(raw, item_bytes)), around[32:-32])
    assert around[32:-32].tobytes() == raw
    assert (around[:32] == 7).all() and (around[-32:] == 7).all()


def test_another_number_of_bytes() -> None:
    for given_bytes in (0, shuffle._LEAST_BYTES - 4, shuffle._LEAST_BYTES + 4):
        with pytest.raises(ValueError, match="shuffled bytes instead of"):
            shuffle.undo(4, bytes(given_bytes), np.zeros(shuffle._LEAST_BYTES, np.uint8))
