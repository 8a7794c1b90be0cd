"""Chunk shapes: what is recommended costs less, and fits the dataset."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dsmem.tune import chunking


def test_frames_are_chunks_and_small_rows_are_gathered() -> None:
    assert chunking.fitting((400, 480, 640, 3), 1) == (1, 480, 640, 3)
    assert chunking.fitting((400, 84, 84, 3), 1) == (3, 84, 84, 3)
    assert chunking.fitting((400, 14), 4) == (400, 14)
    assert chunking.fitting((10**6, 14), 4) == (1170, 14)


def test_what_is_worth_a_change() -> None:
    frames = (400, 480, 640, 3)
    assert chunking.better(frames, (1, 480, 640, 3), 1, 1) is None
    assert chunking.better(frames, (16, 480, 640, 3), 1, 1) == (1, 480, 640, 3)
    assert chunking.better(frames, (1, 30, 40, 3), 1, 1) == (1, 480, 640, 3)
    assert chunking.better((400, 14), (1, 14), 4, 100) == (400, 14)
    assert chunking.better((400, 14), (400, 14), 4, 100) is None
    assert chunking.better((0, 14), (1, 14), 4, 100) is None


_AXES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4)


@given(_AXES, st.sampled_from([1, 2, 4, 8]), st.integers(1, 200))
def test_the_better_one_is_better(axes: list[tuple[int, int]], item_bytes: int, rows: int) -> None:
    shape, chunks = [extent for extent, _ in axes], [min(pair) for pair in axes]
    other = chunking.better(shape, chunks, item_bytes, rows)
    if other is None:
        return
    assert all(1 <= chunk <= extent for chunk, extent in zip(other, shape, strict=True))
    assert other[1:] == tuple(shape[1:])
    costs = [chunking.read_cost(shape, one, item_bytes, rows) for one in (chunks, other)]
    assert costs[1] * 1.5 <= costs[0]
    assert chunking.better(shape, other, item_bytes, rows) is None


@given(_AXES, st.integers(1, 50))
def test_a_read_costs_at_least_what_it_gives(axes: list[tuple[int, int]], rows: int) -> None:
    shape, chunks = [extent for extent, _ in axes], [min(pair) for pair in axes]
    rows = min(rows, shape[0])
    assert chunking.read_cost(shape, chunks, 1, rows) >= min(rows, chunks[0]) * math.prod(shape[1:]) * 0.99
