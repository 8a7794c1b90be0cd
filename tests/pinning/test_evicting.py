"""Pinning under a budget: what is evicted for it, what is kept, and several that pin at once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import children
import h5py
import numpy as np
import pytest
from holding import reader, write
from samples import assert_reads_as_h5py, settle, write_sample

import dsmem
from dsmem.store import leases, objects
from dsmem.store.root import make_store


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Files of nearly one size."""
    return [settle(write_sample(tmp_path / f"{i}.h5", seed=i)) for i in range(6)]


@pytest.fixture
def size_bytes(paths: list[Path]) -> int:
    """Enough for any of their objects: what is needed is known to a few hundred bytes before it is read."""
    found = max(dsmem.pin(path).size_bytes for path in paths)
    for one in list(objects.scan(make_store())):
        assert objects.remove(make_store(), one.name)
    return found + 1000


def stored_bytes() -> int:
    return sum(one.size_bytes for one in objects.scan(make_store()))


def left() -> set[str]:
    return {one.name for one in objects.scan(make_store())}


def test_the_longest_unused_makes_room(paths: list[Path], size_bytes: int) -> None:
    pinned = [dsmem.pin(path) for path in paths[:3]]
    dsmem.attach(paths[0]).close()
    assert dsmem.pin(paths[1]).already  # a use as well
    done = dsmem.pin(paths[3], budget=3 * size_bytes)
    assert (done.evicted, done.evicted_bytes) == ((pinned[2].name,), pinned[2].size_bytes)
    assert left() == {pinned[0].name, pinned[1].name, done.name}
    again = dsmem.pin(paths[3], budget=1)  # it is there: nothing needs room
    assert again.already and again.evicted == ()
    with dsmem.attach(paths[3]) as file:
        assert_reads_as_h5py(file, paths[3])
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(paths[2])


def test_the_environment_sets_the_budget(paths: list[Path], size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dsmem.pin(paths[0])
    monkeypatch.setenv("DSMEM_BUDGET", str(size_bytes))
    assert dsmem.pin(paths[1]).evicted == (first.name,)
    assert dsmem.pin(paths[2], budget=2 * size_bytes).evicted == ()
    with dsmem.File(paths[3], pin="auto") as file:
        assert file.source == "pinned"
    assert len(left()) == 1


@pytest.mark.parametrize("text", ["lots", "-1", "4 gigs"])
def test_a_budget_that_means_nothing(text: str, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dsmem.UsageError):
        dsmem.pin(paths[0], budget=-1)
    monkeypatch.setenv("DSMEM_BUDGET", text)
    with pytest.raises(dsmem.UsageError, match="DSMEM_BUDGET"):
        dsmem.pin(paths[0])


def test_a_file_larger_than_the_budget(paths: list[Path], size_bytes: int) -> None:
    first = dsmem.pin(paths[0])
    with pytest.raises(dsmem.NoSpace, match="more than the whole budget") as raised:
        dsmem.pin(paths[1], budget=size_bytes // 2)
    assert raised.value.budget_bytes == size_bytes // 2
    assert left() == {first.name}
    with dsmem.File(paths[1]) as file:
        assert_reads_as_h5py(file, paths[1])


def test_the_old_generation_of_a_file_is_evicted_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    old = dsmem.pin(write(path, 1))
    new = dsmem.pin(write(path, 2), budget=old.size_bytes + 100)
    assert new.evicted == (old.name,)
    assert int(dsmem.attach(path)["x"][0]) == 2


def test_who_reads_keeps_it(tmp_path: Path) -> None:
    held, free = dsmem.pin(write(tmp_path / "held.h5")), dsmem.pin(write(tmp_path / "free.h5", 2))
    new = write(tmp_path / "new.h5", 3)
    with reader(held.name) as one:
        assert dsmem.pin(new, budget=2 * held.size_bytes + 100).evicted == (free.name,)
        with pytest.raises(dsmem.NoSpace) as raised:
            dsmem.pin(tmp_path / "free.h5", budget=held.size_bytes + 100)
        assert raised.value.held == (held.name,)
        assert f"in use by {one.pid} " in str(raised.value)
        assert one.sum() == 1000


def test_keep_and_no_longer(paths: list[Path], size_bytes: int) -> None:
    first = dsmem.pin(paths[0], keep=True)
    assert first.kept and os.stat(make_store().object_path(first.name)).st_mode & 0o7777 == 0o1400
    assert dsmem.pin(paths[0]).kept  # says nothing: stays
    with pytest.raises(dsmem.NoSpace) as raised:
        dsmem.pin(paths[1], budget=size_bytes)
    assert raised.value.kept == (first.name,)
    second = dsmem.pin(paths[1], keep=False)
    assert not second.kept
    assert dsmem.pin(paths[1], keep=True).kept  # also what is there already
    with dsmem.attach(paths[1]) as file:
        assert_reads_as_h5py(file, paths[1])
    assert not dsmem.pin(paths[0], keep=False).kept
    assert dsmem.pin(paths[2], budget=2 * size_bytes).evicted == (first.name,)


def test_an_object_of_several_paths_goes_for_all(paths: list[Path], size_bytes: int, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(paths[0].read_bytes())
    settle(copy)
    name = dsmem.pin(paths[0]).name
    assert dsmem.pin(copy, name="given").name == name
    assert dsmem.pin(paths[1], budget=size_bytes).evicted == (name,)
    for target in (paths[0], copy, "given"):
        with pytest.raises(dsmem.NotPinned):
            dsmem.attach(target)
    assert len(os.listdir(make_store().refs)) == 1


def test_texts_longer_than_was_guessed(tmp_path: Path, paths: list[Path], size_bytes: int) -> None:
    """Their length is known when they are read: the budget holds all the same."""
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file["texts"] = np.array(["x" * size_bytes] * 2, object)
    settle(path)
    first = dsmem.pin(paths[0])
    done = dsmem.pin(path, budget=2 * size_bytes + 100_000)
    assert done.evicted == (first.name,)
    assert done.size_bytes > 2 * size_bytes
    first = dsmem.pin(paths[0])
    objects.remove(make_store(), done.name)
    with pytest.raises(dsmem.NoSpace):
        dsmem.pin(path, budget=2 * size_bytes)
    assert os.listdir(make_store().locks) == []


def pin_all(paths: list[Path], budget: int) -> tuple[int, int]:
    """How many were pinned, and the most that the store held after any of them."""
    done, most_bytes = 0, 0
    for path in paths:
        try:
            dsmem.pin(path, budget=budget)
            done += 1
        except dsmem.NoSpace as exc:
            assert exc.budget_bytes == budget
        most_bytes = max(most_bytes, stored_bytes())
    return done, most_bytes


@pytest.mark.parametrize("fit", [1, 2, 4])
def test_several_pin_under_one_budget(fit: int, paths: list[Path], size_bytes: int) -> None:
    """Each pins all files, in its own order: the store is never above the budget."""
    budget = fit * size_bytes
    orders = [paths[i:] + paths[:i] for i in range(4)]
    with children.all_started([partial(pin_all, order * 2, budget) for order in orders]) as running:
        results = [child.result() for child in running]
    assert max(most for _, most in results) <= budget
    assert sum(done for done, _ in results) >= len(paths)
    assert 0 < stored_bytes() <= budget
    assert os.listdir(make_store().locks) == []


def test_what_was_just_published_is_not_evicted_before_it_is_leased(
    paths: list[Path], size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one pins under the same tiny budget in the instant between: it is refused, and the first one has it."""
    lease = leases.lease

    def another_first(store: object, name: str) -> leases.Lease:
        monkeypatch.setattr(leases, "lease", lease)
        with pytest.raises(dsmem.NoSpace) as raised:
            children.call(partial(dsmem.pin, paths[1], budget=size_bytes))
        assert raised.value.held == (name,)
        return lease(make_store(), name)

    monkeypatch.setattr(leases, "lease", another_first)
    done = dsmem.pin(paths[0], budget=size_bytes)
    assert left() == {done.name}
    assert leases.lease is lease
