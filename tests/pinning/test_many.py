"""What is kept on a disk because there may be very much of it makes no difference to what is pinned."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import assert_reads_as_h5py, settle

import dsmem
from dsmem.arrays import columns, header, rows
from dsmem.arrays.header import Header
from dsmem.hdf5 import links, met
from dsmem.hdf5.scan import scan
from dsmem.pinning import copying, planning, summaries
from dsmem.pinning.copying import Extent
from dsmem.scratch import Scratch
from dsmem.store import objects
from dsmem.store.objects import PROVENANCE_KEY
from dsmem.store.refs import Provenance
from dsmem.store.root import make_store

append = Scratch.append


def write(path: Path) -> None:
    """Datasets of every tier, not in the order of the file, links of all kinds, attributes that lie apart."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in random.permutation(60).tolist():
            group = file.require_group(f"g{number % 7}/é{number % 3}")
            file[f"x{number:03}"] = random.integers(0, 99, 1 + number % 5 * 300, np.int16)
            group.create_dataset(f"c{number}", data=random.random((9, number + 1)), chunks=(4, 1), compression="lzf")
            group[f"t{number}"] = ["ab" * (number % 4), "é"]
            group[f"s{number}"] = h5py.SoftLink("/x000")
            group[f"h{number}"] = file[f"x{number:03}"]
            group[f"e{number}"] = h5py.Empty("f4")
            file[f"x{number:03}"].attrs["unit"] = "m" * number * 9
            file[f"n{number}"] = np.dtype("<i2")
            file.create_group(f"empty{number}")
        file["g1/again"] = file["g2"]
        file.attrs["long"] = random.random(7_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "x.h5"
    write(made)
    settle(made)
    return made


def held(found: dsmem.Pinned) -> tuple[Header, bytes]:
    """All of an object but what it was made from."""
    with open(make_store().object_path(found.name), "rb") as file:
        data = file.read()
    parsed = header.parse(memoryview(data), len(data))
    metadata = {key: text for key, text in parsed.metadata.items() if key != PROVENANCE_KEY}
    raw = {name: entry for name, entry in parsed.raw.items() if name != "__metadata__"}
    return Header(raw, metadata, parsed.data_start, parsed.data_bytes), data[parsed.data_start :]


@pytest.mark.parametrize("room_bytes", [10**9, 3000, 0], ids=["on a disk", "some on a disk", "no disk"])
@pytest.mark.parametrize("verify", [False, True])
def test_the_same_is_pinned(path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int, verify: bool) -> None:
    first = dsmem.pin(path)
    expected, datasets = held(first), tuple(first.datasets)
    os.unlink(make_store().object_path(first.name))
    stored = 0

    def limited(scratch: Scratch, data: bytes) -> int | None:
        nonlocal stored
        stored += len(data)
        return append(scratch, data) if stored <= room_bytes else None

    monkeypatch.setattr(Scratch, "append", limited)
    for module, name, value in [
        (columns, "_AT_ONCE", 5),
        (columns, "_WINDOW", 4),
        (columns, "_SORTED_AT_ONCE", 7),
        (columns, "_SAMPLES", 20),
        (rows, "_PLAIN_BYTES", 200),
        (rows, "_TOGETHER_BYTES", 300),
        (rows, "_NAMES_BYTES", 30),
        (met, "_RECENT", 3),
        (summaries, "_MOST_AT_ONCE", 10),
    ]:
        monkeypatch.setattr(module, name, value)
    again = dsmem.pin(path, verify=verify)
    assert not again.already and stored > 3000
    assert held(again) == expected and tuple(again.datasets) == datasets
    there = dsmem.pin(path)
    assert there.already and tuple(there.datasets) == datasets
    with dsmem.File(path) as file:
        assert_reads_as_h5py(file, path)


def test_listing_and_planning_take_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scanned, planned and to be copied of each dataset comes to a few bytes, and no more from run to run."""
    monkeypatch.setattr(columns, "_AT_ONCE", 256)
    monkeypatch.setattr(columns, "_WINDOW", 256)
    monkeypatch.setattr(columns, "_SORTED_AT_ONCE", 1024)
    monkeypatch.setattr(rows, "_PLAIN_BYTES", 0)
    monkeypatch.setattr(rows, "_NAMES_BYTES", 1024)
    provenance = a_provenance(tmp_path)

    def peak_bytes(count: int) -> int:
        path = tmp_path / f"{count}.h5"
        with h5py.File(path, "w") as file:
            for number in range(count):
                file[f"sample_{number * 7919 % count:06}"] = np.uint8(1)
        with h5py.File(path) as file:
            tracemalloc.start()
            try:
                found = scan(file, str(path), file_bytes=path.stat().st_size)
                plan = planning.plan(found, provenance)
                copied = (Extent(one.offset or 0, plan.begin(one), one.size_bytes) for one in found.items)
                assert copying._Extents(copied).next_start(0, 0) > 0
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = peak_bytes(2000), peak_bytes(8000)
    assert (many - few) / 6000 < 25


def test_it_is_told_that_it_goes_on(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for one that reads an untrusted file hears of it while much is listed, planned and written."""
    monkeypatch.setattr(links, "_MANY", 3)
    monkeypatch.setattr(columns, "_WINDOW", 4)
    provenance = a_provenance(tmp_path)
    heard = 0

    def seen() -> None:
        nonlocal heard
        heard += 1

    def heard_since() -> int:
        nonlocal heard
        so_far, heard = heard, 0
        return so_far

    with h5py.File(path) as file:
        found = scan(file, str(path), file_bytes=path.stat().st_size, seen=seen)
        count = len(found.items)
        assert heard_since() > 1.5 * count
        layout = planning.Tensors(found.items, 0, seen)
        assert heard_since() >= count
        assert len(list(layout.items())) >= count and heard_since() >= count / 4
        planning.plan(found, provenance)
        assert heard_since() > 1.2 * count
        assert list(found.dumped()) and heard_since() > 5


def a_provenance(tmp_path: Path) -> Provenance:
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["x"] = 1
    settle(tmp_path / "one.h5")
    found = next(objects.scan(make_store(), [dsmem.pin(tmp_path / "one.h5").name])).provenance
    assert found is not None
    return found


def test_nothing_is_left_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_AT_ONCE", 5)
    monkeypatch.setattr(rows, "_PLAIN_BYTES", 200)
    dsmem.pin(path)
    before = sorted(os.listdir("/proc/self/fd"))
    os.unlink(make_store().object_path(dsmem.pin(path).name))
    dsmem.pin(path)
    assert sorted(os.listdir("/proc/self/fd")) == before
