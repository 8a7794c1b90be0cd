"""What only h5py can decode is read by processes: equal to h5py, clear errors, no process left behind."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

import dsmem
from dsmem import proc
from dsmem.hdf5 import reading
from dsmem.pinning import copying, filling, planning, processes
from dsmem.store.draft import Draft


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORTH_BYTES", 1)
    monkeypatch.setattr(proc, "usable_cpus", lambda: 3)


def workers() -> list[psutil.Process]:
    """Running workers of this process (pytest has children of its own, such as multiprocessing's resource tracker)."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if processes.__name__ in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def many(slab: processes.Slab) -> Iterator[processes.Slab]:
    """Enough of one that others have started before it is read so often by `slow`."""
    return itertools.repeat(slab, 3000)


def slow(_: processes.Slab) -> None:
    time.sleep(0.01)


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """A file with filters and types that only HDF5 itself converts."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        data = np.arange(300 * 70, dtype="<i4").reshape(300, 70)
        file.create_dataset("offset", data=data, chunks=(16, 70), scaleoffset=0)
        file.create_dataset("flat", data=data[0], chunks=(7,), scaleoffset=0)
        file.create_dataset(b"not utf-8 \xff", data=data, scaleoffset=0)
        file["plain"] = data
    return path


def test_equal_to_h5py(scaled: Path) -> None:
    dsmem.pin(scaled, verify=True)
    with dsmem.attach(scaled) as ours, h5py.File(scaled) as theirs:
        for name in theirs:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])
    assert workers() == []


DEEP = [
    ((70,), (9,)),
    ((12, 70), (12, 9)),
    ((12, 7, 70), (12, 3, 9)),
    ((4, 5, 7, 70), (3, 5, 3, 9)),
    ((50, 40), (50, 40)),
]


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Datasets that only HDF5 decodes, and ones that dsmem does; blocks of theirs lie between each other."""
    path = tmp_path / "deep.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for shape, chunks in DEEP:
            data = random.integers(0, 9999, shape, "<i4")
            file.create_dataset(f"offset{len(shape)}{chunks[-1]}", data=data, chunks=chunks, scaleoffset=0)
            file.create_dataset(f"gzip{len(shape)}{chunks[-1]}", data=data, chunks=chunks, compression="gzip")
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, reading.Block]]:
    """Blocks of 500 bytes or a chunk; those that were cut."""
    cut: list[tuple[Any, reading.Block]] = []
    blocks = reading.blocks

    def noted(shape: Any, item_bytes: int, chunks: Any) -> Iterator[reading.Block]:
        for block in blocks(shape, item_bytes, chunks, 500):
            cut.append((chunks, block))
            yield block

    monkeypatch.setattr(reading, "blocks", noted)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 500)
    return cut


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("huge_pages", ["auto", "never"])
def test_each_chunk_is_read_once(
    deep: Path, small_blocks: list[Any], monkeypatch: pytest.MonkeyPatch, cpus: int, verify: bool, huge_pages: str
) -> None:
    monkeypatch.setattr(proc, "usable_cpus", lambda: cpus)
    monkeypatch.setenv("DSMEM_HUGE_PAGES", huge_pages)
    dsmem.pin(deep, verify=verify)
    with dsmem.attach(deep) as ours, h5py.File(deep) as theirs:
        for name in theirs:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])
    assert any(not block.is_contiguous for _, block in small_blocks)
    for chunks, block in small_blocks:
        assert all(part.start % chunk == 0 for part, chunk in zip(block.selection, chunks, strict=True))
    read = sum(block.count for _, block in small_blocks)
    assert read == sum(int(np.prod(shape)) for shape, _ in DEEP) * (2 if verify else 1)
    assert workers() == []


@pytest.mark.parametrize("name", ["gzip19", "gzip39", "gzip240"])
@pytest.mark.parametrize("at", [0, -1])
def test_what_was_copied_differently_is_found_between_others(
    deep: Path, small_blocks: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    fill = copying.copy

    def damaging(fd: int, size_bytes: int, draft: Any, *others: Any) -> Any:
        done = fill(fd, size_bytes, draft, *others)
        place, size = places[name]
        where = place + (at if at >= 0 else size + at)
        draft.write(where, memoryview(bytes([os.pread(draft.fd, 1, where)[0] ^ 1])))
        return done

    places: dict[str, tuple[int, int]] = {}
    plan = planning.Plan.begin

    def begin(self: Any, item: Any) -> int:
        places[item.path] = plan(self, item), item.size_bytes
        return places[item.path][0]

    monkeypatch.setattr(planning.Plan, "begin", begin)
    monkeypatch.setattr(copying, "copy", damaging)
    with pytest.raises(filling.ReadDifferently, match=name):
        dsmem.pin(deep, verify=True)


def test_what_is_reserved_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    with Draft(None) as draft:
        draft.allocate(1 << 20)
        reserved = draft.reserved

        def noted(offset: int, size_bytes: int) -> memoryview:
            asked.append((offset, size_bytes))
            return reserved(offset, size_bytes)

        monkeypatch.setattr(draft, "reserved", noted)
        for offset, size_bytes in ((4096, 9000), (5000, 9000), (6000, 100), (90000, 1), (4096, 10)):
            with draft.reserved_on(offset, size_bytes) as span:
                assert len(span) == size_bytes
                span[-1] = 7
            assert os.pread(draft.fd, 1, offset + size_bytes - 1) == b"\7"
        assert asked == [(4096, 9000), (13096, 904), (90000, 1), (4096, 10)]


def test_a_damaged_chunk_is_one_clear_error(scaled: Path) -> None:
    with h5py.File(scaled) as file:
        info = file["offset"].id.get_chunk_info(3)
    content = bytearray(scaled.read_bytes())
    content[info.byte_offset : info.byte_offset + 8] = b"\xff" * 8
    scaled.write_bytes(content)
    with h5py.File(scaled) as file:
        try:
            file["offset"][()]
        except OSError:
            with pytest.raises(dsmem.BadSource, match="/offset can't be read as HDF5"):
                dsmem.pin(scaled)
        else:
            dsmem.pin(scaled)
    assert workers() == []


def test_a_missing_dataset_is_one_clear_error(scaled: Path) -> None:
    slabs = many(processes.Slab(b"/nowhere", (slice(0, 1),), 0, 4))
    fd = os.open(scaled, os.O_RDONLY)
    try:
        with Draft(None) as draft, pytest.raises(dsmem.BadSource, match="/nowhere can't be read as HDF5"):
            list(processes.read(slabs, fd, draft, 2, slow, path="x.h5"))
    finally:
        os.close(fd)
    assert workers() == []


@pytest.mark.usefixtures("small_blocks")
def test_a_worker_that_dies_is_one_clear_error(scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = processes._Worker.feed
    killed: list[int] = []

    def kill_one(worker: processes._Worker, waiting: processes._Waiting, draft: Any) -> None:
        if not killed:
            worker._process.kill()
            killed.append(worker._process.pid)
        feed(worker, waiting, draft)  # its part is with one that can't answer any more

    def slowly(*what: Any) -> None:
        time.sleep(0.2)
        read_into(*what)

    read_into = reading.read_into
    monkeypatch.setattr(reading, "read_into", slowly)  # in this process: others have started before it is done
    monkeypatch.setattr(processes._Worker, "feed", kill_one)
    with pytest.raises(dsmem.BadSource, match="signal 9"):
        dsmem.pin(scaled)
    assert len(killed) == 1
    assert workers() == []
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(scaled)


def test_no_room_is_told_as_such(scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slabs = many(processes.Slab(b"/flat", (slice(0, 7),), 0, 28))
    full = os.open("/dev/full", os.O_WRONLY)
    fd = os.open(scaled, os.O_RDONLY)
    try:
        with Draft(None) as draft:
            mine, draft.fd = draft.fd, full
            with pytest.raises(dsmem.NoSpace):
                list(processes.read(slabs, fd, draft, 1, slow, path="x.h5"))
            draft.fd = mine
    finally:
        os.close(fd)
        os.close(full)
