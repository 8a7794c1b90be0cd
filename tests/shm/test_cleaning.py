"""Planning and cleaning with real pins, real holders, and everything that may lie in a store."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import children
import numpy as np
import pytest
from holding import ITEMS, reader, write

import dsmem
from dsmem import files, proc
from dsmem.errors import Ambiguous, NotPinned
from dsmem.proc import Holders
from dsmem.shm import listing
from dsmem.shm.cleaning import Cleaned, CleanPlan, Forgotten, clean, plan
from dsmem.store import root


def names(found: CleanPlan) -> list[str]:
    return [entry.name for entry in found.remove]


def left() -> list[str]:
    return [entry.name for entry in listing.list_objects().entries]


def everything_in(directory: Path) -> dict[str, tuple[int, int]]:
    found = [directory, *directory.rglob("*")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found}


def pin(path: Path, value: int = 1) -> str:
    return dsmem.pin(write(path, value)).name


def test_without_a_store_there_is_nothing_to_do(store_root: Path) -> None:
    assert plan() == CleanPlan((), (), 0)
    assert plan(everything=True).remove == ()
    for target in ("train", "./train.h5", "", ".."):
        with pytest.raises(NotPinned):
            plan([target])
    assert clean(CleanPlan((), (), 0)) == Cleaned((), 0, 0, ())
    assert not store_root.exists()


def test_bare_is_what_nobody_holds(tmp_path: Path) -> None:
    free, held = pin(tmp_path / "free.h5"), pin(tmp_path / "held.h5", 2)
    with reader(held):
        for found in (plan(), plan(unused=True), plan(force=True), plan(unused=True, everything=True, force=True)):
            assert (names(found), found.kept) == ([free], ())
        done = clean(plan())
        assert (done.removed, left()) == ((free,), [held])
    assert names(plan()) == [held]


KEPT = "kept: name it to remove it"


def test_what_is_kept_is_removed_by_name_or_by_all_and_force(tmp_path: Path) -> None:
    path = write(tmp_path / "kept.h5")
    kept = dsmem.pin(path, keep=True).name
    free = pin(tmp_path / "free.h5", 2)
    for found in (
        plan(),
        plan(unused=True),
        plan(force=True),
        plan(everything=True),
        plan(older_than_s=-1),
        plan(older_than_s=-1, force=True),
        plan(unused=True, everything=True),
    ):
        assert names(found) == [free]
        assert [(one.entry.name, one.reason, one.in_use) for one in found.kept] == [(kept, KEPT, False)]
    for found in (plan([kept]), plan([str(path)]), plan(h5=[str(path)])):
        assert (names(found), found.kept) == ([kept], ())
    assert sorted(names(plan(everything=True, force=True))) == sorted([free, kept])
    assert clean(plan()).removed == (free,) and left() == [kept]
    assert clean(plan(everything=True)).removed == () and left() == [kept]
    path.unlink()
    assert [one.reason for one in plan(stale=True).kept] == [KEPT]
    assert clean(plan([kept])).removed == (kept,)


def test_what_is_kept_and_held_needs_force(tmp_path: Path) -> None:
    kept = dsmem.pin(write(tmp_path / "kept.h5"), keep=True).name
    with reader(kept) as one:
        assert plan() == plan(unused=True) == CleanPlan((), (), 0)  # in use is not unused, kept or not
        assert [found.reason for found in plan(everything=True).kept] == [KEPT]
        assert [found.reason for found in plan([kept]).kept] == [f"in use by {one.pid}"]
        assert names(plan([kept], force=True)) == [kept]


def test_no_longer_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "kept.h5")
    dsmem.pin(path, keep=True)
    (entry,) = listing.list_objects().entries
    assert entry.kept
    name = dsmem.pin(path, keep=False).name
    (entry,) = listing.list_objects().entries
    assert not entry.kept
    assert names(plan()) == [name]


def test_a_plan_changes_nothing(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "train.h5"
    name = pin(path)
    (store_root / "locks" / "free").write_bytes(b"x")
    (store_root / "refs" / "name-gone.json").write_text("{}")
    (store_root / "objects" / ".trash-x").mkdir()
    before = everything_in(store_root)
    for found in (
        plan(),
        plan(everything=True),
        plan([name]),
        plan([str(path)], force=True),
        plan(stale=True),
        plan(older_than_s=0),
    ):
        assert found.sweep_bytes > 0
    assert everything_in(store_root) == before
    clean(plan())


def test_what_was_freed_is_told_and_is_free(tmp_path: Path, store_root: Path) -> None:
    one, two = dsmem.pin(write(tmp_path / "1.h5")), dsmem.pin(write(tmp_path / "2.h5", 2))
    done = clean(plan())
    assert set(done.removed) == {one.name, two.name}
    assert done.freed_bytes == one.size_bytes + two.size_bytes
    assert (done.deferred_bytes, done.kept) == (0, ())
    assert [path for path in store_root.rglob("*") if path.is_file()] == []
    assert clean(plan()) == Cleaned((), 0, 0, ())


def test_all_passes_over_what_is_in_use_and_says_who(tmp_path: Path) -> None:
    free, held = pin(tmp_path / "free.h5"), pin(tmp_path / "held.h5", 2)
    with reader(held) as one, reader(held) as two:
        found = plan(everything=True)
        done = clean(found)
        assert left() == [held]
        assert one.sum() == two.sum() == 2 * ITEMS
    assert names(found) == [free]
    (kept,) = found.kept
    assert (kept.entry.name, kept.in_use) == (held, True)
    assert kept.reason == "in use by " + ", ".join(map(str, sorted([one.pid, two.pid])))
    assert done.removed == (free,) and done.kept == found.kept


def test_all_leaves_not_a_byte_and_the_store_can_be_made_again(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "train.h5"
    pin(path)
    clean(plan(everything=True))
    assert not store_root.exists()
    assert clean(plan(everything=True)).removed == ()
    dsmem.pin(path)
    clean(plan())
    assert (store_root / "objects").is_dir(), "only --all takes the directories"
    clean(plan(everything=True))
    assert not store_root.exists()


def test_all_spares_the_server_and_what_is_not_of_the_store(tmp_path: Path, store_root: Path) -> None:
    pin(tmp_path / "train.h5")
    (store_root / "server").mkdir()
    (store_root / "server" / "daemon.lock").write_bytes(b"7")
    before = everything_in(store_root / "server")
    clean(plan(everything=True))
    assert everything_in(store_root / "server") == before
    assert os.listdir(store_root) == ["server"]
    shutil.rmtree(store_root / "server")


@pytest.mark.parametrize("way", ["path", "symlink", "full name", "given name", "stem"])
def test_targets(way: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    name = dsmem.pin(path, name="best" if way == "given name" else None).name
    other = pin(tmp_path / "other.h5", 2)
    (tmp_path / "link").symlink_to(path)
    targets = {"path": str(path), "symlink": str(tmp_path / "link"), "full name": name, "given name": "best"}
    found = plan([targets.get(way, "train")])
    assert names(found) == [name]
    clean(found)
    assert left() == [other]
    with pytest.raises(NotPinned):
        plan([targets.get(way, "train")])


def test_relative_paths_and_files_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = pin(tmp_path / "train.h5")
    assert names(plan(["train.h5"])) == names(plan(["./train.h5"])) == names(plan(h5=["train.h5"])) == [name]
    (tmp_path / "train.h5").unlink()
    assert names(plan(["train.h5"])) == names(plan(["./train.h5"])) == names(plan(h5=["train.h5"])) == [name]


def test_a_word_that_is_a_file_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dsmem.pin(write(tmp_path / "train"), name="best")
    (tmp_path / "best").touch()
    with pytest.raises(Ambiguous) as caught:
        plan(["best"])
    assert caught.value.candidates == ("./best", "name best")
    with pytest.raises(NotPinned, match="best is not pinned"):
        plan(h5=["best"])


@pytest.mark.parametrize("target", ["nothing", "nothing-0123456789abcdef", "./nothing.h5", "", ".", ".."])
def test_a_target_that_means_nothing(target: str, tmp_path: Path) -> None:
    name = pin(tmp_path / "train.h5")
    with pytest.raises(NotPinned):
        plan([target])
    with pytest.raises(NotPinned):
        plan([name], h5=[str(tmp_path / "missing.h5")])


def test_a_stem_of_several_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        pin(tmp_path / str(i) / "train.h5", i)
    with pytest.raises(Ambiguous) as caught:
        plan(["train"])
    assert sorted(caught.value.candidates) == left()


def test_a_file_means_every_generation_and_every_part(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    meant = {dsmem.pin(path).name, dsmem.pin(path, only=["y"]).name}
    write(path, 2)
    meant |= {dsmem.pin(path).name, dsmem.pin(path, only=["y"]).name}
    other = pin(tmp_path / "other.h5", 3)
    assert len(meant) == 4
    found = plan([str(path)])
    assert set(names(found)) == meant
    assert set(clean(found).removed) == meant
    assert left() == [other]


def test_stale_is_what_no_file_is_served_by(tmp_path: Path, store_root: Path) -> None:
    fresh = pin(tmp_path / "fresh.h5")
    changed, gone = pin(tmp_path / "changed.h5", 2), pin(tmp_path / "gone.h5", 3)
    unknown = pin(tmp_path / "unknown.h5", 4)
    shared = pin(tmp_path / "shared.h5", 5)
    shutil.copy(tmp_path / "shared.h5", tmp_path / "copy.h5")
    assert dsmem.pin(tmp_path / "copy.h5").name == shared
    write(tmp_path / "changed.h5", 6)
    for stem in ("gone", "shared", "unknown"):
        (tmp_path / f"{stem}.h5").unlink()
    (tmp_path / "unknown.h5").symlink_to(tmp_path / "unknown.h5")
    foreign = store_root / "objects" / "notes.txt"
    foreign.touch()
    assert names(plan(stale=True)) == sorted([changed, gone])
    with reader(gone) as holder:
        found = plan(stale=True)
        assert names(found) == [changed]
        assert [kept.reason for kept in found.kept] == [f"in use by {holder.pid}"]
    (tmp_path / "copy.h5").unlink()
    clean(plan(stale=True))
    foreign.unlink()
    assert left() == sorted([fresh, unknown])


def test_filters_are_an_intersection(tmp_path: Path, store_root: Path) -> None:
    paths = {stem: tmp_path / f"{stem}.h5" for stem in ("old_stale", "old", "stale", "fresh")}
    pinned = {stem: pin(path, i) for i, (stem, path) in enumerate(paths.items())}
    for stem in ("old_stale", "old"):
        os.utime(store_root / "objects" / pinned[stem], (time.time() - 7200,) * 2)
    for stem in ("old_stale", "stale"):
        paths[stem].unlink()

    def found(*targets: str, **filters: object) -> set[str]:
        chosen = names(plan(targets, **filters))  # type: ignore[arg-type]
        return {stem for stem, name in pinned.items() if name in chosen}

    assert found() == found(everything=True) == found(older_than_s=0) == set(paths)
    assert found(older_than_s=3600) == found(older_than_s=3600, everything=True) == {"old", "old_stale"}
    assert found(older_than_s=9000) == set()
    assert found(older_than_s=3600, stale=True) == {"old_stale"}
    assert found("stale", "old", stale=True) == {"stale"}
    assert found("stale", h5=[str(paths["old"])], everything=True) == {"stale", "old"}


def test_what_was_named_and_is_in_use_stays(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    name = pin(path)
    with reader(path) as holder:
        for found in (plan([name]), plan([str(path)]), plan(h5=[str(path)]), plan([name], unused=True, force=True)):
            assert names(found) == []
            assert [(kept.entry.name, kept.reason) for kept in found.kept] == [(name, f"in use by {holder.pid}")]
            assert clean(found, force=True).kept == found.kept
        assert left() == [name]


@pytest.mark.parametrize("forked", [False, True])
def test_force_takes_the_name_and_no_byte_from_readers(forked: bool, tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5", 3)
    pinned = dsmem.pin(path)
    with reader(path, forked=forked) as holder:
        found = plan([str(path)], force=True)
        assert names(found) == [pinned.name] and found.kept == ()
        assert [one.pid for one in found.remove[0].holders or ()] == [holder.pid]
        done = clean(found, force=True)
        assert (done.removed, done.freed_bytes, done.kept) == ((pinned.name,), 0, ())
        assert done.deferred_bytes == pinned.size_bytes
        assert left() == [] and os.listdir(store_root / "refs") == []
        again = dsmem.pin(path)
        assert (again.name, again.already) == (pinned.name, False)
        assert holder.sum() == 3 * ITEMS
        with reader(path) as other:
            assert other.sum() == 3 * ITEMS
        assert clean(plan([again.name])).freed_bytes == again.size_bytes, "nobody holds the new one"
        assert holder.sum() == 3 * ITEMS


def test_arrays_of_this_process_outlive_a_forced_clean(tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5", 4)
    dsmem.pin(path)
    array = dsmem.attach(path)["x"][()]
    assert plan().remove == ()
    done = clean(plan(everything=True, force=True), force=True)
    assert done.deferred_bytes > 0
    assert np.array_equal(array, np.full(ITEMS, 4.0))
    assert (store_root / "objects").is_dir(), "whoever holds may be at work in the store"


def test_two_force_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = pin(tmp_path / "train.h5")
    held = dsmem.attach(name)["x"][()]
    found = plan([name], force=True)

    def outrun(path: str, status: os.stat_result) -> bool:
        files.unlink_if_there(path)  # by the other one, an instant after we looked
        return True

    with monkeypatch.context() as patched:
        patched.setattr(files, "names_inode", outrun)
        assert clean(found, force=True) == Cleaned((), 0, 0, ())
    assert held[0] == 1


def test_what_is_taken_between_plan_and_clean_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    name = pin(path)
    for options in ({"targets": [name]}, {"everything": True}, {"unused": True}):
        found = plan(**options)
        assert names(found) == [name]
        with reader(path) as holder:
            for force in (False, True):
                done = clean(found, force=force)
                (kept,) = done.kept
                assert (done.removed, done.freed_bytes) == ((), 0)
                assert (kept.entry.name, kept.reason, kept.in_use) == (name, f"in use by {holder.pid}", True)
                assert [one.pid for one in kept.entry.holders or ()] == [holder.pid]
            with reader(path) as late:
                assert late.sum() == ITEMS


def test_a_plan_that_came_true_without_us(tmp_path: Path, store_root: Path) -> None:
    one, two = pin(tmp_path / "1.h5"), pin(tmp_path / "2.h5", 2)
    found = plan()
    (store_root / "objects" / one).unlink()
    assert clean(found).removed == (two,)
    shutil.rmtree(store_root)
    assert clean(found) == Cleaned((), 0, 0, ())


def test_unknown_holders_are_told_by_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, held = pin(tmp_path / "free.h5"), pin(tmp_path / "held.h5", 2)
    monkeypatch.setattr(proc, "holders", lambda files: Holders(dict.fromkeys(files, ()), (7,), complete=False))
    with reader(held):
        found = plan(everything=True)
        assert names(found) == [free]
        assert [(kept.entry.holders, kept.in_use) for kept in found.kept] == [(None, True)]
        assert "can't be seen" in found.kept[0].reason
        assert names(plan()) == [free]
        assert names(plan([held], force=True)) == [held]
        done = clean(plan([held], force=True), force=True)
        assert done.removed == (held,) and done.deferred_bytes > 0


def test_holders_that_proc_does_not_show_keep_it_at_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = pin(tmp_path / "train.h5")
    monkeypatch.setattr(proc, "holders", lambda files: Holders(dict.fromkeys(files, ())))
    with reader(name):
        done = clean(plan([name]))
        assert (done.removed, [kept.in_use for kept in done.kept], left()) == ((), [True], [name])


def test_a_file_that_shares_its_object_is_only_forgotten(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.h5"), tmp_path / "two.h5"
    name = dsmem.pin(one).name
    shutil.copy(one, two)
    assert dsmem.pin(two, name="second").name == name
    found = plan([str(one)])
    assert (names(found), found.forget) == ([], (Forgotten(str(one), name),))
    (kept,) = found.kept
    assert not kept.in_use and kept.reason == f"also pinned from {two}; only {one} is forgotten"
    assert found.sweep_bytes > 0
    done = clean(found)
    assert (done.removed, done.kept, left()) == ((), found.kept, [name])
    assert dsmem.File(one).source != "pinned"
    assert dsmem.File(two).source == "pinned" and dsmem.attach("second").source == "pinned"
    with pytest.raises(NotPinned):
        plan([str(one)])
    assert clean(plan([str(two)])).removed == (name,), "the last one takes the object along"


def test_forgetting_the_file_that_was_given_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write(tmp_path / "one.h5"), tmp_path / "two.h5"
    dsmem.pin(one)
    shutil.copy(one, two)
    dsmem.pin(two, name="second")
    clean(plan([str(two)]))
    assert dsmem.File(one).source == "pinned"
    with pytest.raises(NotPinned):
        dsmem.attach("second")


def test_a_shared_object_goes_when_it_is_meant_itself_or_by_all_its_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.h5"), tmp_path / "two.h5"
    name = dsmem.pin(one).name
    shutil.copy(one, two)
    dsmem.pin(two)
    assert names(plan([name])) == names(plan([str(one), str(two)])) == names(plan([str(one), name])) == [name]
    assert names(plan([str(one)], h5=[str(two)])) == names(plan(everything=True)) == [name]
    with reader(one):
        (kept,) = plan([str(one)]).kept
        assert not kept.in_use, "its being held does not matter to what is forgotten"
    two.rename(tmp_path / "aside")
    two.symlink_to(two)
    assert names(plan([str(one)])) == [], "who knows what it is"
    two.unlink()
    (tmp_path / "aside").rename(two)
    for end in (lambda: write(two, 2), two.unlink):
        end()
        assert names(plan([str(one)])) == [name], "nothing is served by it any more"


def damage(objects: Path, name: str) -> None:
    where = objects / name
    where.chmod(0o600)
    os.truncate(where, 100)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "garbage-0123456789abcdef": lambda path: path.write_bytes(os.urandom(5000)),
    "empty-0123456789abcdef": lambda path: path.touch(),
    "directory-0123456789abcdef": lambda path: (path / "deep").mkdir(parents=True),
    "link-0123456789abcdef": lambda path: path.symlink_to("/etc/passwd"),
    "dangling-0123456789abcdef": lambda path: path.symlink_to("nowhere"),
    "fifo-0123456789abcdef": os.mkfifo,
    "notes.txt": lambda path: path.write_text("x"),
}


@pytest.mark.parametrize("way", ["name", "unused", "all"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_things_can_be_cleaned(name: str, way: str, tmp_path: Path, store_root: Path) -> None:
    good = pin(tmp_path / "train.h5")
    FOREIGN[name](store_root / "objects" / name)
    if name.startswith("directory"):
        (store_root / "objects" / name / "deep" / "file").write_bytes(bytes(5000))
    found = plan([name]) if way == "name" else plan(everything=way == "all", unused=way == "unused")
    expected = {name} if way == "name" else {name, good}
    assert set(names(found)) == expected
    assert all(entry.damaged for entry in found.remove if entry.name == name)
    assert set(clean(found).removed) == expected
    assert left() == ([good] if way == "name" else [])
    assert Path("/etc/passwd").exists()


def test_a_damaged_object_goes_by_its_file_and_can_be_pinned_again(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "train.h5"
    name = pin(path)
    damage(store_root / "objects", name)
    found = plan([str(path)])
    assert names(found) == [name] and found.remove[0].damaged
    clean(found)
    assert dsmem.pin(path).name == name
    with dsmem.File(path) as file:
        assert file.source == "pinned" and file["x"][()].sum() == ITEMS


def test_what_killed_processes_left_is_counted_and_swept(tmp_path: Path, store_root: Path) -> None:
    keep = pin(tmp_path / "train.h5")
    gone = pin(tmp_path / "gone.h5", 2)
    objects, locks, store_refs = (store_root / name for name in ("objects", "locks", "refs"))
    (objects / ".draft-0123").write_bytes(bytes(10_000))
    (objects / ".trash-x" / "deep").mkdir(parents=True)
    (objects / ".trash-x" / "deep" / "data").write_bytes(bytes(20_000))
    (locks / "free").write_bytes(bytes(16))
    (store_refs / ".tmp-old").write_bytes(bytes(16))
    os.utime(store_refs / ".tmp-old", (1, 1))
    (objects / gone).unlink()
    expected = 12_288 + 20_480 + 3 * 4096
    with open(objects / ".draft-held", "wb") as draft, open(locks / "held", "wb") as lock:
        for file in (draft, lock):
            file.write(bytes(5000))
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
        (store_refs / ".tmp-young").write_bytes(bytes(16))
        found = plan(older_than_s=1e9)
        assert (found.remove, found.sweep_bytes) == ((), expected)
        assert clean(found).freed_bytes == expected
        assert plan().sweep_bytes == 0
        assert sorted(os.listdir(objects)) == sorted([".draft-held", keep])
        assert os.listdir(locks) == ["held"]
        assert (store_refs / ".tmp-young").exists()
        assert clean(plan(everything=True)).removed == (keep,)
        assert (objects / ".draft-held").exists() and (locks / "held").exists()
    (store_refs / ".tmp-young").unlink()
    clean(plan(everything=True))
    assert not store_root.exists()


def test_two_processes_clean_at_once(tmp_path: Path, store_root: Path) -> None:
    for round_number in range(5):
        pinned = {pin(tmp_path / f"{i}.h5", i) for i in range(6)}
        for name, make in FOREIGN.items():
            make(store_root / "objects" / name)
        meant = plan(everything=True)
        starting, start = os.pipe()

        def sweep_up(meant: CleanPlan = meant, starting: int = starting, start: int = start) -> Cleaned:
            os.close(start)
            os.read(starting, 1)
            return clean(meant)

        with children.all_started([sweep_up] * 3) as running:
            os.close(start)
            done = [child.result() for child in running]
        os.close(starting)
        removed = [name for one in done for name in one.removed]
        assert sorted(removed) == sorted({*pinned, *FOREIGN}), f"each once, in round {round_number}"
        clean(plan(everything=True))
        assert not store_root.exists()


@pytest.mark.slow
def test_pinning_while_the_empty_store_is_taken_away(tmp_path: Path, store_root: Path) -> None:
    paths = [write(tmp_path / f"{i}.h5", i) for i in range(3)]

    def pin_and_clean(path: Path, value: int) -> int:
        deadline, rounds = time.monotonic() + 3, 0
        while time.monotonic() < deadline:
            with dsmem.File(path, pin="auto") as file:
                assert file.source == "pinned"
                assert file["x"][()][7] == value
            clean(plan(everything=True))
            rounds += 1
        return rounds

    tasks: list[Callable[[], int]] = [partial(pin_and_clean, path, value) for value, path in enumerate(paths)]
    with children.all_started(tasks) as running:
        assert all(child.result() > 3 for child in running)
    clean(plan(everything=True))
    assert not store_root.exists()


def test_making_the_store_while_it_is_taken_away(store_root: Path) -> None:
    def take_away() -> int:
        deadline, rounds = time.monotonic() + 1, 0
        while time.monotonic() < deadline:
            rounds += root.remove_empty(root.Store(str(store_root)))
        return rounds

    with children.started(take_away) as child:
        deadline, made = time.monotonic() + 1, 0
        while time.monotonic() < deadline:
            assert root.make_store().root == str(store_root)
            made += 1
        assert child.result() > 10 and made > 10
    root.remove_empty(root.make_store())


def test_another_store_of_that_name_is_left_alone(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = root.make_store()
    old = os.open(store_root, os.O_RDONLY)
    store_root.rename(store_root.with_name("taken-away"))
    root.make_store()
    monkeypatch.setattr(root, "_open_root", lambda store: old)
    assert not root.remove_empty(store)
    assert (store_root / "objects").is_dir()


def test_the_empty_store_stays_while_somebody_is_about_to_fill_it(store_root: Path) -> None:
    store = root.make_store()
    with root.occupied(store):
        assert not root.remove_empty(store)
        assert (store_root / "objects").is_dir()
    assert root.remove_empty(store)
    assert root.remove_empty(store) and not store_root.exists()
    with root.occupied(store):
        assert sorted(os.listdir(store_root)) == ["locks", "objects", "refs"]
    os.rmdir(store.locks)
    assert root.remove_empty(store), "as a process leaves it that was killed meanwhile"
    assert not store_root.exists()
