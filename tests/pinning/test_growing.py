"""Variable-length data of far more bytes than its file: room is looked at while it is read, and it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import assert_reads_as_h5py, settle
from stores import refuse

import dsmem
from dsmem.hdf5 import sizes, variable
from dsmem.pinning import growing
from dsmem.store import space
from dsmem.store.draft import Draft
from dsmem.store.root import Store

STEP = 1 << 20


def many_references(path: Path, count: int, size_bytes: int) -> Path:
    """A list of bytes, and so many references to it."""
    with h5py.File(path, "w") as file:
        lists = file.create_dataset("lists", (count,), h5py.vlen_dtype(np.uint8))
        lists[0] = np.arange(size_bytes, dtype=np.uint8)
        file.flush()
        begin = lists.id.get_offset()
    content = bytearray(path.read_bytes())
    content[begin : begin + 16 * count] = bytes(content[begin : begin + 16]) * count
    path.write_bytes(content)
    return settle(path)


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where what this process writes to a draft ends, each time."""
    found = [0]
    write = Draft.write

    def noted(draft: Draft, offset: int, data: memoryview) -> None:
        write(draft, offset, data)
        found.append(offset + len(data))

    monkeypatch.setattr(Draft, "write", noted)
    monkeypatch.setattr(growing, "STEP_BYTES", STEP)
    return found


@pytest.mark.parametrize("untrusted", [False, True], ids=["here", "in a child"])
def test_the_budget_ends_it(
    tmp_path: Path, store_root: Path, largest: list[int], untrusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_references(tmp_path / "x.h5", 4000, 10_000)
    with pytest.raises(dsmem.NoSpace) as caught, monkeypatch.context() as patch:
        patch.setattr(Draft, "publish", lambda draft, name: pytest.fail("it was noticed only when all was read"))
        dsmem.pin(path, budget=8 << 20, untrusted=untrusted)
    assert caught.value.budget_bytes == 8 << 20 < caught.value.need_bytes
    assert max(largest) <= (8 << 20) + STEP
    assert os.listdir(store_root / "objects") == [] == refuse(store_root)
    pinned = dsmem.pin(path, budget=42 << 20, untrusted=untrusted)
    assert 40_000_000 < pinned.size_bytes < 42 << 20


def test_room_is_looked_at_before_it_is_taken(
    tmp_path: Path, store_root: Path, largest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_references(tmp_path / "x.h5", 4000, 10_000)
    room, before = 8 << 20, space.room

    def scarce(store: Store, beside_bytes: int = 0) -> space.Room:
        return space.Room(min(before(store).free_bytes, max(room - max(largest), 0)), "what a test leaves")

    monkeypatch.setattr(space, "room", scarce)
    with pytest.raises(dsmem.NoSpace, match="what a test leaves") as caught:
        dsmem.pin(path)
    assert caught.value.need_bytes > caught.value.free_bytes
    assert max(largest) <= room + STEP


def test_more_than_the_file_can_hold_is_refused(
    tmp_path: Path, store_root: Path, largest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_references(tmp_path / "x.h5", 4000, 60_000)
    assert 1000 * path.stat().st_size < 4000 * 60_000
    monkeypatch.setattr(sizes, "LEAST_BYTES", 16 << 20)
    with pytest.raises(dsmem.BadSource, match=r"/lists: .* MiB of variable length came out of a file of 1\d\d.\d KiB"):
        dsmem.pin(path)
    assert max(largest) < 150 << 20
    assert os.listdir(store_root / "objects") == [] == refuse(store_root)


def test_more_than_the_file_can_hold_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = many_references(tmp_path / "x.h5", 1000, 10_000)
    monkeypatch.setattr(sizes, "LEAST_BYTES", 5_000_000)
    assert dsmem.pin(path).size_bytes > 10_000_000  # it is no 1000 times the file
    monkeypatch.setattr(sizes, "_MOST_RATIO", 100)
    other = many_references(tmp_path / "y.h5", 1001, 10_000)
    with pytest.raises(dsmem.BadSource, match="oversized"):
        dsmem.pin(other)
    assert dsmem.pin(other, allow=["oversized"]).size_bytes > 10_000_000


def test_long_items_are_pinned_as_h5py_reads_them(tmp_path: Path, store_root: Path) -> None:
    """Those that HDF5 is not asked for, between short ones and texts of its own."""
    path = tmp_path / "long.h5"
    lengths = [10, variable.LONG_BYTES // 8, 0, variable.LONG_BYTES // 8 - 1, 1 << 20, 3]
    with h5py.File(path, "w") as file:
        for name, chunks in (("plain", None), ("chunked", (4,))):
            made = file.create_dataset(name, (len(lengths),), h5py.vlen_dtype(np.dtype("<f8")), chunks=chunks)
            for i, n in enumerate(lengths):
                made[i] = np.arange(n) + i
        file.create_dataset("texts", data=["x" * 300_000, "y", "z" * 400_000], dtype=h5py.string_dtype())
    with dsmem.attach(dsmem.pin(settle(path)).name) as pinned:
        assert_reads_as_h5py(pinned, path)
