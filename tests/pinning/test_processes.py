"""What only h5py can decode is read by processes: equal to h5py, clear errors, no process left behind."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

import dsmem
from dsmem import proc
from dsmem.pinning import processes


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
    fd = os.open(scaled, os.O_RDONLY)
    from dsmem.store.draft import Draft

    try:
        with Draft(None) as draft, pytest.raises(dsmem.BadSource, match="/nowhere can't be read as HDF5"):
            list(processes.read([processes.Slab(b"/nowhere", (slice(0, 1),), 0, 4)], fd, draft, 2, path="x.h5"))
    finally:
        os.close(fd)
    assert workers() == []


def test_a_worker_that_dies_is_one_clear_error(scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = processes._Worker.feed
    killed: list[int] = []

    def kill_one(worker: processes._Worker, waiting: deque[processes.Slab], draft: Any) -> None:
        if not killed:
            worker._process.kill()
            killed.append(worker._process.pid)
        feed(worker, waiting, draft)  # its part is with one that can't answer any more

    monkeypatch.setattr(processes._Worker, "feed", kill_one)
    with pytest.raises(dsmem.BadSource, match="signal 9"):
        dsmem.pin(scaled)
    assert len(killed) == 1
    assert workers() == []
    with pytest.raises(dsmem.NotPinned):
        dsmem.attach(scaled)


def test_no_room_is_told_as_such(scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    from dsmem.store.draft import Draft

    fd = os.open(scaled, os.O_RDONLY)
    try:
        with Draft(None) as draft:
            mine, draft.fd = draft.fd, full
            with pytest.raises(dsmem.NoSpace):
                list(processes.read([processes.Slab(b"/flat", (slice(0, 7),), 0, 28)], fd, draft, 1, path="x.h5"))
            draft.fd = mine
    finally:
        os.close(fd)
        os.close(full)
