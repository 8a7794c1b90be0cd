"""Memory of cached frames: apart from each other, used again once nothing of an array is left, and given back."""

from __future__ import annotations

import gc
import mmap
import os
import random
import threading
from typing import Any

import numpy as np
import psutil
import pytest

from dsmem import madvise, proc
from dsmem.arrays import memory
from dsmem.training import slots
from dsmem.training.cache import ArrayCache
from dsmem.training.slots import Slots

FRAME = 921_600


@pytest.fixture(params=["auto", "never"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Slots:
    monkeypatch.setenv("DSMEM_HUGE_PAGES", request.param)
    return Slots()


def test_arrays_are_apart_whatever_comes_and_goes(made: Slots) -> None:
    chance = random.Random(0)
    held: list[tuple[int, Any]] = []
    for number in range(600):
        size = chance.choice([slots.LEAST_BYTES, 100_001, FRAME, slots.MOST_BYTES, 10, slots.MOST_BYTES + 1])
        array = made.empty(size)
        assert array.shape == (size,) and array.dtype == np.uint8 and array.flags.writeable
        assert size < slots.LEAST_BYTES or array.ctypes.data % 4096 == 0
        array[:] = number % 251
        held.append((number % 251, array))
        while len(held) > 12:
            value, gone = held.pop(chance.randrange(len(held)))
            assert gone.min() == gone.max() == value
            del gone
    assert all((array == value).all() for value, array in held)


def test_a_slot_is_used_again_once_no_view_is_left(made: Slots) -> None:
    first = made.empty(FRAME)
    place = first.ctypes.data
    view = first.view("<i4").reshape(-1, 640)[3:, ::2]
    view[...] = 7
    del first
    gc.collect()
    others = [made.empty(FRAME) for _ in range(3)]
    assert place not in {one.ctypes.data for one in others} and (view == 7).all()
    del view
    assert made.empty(FRAME).ctypes.data == place
    del made
    for one in others:  # they are there without what they came from
        one[:] = 1


def test_threads_never_get_the_same_slot(made: Slots) -> None:
    wrong: list[int] = []

    def run(number: int) -> None:
        for _ in range(200):
            arrays = [made.empty(slots.LEAST_BYTES) for _ in range(3)]
            for array in arrays:
                array[:] = number
            wrong.extend(number for array in arrays if (array != number).any())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_free_goes_back_to_the_system(made: Slots) -> None:
    def held_bytes() -> int:
        return int(psutil.Process().memory_info().rss)

    before = held_bytes()
    arrays = [made.empty(FRAME) for _ in range(100)]
    for array in arrays:
        array[:] = 1
    assert held_bytes() - before > 80 * FRAME
    kept = arrays[::10]
    del arrays, array
    assert held_bytes() - before < 40 * FRAME
    assert all((one == 1).all() for one in kept)


def test_frames_lie_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    if proc.huge_page_bytes() != madvise.HUGE_PAGE_BYTES:
        pytest.skip("a kernel without huge pages of 2 MiB")
    asked: list[tuple[int, int]] = []

    def noted(address: int, size_bytes: int, advice: int) -> int:
        asked.extend([(address, size_bytes)] if advice == mmap.MADV_HUGEPAGE else [])
        return 0

    monkeypatch.setattr(memory, "advise", noted)
    cache = ArrayCache(64 << 20)
    first, *rest = [cache.empty(FRAME) for _ in range(5)]
    begin, end = first.ctypes.data, rest[-1].ctypes.data + FRAME
    assert [at for at, _ in asked] == [begin + (number << 21) for number in range(-(-(end - begin) >> 21))]
    assert begin % (2 << 20) == 0  # the first extent was asked for whole, before anything was written there
    asked.clear()
    monkeypatch.setenv("DSMEM_HUGE_PAGES", "never")
    ArrayCache(64 << 20).empty(FRAME)
    assert asked == []
    monkeypatch.delenv("DSMEM_HUGE_PAGES")
    monkeypatch.setattr(slots, "get_worker_info", object)
    ArrayCache(64 << 20).empty(FRAME)
    assert asked == []


def test_without_addresses_ordinary_memory_does(made: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> mmap.mmap:
        raise OSError(12, os.strerror(12))

    monkeypatch.setattr(mmap, "mmap", refused)
    array = made.empty(FRAME)
    array[:] = 3
    assert array.shape == (FRAME,) and made.empty(FRAME).ctypes.data != array.ctypes.data


def test_a_forked_child_leaves_the_memory_of_its_parent_alone() -> None:
    cache = ArrayCache(64 << 20)
    first = cache.empty(FRAME)
    first[:] = 1
    cache.put(("a", 1), first)
    child = os.fork()
    if child == 0:
        mine = cache.forked()
        other = mine.empty(FRAME)
        other[:] = 2
        mine.clear()
        os._exit(0 if (first == 1).all() and (other == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and (first == 1).all()


def test_huge_pages_that_took_too_long_are_tried_anew_in_the_next_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Slow:
        are_had = False

        def __init__(self) -> None:
            asked.append(0)

        def prepare(self, address: int, size_bytes: int) -> None:
            asked[-1] += size_bytes

    monkeypatch.setattr(slots, "Pages", Slow)
    made = Slots()
    arrays = [made.empty(slots.MOST_BYTES) for _ in range(9)]
    assert len(arrays) * slots.MOST_BYTES == sum(asked)
    assert asked[-3:] == [slots.SLAB_BYTES, slots.SLAB_BYTES, slots.MOST_BYTES]
