"""Malformed checkpoints: a clear error or what torch's own reader gives; with checksums never wrong bytes."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from checkpoints import Evil, Tensors, flip, load, noise, same, save, stock
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from dsmem import checkpoint
from dsmem.checkpoint import ParallelFileSystemReader, unpickling
from dsmem.errors import BadSource, CheckpointReadError, UntrustedPickle

FILE = "__0_0.distcp"


def state() -> Tensors:
    return {"a": noise((4, 4), seed=1), "b": noise((100, 900), seed=2), "c": noise((4, 4), seed=3)}


def zeros() -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in state().items()}


def failure(state: dict[str, Any], reader: Any) -> CheckpointReadError:
    with pytest.raises(CheckpointException) as caught:
        load(state, reader)
    error = caught.value.failures[0][0]
    assert isinstance(error, CheckpointReadError), error
    return error


def places(path: Path) -> dict[str, Any]:
    metadata = FileSystemReader(path).read_metadata()
    return {index.fqn: info for index, info in metadata.storage_data.items()}


def truncated(path: Path) -> None:
    os.truncate(path / FILE, os.path.getsize(path / FILE) - 700)


def emptied(path: Path) -> None:
    os.truncate(path / FILE, 0)


def missing(path: Path) -> None:
    (path / FILE).unlink()


def a_directory(path: Path) -> None:
    missing(path)
    (path / FILE).mkdir()


def a_pipe(path: Path) -> None:
    missing(path)
    os.mkfifo(path / FILE)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("harm", [truncated, emptied, missing, a_directory, a_pipe])
def test_files_that_are_not_whole(tmp_path: Path, harm: Callable[[Path], None], workers: int) -> None:
    path = save(state(), tmp_path / "c")
    harm(path)
    into = zeros()
    error = failure(into, ParallelFileSystemReader(path, workers=workers))
    failed = {name for one in error.failures for name in one.tensors}
    assert failed == {"c"} if harm is truncated else failed == {"a", "b", "c"}
    assert set(error.complete) == {"a", "b", "c"} - failed
    assert all(same(into[name], state()[name]) for name in error.complete)
    for one in error.failures:
        assert one.file == FILE and one.offset == places(path)[one.tensors[0]].offset
        assert "Traceback" in one.traceback and one.kind in one.traceback
    words: dict[object, str] = {
        truncated: "truncated",
        emptied: "truncated",
        missing: "no such file",
        a_directory: "a directory",
    }
    assert words.get(harm, "a directory" if harm is a_directory else "no regular file") in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.failures, again.complete, str(again)) == (error.failures, error.complete, str(error))


def test_one_bad_file_does_not_hide_the_others(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c", files=3)
    where = {name: info.relative_path for name, info in places(path).items()}
    assert len(set(where.values())) == 3
    (path / where["a"]).unlink()
    os.truncate(path / where["b"], 100)
    error = failure(zeros(), ParallelFileSystemReader(path, workers=2))
    assert {one.file for one in error.failures} == {where["a"], where["b"]}
    assert error.complete == ("c",)
    error = failure(zeros(), ParallelFileSystemReader(path, workers=2, fail_fast=True))
    assert len(error.failures) >= 1


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bit_of_the_data_flips(tmp_path: Path, name: str) -> None:
    """torch's own reader loads it in silence."""
    path = save(state(), tmp_path / "c")
    info = places(path)[name]
    flip(path / FILE, info.offset + 1000 if name == "b" else info.offset + 720)
    assert not same(stock(zeros(), path)[name], state()[name])
    error = failure(zeros(), ParallelFileSystemReader(path, verify="crc", workers=1))
    assert [one.tensors for one in error.failures] == [(name,)]
    assert f"the bytes of {name} changed" in str(error) and len(error.complete) == 2


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bit_anywhere_around_the_data(tmp_path: Path, name: str) -> None:
    """Flipped one by one: what torch gives, or an error; with checksums never other bytes than were saved."""
    path = save(state(), tmp_path / "c")
    info = places(path)[name]
    whole = (path / FILE).read_bytes()
    data = info.offset + 704
    end = data + state()[name].nbytes
    for at in [*range(info.offset, data, 61), *range(end, info.offset + info.length, 67)]:
        flip(path / FILE, at, 1 << at % 8)
        try:
            theirs: Tensors | None = stock(zeros(), path)
        except CheckpointException:
            theirs = None
        for verify in ("none", "crc"):
            try:
                ours = load(zeros(), ParallelFileSystemReader(path, verify=verify, workers=1))
            except CheckpointException as exc:
                assert isinstance(exc.failures[0][0], CheckpointReadError)
                assert theirs is None or verify == "crc", at
            else:
                assert all(same(ours[key], value) for key, value in (theirs or state()).items()), at
                assert verify == "none" or same(ours[name], state()[name]), at
        (path / FILE).write_bytes(whole)


def test_saved_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(state(), tmp_path / "c")
    finally:
        torch.serialization.set_crc32_options(True)
    reader = ParallelFileSystemReader(path, verify="crc")
    assert all(same(tensor, state()[name]) for name, tensor in load(zeros(), reader).items())
    assert reader.last_report is not None
    assert (reader.last_report.verified, reader.last_report.unverifiable) == (0, 3)


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def _swap(metadata: Any) -> None:
    places = {index.fqn: info for index, info in metadata.storage_data.items()}
    places["a"].offset, places["c"].offset = places["c"].offset, places["a"].offset


def _other(metadata: Any) -> None:
    places = {index.fqn: info for index, info in metadata.storage_data.items()}
    places["a"].offset, places["a"].length = places["b"].offset, places["b"].length


def _short(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).length -= 40


def _beyond(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).offset = 1 << 40


def _negative(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).offset = -5


@pytest.mark.parametrize("lie", [_swap, _other, _short, _beyond, _negative])
def test_metadata_that_lies(tmp_path: Path, lie: Callable[[Any], None]) -> None:
    path = save(state(), tmp_path / "c")
    rewrite(path, lie)
    try:
        theirs = stock(zeros(), path)
    except CheckpointException:
        assert failure(zeros(), ParallelFileSystemReader(path, workers=1)).failures
    else:
        ours = load(zeros(), ParallelFileSystemReader(path, workers=1))
        assert all(same(ours[name], tensor) for name, tensor in theirs.items())


def test_metadata_without_a_place(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    rewrite(path, lambda metadata: metadata.storage_data.pop(next(iter(metadata.storage_data))))
    into = zeros()
    with pytest.raises(CheckpointException, match="does not tell where a lie") as caught:
        load(into, ParallelFileSystemReader(path))
    assert isinstance(caught.value.failures[0][0], BadSource)
    assert not any(bool(tensor.any()) for tensor in into.values())


def test_metadata_that_runs_code(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    rewrite(path, lambda metadata: setattr(metadata, "planner_data", Evil(tmp_path / "made")))
    with pytest.raises(UntrustedPickle, match=r"posix\.mkdir") as caught:
        ParallelFileSystemReader(path).read_metadata()
    assert caught.value.wants == ("posix.mkdir",)
    with pytest.raises(UntrustedPickle):
        checkpoint.contents(path)
    assert not (tmp_path / "made").exists()
    ParallelFileSystemReader(path, trusted=True).read_metadata()
    assert (tmp_path / "made").exists()


def test_metadata_that_is_none(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")
    for data in (b"", b"\x80\x04", os.urandom(200), pickle.dumps({"a": 1})):
        (path / ".metadata").write_bytes(data)
        with pytest.raises(BadSource):
            ParallelFileSystemReader(path).read_metadata()
    (path / ".metadata").unlink()
    with pytest.raises(FileNotFoundError):
        ParallelFileSystemReader(path).read_metadata()


def test_metadata_cannot_change_classes(tmp_path: Path) -> None:
    """BUILD with a tuple sets attributes, of a class too."""
    from torch.distributed.checkpoint.metadata import Metadata

    data = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x05\x00\x00\x00wrongK\x01stb."
    with pytest.raises(BadSource):
        unpickling.metadata(data, where="here")
    assert not hasattr(Metadata, "wrong")


def test_a_byte_item_that_runs_code(tmp_path: Path) -> None:
    path = save({"x": Evil(tmp_path / "made"), "t": torch.ones(3)}, tmp_path / "c")
    into = {"x": None, "t": torch.zeros(3)}
    error = failure(into, ParallelFileSystemReader(path))
    assert error.failures[0].kind == "UntrustedPickle" and error.failures[0].tensors == ("x",)
    assert error.complete == ("t",)
    assert not (tmp_path / "made").exists()
    load(into, ParallelFileSystemReader(path, trusted=True))
    assert (tmp_path / "made").exists()


def _saved(value: object, **options: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


def test_what_byte_items_may_hold(tmp_path: Path) -> None:
    import collections
    import datetime

    import numpy as np

    plain = {
        "rng": np.random.RandomState(0).get_state(),
        "scalar": np.float64(1.5),
        "when": datetime.datetime(2024, 1, 2),
        "counter": collections.Counter("aab"),
        "tensors": [torch.ones(3), torch.nn.Parameter(torch.ones(2))],
        "set": {1, 2},
        "path": Path("/a"),
        "complex": 1j,
    }
    where = "here"
    unpickling.check_byte_item(_saved(plain), where=where)
    unpickling.check_byte_item(_saved(plain, _use_new_zipfile_serialization=False), where=where)
    unpickling.check_byte_item(b'{"a": 1}', where=where)
    unpickling.check_byte_item(b"", where=where)
    evil = Evil(tmp_path / "made")
    for data in (
        _saved(evil),
        _saved(evil, _use_new_zipfile_serialization=False),
        pickle.dumps(evil),
        pickle.dumps(evil, protocol=0),
        pickle.dumps(1) + pickle.dumps(evil),
        b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x01a\x85R.",
    ):
        with pytest.raises(UntrustedPickle):
            unpickling.check_byte_item(data, where=where)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("outside", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_path_that_leaves_the_directory(tmp_path: Path, outside: str) -> None:
    path = save(state(), tmp_path / "c")
    (path / FILE).rename(tmp_path / "secret")

    def change(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = outside

    rewrite(path, change)
    error = failure(zeros(), ParallelFileSystemReader(path))
    assert {one.kind for one in error.failures} == {"UntrustedPickle"} and error.complete == ()
    if outside == "../secret":
        into = load(zeros(), ParallelFileSystemReader(path, trusted=True))
        assert all(same(into[name], tensor) for name, tensor in state().items())


class Slow(ParallelFileSystemReader):
    """Tells of each slice that it begins to read."""

    told = -1

    def slice_file(self, stream: Any, item_metadata: Any) -> Any:
        os.write(self.told, b"reading\n")
        time.sleep(0.3)
        return super().slice_file(stream, item_metadata)


def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    path = save({f"x{number}": torch.zeros(100, 1000) for number in range(200)}, tmp_path / "c")
    told, telling = os.pipe()

    def read() -> list[str]:
        torch.set_num_threads(1)  # those of OpenMP are not there after a fork
        into = {f"x{number}": torch.zeros(100, 1000) for number in range(200)}
        reader = Slow(path, workers=2)
        reader.told = telling
        with pytest.raises((CheckpointException, KeyboardInterrupt)):  # torch wraps the interrupt
            load(into, reader)
        for thread in ours():  # those that have ended may still be listed
            thread.join(0.2)
        return [thread.name for thread in ours()]

    with children.started(read) as running:
        assert os.read(told, 8) == b"reading\n"
        os.kill(running.pid, signal.SIGINT)
        assert running.result() == []
    os.close(telling)
    with os.fdopen(told) as rest:
        assert len(rest.readlines()) < 150


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dsmem")]
