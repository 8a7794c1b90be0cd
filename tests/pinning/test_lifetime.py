"""How long the memory of an object lives: as long as anyone reads it, and not a moment longer."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import Child, ChildDied, call, started
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import InTmpfs, unnamed_bytes, used_bytes

import dsmem
from dsmem.store import objects
from dsmem.store.root import make_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return settle(write_sample(tmp_path / "data.h5", MIB))


@pytest.fixture
def pinned(path: Path, store_root: Path) -> str:
    return dsmem.pin(path).name


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Memory comes back by reference counts alone."""
    import torch  # noqa: F401 - importing it leaves circles, which may hold the frame that imported it

    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_held(name: str) -> bool:
    """Whether anyone holds a lease."""
    return writer_is_kept_out(make_store().object_path(name))


def writer_is_kept_out(path: str | Path) -> bool:
    """Whether anyone has a shared lock: an exclusive one, as a writer of HDF5 wants, can't be had."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def reading(function: Callable[[], Any]) -> Iterator[Child[None]]:
    """A child that has what the function returns, and keeps it for a minute."""
    ready, tell = os.pipe()

    def hold() -> None:
        held = function()
        os.write(tell, b"+")
        time.sleep(60)
        del held

    with started(hold) as child:
        os.close(tell)
        assert os.read(ready, 1) == b"+"
        os.close(ready)
        yield child


def ways_to_hold(file: dsmem.ArrayFile) -> dict[str, Callable[[], Any]]:
    return {
        "dataset": lambda: file["images"],
        "group": lambda: file["group"],
        "array": lambda: file["images"][()],
        "slice of a slice": lambda: file["images"][3:9][::2, 5],
        "asarray": lambda: np.asarray(file["group/heatmaps"]),
        "memoryview": lambda: memoryview(file["images"][0]),
        "iterator": lambda: iter(file["images"]),
    }


def test_a_killed_reader_frees_its_lease(path: Path, pinned: str) -> None:
    with reading(partial(dsmem.attach, path)) as reader:
        assert is_held(pinned)
        with pytest.raises(dsmem.InUse) as caught:
            objects.remove(make_store(), pinned)
        assert caught.value.names == (pinned,)
        reader.kill()
        assert not is_held(pinned)
    assert objects.remove(make_store(), pinned)


def test_a_forked_child_keeps_the_lease_after_its_parent(path: Path, pinned: str) -> None:
    ready, tell = os.pipe()

    def parent() -> int:
        file = dsmem.attach(path)
        images, itself = file["images"], os.getpid()
        pid = os.fork()
        if pid:
            return pid
        while os.getppid() == itself:
            time.sleep(0.001)
        os.write(tell, images[7].tobytes()[:8])
        time.sleep(60)
        os._exit(0)

    grandchild = call(parent)
    try:
        with h5py.File(path, "r") as plain:
            assert os.read(ready, 8) == plain["images"][7].tobytes()[:8]
        assert is_held(pinned)
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(ready)
        os.close(tell)
    deadline = time.monotonic() + 5
    while is_held(pinned) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not is_held(pinned)


def test_closing_in_a_child_leaves_the_parent_its_lease(path: Path, pinned: str) -> None:
    file = dsmem.attach(path)
    call(file.close)
    assert is_held(pinned)
    call(lambda: file["images"].file.close())
    assert is_held(pinned)
    assert_reads_as_h5py(file, path)
    file.close()
    assert not is_held(pinned)


def test_removed_while_mapped(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    path = settle(write_sample(tmp_path / "data.h5", MIB))

    def body(point: Path) -> None:
        name = dsmem.pin(path).name
        with reading(partial(dsmem.attach, path)) as reader:
            file = dsmem.attach(path)
            tensor = file.torch("images")
            assert objects.remove(make_store(), name, force=True)
            with pytest.raises(dsmem.NotPinned):
                dsmem.attach(path)
            assert used_bytes(point) > MIB
            assert_reads_as_h5py(file, path)
            assert np.array_equal(tensor.numpy(), file["images"][()])
            assert np.array_equal(file.torch("group/heatmaps").numpy(), file["group/heatmaps"][()])
            file.close()
            del file, tensor
            assert used_bytes(point) > MIB, "the reader has it still"
            reader.kill()
            assert unnamed_bytes(point) == 0

    tiny_tmpfs(body)


def test_removed_and_pinned_anew_while_mapped(path: Path, pinned: str) -> None:
    old = dsmem.attach(path)
    assert objects.remove(make_store(), pinned, force=True)
    again = dsmem.pin(path)
    assert (again.name, again.already) == (pinned, False)
    assert not is_held(pinned)
    tensor = old.torch("images")
    assert not is_held(pinned), "the tensor is of the old object"
    assert np.array_equal(tensor.numpy(), old["images"][()])
    assert_reads_as_h5py(old, path)


@pytest.mark.parametrize("what", ways_to_hold(None))  # type: ignore[arg-type]  # only the names
@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_what_was_taken_outlives_the_file(what: str, how: str, path: Path, pinned: str, no_collector: None) -> None:
    file = dsmem.attach(path)
    taken = ways_to_hold(file)[what]()
    is_array = what in ("array", "slice of a slice", "asarray", "memoryview")
    before = bytes(memoryview(taken)) if is_array and what != "slice of a slice" else b""
    if how == "closed":
        file.close()
        assert is_held(pinned) == is_array
    del file
    assert is_held(pinned) == (is_array or how == "forgotten")
    if before:
        assert bytes(memoryview(taken)) == before
    del taken
    assert not is_held(pinned)


def test_a_file_let_go_frees_its_lease_at_once(path: Path, pinned: str, no_collector: None) -> None:
    """No reference cycle: the collector is off."""
    file = dsmem.attach(path)
    assert_reads_as_h5py(file, path)
    for _, node in file.items():
        assert node.name
    file.visititems(lambda name, node: None)
    assert file["group"].parent == file
    assert list(file["texts"].asstr()[:2])
    assert repr(file) and repr(file["images"]) and file["images"].attrs
    del node
    assert is_held(pinned)
    del file
    assert not is_held(pinned)


def test_a_tensor_is_a_lease(path: Path, pinned: str, no_collector: None) -> None:
    with dsmem.attach(path) as file:
        expected = file["images"][()].copy()
        tensor = file.torch("images")
    del file
    assert is_held(pinned)
    tensor[0] = 0
    with dsmem.attach(path) as file:
        assert np.array_equal(file["images"][()], expected), "writing to a tensor never reaches the object"
    del file
    del tensor
    assert not is_held(pinned)


def test_arrays_are_read_only(path: Path, pinned: str) -> None:
    with dsmem.attach(path) as file:
        images = file["images"][()]
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        images.flags.writeable = True


def test_a_remover_makes_readers_wait_not_fail(path: Path, pinned: str) -> None:
    """Someone looks whether an object is free, and takes its lock for an instant."""

    def look() -> int:
        lock = os.open(make_store().object_path(pinned), os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def attach() -> bool:
        with dsmem.attach(path) as file:
            return file.source == "pinned"

    with reading(look) as remover, started(attach) as reader:
        time.sleep(0.05)
        remover.kill()
        assert reader.result()


def test_an_error_in_hand_holds_no_lease(path: Path, pinned: str) -> None:
    """An interactive session keeps the last traceback: the object must be removable all the same."""
    real = Path(make_store().object_path(pinned))
    data = real.read_bytes()
    real.unlink()
    real.write_bytes(data[:-4096])
    with pytest.raises(dsmem.DamagedObject) as caught:
        dsmem.attach(path)
    assert not is_held(pinned)
    assert caught.value.name == pinned


def read_all(file: dsmem.ArrayFile) -> tuple[str, int, bytes]:
    return file.source, int(file["images"][()].sum()), file["texts"][3]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("source", ["pinned", "mapped", "h5py"])
def test_workers_read_a_pickled_file(method: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    write_sample(path, MIB)
    if source == "mapped":
        with h5py.File(path, "w") as plain:
            plain["images"] = np.arange(1 << 16)
            plain["texts"] = np.array([b"a", b"b", b"c", b"d"])
    settle(path)
    if source == "pinned":
        dsmem.pin(path)
    with dsmem.File(path) as file:
        expected = read_all(file)
        assert expected[0] == source
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(read_all, [file] * 3) == [expected] * 3
            assert pool.apply(len, (file["images"],)) == len(file["images"])


def test_pickled_and_removed_it_is_the_file_itself(path: Path, pinned: str) -> None:
    with dsmem.attach(path) as file:
        by_path = pickle.dumps(file)
        expected = read_all(file)
    with dsmem.attach(pinned) as file:
        by_name = pickle.dumps(file)
    with pickle.loads(by_name) as file:
        assert read_all(file) == expected
    objects.remove(make_store(), pinned)
    with pickle.loads(by_path) as file:
        assert file.source == "h5py"
        assert read_all(file)[1:] == expected[1:]
    with pytest.raises(dsmem.NotPinned):
        pickle.loads(by_name)


@pytest.fixture
def chunked(tmp_path: Path) -> Path:
    path = tmp_path / "chunked.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(10_000).reshape(100, 100), chunks=(10, 100), compression="gzip")
    return settle(path)


@pytest.mark.parametrize("ending", ["_exit", "exit"])
def test_a_forked_worker_reopens_what_h5py_reads(ending: str, chunked: Path) -> None:
    """As a DataLoader's worker does; its end must not unlock the file for the parent."""
    file = dsmem.File(chunked)
    rows = file["x"]
    assert (file.source, rows.source) == ("h5py", "h5py")
    expected = rows[()].copy()

    def work() -> bool:
        return np.array_equal(rows[()], expected) and np.array_equal(file["x"][10:20], expected[10:20])

    for _ in range(2):
        assert call(work)
        if ending == "exit":
            with started(lambda: _exit_as_programs_do(work())) as child, pytest.raises(ChildDied) as ended:
                child.result()
            assert os.waitstatus_to_exitcode(ended.value.status) == 0
        assert np.array_equal(rows[()], expected)
        assert writer_is_kept_out(chunked)
    file.close()
    assert not writer_is_kept_out(chunked)


def _exit_as_programs_do(worked: bool) -> None:
    """End with the handlers of HDF5, which closes what is open, but without pytest's."""
    ctypes.CDLL(None).exit(0 if worked else 1)


def test_closing_in_a_worker_leaves_the_parent_its_file(chunked: Path) -> None:
    file = dsmem.File(chunked)

    def work() -> int:
        found = int(file["x"][5, 5])
        file.close()
        return found

    call(file.close)
    assert writer_is_kept_out(chunked)
    assert call(work) == 505
    assert file["x"][5, 5] == 505
    assert writer_is_kept_out(chunked)
    file.close()
    assert not writer_is_kept_out(chunked)


def test_a_mapped_file_keeps_writers_out_while_an_array_lives(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as plain:
        plain["x"] = np.arange(1000)
    settle(path)
    file = dsmem.File(path)
    assert file.source == "mapped"
    x = file["x"][:10]
    call(file.close)
    assert writer_is_kept_out(path)
    file.close()
    assert writer_is_kept_out(path)
    assert x[3] == 3
    del x
    gc.collect()
    assert not writer_is_kept_out(path)
