"""What a scan lists of a file: every object once, how each dataset is read, and where its bytes lie."""

from __future__ import annotations

import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zoo

from dsmem.arrays import columns, rows
from dsmem.arrays.rows import Names
from dsmem.errors import BadSource
from dsmem.hdf5 import met
from dsmem.hdf5.found import Scan
from dsmem.hdf5.scan import NotMappable, scan


def write(path: Path, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        file["b/x"] = np.arange(5, dtype="<i4")
        file["a"] = np.arange(3, dtype=">f8")
        file["c/chunked"] = np.arange(4)
        file.create_dataset("c/packed", data=np.arange(100), chunks=(7,), compression="gzip")
        file["c/text"] = np.array(["a"], zoo.TEXT)
        file["c/none"] = np.zeros((0, 2))
        file["c/null"] = h5py.Empty("<f4")
        file.create_dataset("c/unwritten", shape=(3,), dtype="<i4")
        file.create_dataset("c/half", data=np.arange(3.0), dtype="<f2")
        file["hard"] = file["b/x"]
        file["soft"] = h5py.SoftLink("b/x")
        file["type"] = np.dtype("<f4")
        file["b"].attrs["unit"] = "m"
    return path


def scanned(path: Path, **options: Any) -> Scan:
    with h5py.File(path, "r") as file:
        return scan(file, str(path), file_bytes=path.stat().st_size, **options)


def test_everything_once(tmp_path: Path) -> None:
    found = scanned(write(tmp_path / "x.h5"))
    names = [item.path for item in found.items]
    assert sorted(names) == sorted(set(names)) == sorted(found.tree.datasets)
    assert "b/x" not in names or "hard" not in names, "one of the two is an alias"
    assert found.tree.soft_links == {"soft": "b/x"}
    assert found.tree.types == {"type": "<f4"}
    assert found.tree.groups.keys() == {"", "b", "c"}
    assert found.tree.groups[""] == ["a", "b", "c", "hard", "soft", "type"]
    assert found.attributes == {"b": {"unit": {"str": "m"}}}
    assert found.refusals == []


def test_many_large_groups_take_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_NAMES_BYTES", 30)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(600):
            file.create_group(f"{'below/' * (number % 20)}{number}/{'x' * 40}")
    before = len(os.listdir("/proc/self/fd"))
    found = scanned(tmp_path / "x.h5")
    assert len(os.listdir("/proc/self/fd")) - before < 10
    with h5py.File(tmp_path / "x.h5") as file:
        assert found.tree.groups == groups_of(file)


def groups_of(file: Any) -> dict[str, list[str]]:
    found = {"": list(file)}
    file.visititems(lambda path, group: found.update({path: list(group)}))
    return found


@pytest.mark.parametrize("options", [{"only": ("y",)}, {"allow": ("external",)}], ids=["not selected", "elsewhere"])
def test_of_many_little_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, tuple[str, ...]]
) -> None:
    """Bytes of memory for each dataset that is left out, or that an external link leads to."""
    monkeypatch.setattr(columns, "_AT_ONCE", 256)
    monkeypatch.setattr(columns, "_SORTED_AT_ONCE", 1024)
    monkeypatch.setattr(rows, "_PLAIN_BYTES", 0)
    monkeypatch.setattr(rows, "_NAMES_BYTES", 1024)
    monkeypatch.setattr(met, "_RECENT", 256)

    def peak_bytes(count: int) -> int:
        path, other = tmp_path / f"{count}.h5", tmp_path / f"{count}-other.h5"
        with h5py.File(other, "w") as file:
            for number in range(count):
                file[f"x/sample_{number:06}"] = np.uint8(1)
        with h5py.File(path, "w") as file:
            file["y"] = 1
            file["there"] = h5py.ExternalLink(other.name, "x")
        tracemalloc.start()
        try:
            found = scanned(other if "only" in options else path, **options)
            assert len(found.items) == (0 if "only" in options else count + 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (peak_bytes(8000) - peak_bytes(2000)) / 6000 < 30


@pytest.mark.parametrize("userblock", [0, 512, 1024])
def test_tiers(tmp_path: Path, userblock: int) -> None:
    path = write(tmp_path / "x.h5", userblock_size=userblock)
    found = {item.path: item for item in scanned(path).items}
    tiers = {
        name: found[name].tier for name in ("a", "c/packed", "c/text", "c/none", "c/null", "c/unwritten", "c/half")
    }
    assert tiers == {
        "a": "contiguous",
        "c/packed": "chunked",
        "c/text": "h5py",
        "c/none": "empty",
        "c/null": "empty",
        "c/unwritten": "h5py",
        "c/half": "contiguous",
    }
    raw = path.read_bytes()
    for name in ("a", "c/chunked", "c/half"):
        item = found[name]
        assert item.offset is not None
        with h5py.File(path, "r") as file:
            assert raw[item.offset : item.offset + item.size_bytes] == file[name][()].tobytes(), name
    assert found["c/packed"].why == "chunked, gzip"
    assert found["c/unwritten"].why == "not allocated in full"


@pytest.mark.parametrize("name", zoo.HELD)
def test_contiguous_bytes_are_what_h5py_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", **zoo.OPTIONS[name]) as file:
        zoo.HELD[name](file)
    raw = path.read_bytes()
    with h5py.File(path, "r") as file:
        found = scan(file, str(path), file_bytes=len(raw))
        assert found.refusals == []
        for item in found.items:
            dataset = file[b"/" + item.path.encode("utf-8", "surrogateescape")]
            assert (item.tier == "contiguous") == (item.offset is not None)
            if item.offset is not None:
                expected = dataset[...]
                assert item.size_bytes == expected.nbytes
                bits = expected.view(f"V{expected.dtype.itemsize}").tobytes()
                assert raw[item.offset : item.offset + item.size_bytes] == bits, item.path


def test_mappable_stops_at_the_first_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(NotMappable, match="/c/"):
        scanned(write(tmp_path / "x.h5"), mappable=True)
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
        file["none"] = np.zeros(0)
        file["null"] = h5py.Empty("<f4")
    assert len(scanned(path, mappable=True).items) == 3
    with h5py.File(path, "a") as file:
        file.attrs["ref"] = file["x"].ref
    with pytest.raises(NotMappable, match="@ref"):
        scanned(path, mappable=True)


def test_a_file_cut_short_is_not_read_past_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(1000)
    with h5py.File(path, "r") as file:
        item = scan(file, str(path), file_bytes=3000).items[0]
    assert (item.tier, item.why) == ("h5py", "not allocated in full")


def test_only_matches_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5")
    assert [item.path for item in scanned(path, only=["c/[np]*"]).items] == ["c/none", "c/null", "c/packed"]
    found = scanned(path, only=["/hard", "b/x"])
    assert [item.path for item in found.items] == ["hard"]
    assert found.tree.aliases == {"b/x": "hard"}
    assert found.tree.groups == {"": ["b", "hard", "soft"], "b": ["x"]}
    assert found.tree.types == {}
    assert len(scanned(path, only=["nothing"]).items) == 0


@pytest.mark.parametrize("change", ["removed", "fifo", "replaced"])
def test_what_is_listed_of_another_file_is_what_was_looked_at(tmp_path: Path, change: str) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    with h5py.File(other, "w") as file:
        file["group/x"] = np.arange(3)
    with h5py.File(path, "w") as file:
        file["away"] = h5py.ExternalLink("b.h5", "/group")
        file["here"] = np.arange(3)
    met = 0

    def seen() -> None:
        nonlocal met
        met += 1
        if met == 2:  # the link has been followed, what it leads to not listed yet
            other.unlink()
            if change == "fifo":
                os.mkfifo(other)
            elif change == "replaced":
                with h5py.File(other, "w") as file:
                    file["group/y"] = np.arange(4)

    found = scanned(path, allow=["external"], seen=seen)
    assert {item.path for item in found.items} == {"away/x", "here"}
    assert met == 3


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
def test_an_interrupt_inside_of_hdf5_is_raised_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libver: str, number: signal.Signals
) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=libver) as file:
        for index in range(100):
            file[f"{index}"] = index
    append, told = Names.append, 0

    def interrupted(names: Names, name: str | bytes) -> None:
        nonlocal told
        told += 1
        if told == 50:
            signal.raise_signal(number)
        append(names, name)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Names, "append", interrupted)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            scanned(tmp_path / "x.h5")
        assert told == 100
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_no_memory_inside_of_hdf5_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = write(tmp_path / "x.h5")
    monkeypatch.setattr(Names, "append", fail)
    with pytest.raises(BadSource, match="can't be read in the memory that there is"):
        scanned(path)
