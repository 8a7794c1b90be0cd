"""The shuffle without an array: a bijection for every n, even, and another one for each epoch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmem.errors import UsageError
from dsmem.tokens.permutation import Permutation

SEEDS = st.integers(-(1 << 70), 1 << 70)


@settings(deadline=None, max_examples=150)
@given(n=st.integers(0, 3000) | st.sampled_from([1 << 14, (1 << 14) + 1, (1 << 16) - 1, 70_000]), seed=SEEDS)
def test_a_bijection(n: int, seed: int) -> None:
    shuffled = Permutation(n, seed)(np.arange(n))
    assert shuffled.dtype == np.int64
    np.testing.assert_array_equal(np.sort(shuffled), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1 << 32, 1 << 63), seed=SEEDS, data=st.data())
def test_huge_ranges(n: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 500))
    shuffled = Permutation(n, seed)(np.arange(start, start + 500, dtype=np.int64))
    assert len(set(shuffled.tolist())) == 500
    assert shuffled.min() >= 0 and shuffled.max() < n


def test_how_positions_are_cut_changes_nothing() -> None:
    permutation = Permutation(100_000, 7)
    whole = permutation(np.arange(100_000))
    np.testing.assert_array_equal(permutation(np.arange(9000, 30_000, 7)), whole[9000:30_000:7])
    np.testing.assert_array_equal(permutation(np.arange(6).reshape(2, 3)), whole[:6].reshape(2, 3))


def test_the_order_is_the_same_everywhere() -> None:
    """A golden value: a state that was saved must lead on in the same order with every version."""
    assert Permutation(10, 1)(np.arange(10)).tolist() == [9, 2, 8, 3, 4, 5, 6, 0, 1, 7]


@pytest.mark.parametrize("n", [7, 64, 1000, 1 << 20, 3 << 40])
def test_every_epoch_seed_and_name_has_an_order_of_its_own(n: int) -> None:
    positions = np.arange(min(n, 64))
    orders = [Permutation(n, 0), Permutation(n, 0, 1), Permutation(n, 1), Permutation(n, 0, name="b.bin")]
    assert len({tuple(order(positions).tolist()) for order in orders}) == 4


def test_uniform() -> None:
    """Where a position goes, over many seeds: chi-squared of 64 cells, far beyond what chance does."""
    for n in (64, 3 << 40):
        cells = np.zeros(64)
        for seed in range(1500):
            cells[int(Permutation(n, seed)(np.array([5]))[0]) * 64 // n] += 1
        assert ((cells - 1500 / 64) ** 2 / (1500 / 64)).sum() < 130, n  # p < 1e-6


def test_neighbours_are_torn_apart() -> None:
    """A shuffle that leaves neighbours near each other is none; in a fair one they are n/3 apart on average."""
    shuffled = Permutation(1 << 30, 3)(np.arange(20_000))
    assert abs(np.abs(np.diff(shuffled)).mean() / (1 << 30) - 1 / 3) < 0.01
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.03


def test_no_array_of_indices() -> None:
    tracemalloc.start()
    Permutation(1 << 62, 3)(np.arange(100))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_misuse() -> None:
    with pytest.raises(UsageError):
        Permutation(-1, 0)
    with pytest.raises(UsageError):
        Permutation((1 << 63) + 1, 0)
