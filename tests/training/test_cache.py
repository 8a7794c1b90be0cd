"""The cache: bounded in bytes, safe under threads, adapting, and giving memory back."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem import proc
from dsmem.training import cache as caches
from dsmem.training.cache import ArrayCache

KIB = 1024


def block(number: int, size: int = KIB) -> np.ndarray[Any, Any]:
    return np.full(size, number % 256, np.uint8)


def made(ceiling: int, **options: Any) -> ArrayCache:
    return ArrayCache(ceiling, **{"is_short": lambda: False, **options})


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3 * KIB)), max_size=60), st.integers(0, 16 * KIB))
def test_never_over_its_limit_and_never_another_array(puts: list[tuple[int, int]], ceiling: int) -> None:
    cache = made(ceiling)
    last: dict[int, int] = {}
    for key, size in puts:
        cache.put(("file", key), block(key, size))
        last[key] = size
        state = cache.state
        assert state.size_bytes <= state.limit_bytes <= ceiling
        assert state.size_bytes == sum(array.nbytes for array in cache._items.values())
    for key in last:
        found = cache.get(("file", key))
        assert found is None or (found == key).all()


def test_the_least_recently_used_goes_first() -> None:
    cache = made(8 * KIB)  # it begins with half: four blocks
    for number in range(4):
        cache.put(("a", number), block(number))
    assert cache.get(("a", 0)) is not None
    cache.put(("a", 4), block(4))
    assert cache.get(("a", 1)) is None and cache.get(("a", 0)) is not None
    with pytest.raises(ValueError, match="read-only"):
        cache.put(("a", 5), block(5))[0] = 1
    cache.drop("a")
    assert cache.state.items == 0 and cache.state.size_bytes == 0


def test_it_grows_while_that_helps_and_shrinks_when_nothing_comes_back() -> None:
    cache = made(64 << 20, floor_bytes=1 << 20)
    size = 1 << 20
    for _ in range(40):  # 48 MiB again and again: more than the half that it begins with
        for number in range(48):
            if cache.get(("a", number)) is None:
                cache.put(("a", number), block(number, size))
    grown = cache.state
    assert grown.limit_bytes >= 48 << 20 and grown.hits > 0
    for number in range(48, 8000):  # nothing twice
        if cache.get(("a", number)) is None:
            cache.put(("a", number), block(number, 64 * KIB))
    assert cache.state.limit_bytes < grown.limit_bytes // 4
    assert cache.state.limit_bytes >= 1 << 20


def test_memory_is_given_back_while_it_is_short_and_taken_again_after() -> None:
    short, now = [False], [0.0]
    cache = made(64 * KIB, floor_bytes=8 * KIB, is_short=lambda: short[0], clock=lambda: now[0])
    for number in range(24):
        cache.put(("a", number), block(number))
    assert cache.state.size_bytes == 24 * KIB
    short[0] = True
    cache.get(("a", 0))
    assert cache.state.size_bytes == 24 * KIB  # it is not looked at with every lookup
    for _ in range(6):
        now[0] += 1
        cache.get(("a", 23))
    assert cache.state.size_bytes == 0 and cache.state.given_back_bytes == 24 * KIB
    assert cache.state.limit_bytes == 0
    short[0] = False
    now[0] += 1
    cache.get(("a", 23))
    cache.put(("a", 1), block(1))
    assert cache.state.limit_bytes == 8 * KIB and cache.state.items == 1


def test_threads() -> None:
    cache = made(32 * KIB)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 64, 3000).tolist():
            found = cache.get(("a", number))
            if found is None:
                found = cache.put(("a", number), block(number))
            if found[0] != number or found[-1] != number:
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    state = cache.state
    assert not wrong
    assert state.hits + state.misses == 12000
    assert state.size_bytes == sum(array.nbytes for array in cache._items.values()) <= state.limit_bytes


def test_a_childs_share() -> None:
    cache = made(64 * KIB)
    for number in range(32):
        cache.put(("a", number), block(number))
    child = cache.forked(4)
    assert child.state.ceiling_bytes == 16 * KIB and child.state.size_bytes <= 16 * KIB
    assert child.get(("a", 31)) is not None
    assert cache.state.items == 32


def test_short_of_memory_by_the_machine_or_by_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(available: int) -> proc.Memory:
        return proc.Memory(100, available, 0, 0, 0)

    group = proc.CgroupMemory("/g", 2, limit_bytes=100, usage_bytes=97, reclaimable_bytes=0)
    monkeypatch.setattr(proc, "cgroup_memory", lambda: ())
    monkeypatch.setattr(proc, "memory", lambda: machine(50))
    assert not caches.memory_is_short()
    monkeypatch.setattr(proc, "cgroup_memory", lambda: (group,))
    assert caches.memory_is_short()
    monkeypatch.setattr(proc, "cgroup_memory", lambda: ())
    monkeypatch.setattr(proc, "memory", lambda: machine(4))
    assert caches.memory_is_short()
