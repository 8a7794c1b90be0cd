"""Areas: found by their tag, held by every process that uses them, gone with the last of them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import children
import pytest

from dsmem.errors import UnsafeRoot
from dsmem.shm import cleaning, listing
from dsmem.store import areas, sweep
from dsmem.store.areas import Area
from dsmem.store.root import Store, make_store

TAG, OTHER = b"t" * areas.TAG_BYTES, b"o" * areas.TAG_BYTES


def fill(fd: int) -> None:
    os.pwrite(fd, b"filled", areas.TAG_BYTES)


def names(store: Store) -> list[str]:
    return sorted(os.listdir(store.objects))


def holds(area: Area) -> bytes:
    return os.pread(area.fd, 6, areas.TAG_BYTES)


def test_found_by_its_tag_and_gone_with_the_last() -> None:
    store = make_store()
    one, two, other = (areas.obtain(store, tag, fill) for tag in (TAG, TAG, OTHER))
    assert one.name == two.name != other.name and holds(two) == b"filled"
    path = store.object_path(one.name)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert not areas.leave(store, one)
    assert names(store) == sorted([two.name, other.name])
    assert areas.leave(store, two) and areas.leave(store, other)
    assert names(store) == []
    assert areas.leave(store, areas.obtain(store, TAG, fill))


def test_names_are_not_predictable() -> None:
    store = make_store()
    seen = set()
    for _ in range(20):
        area = areas.obtain(store, TAG, fill)
        seen.add(area.name)
        areas.leave(store, area)
    assert len(seen) == 20


def test_many_at_once_make_one() -> None:
    store = make_store()

    def come() -> str:
        area = areas.obtain(store, TAG, fill)
        assert holds(area) == b"filled"
        return area.name

    kept = areas.obtain(store, TAG, fill)
    with children.all_started([come] * 8) as running:
        assert {child.result() for child in running} == {kept.name}
    areas.leave(store, kept)


def test_of_a_forked_child() -> None:
    """A lease of its own outlives the parent's, also where the name is gone."""
    store = make_store()
    area = areas.obtain(store, TAG, fill)

    def in_child() -> tuple[bool, bytes]:
        mine = areas.again(area)
        os.close(area.lease_fd)
        return areas.leave(store, Area(area.name, os.dup(mine.fd), os.dup(mine.lease_fd))), holds(mine)

    assert children.call(in_child) == (False, b"filled")
    os.unlink(store.object_path(area.name))
    again = areas.again(area)
    assert holds(again) == b"filled"
    again.close()
    area.close()


def test_what_a_killed_process_left_goes() -> None:
    store = make_store()

    def killed() -> None:
        areas.obtain(store, TAG, fill)
        os.kill(os.getpid(), signal.SIGKILL)

    def left() -> str:
        with pytest.raises(children.ChildDied):
            children.call(killed)
        (name,) = names(store)
        return name

    first = left()
    (entry,) = listing.survey(store)
    assert (entry.name, entry.kind, entry.holders, entry.sources) == (first, "cache", (), ())
    area = areas.obtain(store, TAG, fill)  # never that one again
    assert names(store) == [area.name] != [first]
    areas.leave(store, area)
    left()
    sweep.sweep(store)
    assert names(store) == []
    gone = left()
    assert cleaning.clean(cleaning.plan()).removed == (gone,)


def test_listed_and_never_cleaned_while_it_is_held() -> None:
    store = make_store()
    area = areas.obtain(store, TAG, fill)
    (entry,) = listing.survey(store)
    assert entry.holders is not None and [one.pid for one in entry.holders] == [os.getpid()]
    sweep.sweep(store)
    for plan in (cleaning.plan(), cleaning.plan(everything=True), cleaning.plan([area.name])):
        done = cleaning.clean(plan)
        assert done.removed == () and names(store) == [area.name]
    assert cleaning.clean(cleaning.plan(everything=True, force=True), force=True).removed == (area.name,)
    assert holds(area) == b"filled" and not areas.leave(store, area)


def test_nothing_is_left_of_one_that_can_not_be_filled() -> None:
    store = make_store()
    before = len(os.listdir("/proc/self/fd"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        areas.obtain(store, TAG, full)
    assert names(store) == [] and len(os.listdir("/proc/self/fd")) == before


def test_others_things_of_that_name_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store()
    (tmp_path / "mine").write_bytes(TAG)
    os.symlink(tmp_path / "mine", store.object_path(f"{areas.PREFIX}0123456789abcdef"))
    area = areas.obtain(store, TAG, fill)
    assert area.name != f"{areas.PREFIX}0123456789abcdef" and "symlink" in caplog.text
    assert (tmp_path / "mine").read_bytes() == TAG
    areas.leave(store, area)
    os.unlink(store.object_path(f"{areas.PREFIX}0123456789abcdef"))


def test_a_root_that_is_not_ours_alone(store_root: Path) -> None:
    store = make_store()
    os.chmod(store_root, 0o777)
    with pytest.raises(UnsafeRoot, match="written by others"):
        areas.obtain(store, TAG, fill)
