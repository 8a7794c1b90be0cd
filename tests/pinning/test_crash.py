"""SIGKILL at every step of a pin, and at any moment: no memory is left but whole objects, and the next pin works."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from children import Child, all_started, started
from dying import die, dying_after
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import InTmpfs, refuse, unnamed_bytes

import dsmem
from dsmem import files
from dsmem.pinning.pin import Pinned
from dsmem.store import objects, refs
from dsmem.store.draft import Draft
from dsmem.store.root import Store

ROUNDS = 50


def dying_halfway(done_bytes: int, total_bytes: int) -> None:
    if done_bytes > total_bytes // 2:
        die()


def without_unnamed_files(original: Callable[..., int]) -> Callable[..., int]:
    """os.open on a file system that lacks O_TMPFILE."""

    def patched(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return original(path, flags, *args, **kwargs)

    return patched


STEPS: dict[str, Callable[[Path], object]] = {}


def step(function: Callable[[Path], object]) -> Callable[[Path], object]:
    STEPS[function.__name__] = function
    return function


@step
def killed_before_the_draft(path: Path) -> None:
    Draft.__init__ = die  # type: ignore[method-assign]  # in a child that dies of it
    dsmem.pin(path)


@step
def killed_when_allocated(path: Path) -> None:
    Draft.allocate = dying_after(Draft.allocate)  # type: ignore[method-assign]
    dsmem.pin(path)


@step
def killed_while_copying(path: Path) -> None:
    dsmem.pin(path, progress=dying_halfway)


@step
def killed_before_the_link(path: Path) -> None:
    Draft.publish = die  # type: ignore[assignment, method-assign]
    dsmem.pin(path)


@step
def killed_at_the_link(path: Path) -> None:
    Draft.publish = dying_after(Draft.publish)  # type: ignore[method-assign]
    dsmem.pin(path)


@step
def killed_in_the_middle_of_the_ref(path: Path) -> None:
    os.replace = die
    dsmem.pin(path, hash_cache=False)


@step
def killed_after_the_ref(path: Path) -> None:
    refs.write = dying_after(refs.write)
    dsmem.pin(path)


@step
def killed_before_unlocking(path: Path) -> None:
    files.unlink_if_there = die  # type: ignore[assignment]
    dsmem.pin(path)


PUBLISHED = {
    "killed_at_the_link",
    "killed_in_the_middle_of_the_ref",
    "killed_after_the_ref",
    "killed_before_unlocking",
}
"""Steps after which the object is whole and must be found, not loaded again."""


@pytest.mark.parametrize("unnamed", [True, False], ids=["O_TMPFILE", "hidden name"])
@pytest.mark.parametrize("name", STEPS)
def test_killed_at_a_step(name: str, unnamed: bool, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 2 * MIB))

    def body(point: Path) -> None:
        if not unnamed:
            os.open = without_unnamed_files(os.open)
        with started(partial(STEPS[name], path)) as child:
            assert os.WTERMSIG(child.wait()) == signal.SIGKILL
        store = Store(str(point / "store"))
        left = [one for one in objects.scan(store) if one.damaged is None]
        assert len(left) == (1 if name in PUBLISHED else 0)
        assert [one for one in objects.scan(store) if one.damaged] == []
        if unnamed:
            assert unnamed_bytes(point) == 0
            hidden = [one for one in refuse(point / "store") if one.startswith("objects/")]
            assert hidden == []
        pinned = pin_and_compare(path)
        assert pinned.already == (name in PUBLISHED)
        assert_swept(point)

    tiny_tmpfs(body, size="16m")


def pin_and_compare(path: Path) -> Pinned:
    pinned = dsmem.pin(path)
    with dsmem.attach(path) as file:
        assert file.object_name == pinned.name
        assert_reads_as_h5py(file, path)
    return pinned


def assert_swept(point: Path) -> None:
    """One whole object and its ref were left; what else was is swept (a half-written ref when it is a minute old)."""
    store = Store(str(point / "store"))
    assert [one.damaged for one in objects.scan(store)] == [None]
    assert len(list(refs.all_refs(store))) == 1
    temporary = [one for one in refuse(point / "store") if one.startswith("refs/.tmp-")]
    assert len(temporary) <= 1
    for one in temporary:
        os.utime(point / "store" / one, (0, 0))
    objects.remove(store, next(objects.scan(store)).name)
    path = settle(write_sample(point / "other.h5", 4096, seed=9))
    dsmem.pin(path)
    assert refuse(point / "store") == []
    assert unnamed_bytes(point) == 0


def test_two_killed_loaders_leave_one_object_and_one_ref(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """The ref that a killed process did not write is rebuilt from the object, by whoever pins anything next."""
    path = settle(write_sample(tmp_path / "data.h5"))
    other = settle(write_sample(tmp_path / "other.h5", seed=1))

    def body(point: Path) -> None:
        with started(partial(killed_at_the_link, path)) as child:
            child.wait()
        with pytest.raises(dsmem.NotPinned):
            dsmem.attach(path)
        dsmem.pin(other)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)

    tiny_tmpfs(body, size="16m")


def _pin_twice(path: Path) -> None:
    """A launcher: two processes of one group pin the same file."""
    with all_started([partial(dsmem.pin, path)] * 2, own_groups=False) as running:
        for child in running:
            child.result()


def _time_s(work: Callable[[], object], store: Store) -> float:
    began = time.monotonic()
    with started(work) as child:
        child.wait()
    elapsed_s = time.monotonic() - began
    clear(store)
    return elapsed_s


def clear(store: Store) -> None:
    for one in list(objects.scan(store)):
        assert objects.remove(store, one.name)


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_killed_at_random_moments(group: bool, tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", 24 * MIB))
    seed = random.randrange(1 << 32)
    print("seed", seed)

    def body(point: Path) -> dict[str, int]:
        chosen = random.Random(seed)
        store = Store(str(point / "store"))
        work = partial(_pin_twice if group else dsmem.pin, path)
        longest_s = 1.05 * min(_time_s(work, store) for _ in range(3))
        ends = {"before": 0, "loading": 0, "published": 0, "finished": 0}
        for _ in range(ROUNDS):
            clear(store)
            with started(work) as child:
                time.sleep(chosen.uniform(0, longest_s))
                locks = os.listdir(store.locks)
                (Child.kill_group if group else Child.kill)(child)
                assert child.group_is_gone()
                finished = os.waitstatus_to_exitcode(child.wait()) == 0
            assert unnamed_bytes(point) == 0
            assert [one for one in refuse(point / "store") if not one.startswith(("locks/", "refs/.tmp-"))] == []
            found = list(objects.scan(store))
            assert [one.damaged for one in found] in ([], [None])
            ends["finished" if finished else "published" if found else "loading" if locks else "before"] += 1
            pinned = dsmem.pin(path)
            assert pinned.already == bool(found)
            assert [one for one in refuse(point / "store") if not one.startswith("refs/.tmp-")] == []
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        return ends

    ends = tiny_tmpfs(body, size="128m")
    print(ends)
    assert ends["loading"] > 0
    assert sum(ends.values()) == ROUNDS
