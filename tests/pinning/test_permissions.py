"""Where the store lies and whose it is: anything that is not a directory of ours alone is refused, by name."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import children
import pytest
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import SHARED_MEMORY, InTmpfs

import dsmem
from dsmem import proc
from dsmem.store import root as roots
from dsmem.store.root import make_store

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
OTHER = 12345
T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return settle(write_sample(tmp_path / "data.h5"))


def assert_unsafe(path: Path, root: Path, says: str) -> None:
    """Pinning and attaching are refused; a script with `File` goes on without the store."""
    for refused in (lambda: dsmem.pin(path), lambda: dsmem.attach(path)):
        with pytest.raises(dsmem.UnsafeRoot, match=says) as caught:
            refused()
        assert caught.value.root == str(root)
    for mode in ("never", "auto"):
        with dsmem.File(path, pin=mode) as file:
            assert file.source == "h5py"
            assert_reads_as_h5py(file, path)


def test_a_store_is_closed_to_others(path: Path, store_root: Path) -> None:
    before = os.umask(0)
    try:
        name = dsmem.pin(path).name
    finally:
        os.umask(before)
    modes = {one: stat.S_IMODE((store_root / one).stat().st_mode) for one in ("", "objects", "refs", "locks")}
    assert modes == {"": 0o700, "objects": 0o700, "refs": 0o700, "locks": 0o700}
    assert stat.S_IMODE((store_root / "objects" / name).stat().st_mode) == 0o400
    assert {stat.S_IMODE(ref.stat().st_mode) for ref in (store_root / "refs").iterdir()} == {0o600}


def test_a_symlink_for_a_root(path: Path, store_root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    store_root.symlink_to(tmp_path / "elsewhere")
    assert_unsafe(path, store_root, "is a symlink")
    store_root.unlink()
    store_root.symlink_to(tmp_path / "nowhere")
    assert_unsafe(path, store_root, "is a symlink")
    assert not os.listdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_a_root_that_others_can_write(mode: int, path: Path, store_root: Path) -> None:
    store_root.mkdir()
    store_root.chmod(mode)
    assert_unsafe(path, store_root, "can be written by others")
    assert not os.listdir(store_root)


def test_a_file_for_a_root(path: Path, store_root: Path) -> None:
    store_root.write_bytes(b"mine")
    assert_unsafe(path, store_root, "is not a directory")
    assert store_root.read_bytes() == b"mine"
    os.unlink(store_root)
    os.mkfifo(store_root)
    assert_unsafe(path, store_root, "is not a directory")


def test_a_root_below_a_file(path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = path / "store"
    monkeypatch.setenv("DSMEM_ROOT", str(below))
    with pytest.raises(dsmem.UnsafeRoot, match="can't be made"):
        dsmem.pin(path)
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    with dsmem.File(path, pin="auto") as file:
        assert file.source == "h5py"


@AS_ROOT
def test_a_root_of_another_user(path: Path, store_root: Path) -> None:
    store_root.mkdir(mode=0o700)
    os.chown(store_root, OTHER, OTHER)
    assert_unsafe(path, store_root, f"belongs to uid {OTHER}, not to 0")


def as_other(function: Callable[[], None]) -> None:
    """Run as another user, who may enter the directory of this test's data."""

    def run() -> None:
        children.become(OTHER)
        function()

    children.call(run)


@pytest.fixture
def open_to_others(tmp_path: Path) -> Path:
    """A readable file in a directory that any user may enter, beside a cache of their own."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    path = settle(write_sample(tmp_path / "data.h5"))
    path.chmod(0o644)
    return path


@AS_ROOT
def test_another_user_can_not_use_my_store(open_to_others: Path, store_root: Path) -> None:
    name = dsmem.pin(open_to_others).name
    store_root.parent.chmod(0o711)

    def other() -> None:
        with pytest.raises(dsmem.UnsafeRoot, match=f"belongs to uid 0, not to {OTHER}"):
            dsmem.pin(open_to_others)
        with pytest.raises(dsmem.UnsafeRoot):
            dsmem.attach(name)
        with pytest.raises(PermissionError):
            os.listdir(store_root)
        with dsmem.File(open_to_others, pin="auto") as file:
            assert file.source == "h5py"
            assert f"belongs to uid 0, not to {OTHER}" in file.why

    as_other(other)


@AS_ROOT
def test_a_root_that_can_not_be_reached_or_made(open_to_others: Path, store_root: Path) -> None:
    store_root.parent.chmod(0o711)

    def other() -> None:
        for root in (store_root, store_root.parent / "mine" / "store"):
            os.environ["DSMEM_ROOT"] = str(root)
            for refused in (lambda: dsmem.pin(open_to_others), lambda: attach_or_pin(open_to_others)):
                with pytest.raises(dsmem.UnsafeRoot, match=r"can't be (made|reached): Permission denied"):
                    refused()
            with dsmem.File(open_to_others, pin="auto") as file:
                assert file.source == "h5py"
                assert_reads_as_h5py(file, open_to_others)

    (store_root.parent / "mine").mkdir(mode=0o700)
    as_other(other)
    (store_root.parent / "mine").rmdir()


def attach_or_pin(path: Path) -> None:
    try:
        dsmem.attach(path)
    except dsmem.NotPinned:
        dsmem.pin(path)


@AS_ROOT
def test_an_object_of_another_user_in_my_store(path: Path, store_root: Path) -> None:
    name = dsmem.pin(path).name
    os.chown(store_root / "objects" / name, OTHER, OTHER)
    for target in (path, name):
        with pytest.raises(dsmem.DamagedObject, match="not a regular file of uid 0"):
            dsmem.attach(target)
    with dsmem.File(path) as file:
        assert file.source == "h5py"


@AS_ROOT
def test_another_user_has_a_store_of_their_own(open_to_others: Path, tiny_tmpfs: InTmpfs) -> None:
    def body(point: Path) -> None:
        point.chmod(0o1777)
        dsmem.pin(open_to_others)

        def other() -> None:
            os.environ["DSMEM_ROOT"] = str(point / "other")
            os.environ["XDG_CACHE_HOME"] = str(point / "cache")
            dsmem.pin(open_to_others)
            with dsmem.attach(open_to_others) as file:
                assert_reads_as_h5py(file, open_to_others)
            assert (point / "other").stat().st_uid == OTHER

        as_other(other)

    tiny_tmpfs(body)


def test_a_relative_root_is_of_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DSMEM_ROOT", "./a/../store")
    dsmem.pin(path)
    with dsmem.attach(path) as file:
        monkeypatch.chdir("/")
        assert_reads_as_h5py(file, path)
        assert np_equal(file, path)
    assert (tmp_path / "here/store/objects").is_dir()


def np_equal(file: dsmem.ArrayFile, path: Path) -> bool:
    """The private map of a tensor is opened anew: by a path that still leads there."""
    import h5py
    import torch

    with h5py.File(path, "r") as plain:
        return torch.equal(file.torch("images"), torch.from_numpy(plain["images"][()]))


def test_parents_are_made(path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = store_root / "not" / "yet" / "there"
    monkeypatch.setenv("DSMEM_ROOT", str(deep))
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(path)
    assert not store_root.exists(), "looking makes nothing"
    dsmem.pin(path)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
    monkeypatch.setenv("DSMEM_ROOT", str(store_root))
    import shutil

    shutil.rmtree(store_root)


@pytest.mark.parametrize("fstype", ["nfs4", "cifs", "9p", "fuse.sshfs", "lustre"])
def test_a_network_file_system_is_refused(
    fstype: str, path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proc.mount_of

    def mount_of(where: str | os.PathLike[str]) -> proc.Mount:
        if os.fspath(where).startswith(str(store_root)):
            return proc.Mount(str(store_root), fstype, "server:/export", {})
        return real(where)

    monkeypatch.setattr(proc, "mount_of", mount_of)
    with pytest.raises(dsmem.UnsafeRoot, match=f"is on {fstype}, where locks do not hold"):
        dsmem.pin(path)
    with dsmem.File(path, pin="auto") as file:
        assert file.source == "h5py"
        assert fstype in file.why


@pytest.mark.parametrize("state", ["missing", "read-only", "a file"])
def test_without_shared_memory_the_store_lies_on_a_disk(
    state: str, path: Path, tmp_path: Path, tiny_tmpfs: InTmpfs, caplog: pytest.LogCaptureFixture
) -> None:
    def body(point: Path) -> list[str]:
        del os.environ["DSMEM_ROOT"]
        cover(state, point)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dsmem"):
            pinned = dsmem.pin(path)
            with dsmem.attach(path) as file:
                assert file.source == "pinned"
                assert_reads_as_h5py(file, path)
            with dsmem.attach(pinned.name) as file:
                assert_reads_as_h5py(file, path)
        assert (tmp_path / "cache/dsmem/store/objects" / pinned.name).is_file()
        return [record.getMessage() for record in caplog.records if record.name.startswith("dsmem")]

    roots._warn_once.cache_clear()
    warnings = tiny_tmpfs(body)
    fallback = tmp_path / "cache/dsmem/store"
    assert len(warnings) == 1
    assert warnings[0].endswith(f" is missing or read-only: the store lies in {fallback}, on a disk")
    with dsmem.File(path, pin="auto") as file:
        assert file.source == "pinned"


def cover(state: str, point: Path) -> None:
    """Make shared memory unusable, in the mount namespace of this process."""
    if state == "missing":
        roots.SHARED_MEMORY = "/dev/none"
    elif state == "read-only":
        children.mount_tmpfs(SHARED_MEMORY, "size=1m", read_only=True)
    else:
        (point / "file").touch()
        roots.SHARED_MEMORY = str(point / "file")


def test_the_default_root_is_mine_in_shared_memory(path: Path, tiny_tmpfs: InTmpfs) -> None:
    def body(point: Path) -> None:
        del os.environ["DSMEM_ROOT"]
        children.mount_tmpfs(SHARED_MEMORY, "size=4m,mode=1777")
        name = dsmem.pin(path).name
        assert os.path.isfile(f"{SHARED_MEMORY}/dsmem-{os.geteuid()}/objects/{name}")
        assert os.listdir(SHARED_MEMORY) == [f"dsmem-{os.geteuid()}"]

    tiny_tmpfs(body)


@AS_ROOT
def test_a_squatter_in_shared_memory_is_refused(path: Path, tiny_tmpfs: InTmpfs) -> None:
    def body(point: Path) -> None:
        del os.environ["DSMEM_ROOT"]
        children.mount_tmpfs(SHARED_MEMORY, "size=4m,mode=1777")
        root = Path(f"{SHARED_MEMORY}/dsmem-0")
        root.mkdir(mode=0o777)
        os.chown(root, OTHER, OTHER)
        assert_unsafe(path, root, "belongs to uid")

    tiny_tmpfs(body)


def test_a_store_that_became_unsafe_is_not_read(path: Path, store_root: Path) -> None:
    dsmem.pin(path)
    store_root.chmod(0o777)
    assert_unsafe(path, store_root, "can be written by others")
    store_root.chmod(0o700)
    with dsmem.attach(path) as file:
        assert file.source == "pinned"


def test_a_store_on_a_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tmpfs, no huge pages: the same promises."""
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "store"))
    big = settle(write_sample(tmp_path / "big.h5", 3 * MIB))
    for one in (path, big):
        dsmem.pin(one, verify=True)
        with dsmem.attach(one) as file:
            assert_reads_as_h5py(file, one)
    assert os.listdir(make_store().locks) == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["pin"], 1),
        (["pin", "--untrusted"], 1),
        (["pin", "--explain"], 1),
        (["pin", "--explain", "--untrusted"], 1),
        (["shm", "ls"], 1),
        (["shm", "doctor"], 1),
    ],
)
def test_without_proc_every_command_is_one_line(command: list[str], code: int, path: Path) -> None:
    typed = [sys.executable, "-m", "dsmem", *command, *([str(path)] if command[0] == "pin" else [])]
    done = without_proc(lambda: subprocess.run(typed, capture_output=True, text=True, check=False, timeout=50))
    assert done.returncode == code and not done.stdout
    error, hint = done.stderr.splitlines()
    assert error.endswith("/proc is not mounted") and "mount -t proc" in hint


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_without_proc_no_file_is_opened(mode: Literal["never", "auto"], path: Path) -> None:
    def work() -> None:
        with pytest.raises(dsmem.NoProc, match="/proc is not mounted"):
            dsmem.File(path, pin=mode)
        with pytest.raises(dsmem.NoProc, match="/proc is not mounted"):
            dsmem.pin(path)

    without_proc(work)


def test_a_store_that_can_not_be_looked_at_is_no_reason_to_try_for_ever(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount_of(where: str) -> proc.Mount:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere")

    monkeypatch.setattr(proc, "mount_of", mount_of)
    with pytest.raises(FileNotFoundError, match="/elsewhere"):
        make_store()


def without_proc(work: Callable[[], T]) -> T:
    """Done by a process that has an empty directory there."""

    def there() -> T:
        children.enter_mount_namespace()
        children.mount_tmpfs("/proc", "")
        return work()

    try:
        return children.call(there)
    except children.NamespacesRefused as exc:
        pytest.skip(f"needs a mount namespace of its own: {exc}")
