"""Columns are what was put into them, on a disk or not, and in order what numpy's argsort says."""

from __future__ import annotations

import errno
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays import columns
from dsmem.arrays.columns import Column, column, in_order, windows
from dsmem.scratch import Scratch

append = Scratch.append
NUMBERS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1)), max_size=60)


def limited(patch: pytest.MonkeyPatch, room_bytes: int) -> None:
    """Columns are short, and the disk has so much room."""
    patch.setattr(columns, "_AT_ONCE", 5)
    patch.setattr(columns, "_WINDOW", 4)
    patch.setattr(columns, "_SORTED_AT_ONCE", 7)
    patch.setattr(columns, "_SAMPLES", 10)
    patch.setattr(Scratch, "append", lambda self, data: append(self, data) if self._end < room_bytes else None)


@given(NUMBERS, st.lists(st.integers(0, 60)), st.sampled_from([0, 100, 10**9]))
def test_a_column(numbers: list[int], looks: list[int], room_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, room_bytes)
        found, extended = Column("q"), Column("q")
        for index, number in enumerate(numbers):
            found.append(number)
            if index in looks:
                assert found.array().tolist() == numbers[: index + 1]
        for window in windows(len(numbers)):
            extended.extend(np.array(numbers[window], np.uint64))
        for one in (found, extended):
            assert len(one) == len(numbers)
            assert one.array().tolist() == one.array().tolist() == numbers
            assert one.array().dtype == np.int64
        array = found.array()
        for index in range(len(numbers)):
            found.set(index, -index)
        assert array.tolist() == [-index for index in range(len(numbers))]


@given(NUMBERS, st.sampled_from([0, 10**9]))
def test_in_order(numbers: list[int], room_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limited(patch, room_bytes)
        keys = np.array(numbers, np.uint64)
        parts = [part for part in in_order(keys) if len(part)]
        assert [index for part in parts for index in part.tolist()] == np.argsort(keys, kind="stable").tolist()
        of_parts = [set(keys[part].tolist()) for part in parts]
        assert sum(map(len, of_parts)) == len(set(numbers))
        assert column("Q", (keys[part] for part in in_order(keys))).tolist() == sorted(numbers)


def test_many_numbers_take_no_memory() -> None:
    count = 2_000_000
    some = np.random.default_rng(0).integers(0, 2**60, count, np.int64)
    tracemalloc.start()
    try:
        found = column("q", (some[window] for window in windows(count)))
        ordered = column("q", (found[part] for part in in_order(found)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(ordered, np.sort(some))
    assert peak < 8 * count


def test_what_cannot_be_mapped_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Scratch) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(columns, "_AT_ONCE", 5)
    found = Column("q")
    found.extend(np.arange(23))
    with monkeypatch.context() as patch:
        patch.setattr(Scratch, "mapped", refused)
        assert found.array().tolist() == list(range(23))
    for number in range(23, 40):
        found.append(number)
    found.set(3, -3)
    assert found.array().tolist() == [0, 1, 2, -3, *range(4, 40)]


def test_in_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is a look at all of them."""
    monkeypatch.setattr(columns, "_SORTED_AT_ONCE", 7)
    keys = np.random.default_rng(0).permutation(5000)
    parts = list(in_order(keys))
    assert len(parts) <= 64
    assert np.array_equal(np.concatenate(parts), np.argsort(keys))
