"""The file that is pinned: open for writing, changed, replaced or gone, before, while and after it is read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import call, started
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import refuse

import dsmem
from dsmem import files, proc
from dsmem.arrays import header
from dsmem.hdf5 import opening, reading
from dsmem.pinning import processes
from dsmem.store import objects
from dsmem.store.root import make_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return settle(write_sample(tmp_path / "data.h5", 4 * MIB))


@contextmanager
def written_elsewhere(path: Path) -> Iterator[None]:
    """Another process has the file open for writing, as h5py does it."""
    ready, tell = os.pipe()

    def write() -> None:
        with h5py.File(path, "r+"):
            os.write(tell, b"+")
            time.sleep(60)

    with started(write):
        assert os.read(ready, 1) == b"+"
        yield
    os.close(ready)
    os.close(tell)


def assert_nothing_published(root: Path) -> None:
    assert os.listdir(root / "objects") == []
    assert os.listdir(root / "refs") == []
    assert refuse(root) == []


@pytest.mark.parametrize("untrusted", [False, True])
def test_marked_as_open_by_a_writer_that_was_killed(tmp_path: Path, store_root: Path, untrusted: bool) -> None:
    path = tmp_path / "x.h5"
    script = (
        "import h5py, os, sys; file = h5py.File(sys.argv[1], 'w', libver='latest'); "
        "file['x'] = [1]; file.swmr_mode = True; file.flush(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    with pytest.raises(dsmem.SourceBusy, match="marked as open for writing") as caught:
        dsmem.pin(path, untrusted=untrusted)
    assert (caught.value.path, caught.value.is_marked) == (str(path), True)
    assert_nothing_published(store_root)


def test_open_for_writing_elsewhere(path: Path, store_root: Path) -> None:
    with written_elsewhere(path):
        with pytest.raises(dsmem.SourceBusy) as caught:
            dsmem.pin(path)
        assert caught.value.path == str(path)
        assert_nothing_published(store_root)
        for mode in ("never", "auto"):
            with pytest.raises(dsmem.SourceBusy):
                dsmem.File(path, pin=mode)
    dsmem.pin(settle(path))


def test_pinned_before_it_was_opened_for_writing(path: Path) -> None:
    """Opening alone may mark the file: by its path it counts as changed then; by its name the object is what it was."""
    name = dsmem.pin(path).name
    with h5py.File(path, "r") as plain:
        expected = plain["images"][()]
    with written_elsewhere(path), dsmem.attach(name) as file:
        assert np.array_equal(file["images"][()], expected)


def test_a_reader_is_no_obstacle(path: Path) -> None:
    with h5py.File(path, "r"):
        dsmem.pin(path)


def test_pinning_keeps_writers_out(path: Path) -> None:
    """While it is read nobody who honours HDF5's locks can begin to write."""

    def write() -> int:
        try:
            h5py.File(path, "r+").close()
        except BlockingIOError:
            return 1
        return 0

    def write_meanwhile(done_bytes: int, total_bytes: int) -> None:
        refused.append(call(write_as_another))

    def write_as_another() -> int:
        import fcntl

        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1
        return 0

    refused: list[int] = []
    dsmem.pin(path, progress=write_meanwhile)
    assert refused
    assert all(refused)
    assert call(write) == 0


CHANGES: dict[str, Callable[[Path], None]] = {
    "touched": lambda path: os.utime(path),
    "rewritten": lambda path: _overwrite(path, b"x" * 100),
    "grown": lambda path: _append(path),
    "shortened": lambda path: os.truncate(path, os.path.getsize(path) // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "replaced": lambda path: _replace(path),
    "deleted": lambda path: os.unlink(path),
    "a directory": lambda path: _make_directory(path),
    "mtime restored": lambda path: _overwrite_in_secret(path),
    "made a link": lambda path: _make_link(path),
    "permissions": lambda path: os.chmod(path, 0o600),
}


def _overwrite(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, os.path.getsize(path) - len(data))
    os.close(fd)


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _overwrite_in_secret(path: Path) -> None:
    before = path.stat()
    _overwrite(path, b"x" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("algo", ["xxh3-tree", "md5"])
def test_changed_while_it_is_read(how: str, algo: str, path: Path, store_root: Path) -> None:
    """From a progress callback, in the middle; nothing is published, whatever had been read."""
    changed: list[str] = []

    def change(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2 and not changed:
            changed.append(how)
            CHANGES[how](path)

    with pytest.raises(dsmem.SourceChanged, match=f"{path} changed while it was read; nothing was published"):
        dsmem.pin(path, algo=algo, progress=change)
    assert changed
    assert_nothing_published(store_root)
    assert not (store_root.parent / "cache").exists()


@pytest.mark.parametrize("how", ["shortened", "emptied", "replaced", "deleted"])
@pytest.mark.parametrize("untrusted", [False, True], ids=["here", "in a child"])
def test_changed_before_hdf5_opens_it(
    how: str, untrusted: bool, path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = opening.check_signature

    def change(fd: int, name: str) -> None:
        looked_at(fd, name)
        CHANGES[how](path)

    monkeypatch.setattr(opening, "check_signature", change)
    with pytest.raises(dsmem.SourceChanged, match=f"{path} changed while it was read"):
        dsmem.pin(path, untrusted=untrusted)
    assert_nothing_published(store_root)


@pytest.mark.parametrize("how", ["shortened", "emptied", "replaced", "deleted"])
def test_changed_while_processes_read_it(
    how: str, tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before they open it, and while they read what only HDF5 decodes."""
    monkeypatch.setattr(processes, "WORTH_BYTES", 1)
    monkeypatch.setattr(proc, "usable_cpus", lambda: 3)
    path = tmp_path / "scaled.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(3 << 20), chunks=(1 << 17,), scaleoffset=0)
    settle(path)
    read_block = reading.read_block

    def change(*what: Any) -> memoryview:
        if os.path.exists(path):
            CHANGES[how](path)
        time.sleep(0.3)  # for others to start, and find what has become of it
        return read_block(*what)

    monkeypatch.setattr(reading, "read_block", change)
    with pytest.raises(dsmem.SourceChanged, match=f"{path} changed while it was read"):
        dsmem.pin(path)
    assert_nothing_published(store_root)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", CHANGES)
def test_changed_after_it_was_pinned(how: str, path: Path) -> None:
    """At once, in the same tick of the clock that stamps files, and of the same size."""
    dsmem.pin(path)
    CHANGES[how](path)
    if how == "made a link":
        with pytest.raises(dsmem.NotPinned):
            dsmem.attach(path)
        return
    kind: type[Exception] = dsmem.NotPinned if how != "deleted" else FileNotFoundError
    with pytest.raises(kind):
        dsmem.attach(path)
    if how in ("touched", "permissions", "replaced"):
        again = dsmem.pin(path)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        assert len(list(objects.scan(make_store()))) == 1, "the same bytes: one object"
        assert not again.already


def test_edited_in_the_very_tick_in_which_it_was_made(tmp_path: Path) -> None:
    """Written, pinned, and rewritten with the same size as fast as can be: never the old data for the new file."""
    path = tmp_path / "data.h5"
    for round_ in range(6):
        with h5py.File(path, "w") as file:
            file["x"] = np.full(1000, 2 * round_)
        with h5py.File(path, "r") as file:
            offset = file["x"].id.get_offset()
        dsmem.pin(path)
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, np.full(1000, 2 * round_ + 1).tobytes(), offset)
        os.close(fd)
        with pytest.raises(dsmem.NotPinned, match="has changed since it was pinned"):
            dsmem.attach(path)
        with dsmem.File(path) as opened:
            assert opened.source == "mapped"
            assert opened["x"][0] == 2 * round_ + 1
        with dsmem.File(path, pin="auto") as opened:
            assert opened.source == "pinned"
            assert opened["x"][0] == 2 * round_ + 1


def test_an_identity_is_taken_when_the_timestamps_are_old(tmp_path: Path) -> None:
    """Many kernels stamp files with a clock that ticks every 10 ms: within one tick an edit would not show."""
    path = tmp_path / "fresh"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    identity = files.settled_identity(fd)
    os.close(fd)
    assert time.time_ns() - max(identity.mtime_ns, identity.ctime_ns) > 40_000_000


def test_a_changed_file_is_a_new_object_and_the_old_one_stays(path: Path) -> None:
    old = dsmem.attach(path) if dsmem.pin(path) else None
    assert old is not None
    before = old["images"][()].copy()
    write_sample(path, 4 * MIB, seed=1)
    new = dsmem.pin(settle(path))
    assert new.name != old.object_name
    assert np.array_equal(old["images"][()], before)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    assert len(list(objects.scan(make_store()))) == 2


def test_changed_back_it_finds_the_object_of_before(path: Path, store_root: Path) -> None:
    data = path.read_bytes()
    first = dsmem.pin(path).name
    write_sample(path, 4 * MIB, seed=1)
    second = dsmem.pin(settle(path)).name
    path.write_bytes(data)
    assert dsmem.pin(settle(path)).name == first != second
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_a_symlink_is_the_file_it_leads_to(path: Path) -> None:
    link = path.with_name("link.h5")
    link.symlink_to(path)
    dsmem.pin(link)
    for one in (path, link):
        with dsmem.attach(one) as file:
            assert_reads_as_h5py(file, path)
    other = settle(write_sample(path.with_name("other.h5"), seed=2))
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(link)


def test_without_unnamed_files_the_draft_is_hidden(
    path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_TMPFILE is not everywhere: the draft has a hidden name, locked, and is swept when its maker is killed."""
    real = os.open

    def refusing(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    seen: list[str] = []
    dsmem.pin(path, progress=lambda done, total: seen.extend(os.listdir(store_root / "objects")))
    assert {name.startswith(".draft-") for name in seen} == {True}
    assert refuse(store_root) == []
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    (found,) = (store_root / "objects").iterdir()
    assert found.stat().st_nlink == 1
    assert found.stat().st_mode & 0o777 == 0o400


def test_a_draft_swept_before_it_is_locked_is_made_anew(
    path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsmem.store.sweep import sweep

    real = os.open
    swept: list[str] = []

    def sweeping(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        fd = real(name, flags, *args, **kwargs)
        if ".draft-" in os.fspath(name) and flags & os.O_CREAT and not swept:
            swept.append(os.fspath(name))
            sweep(make_store())
        return fd

    monkeypatch.setattr(os, "open", sweeping)
    dsmem.pin(path)
    assert swept
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_error_in_the_middle_leaves_nothing(error: type[BaseException], path: Path, store_root: Path) -> None:
    def fail(done_bytes: int, total_bytes: int) -> None:
        raise error("enough")

    with pytest.raises(error):
        dsmem.pin(path, progress=fail)
    assert_nothing_published(store_root)
    dsmem.pin(path)


def test_more_attributes_than_a_header_holds(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "attributes.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = np.arange(3)
        for number in range(2):
            file.attrs[f"{number}"] = np.zeros(40_000_000, np.uint8)
    with pytest.raises(dsmem.Unsupported) as caught:
        dsmem.pin(path)
    (refusal,) = caught.value.refusals
    assert refusal.path == "/@1"
    left = "46,666,664 are left of the 100,000,000 for all"
    assert refusal.reason == f"an attribute with values of 53,333,336 bytes as JSON, where {left}"
    assert not list((store_root / "objects").iterdir())


def test_more_to_say_than_a_header_holds(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 50_000)
    path = tmp_path / "names.h5"
    with h5py.File(path, "w") as file:
        for number in range(300):
            file.create_group(f"{number:0200}")
    said = rf"{path}: names, shapes and attributes take 12\d,\d+ bytes; 50,000 is the most"
    with pytest.raises(dsmem.BadSource, match=said):
        dsmem.pin(path)
    assert not list((store_root / "objects").iterdir())
