"""`make_room`: what goes, in which order, and that nothing goes in vain."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import closing
from pathlib import Path

import children
import pytest
from holding import reader, write
from stores import InTmpfs

import dsmem
from dsmem import files, proc, units
from dsmem.errors import InUse, NoSpace
from dsmem.store import budget, leases, objects, space
from dsmem.store.budget import Claim, Evicted, make_room
from dsmem.store.draft import Draft
from dsmem.store.root import Store, make_store

KIB = 1024


@pytest.fixture
def store() -> Store:
    return make_store()


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Four objects of one size, pinned one after the other."""
    return [dsmem.pin(write(tmp_path / f"{i}.h5", i)).name for i in range(4)]


@pytest.fixture
def size_bytes(store: Store, names: list[str]) -> int:
    (found,) = {os.path.getsize(store.object_path(name)) for name in names}
    return found


def left(store: Store) -> set[str]:
    return set(os.listdir(store.objects))


def used_ns(store: Store, name: str) -> int:
    return os.stat(store.object_path(name)).st_atime_ns


def test_without_a_budget_nothing_goes(store: Store, names: list[str]) -> None:
    assert make_room(store, 1, None) == Evicted()
    with pytest.raises(NoSpace) as raised:
        make_room(store, 1 << 60, None)
    assert raised.value.budget_bytes is None
    assert left(store) == set(names)


def test_what_fits_evicts_nothing(store: Store, names: list[str], size_bytes: int) -> None:
    assert make_room(store, size_bytes, 5 * size_bytes) == Evicted()
    assert left(store) == set(names)


def test_no_more_goes_than_must(store: Store, names: list[str], size_bytes: int) -> None:
    assert make_room(store, size_bytes, 5 * size_bytes - 1) == Evicted((names[0],), size_bytes)
    assert make_room(store, 2 * size_bytes, 4 * size_bytes) == Evicted((names[1],), size_bytes)
    assert left(store) == set(names[2:])


def test_the_longest_unused_goes_first_by_real_attaches(store: Store, names: list[str], size_bytes: int) -> None:
    for name in (names[2], names[0], names[3]):
        dsmem.attach(name).close()
    done = make_room(store, 3 * size_bytes, 4 * size_bytes)
    assert done == Evicted((names[1], names[2], names[0]), 3 * size_bytes)


def test_only_a_lease_is_a_use(store: Store, names: list[str]) -> None:
    """Listing, comparing and private maps read objects too."""
    before = time.time_ns()
    made = [os.stat(store.object_path(name)).st_mtime_ns for name in names]
    for name in names:  # long unused: a mount with relatime would move the atime at any read
        os.utime(store.object_path(name), ns=(1, os.stat(store.object_path(name)).st_mtime_ns))
    assert len(list(objects.scan(store))) == len(space.unused(store)) == 4
    assert [used_ns(store, name) for name in names] == [1] * 4
    with closing(leases.lease(store, names[0]).map) as held:
        assert held[:1]
        assert time.time_ns() >= used_ns(store, names[0]) > before
    assert [os.stat(store.object_path(name)).st_mtime_ns for name in names] == made


def test_what_was_made_after_its_last_use_is_as_young_as_it_was_made(store: Store, names: list[str]) -> None:
    """A load of an hour: the draft's atime is from its beginning, and others may look before it is leased."""
    os.utime(store.object_path(names[3]), ns=(1, os.stat(store.object_path(names[3])).st_mtime_ns))
    size_bytes = os.path.getsize(store.object_path(names[0]))
    assert make_room(store, size_bytes, 4 * size_bytes).names == (names[0],)


def test_what_is_leased_never_goes(store: Store, names: list[str], size_bytes: int) -> None:
    with reader(names[0]) as one, reader(names[2], forked=True) as other:
        for name in (names[1], names[3]):
            dsmem.attach(name).close()  # the leased ones are the longest unused
        assert make_room(store, 2 * size_bytes, 4 * size_bytes).names == (names[1], names[3])
        with pytest.raises(NoSpace, match="nothing was evicted") as raised:
            make_room(store, 3 * size_bytes, 4 * size_bytes)
        assert raised.value.held == (names[0], names[2])
        assert f"in use by {one.pid} python" in str(raised.value) and str(other.pid) in str(raised.value)
        assert (one.sum(), other.sum()) == (0, 2000)
    assert make_room(store, 3 * size_bytes, 4 * size_bytes).names == (names[0],)


def test_what_is_kept_never_goes(store: Store, names: list[str], size_bytes: int) -> None:
    objects.keep(store, names[0], kept=True)
    assert make_room(store, size_bytes, 4 * size_bytes).names == (names[1],)
    with pytest.raises(NoSpace) as raised:
        make_room(store, 4 * size_bytes, 4 * size_bytes)
    assert raised.value.kept == (names[0],)
    assert f"can't be evicted: {names[0]} ({units.format_bytes(size_bytes)}, kept)" in str(raised.value)
    assert left(store) == {names[0], *names[2:]}
    objects.keep(store, names[0], kept=False)
    assert make_room(store, size_bytes, size_bytes).names == (names[0], *names[2:])


def test_what_is_kept_is_no_part_of_the_plan(store: Store, names: list[str], size_bytes: int) -> None:
    """The youngest is kept: the others would go in vain."""
    objects.keep(store, names[3], kept=True)
    with pytest.raises(NoSpace, match="nothing was evicted"):
        make_room(store, 4 * size_bytes, 4 * size_bytes)
    assert left(store) == set(names)


def test_what_was_kept_after_the_plan_stays(store: Store, names: list[str]) -> None:
    objects.keep(store, names[0], kept=True)
    assert not objects.remove(store, names[0], spare_kept=True)
    assert objects.remove(store, names[1], spare_kept=True)
    assert left(store) == {names[0], *names[2:]}


def test_nothing_goes_when_it_can_not_fit(store: Store, names: list[str], size_bytes: int) -> None:
    with reader(names[3]), pytest.raises(NoSpace) as raised:
        make_room(store, 4 * size_bytes, 4 * size_bytes)
    assert left(store) == set(names)
    error = raised.value
    assert (error.need_bytes, error.budget_bytes, error.limit) == (4 * size_bytes, 4 * size_bytes, "budget")
    group = proc.cgroup_charged()
    assert group is None or f"charged to cgroup {group}" in str(error)


def test_larger_than_the_budget_alone(store: Store, names: list[str], size_bytes: int) -> None:
    with pytest.raises(NoSpace, match="more than the whole budget"):
        make_room(store, 4 * size_bytes + 1, 4 * size_bytes)
    assert left(store) == set(names)


def test_all_refs_go_with_the_object(store: Store, tmp_path: Path) -> None:
    one = write(tmp_path / "one.h5")
    os.link(one, tmp_path / "hard.h5")
    time.sleep(0.06)
    first = dsmem.pin(one, name="given")
    assert dsmem.pin(tmp_path / "hard.h5").name == first.name
    assert len(os.listdir(store.refs)) == 3
    assert make_room(store, first.size_bytes, first.size_bytes).names == (first.name,)
    assert os.listdir(store.refs) == []


def test_taken_between_plan_and_removal(
    store: Store, names: list[str], size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = objects.remove
    held: list[leases.Lease] = []

    def taken_first(store: Store, name: str, *, force: bool = False, spare_kept: bool = False) -> bool:
        if not held:
            held.append(leases.lease(store, name))
        return remove(store, name, force=force, spare_kept=spare_kept)

    monkeypatch.setattr(objects, "remove", taken_first)
    assert make_room(store, size_bytes, 4 * size_bytes).names == (names[1],)
    assert left(store) == {names[0], *names[2:]}
    held[0].map.close()


def test_a_locked_object_that_can_not_be_attached_is_passed_over(
    store: Store, names: list[str], size_bytes: int
) -> None:
    """Its lock can't be told by attaching: the removal finds it, and planning ends all the same."""
    path = store.object_path(names[0])
    os.chmod(path, 0o600)
    os.truncate(path, 1 << 20)  # with a hole
    os.utime(path, ns=(1, 1))
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert make_room(store, size_bytes, 4 * size_bytes + (1 << 20)).names == ()
    assert make_room(store, size_bytes, 3 * size_bytes + (1 << 20)).names == (names[1],)
    os.close(fd)
    assert make_room(store, size_bytes, 3 * size_bytes).names == (names[0],)


def test_what_is_not_dsmems_is_counted_and_left(store: Store, names: list[str], size_bytes: int) -> None:
    stray = Path(store.objects) / "notes.txt"
    stray.write_bytes(bytes(size_bytes))
    os.utime(stray, ns=(1, 1))
    assert make_room(store, size_bytes, 5 * size_bytes).names == (names[0],)
    assert stray.exists()


def test_a_full_file_system_is_a_limit_too(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """The budget is far away: eviction goes on until it fits the mount, and no further."""
    paths = [write(tmp_path / f"{i}.h5", i, items=120_000) for i in range(5)]

    def body(point: Path) -> None:
        names = [dsmem.pin(path).name for path in paths[:4]]
        done = dsmem.pin(paths[4], budget=1 << 40)
        assert done.evicted == (names[0],)
        with pytest.raises(NoSpace) as raised:
            make_room(make_store(), 8 << 20, 1 << 40)
        assert raised.value.limit == f"tmpfs at {point}"
        assert len(os.listdir(point / "store/objects")) == 4

    tiny_tmpfs(body)


def test_pages_charged_elsewhere_are_not_evicted_one_after_the_other(
    store: Store, names: list[str], size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cgroup that others' objects do not weigh on: the first plan shows it, and no second one follows."""
    need_bytes = size_bytes + space.BOOKKEEPING_BYTES
    stuck = space.Room(need_bytes - 1, "cgroup /full")
    monkeypatch.setattr(space, "room", lambda store, beside_bytes: stuck)
    with pytest.raises(NoSpace, match="charged elsewhere") as raised:
        make_room(store, size_bytes, 1 << 40)
    assert raised.value.limit == "cgroup /full"
    assert f"evicted in vain: {names[0]}" in str(raised.value)
    assert left(store) == set(names[1:])


def test_a_claim_counts_until_it_is_published_and_once(store: Store, names: list[str], size_bytes: int) -> None:
    with Draft(store) as draft:
        draft.make_room(size_bytes, 5 * size_bytes)
        assert draft.evicted == Evicted()
        assert children.call(lambda: make_room(store, size_bytes, 5 * size_bytes)).names == (names[0],)
        os.pwrite(draft.fd, bytes(size_bytes), 0)
        assert draft.publish("new-0123456789abcdef")
        assert make_room(store, size_bytes, 5 * size_bytes) == Evicted()
        with pytest.raises(InUse):  # the draft holds what it has published until somebody has leased it
            objects.remove(store, "new-0123456789abcdef")
    assert objects.remove(store, "new-0123456789abcdef")
    assert os.listdir(store.locks) == []


def test_a_claim_ends_with_its_process(store: Store, names: list[str], size_bytes: int, store_root: Path) -> None:
    def claim_and_wait() -> None:
        with Draft(store) as draft:
            draft.make_room(size_bytes, 5 * size_bytes)
            time.sleep(60)

    with children.started(claim_and_wait) as child:
        while not any(path.stat().st_size for path in (store_root / "locks").glob("claim-*")):
            time.sleep(0.001)
        assert make_room(store, size_bytes, 6 * size_bytes) == Evicted()
        with pytest.raises(NoSpace, match="more are being loaded"):
            make_room(store, 5 * size_bytes, 5 * size_bytes)
        child.kill()
    assert make_room(store, size_bytes, 5 * size_bytes) == Evicted()
    dsmem.pin(write(store_root.parent / "sweeps.h5", 9))


def test_what_grew_beyond_its_claim_makes_room_again(store: Store, names: list[str], size_bytes: int) -> None:
    with Draft(store) as draft:
        draft.make_room(KIB, 4 * size_bytes + KIB)
        os.pwrite(draft.fd, bytes(size_bytes), 0)
        assert draft.publish("new-0123456789abcdef")
        assert draft.evicted.names == (names[0],)
    with Draft(store) as draft:
        draft.make_room(KIB, 4 * size_bytes + KIB)
        os.pwrite(draft.fd, bytes(5 * size_bytes), 0)
        with pytest.raises(NoSpace):
            draft.publish("larger-0123456789abcdef")
    assert left(store) == {"new-0123456789abcdef", *names[1:]}


def test_one_makes_room_at_a_time(store: Store, names: list[str], size_bytes: int) -> None:
    path = f"{store.locks}/{budget._TURN}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def without_the_lock() -> Evicted:
        os.close(fd)
        return make_room(store, size_bytes, 4 * size_bytes)

    with children.started(without_the_lock) as child:
        with pytest.raises(TimeoutError):
            child.result(0.3)
        assert left(store) == set(names)
        os.unlink(path)
        os.close(fd)
        assert child.result().names == (names[0],)


def test_a_claim_swept_before_it_was_locked_is_made_anew(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files.open_own
    seen: list[str] = []

    def swept(path: str, flags: int = os.O_RDONLY) -> int:
        fd = opened(path, flags)
        if "claim-" in path:
            seen.append(path)
            if len(seen) == 1:
                os.unlink(path)
        return fd

    with Draft(store) as draft:
        claim = Claim(store, draft.fd, 1 << 40)
        monkeypatch.setattr(files, "open_own", swept)
        claim.take(1, 1)
        monkeypatch.undo()
        assert len(seen) == 2 and os.path.exists(seen[0])
        claim.close()
    assert os.listdir(store.locks) == []
