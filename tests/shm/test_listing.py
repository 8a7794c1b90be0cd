"""What `list_objects` tells: real pins, held by real processes, and stores in which something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holding import ITEMS, reader, write

import dsmem
from dsmem import proc
from dsmem.errors import UnsafeRoot, UsageError
from dsmem.proc import Holder, Holders
from dsmem.shm import listing
from dsmem.shm.listing import Entry, Leftover, SourceState, list_objects


def only() -> Entry:
    (entry,) = list_objects().entries
    return entry


def test_without_a_store_nothing_is_listed_or_made(store_root: Path) -> None:
    found = list_objects(everything=True)
    assert (found.root, found.entries, found.total_bytes) == (str(store_root), (), 0)
    assert 0 <= found.shm_used_bytes <= found.shm_total_bytes
    assert list_objects(h5="/nowhere.h5").entries == ()
    assert not store_root.exists()


def test_an_object(tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5")
    pinned = dsmem.pin(path)
    entry = only()
    assert entry.name == pinned.name and entry.kind == "arrays"
    assert entry.size_bytes == pinned.size_bytes == (store_root / "objects" / pinned.name).stat().st_size
    assert entry.sources == (SourceState(str(path), "same", partial=False),)
    assert entry.digest == f"xxh3-tree:{pinned.digest}"
    assert 0 <= entry.age_s < 60
    assert (entry.holders, entry.damaged, entry.datasets) == ((), None, ())


def test_totals_are_of_the_entries_and_of_the_mount(tmp_path: Path) -> None:
    sizes = [dsmem.pin(write(tmp_path / f"{i}.h5", i)).size_bytes for i in range(3)]
    found = list_objects()
    space = os.statvfs("/dev/shm")
    assert found.total_bytes == sum(sizes)
    assert found.shm_total_bytes == space.f_blocks * space.f_frsize
    assert found.shm_used_bytes >= sum(sizes)


def test_sorting(tmp_path: Path, store_root: Path) -> None:
    for stem, items, age_s in (("b", 10, 50), ("a", 9000, 10), ("c", 4000, 100)):
        name = dsmem.pin(write(tmp_path / f"{stem}.h5", items=items)).name
        then = time.time() - age_s
        os.utime(store_root / "objects" / name, (then, then))

    def order(**options: object) -> str:
        return "".join(entry.name[0] for entry in list_objects(**options).entries)  # type: ignore[arg-type]

    assert order() == order(sort="name") == "abc"
    assert order(sort="size") == "acb"
    assert order(sort="age") == "cba"
    with pytest.raises(UsageError, match="'color'"):
        order(sort="color")


def test_sources_that_changed_or_are_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    dsmem.pin(path)
    write(path, 2)
    assert only().sources == (SourceState(str(path), "changed", partial=False),)
    path.unlink()
    assert only().sources == (SourceState(str(path), "gone", partial=False),)
    path.symlink_to(path)
    assert only().sources == (SourceState(str(path), "unknown", partial=False),)


def test_a_source_whose_directory_became_a_file_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    dsmem.pin(write(directory / "train.h5"))
    shutil.rmtree(directory)
    directory.touch()
    assert only().sources[0].state == "gone"


def test_every_generation_of_one_file_with_its_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    old = dsmem.pin(path)
    write(path, 2)
    new = dsmem.pin(path, algo="md5")
    dsmem.pin(write(tmp_path / "other.h5", 3))
    found = {entry.name: entry for entry in list_objects(h5=str(path)).entries}
    assert {name: entry.sources[0].state for name, entry in found.items()} == {old.name: "changed", new.name: "same"}
    assert found[new.name].digest == f"md5:{new.digest}"
    assert found[old.name].digest == f"xxh3-tree:{old.digest}"
    assert [(one.path, one.shape, one.dtype, one.size_bytes) for one in found[new.name].datasets] == [
        ("x", (ITEMS,), "float64", 8 * ITEMS),
        ("y", (10,), "uint8", 10),
    ]
    path.unlink()
    assert {entry.name for entry in list_objects(h5=str(path)).entries} == {old.name, new.name}


def test_a_file_is_found_by_any_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.h5")
    name = dsmem.pin(path).name
    (tmp_path / "link.h5").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for way in ("train.h5", "./link.h5", str(path)):
        assert [entry.name for entry in list_objects(h5=way).entries] == [name]
    assert list_objects(h5=str(write(tmp_path / "other.h5"))).entries == ()


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    whole, part = dsmem.pin(path).name, dsmem.pin(path, only=["y"]).name
    found = {entry.name: entry for entry in list_objects(h5=str(path)).entries}
    assert [found[name].sources[0].partial for name in (whole, part)] == [False, True]
    assert [one.path for one in found[part].datasets] == ["y"]


def test_two_files_of_one_content_are_one_object(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.h5"), tmp_path / "two.h5"
    dsmem.pin(one)
    shutil.copy(one, two)
    dsmem.pin(two, algo="md5")
    assert [(source.path, source.state) for source in only().sources] == [(str(one), "same"), (str(two), "same")]
    assert list_objects(h5=str(two)).entries[0].digest.startswith("md5:")
    assert list_objects(h5=str(one)).entries[0].digest.startswith("xxh3-tree:")
    write(two, 2)
    assert [source.state for source in only().sources] == ["same", "changed"]


def test_a_given_name_is_no_source(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5")
    dsmem.pin(path, name="best")
    assert only().sources == (SourceState(str(path), "same", partial=False),)
    os.utime(path, (1, 1))
    assert only().sources[0].state == "changed"
    dsmem.pin(path)
    assert only().sources[0].state == "same", "whatever the name remembers"


def test_the_object_speaks_where_its_ref_is_lost(tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5")
    dsmem.pin(path)
    for ref in (store_root / "refs").iterdir():
        ref.unlink()
    assert only().sources == (SourceState(str(path), "same", partial=False),)
    assert only().digest.startswith("xxh3-tree:")


def test_holders_come_and_go(tmp_path: Path) -> None:
    path, other = write(tmp_path / "train.h5"), write(tmp_path / "val.h5", 2)
    name = dsmem.pin(path).name
    dsmem.pin(other)

    def holders() -> dict[str, list[int]]:
        return {entry.name: [one.pid for one in entry.holders or ()] for entry in list_objects().entries}

    with reader(path) as one, reader(name) as two:
        assert sorted(holders()[name]) == sorted([one.pid, two.pid])
        assert [held for found, held in holders().items() if found != name] == [[]]
        (entry,) = list_objects(h5=str(path)).entries
        assert entry.holders is not None and "python" in entry.holders[0].command
    assert holders()[name] == []
    with reader(path, forked=True) as child:
        assert holders()[name] == [child.pid]
    held = dsmem.attach(path)["x"][()]
    assert holders()[name] == [os.getpid()]
    del held
    assert holders()[name] == []


def test_holders_that_cannot_be_seen_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = dsmem.pin(write(tmp_path / "1.h5")).name, dsmem.pin(write(tmp_path / "2.h5", 2)).name
    seen = Holder(7, "python")

    def holders(files: set[tuple[int, int]]) -> Holders:
        assert len(files) == 2, "one scan for all objects"
        first = min(files, key=lambda file: file[1])
        return Holders({file: (seen,) if file == first else () for file in files}, (7,), complete=False)

    monkeypatch.setattr(proc, "holders", holders)
    assert {entry.name: entry.holders for entry in list_objects().entries} == {one: (seen,), two: None}


def test_one_scan_of_proc_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        dsmem.pin(write(tmp_path / f"{i}.h5", i))
    calls = []

    def holders(files: set[tuple[int, int]]) -> Holders:
        calls.append(len(files))
        return Holders(dict.fromkeys(files, ()))

    monkeypatch.setattr(proc, "holders", holders)
    list_objects()
    assert calls == [3]


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_objects(length: int, tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5")
    pinned = dsmem.pin(path)
    where = store_root / "objects" / pinned.name
    where.chmod(0o600)
    os.truncate(where, length % pinned.size_bytes)
    entry = only()
    assert entry.damaged
    assert entry.sources[0].path == str(path), "its ref still knows"
    assert entry.digest == f"xxh3-tree:{pinned.digest}"
    (entry,) = list_objects(h5=str(path)).entries
    assert entry.damaged and entry.datasets == ()


def test_an_object_whose_datasets_make_no_sense(tmp_path: Path, store_root: Path) -> None:
    path = write(tmp_path / "train.h5")
    where = store_root / "objects" / dsmem.pin(path).name
    where.chmod(0o600)
    data = where.read_bytes()
    assert data.count(b'"F64"') == 1
    where.write_bytes(data.replace(b'"F64"', b'"F65"'))
    assert only().damaged is None
    (entry,) = list_objects(h5=str(path)).entries
    assert entry.damaged and "'x'" in entry.damaged


def test_foreign_things_in_the_store_are_listed_with_the_reason(tmp_path: Path, store_root: Path) -> None:
    good = dsmem.pin(write(tmp_path / "train.h5")).name
    objects = store_root / "objects"
    name = "{}-0123456789abcdef".format
    (objects / name("garbage")).write_bytes(os.urandom(5000))
    (objects / name("foreign")).write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (objects / name("directory")).mkdir()
    (objects / name("link")).symlink_to(objects / good)
    os.mkfifo(objects / name("fifo"))
    (objects / "notes.txt").write_text("x")
    found = {entry.name: entry for entry in list_objects().entries}
    assert found.pop(good).damaged is None
    assert sorted(found) == sorted([*map(name, ("garbage", "foreign", "directory", "link", "fifo")), "notes.txt"])
    assert all(entry.damaged and entry.sources == () and entry.digest == "" for entry in found.values())
    assert found[name("garbage")].size_bytes == 8192, "what it takes, in pages"


def test_a_root_that_is_not_ours_alone_is_refused(tmp_path: Path, store_root: Path) -> None:
    store_root.symlink_to(tmp_path)
    with pytest.raises(UnsafeRoot, match="symlink"):
        list_objects()


def test_leftovers_of_an_older_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hexdigest = "0123456789abcdef" * 2
    (tmp_path / f"glint_{hexdigest}_images").write_bytes(bytes(7))
    (tmp_path / f"glint_{hexdigest}_group_x").write_bytes(bytes(9))
    for near in (
        f"glint_{hexdigest}",
        f"glint_{hexdigest}_",
        f"glint_{hexdigest[1:]}_x",
        "psm_0123",
        f"a{hexdigest}_x",
    ):
        (tmp_path / near).touch()
    monkeypatch.setattr(listing, "SHARED_MEMORY", str(tmp_path))
    assert list_objects().leftovers == ()
    assert list_objects(everything=True).leftovers == (
        Leftover(f"{tmp_path}/glint_{hexdigest}_group_x", 9),
        Leftover(f"{tmp_path}/glint_{hexdigest}_images", 7),
    )
    monkeypatch.setattr(listing, "SHARED_MEMORY", str(tmp_path / "missing"))
    assert list_objects(everything=True).leftovers == ()


def test_looking_imports_nothing_heavy(tmp_path: Path) -> None:
    dsmem.pin(write(tmp_path / "train.h5"))
    code = (
        "import sys; from dsmem.shm import cleaning, listing; print(len(listing.list_objects().entries));"
        "cleaning.plan(); print(*{'numpy', 'h5py', 'torch', 'rich', 'typer', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", ""]
