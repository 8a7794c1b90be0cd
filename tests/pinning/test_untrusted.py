"""`untrusted=True`: the same object as without; whatever becomes of the child that reads is an error of one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import zoo
from children import ChildDied, call, started
from samples import MIB, assert_reads_as_h5py, settle, write_sample
from stores import InTmpfs, refuse

import dsmem
from dsmem import helpers
from dsmem.arrays import header
from dsmem.pinning import messages, untrusted
from dsmem.pinning.messages import Channel, Nonsense, Silence
from dsmem.store.draft import Draft

KINDS = ("compounds", "variable_strings", "filters", "names_not_utf8", "user_block_512", "attributes_of_all", "nothing")


def object_file(root: Path) -> Path:
    (found,) = (root / "objects").iterdir()
    return found


def readers() -> list[psutil.Process]:
    """The children of this process that read untrusted files."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie is one
            if "dsmem.pinning.untrusted_reader" in child.cmdline():
                found.append(child)
    return found


def before_filling(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Do something to the child, which waits then to be told to fill."""
    original = Draft.make_room

    def patched(self: Draft, need_bytes: int, budget_bytes: int | None, beside_bytes: int) -> None:
        original(self, need_bytes, budget_bytes, beside_bytes)
        act(readers()[0].pid)

    monkeypatch.setattr(Draft, "make_room", patched)


def assert_nothing_left(root: Path) -> None:
    assert readers() == []
    assert refuse(root) == []
    assert list((root / "objects").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_object_of_a_trusted_pin(tmp_path: Path, store_root: Path, kind: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", **zoo.OPTIONS[kind]) as file:
        zoo.HELD[kind](file)
    found: list[tuple[Any, bytes]] = []
    for is_untrusted in (False, True):
        pinned = dsmem.pin(path, untrusted=is_untrusted, algo="md5", verify=True, hash_cache=False)
        with dsmem.attach(path) as file:
            assert_reads_as_h5py(file, path)
        content = object_file(store_root).read_bytes()
        parsed = header.parse(memoryview(content), len(content))
        raw = json.dumps({**parsed.raw, "__metadata__": {**parsed.metadata, "dsmem.provenance": ""}})
        found.append((raw, content[parsed.data_start :]))
        assert pinned.algo == "md5"
        object_file(store_root).unlink()
    assert found[0] == found[1]
    assert readers() == []


def test_progress_comes_through(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x.h5", 16 * MIB)
    seen: list[tuple[int, int]] = []
    dsmem.pin(path, untrusted=True, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] >= 16 * MIB


def test_errors_are_those_of_a_trusted_pin(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        zoo.REFUSED["references"][0](file)
    other = write_sample(tmp_path / "other.h5")
    said: list[tuple[object, ...]] = []
    for is_untrusted in (False, True):
        with pytest.raises(dsmem.Unsupported) as unsupported:
            dsmem.pin(path, untrusted=is_untrusted)
        with pytest.raises(dsmem.BadSource) as bad:
            dsmem.pin(other, untrusted=is_untrusted, only=["no such*"])
        said.append((str(unsupported.value), unsupported.value.refusals, str(bad.value)))
    assert said[0] == said[1]
    assert dsmem.pin(path, untrusted=True, skip_unsupported=True).refused == said[0][1]


def test_a_damaged_chunk_is_an_error_of_the_child(tmp_path: Path, store_root: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=np.arange(4096), chunks=(64,), compression="gzip")
        where = dataset.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[where + 10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match=r"/x: the chunk at \(64,\) can't be decoded"):
        dsmem.pin(path, untrusted=True)
    assert_nothing_left(store_root)


def crashing(path: Path) -> Path:
    """A file whose one attribute makes HDF5 crash when it is read: a variable-length type that is no such type."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["unit"] = "counts"
        file["x"] = np.arange(5)
    content = bytearray(path.read_bytes())
    kind = content.index(b"\x19\x01\x01\x00\x10\x00\x00\x00")  # class 9, version 1; a string of UTF-8; 16 bytes
    content[kind + 1 : kind + 3] = b"\xff\xff"
    path.write_bytes(content)
    return settle(path)


def test_a_file_that_crashes_hdf5_is_an_error(tmp_path: Path, store_root: Path) -> None:
    path = crashing(tmp_path / "x.h5")
    with pytest.raises(ChildDied, match="-11"):
        call(lambda: h5py.File(path)["/"].attrs["unit"])
    with pytest.raises(dsmem.BadSource, match=r"HDF5 crashed \(signal 11\) while reading it") as caught:
        dsmem.pin(path, untrusted=True)
    assert str(caught.value).count("\n") == 0
    assert_nothing_left(store_root)


def test_explained_in_a_child(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
        file["null"] = h5py.Empty("<f4")
        zoo.HELD["bfloat16"](file.create_group("brain"))
    found = dsmem.explain(path, untrusted=True)
    assert found == dsmem.explain(path)
    assert [one.path for one in found.refused] == ["/elsewhere"]
    (images,) = dsmem.explain(path, untrusted=True, only=["images"]).datasets
    assert images in found.datasets
    with pytest.raises(dsmem.BadSource, match="nothing matches nothing"):
        dsmem.explain(path, untrusted=True, only=["nothing"])
    with pytest.raises(dsmem.BadSource, match=r"HDF5 crashed \(signal 11\) while reading it"):
        dsmem.explain(crashing(tmp_path / "crashing.h5"), untrusted=True)
    assert readers() == []


DATASET: dict[str, Any] = {
    "path": "x",
    "shape": [1],
    "dtype": "u1",
    "layout": "chunked",
    "chunks": [1],
    "filters": [],
    "size_bytes": 1,
    "stored_bytes": 1,
    "ratio": 1.0,
    "tier": "chunked",
    "why": "",
    "is_outside": False,
    "note": None,
    "in_processes": False,
}


@pytest.mark.parametrize(
    "lie",
    [
        {"tier": "other"},
        {"tier": []},
        {"path": 5},
        {"shape": [-1]},
        {"shape": 7},
        {"size_bytes": 2**63},
        {"ratio": "1"},
        {"note": {}},
        {"filters": [1]},
        {"filters": None},
    ],
    ids=repr,
)
def test_an_explanation_that_is_none_is_not_believed(lie: dict[str, Any]) -> None:
    told = {"datasets": [DATASET], "refusals": []}
    assert messages.explained_from_json(told, "x.h5", 1).datasets[0].shape == (1,)
    wrong: Any
    for wrong in ({**told, "datasets": [{**DATASET, **lie}]}, {**told, "refusals": [lie]}, [], {"datasets": 5}):
        with pytest.raises(Nonsense):
            messages.explained_from_json(wrong, "x.h5", 1)


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_an_error(
    tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    path = settle(write_sample(tmp_path / "x.h5"))
    with monkeypatch.context() as patches:
        before_filling(patches, lambda pid: os.kill(pid, sent))
        with pytest.raises(dsmem.BadSource, match=rf"HDF5 crashed \(signal {int(sent)}\) while reading it") as caught:
            dsmem.pin(path, untrusted=True)
    assert str(caught.value).count("\n") == 0
    assert_nothing_left(store_root)
    assert not dsmem.pin(path, untrusted=True).already


def test_a_child_that_is_killed_says_nothing_of_the_file(
    tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sample(tmp_path / "x.h5")
    before_filling(monkeypatch, lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(dsmem.WorkerLost, match=r"was killed \(signal 9\).* nothing was published") as caught:
        dsmem.pin(path, untrusted=True)
    assert str(caught.value).count("\n") == 0
    assert_nothing_left(store_root)


def test_too_much_processor_time_is_an_error(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path / "x.h5")
    before_filling(monkeypatch, lambda pid: os.kill(pid, signal.SIGXCPU))
    with pytest.raises(dsmem.BadSource, match="more processor time"):
        dsmem.pin(path, untrusted=True)
    assert_nothing_left(store_root)


def test_no_progress_is_an_error(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path / "x.h5")

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(untrusted, "PATIENCE_S", 0.3)

    before_filling(monkeypatch, stop)
    with pytest.raises(dsmem.BadSource, match="no progress"):
        dsmem.pin(path, untrusted=True)
    assert_nothing_left(store_root)


def test_an_interrupt_leaves_no_child(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path / "x.h5")

    def interrupt(pid: int) -> None:
        raise KeyboardInterrupt

    before_filling(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        dsmem.pin(path, untrusted=True)
    assert_nothing_left(store_root)


def test_the_child_goes_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_leftovers: set[str]
) -> None:
    """Also one that hangs and reads nothing any more: it is stopped here."""
    expected_leftovers.add("locks/*")
    path = write_sample(tmp_path / "x.h5")
    told = tmp_path / "pid"

    def stop_and_tell(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        told.with_suffix(".new").write_text(str(pid))
        told.with_suffix(".new").rename(told)
        time.sleep(60)

    before_filling(monkeypatch, stop_and_tell)
    with started(lambda: dsmem.pin(path, untrusted=True) and None) as parent:
        deadline = time.monotonic() + 20
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = int(told.read_text())
        assert psutil.pid_exists(pid)
        parent.kill()
        while _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _is_alive(pid)
    assert parent.group_is_gone()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_no_space_within_the_child(tmp_path: Path, tiny_tmpfs: InTmpfs) -> None:
    """Texts are as long as they are: that they do not fit is known only while they are read."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=["a" * 40_000] * 200, chunks=(200,), compression="gzip", dtype=zoo.TEXT)

    def body(point: Path) -> tuple[bool, int]:
        with pytest.raises(dsmem.NoSpace) as caught:
            dsmem.pin(path, untrusted=True)
        return caught.value.need_bytes > 0, len(list(point.rglob("x-*")))

    assert tiny_tmpfs(body) == (True, 0)


LIES = {
    "not JSON": "end.sendall(b'nonsense\\n')",
    "not an object": "end.sendall(b'[1, 2]\\n')",
    "deep": "end.sendall(b'[' * 100000 + b'\\n')",
    "something else": "say('filled', {})",
    "progress that is none": "say('progress', [-1, 'x'])",
    "no refusals": "say('scanned', {})",
    "odd refusals": "say('scanned', {'refusals': [{'path': 1}], 'is_outside': False})",
    "an odd error": "say('failed', {'kind': 'NoSpace', 'message': 'x'})",
    "an error that is no error": "say('failed', 5)",
    "a size that is none": "say('scanned', FOUND); hear(); say('planned', [-5, 0])",
    "an empty object": "say('scanned', FOUND); hear(); say('planned', [5, 0]); hear(); say('filled', DIGESTS)",
    "no digest": "say('scanned', FOUND); hear(); say('planned', [5, 0]); hear(); say('filled', {'tree': '../x'})",
    "the end": "sys.exit(3)",
}
LIAR = """
import json, socket, sys
end = socket.socket(fileno=int(sys.argv[1]))
FOUND = {'refusals': [], 'is_outside': False}
DIGESTS = {'tree': 'f' * 32, 'stream': None}
def say(kind, value): end.sendall(json.dumps({kind: value}).encode() + b'\\n')
def hear(): return end.recv(1 << 20)
hear()
"""


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_child_that_lies_is_not_believed(
    tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    path = write_sample(tmp_path / "x.h5")
    monkeypatch.setattr(
        helpers, "command", lambda module, *numbers: [sys.executable, "-c", LIAR + lie, *map(str, numbers)]
    )
    with pytest.raises(dsmem.BadSource, match=r"made no sense|ended \(exit status 3\)"):
        dsmem.pin(path, untrusted=True)
    assert_nothing_left(store_root)


@pytest.mark.parametrize("where", ["overlap", "gap", "longer", "no tree", "another provenance"])
def test_an_object_that_is_none_is_not_published(tmp_path: Path, where: str) -> None:
    """What the child wrote is looked at before it gets a name."""
    begin, end = {"overlap": (4, 12), "gap": (12, 20)}.get(where, (8, 16))
    tensors = {"a": header.Tensor("I64", (1,), 0, 8), "b": header.Tensor("I64", (1,), begin, end)}
    metadata = {
        "dsmem.provenance": "other" if where == "another provenance" else "ours",
        "dsmem.data_bytes": str(end),
        "dsmem.tree": "[]" if where == "no tree" else '{"groups": {"": []}}',
        "dsmem.attributes": "{}",
    }
    path = tmp_path / "object"
    path.write_bytes(header.encode(tensors, metadata, size_bytes=4096) + bytes(end + (8 if where == "longer" else 0)))
    with path.open("rb") as file, pytest.raises(dsmem.DamagedObject):
        untrusted._checked_object(file.fileno(), "ours")


def test_messages_are_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        with pytest.raises(Silence):
            channel.receive(0.05)
        monkeypatch.setattr(messages, "_MOST_BYTES", 100)
        theirs.sendall(b"x" * 200)
        with pytest.raises(Nonsense, match="without an end"):
            channel.receive(5)


def test_a_descriptor_goes_with_a_message(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "x").open("w+") as file:
        Channel(ours).send("take", 5, file.fileno())
        channel = Channel(theirs)
        assert channel.receive(5) == ("take", 5)
        fd = channel.take_fd()
        try:
            assert os.path.sameopenfile(fd, file.fileno())
        finally:
            os.close(fd)
