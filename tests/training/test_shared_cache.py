"""The cache that processes share: what `ArrayCache` promises, among processes that may be killed at any moment."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
from episodes import CAMERAS, GZIP, check_aloha, write_aloha
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import InTmpfs, unnamed_bytes, used_bytes

from dsmem.errors import UsageError
from dsmem.shm import listing
from dsmem.store import areas, hugepages
from dsmem.store.hugepages import EXTENT_BYTES, Extents
from dsmem.store.root import make_store
from dsmem.training import EpisodicDataset, segments, sharedcache
from dsmem.training.cache import ArrayCache
from dsmem.training.sharedcache import SharedCache, tag_of

KIB, MIB = 1024, 1 << 20
TAG = b"t" * areas.TAG_BYTES


def block(number: int, size: int = 4 * KIB) -> np.ndarray[Any, Any]:
    """Told from every other, in each of its parts."""
    return (np.arange(size // 8, dtype=np.int64) + number * 1_000_003).reshape(-1, 8)


def made(ceiling: int = MIB, *, short: bool = False) -> SharedCache:
    cache = SharedCache.obtain(TAG, ceiling)
    cache._is_short = lambda: short
    return cache


def left() -> list[str]:
    return sorted(os.listdir(make_store().objects))


def test_what_is_given_out_is_what_was_put() -> None:
    one, two = made(), made()
    arrays: list[np.ndarray[Any, Any]] = [
        np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        np.linspace(0, 1, 10, dtype=np.float32)[::2],
        np.zeros((0, 4), ">i2"),
        np.array(3.5),
        np.ones((2,) * 8, bool),
    ]
    for number, array in enumerate(arrays):
        assert one.put((0, "x", number), array.copy()) is not array
        found = two.get((0, "x", number))
        assert found is not None and found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0
    assert two.get((1, "x", 0)) is None
    for unheld in (np.zeros((1,) * 9), np.array(["text"]), np.zeros(2, "i4,f4")):
        one.put((2, "x", 0), unheld)
        assert two.get((2, "x", 0)) is None
    two.clear()
    assert one.get((0, "x", 0)) is None and one.state.items == 0
    one.close()
    assert len(left()) == 1
    two.close()
    assert left() == []


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 80)), max_size=120), st.integers(64, 2048))
def test_never_over_its_ceiling_and_never_another_array(puts: list[tuple[int, int]], ceiling_kib: int) -> None:
    cache = made(ceiling_kib * KIB)
    try:
        last: dict[int, int] = {}
        for key, size_kib in puts:
            if key not in last:
                cache.put(("file", key), block(key, size_kib * KIB))
                last[key] = size_kib
            assert os.fstat(cache._area.fd).st_blocks * 512 <= max(ceiling_kib * KIB, cache._index.data_start)
            assert cache.state.size_bytes <= cache._index.held_bytes <= cache.state.limit_bytes
        for key, size_kib in last.items():
            found = cache.get(("file", key))
            assert found is None or np.array_equal(found, block(key, size_kib * KIB))
    finally:
        cache.close()


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = made(MIB)
    head = cache._index.head
    assert head[segments.LIMIT] == head[segments.CEILING] // 2
    fits = int(head[segments.LIMIT]) // (20 * KIB) - 1
    for number in range(fits):
        cache.put(("a", number), block(number, 19 * KIB))  # over half a segment: each has its own
    assert all(cache.get(("a", number)) is not None for number in range(fits - 1, -1, -1))
    for number in range(fits, fits + 4):
        cache.put(("a", number), block(number, 19 * KIB))
    assert cache.get(("a", 0)) is not None and cache.get(("a", fits - 1)) is None
    assert cache.state.evicted >= 3
    cache.close()


def test_large_arrays_begin_at_a_page_in_the_cache_and_outside() -> None:
    cache = made(64 * MIB)
    for number in range(8):
        cache.put(("a", number), block(number, 100 * KIB))
    for number in range(8):
        key = ("a", number)
        place, _ = cache._index.find(segments.key_of(key))
        found = cache.get(key)
        assert place is not None and found is not None
        assert (place.offset + segments.RECORD_BYTES) % 4096 == found.ctypes.data % 4096 == 0
        assert np.array_equal(found, block(number, 100 * KIB))
        assert cache.holds(key) and not cache.holds(("b", number))
    cache.close()


def test_huge_pages_are_asked_for_where_a_mount_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(hugepages, "can_be_taken", lambda mount: True)
    monkeypatch.setattr(Extents, "take", lambda self, offset, size_bytes: asked.append((offset, size_bytes)))
    cache = made(256 * MIB)  # segments of 4 MiB
    for number in range(8):
        cache.put(("a", number), block(number, MIB))
    cache.put(("large", 0), block(0, 3 * MIB))  # one of its own, which has no whole huge pages
    assert len(asked) == 8 and all(size_bytes > MIB for _, size_bytes in asked)
    taken = cache._index.segments[cache._index.segments[:, segments.SIZE] > 0].tolist()
    whole = [one for one in taken if one[segments.SIZE] % EXTENT_BYTES == 0]
    assert len(whole) == 3 and all(one[segments.OFFSET] % EXTENT_BYTES == 0 for one in whole)
    assert max(one[segments.OFFSET] + one[segments.SIZE] for one in taken) <= os.fstat(cache._area.fd).st_size
    again = cache.forked()
    again.put(("a", 100), block(100, MIB))
    assert len(asked) == 9
    for number in range(8):
        found = again.get(("a", number))
        assert found is not None and np.array_equal(found, block(number, MIB))
    again.close()
    cache.close()
    assert left() == []


def test_what_huge_pages_take_is_within_the_limit() -> None:
    cache = made(256 * MIB)
    for number in range(260):
        cache.put(("a", number), block(number, 900 * KIB))
    assert cache.state.evicted and cache.get(("a", 259)) is not None
    assert cache._index.stored_bytes <= cache._index.held_bytes <= cache.state.limit_bytes
    cache.clear()
    assert cache._index.stored_bytes == 0
    cache.close()


def test_it_grows_while_that_helps_and_shrinks_when_nothing_comes_back() -> None:
    cache = made(16 * MIB)
    before = cache.state
    for _ in range(12):
        for number in range(12 * 16):  # 12 MiB, more than the half that it begins with
            if cache.get(("a", number)) is None:
                cache.put(("a", number), block(number, 64 * KIB))
    grown = cache.state
    assert grown.limit_bytes > 12 * MIB > before.limit_bytes and grown.hits > 12 * 16
    for number in range(1000, 9000):
        if cache.get(("a", number)) is None:
            cache.put(("a", number), block(number, 8 * KIB))
    assert grown.floor_bytes <= cache.state.limit_bytes < grown.limit_bytes // 2
    cache.close()


def test_memory_is_given_back_while_it_is_short_and_taken_again_after() -> None:
    cache = made(4 * MIB)
    for number in range(100):
        cache.put(("a", number), block(number, 16 * KIB))
    full = cache.state
    assert full.size_bytes > MIB
    cache._is_short = lambda: True
    for _ in range(8):
        cache._index.head[segments.LOOKED_NS] = 0  # else it is looked at twice a second
        cache.get(("a", 99))
    assert cache.state.size_bytes == 0 == cache.state.limit_bytes
    assert cache.state.given_back_bytes >= full.size_bytes
    cache._is_short = lambda: False
    cache._index.head[segments.LOOKED_NS] = 0
    cache.get(("a", 99))
    cache.put(("a", 1), block(1))
    assert cache.state.limit_bytes == cache.state.floor_bytes and cache.state.items == 1
    cache.close()


def test_a_full_store_is_no_failure(tiny_tmpfs: InTmpfs) -> None:
    def inside(point: Path) -> tuple[int, int]:
        cache = made(2 * MIB)
        (point / "other").write_bytes(bytes(os.statvfs(point).f_bavail * 4096 - 256 * KIB))
        for number in range(200):
            cache.put(("a", number), block(number, 32 * KIB))
            found = cache.get(("a", number))
            assert found is None or np.array_equal(found, block(number, 32 * KIB))
        taken = cache.state.size_bytes
        cache.close()
        return taken, len(left())

    taken, files = tiny_tmpfs(inside)
    assert taken <= 256 * KIB and files == 0


def test_threads() -> None:
    cache = made(MIB)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 100, 1500).tolist():
            found = cache.get(("a", number))
            if found is None:
                found = cache.put(("a", number), block(number, 16 * KIB))
            if not np.array_equal(found, block(number, 16 * KIB)):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert cache.state.hits + cache.state.misses == 6000 and cache.state.hits > 0
    assert cache.state.size_bytes <= cache.state.limit_bytes
    cache.close()


def use(cache: SharedCache, seed: int, seconds: float) -> tuple[int, int]:
    """Look up and put at random; what is found is whole, or the process fails. (hits, misses)."""
    random_ = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = random_.randrange(120)
        size = (4 + number % 40) * KIB
        found = cache.get(("a", number))
        if found is None:
            cache.put(("a", number), block(number, size))
        else:
            assert np.array_equal(found, block(number, size)), number
    return cache.state.hits, cache.state.misses


def test_a_child_that_comes_when_all_have_left_keeps_nothing_open() -> None:
    cache = made(8 * MIB)
    cache.put(("a", 1), block(1))
    go_on, waits = os.pipe()[::-1]

    def child() -> int:
        os.read(waits, 1)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises((OSError, ValueError)):
                cache.forked()
        return len(os.listdir("/proc/self/fd")) - before

    with children.started(child) as running:
        cache.close()
        os.write(go_on, b".")
        assert running.result() == 0
    os.close(go_on)
    os.close(waits)


def test_forked_children_share_it() -> None:
    cache = made(8 * MIB)
    cache.put(("a", 1000), block(1000))
    ready, told = os.pipe()
    go_on, waits = os.pipe()[::-1]

    def child() -> tuple[int, int]:
        mine = cache.forked()
        assert mine.get(("a", 1000)) is not None
        os.write(told, b".")
        os.read(waits, 1)  # until all have seen it: what is put now may evict it
        return use(mine, os.getpid(), 0.5)

    with children.all_started([child] * 3) as running:
        for _ in running:
            assert select.select([ready], [], [], 60)[0] and os.read(ready, 1)
        os.write(go_on, b"...")
        found = [one.result() for one in running]
    for fd in (ready, told, go_on, waits):
        os.close(fd)
    assert sum(misses for _, misses in found) < 3 * 120  # less than if each had to fill its own
    use(cache, 1, 0.1)
    cache.close()
    assert left() == []


def test_a_child_forked_for_something_else_keeps_nothing(tiny_tmpfs: InTmpfs) -> None:
    """Neither its name nor its memory outlives those who use it; and a child of the child loses no file of its own."""

    def inside(point: Path) -> tuple[int, list[str], int]:
        cache = made(2 * MIB)
        for number in range(8):
            cache.put(("a", number), block(number, 16 * KIB))
        before = used_bytes(point)

        def child() -> None:
            with open(os.devnull, "rb") as own:  # gets the number that the lease had

                def grandchild() -> None:
                    os.fstat(own.fileno())

                children.call(grandchild)
                Path("begun").touch()
                time.sleep(60)

        with contextlib.chdir(point), children.started(child):
            while not Path("begun").exists():
                time.sleep(0.005)
            cache.close()
            return before, left(), unnamed_bytes(point)

    before, names, kept = tiny_tmpfs(inside)
    assert before > 8 * 16 * KIB and names == [] and kept == 0


def test_a_killed_process_that_had_forked_leaves_what_goes_with_the_next(tmp_path: Path) -> None:
    def parent() -> None:
        cache = made(MIB)
        cache.put(("a", 1), block(1))
        if os.fork() == 0:
            (tmp_path / "forked").touch()
            time.sleep(60)
            os._exit(0)
        time.sleep(60)

    with children.started(parent) as running:
        while not (tmp_path / "forked").exists():
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert len(left()) == 1
        made(MIB).close()
        assert left() == []


def test_children_that_read_after_their_parent_has_left_share_another(tmp_path: Path) -> None:
    """One for each would be as many times the memory that was asked for."""
    paths = episodes(tmp_path)
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, cache_bytes=4 * MIB, cache_scope="shared")
    go_on, waits = os.pipe()[::-1]
    leave, stays = os.pipe()[::-1]
    found, told = os.pipe()

    def child() -> None:
        os.read(waits, 1)
        cache = dataset._here().cache
        assert isinstance(cache, SharedCache)
        cache._is_short = lambda: False  # as this machine may be, by other tests
        check_aloha(dataset, paths)
        os.write(told, f"{cache._area.name} {cache.state.hits}\n".encode())
        os.read(stays, 1)
        cache.close()

    with children.all_started([child] * 2) as running:
        cache = dataset._here().cache
        assert isinstance(cache, SharedCache)
        cache.close()
        assert left() == []
        lines = []
        for _ in running:  # one after the other
            os.write(go_on, b".")
            assert select.select([found], [], [], 30)[0]
            lines.append(os.read(found, 1000).decode().split())
        os.write(leave, b"..")
        for one in running:
            one.result()
    (name, first_hits), (same_name, second_hits) = lines
    assert name == same_name and int(second_hits) > int(first_hits)
    assert left() == []
    for fd in (go_on, waits, leave, stays, found, told):
        os.close(fd)


def test_forks_are_prepared_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in every child from then on: one for each cache that ever was would be a leak."""
    registered: list[object] = []
    monkeypatch.setattr(sharedcache, "_held", functools.cache(sharedcache._held.__wrapped__))
    monkeypatch.setattr(os, "register_at_fork", lambda **functions: registered.append(functions))
    for _ in range(3):
        made().close()
    assert len(registered) == 1


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    """Small enough to be evicting all the time; who is killed leaves no lock, no torn item, and no memory for long."""
    cache = made(MIB)
    random_ = random.Random(5)

    def child() -> None:
        use(cache.forked(), os.getpid(), 60)

    killed = 0
    while killed < 120:
        with children.all_started([child] * 3) as running:
            time.sleep(random_.uniform(0.005, 0.06))
            for one in running:
                assert one.result is not None
                os.kill(one.pid, signal.SIGKILL)
                killed += os.WIFSIGNALED(one.wait())
        began = time.monotonic()
        use(cache, killed, 0.02)
        assert time.monotonic() - began < 5
    cache.put(("b", 0), block(7))
    assert cache.get(("b", 0)) is not None  # the lock is free
    segment = int(cache._index.head[segments.SEGMENT_BYTES])
    use(cache, 0, 0.2)
    cache._free_leaks()
    assert cache.state.size_bytes <= cache._index.held_bytes <= cache.state.limit_bytes + segment
    name = cache._area.name
    assert left() == [name]
    cache.close()
    assert left() == []


def test_who_is_stopped_holds_up_nobody() -> None:
    cache = made(MIB)
    cache.put(("a", 1), block(1))

    def child() -> None:
        mine = cache.forked()
        with mine._index.alone("writing", 1) as can:
            assert can
            os.kill(os.getpid(), signal.SIGSTOP)

    with children.started(child) as stopped:
        os.waitpid(stopped.pid, os.WUNTRACED)
        assert cache.get(("a", 1)) is None
        cache.put(("a", 2), block(2))
        os.kill(stopped.pid, signal.SIGKILL)
        stopped.wait()
    assert cache.get(("a", 1)) is not None and cache.get(("a", 2)) is None
    cache.close()


def test_an_index_that_lies_gives_nothing_else() -> None:
    """Entries that lead elsewhere, or out of the file, as after a kill in the midst of one, are misses."""
    cache = made(MIB)
    for number in range(20):
        cache.put(("a", number), block(number))
    entries = cache._index._entries
    good = entries.copy()
    rng = np.random.default_rng(0)
    for _ in range(200):
        entries[...] = good
        used = np.argwhere(entries[:, :, 0] != 0)
        for bucket, way in used[rng.integers(0, len(used), 5)]:
            entries[bucket, way, rng.integers(0, 5)] = rng.integers(-(1 << 40), 1 << 40)
            one, two = used[rng.integers(0, len(used))], rng.integers(2, 5)
            entries[bucket, way, two] = good[one[0], one[1], two]
        for number in range(20):
            found = cache.get(("a", number))
            assert found is None or np.array_equal(found, block(number))
    cache.close()


def test_a_file_that_is_none_is_refused() -> None:
    store = make_store()
    area = areas.obtain(store, TAG, lambda fd: None)
    with pytest.raises(ValueError, match="not the file of a cache"):
        SharedCache(store, area)
    areas.leave(store, area)


def test_who_shares_what(tmp_path: Path) -> None:
    paths = [str(write_aloha(tmp_path / f"e{number}.h5", seed=number)) for number in range(2)]
    tags = {
        tag_of(paths, asked_bytes=None),
        tag_of(paths[::-1], asked_bytes=None),
        tag_of(paths, asked_bytes=5),
        tag_of(paths[:1], asked_bytes=None),
    }
    assert len(tags) == 4 and tag_of(paths, asked_bytes=5) in tags
    write_aloha(tmp_path / "e0.h5", seed=9)
    assert tag_of(paths, asked_bytes=None) not in tags


def episodes(tmp_path: Path) -> list[Path]:
    return [write_aloha(tmp_path / f"e{number}.h5", steps=6, seed=number, **GZIP) for number in range(2)]


def reads(dataset: EpisodicDataset) -> dict[str, int]:
    return {one.source: one.reads for one in dataset.performance_report().sources if one.reads}


def test_a_dataset_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes' worth of datasets: what one decodes, the other finds."""
    paths = episodes(tmp_path)
    options: dict[str, Any] = {"use_shared_memory": False, "cache_scope": "shared", "cache_bytes": "4MiB"}
    one = EpisodicDataset(paths, CAMERAS, **options)
    check_aloha(one, paths)
    assert reads(one)["decoded"] == 2 * len(one)

    def in_child() -> dict[str, int]:
        two = EpisodicDataset(paths, CAMERAS, **options)
        check_aloha(two, paths)
        return reads(two)

    assert children.call(in_child) == {"mapped": 2 * len(one), "cache": 2 * len(one)}
    (entry,) = listing.survey(make_store())
    assert entry.kind == "cache" and entry.holders is not None and entry.holders[0].pid == os.getpid()
    report = one.performance_report()
    assert report.shared_cache is not None and report.shared_cache.size_bytes > 0
    assert report.processes[0].cache_bytes == 0 and report.processes[0].cache_history
    one.print_performance_report()
    assert "shared cache: " in capsys.readouterr().out
    one.clear_cache()
    assert one.performance_report().shared_cache.size_bytes == 0  # type: ignore[union-attr]  # seen above
    del one
    assert left() == []


def test_pinned_rows_never_enter_it(tmp_path: Path) -> None:
    paths = episodes(tmp_path)
    dataset = EpisodicDataset(paths, CAMERAS, cache_scope="shared")
    check_aloha(dataset, paths)
    assert set(reads(dataset)) == {"pinned"}
    assert dataset.performance_report().shared_cache.items == 0  # type: ignore[union-attr]  # it has one


def test_without_shared_memory_each_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = episodes(tmp_path)
    (tmp_path / "root").symlink_to(tmp_path)
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "root"))
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, cache_scope="shared")
    check_aloha(dataset, paths)
    check_aloha(dataset, paths)
    assert reads(dataset)["cache"] == 2 * len(dataset)
    assert isinstance(dataset._here().cache, ArrayCache)
    report = dataset.performance_report()
    assert next(one for one in report.sources if one.source == "cache").failures == 1
    assert any("symlink" in reason for reason in report.reasons) and report.shared_cache is None


def test_an_unknown_scope(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="process, shared"):
        EpisodicDataset(episodes(tmp_path), CAMERAS, cache_scope="machine")  # type: ignore[arg-type]  # on purpose
