"""Buffers begin where the kernel copies fastest, also once they have grown."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsmem.buffers import Buffer, are_near

PAGE = mmap.PAGESIZE
OFFSETS = st.integers(0, 1 << 40)


def place_of(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@example([(PAGE, 0)])
@given(st.lists(st.tuples(OFFSETS, st.integers(0, 5 * PAGE)), min_size=1, max_size=8))
def test_a_buffer_lies_in_its_page_as_the_file_does(uses: list[tuple[int, int]]) -> None:
    buffer = Buffer()
    for offset, size_bytes in uses:
        view = buffer.at(offset, size_bytes)
        assert len(view) == size_bytes and not view.readonly
        assert not size_bytes or (place_of(view) - offset) % PAGE == 0
        view[:] = b"\1" * size_bytes


@given(OFFSETS, st.integers(-PAGE, PAGE), st.integers(1, PAGE))
def test_on_the_way_to_another_file_neither_copy_is_slow(source: int, distance: int, size_bytes: int) -> None:
    place = place_of(Buffer().between(source, source + distance, size_bytes))
    assert not are_near(source, place)
    assert not are_near(place, source + distance)


def test_more_than_there_is_memory_for() -> None:
    with pytest.raises(MemoryError, match=r"no [0-9,]+ bytes"):
        Buffer().at(0, 1 << 62)


def test_what_is_handed_out_stays_when_the_buffer_grows() -> None:
    buffer = Buffer()
    first = buffer.at(5, 3)
    first[:] = b"abc"
    buffer.at(0, 9 * PAGE)[:] = bytes(9 * PAGE)
    assert first.tobytes() == b"abc"


def test_only_a_target_that_lies_a_little_further_is_near() -> None:
    near = [distance for distance in range(-PAGE // 2, PAGE // 2) if are_near(PAGE + 7, PAGE + 7 + distance)]
    assert near == list(range(1, 32))
