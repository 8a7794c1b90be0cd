"""Attributes that may be very large are read by a child of limited memory: the same values, or refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from samples import MIB, settle
from zoo import HELD, OPTIONS

import dsmem
from dsmem.errors import Refusal
from dsmem.hdf5 import attrs
from dsmem.hdf5.attrs import AttributeReader
from dsmem.hdf5.scan import NotMappable, scan

NODES = [name for name in HELD if "attribute" in name or "variable" in name or "names" in name]


def many_references(path: Path, values: int, size_bytes: int) -> Path:
    """A file whose attribute `x` is so many references to one list of bytes."""
    with h5py.File(path, "w", libver="earliest") as file:
        lists = np.empty(values, object)
        lists[:] = [np.empty(0, "u1")] * values
        lists[0] = np.arange(size_bytes, dtype="u1")
        file.attrs.create("x", lists, dtype=h5py.vlen_dtype(np.dtype("u1")))
        file.attrs["beside"] = 5
        file["data"] = np.arange(10)
    content = bytearray(path.read_bytes())
    begin = content.index(struct.pack("<I", size_bytes))
    while content[begin + 16 : begin + 16 * values].strip(b"\0"):
        begin = content.index(struct.pack("<I", size_bytes), begin + 1)
    content[begin : begin + 16 * values] = bytes(content[begin : begin + 16]) * values
    path.write_bytes(content)
    return settle(path)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize("untrusted", [False, True], ids=["here", "in a child"])
def test_too_many_references_to_one_value_are_refused(tmp_path: Path, untrusted: bool) -> None:
    path = many_references(tmp_path / "x.h5", 3000, 400_000)
    before = children()
    with pytest.raises(dsmem.Unsupported) as caught:
        dsmem.pin(path, untrusted=untrusted)
    reason = "an attribute with values that can't be read within 1.0 GiB: many may refer to one"
    assert list(caught.value.refusals) == [Refusal("/@x", reason, "oversized")]
    assert children() == before
    pinned = dsmem.pin(path, skip_unsupported=True, untrusted=untrusted)
    with dsmem.attach(pinned.name) as found:
        assert dict(found.attrs) == {"beside": 5}
        assert found["data"][...].tolist() == list(range(10))


def test_the_memory_is_a_childs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its size alone: what a child reads is never in this process."""
    path = many_references(tmp_path / "x.h5", 3000, 20_000)
    monkeypatch.setattr(attrs, "MOST_BYTES", 50 * MIB)
    monkeypatch.setattr(attrs, "_CHILD_BYTES", 50 * MIB)
    with h5py.File(path) as file, AttributeReader(()) as reader:
        with pytest.raises(TypeError, match="many may refer to one"):
            reader.read(file, "x")
        assert reader.read(file, "beside") == {"dtype": "<i8", "shape": None, "data": "BQAAAAAAAAA="}
    with h5py.File(path) as file, AttributeReader({"oversized"}) as reader:
        monkeypatch.setattr(attrs, "_Child", lambda *_: pytest.fail("what is allowed is read here"))
        value: Any = reader.read(file, "x")
        assert [len(one["data"]) for one in value["objects"]] == [26_668] * 3000


@pytest.mark.parametrize("name", NODES)
def test_a_child_reads_the_same(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", **OPTIONS[name]) as file:
        HELD[name](file)
        file.create_group("more").attrs["many texts"] = ["é", "", "x" * 1000]
        file["more"].attrs.create(b"not \xff UTF-8", ["a", "b"], dtype=h5py.string_dtype())
        file.create_dataset("more/d", data=[1, 2]).attrs["lists of texts"] = np.array(["b", "a"], object)
    with h5py.File(path) as file:
        expected = scan(file, str(path), file_bytes=path.stat().st_size)
    read: list[bytes] = []
    through = attrs._Child.read

    def noted(child: attrs._Child, path: bytes, name: bytes) -> object:
        read.append(name)
        return through(child, path, name)

    monkeypatch.setattr(attrs._Child, "read", noted)
    monkeypatch.setattr(attrs, "MOST_BYTES", 0)
    with h5py.File(path) as file:
        found = scan(file, str(path), file_bytes=path.stat().st_size)
    assert {b"many texts", b"not \xff UTF-8", b"lists of texts"} <= set(read)
    assert found.attributes == expected.attributes
    assert found.refusals == expected.refusals


def test_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attrs, "MOST_BYTES", 0)
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("in/d", data=[1, 2]).attrs["of"] = [name, "both"]
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["there"] = h5py.ExternalLink("b.h5", "/in")
    pinned = dsmem.pin(settle(tmp_path / "a.h5"), allow=["external"])
    with dsmem.attach(pinned.name) as found:
        assert found["in/d"].attrs["of"].tolist() == ["a", "both"]
        assert found["there/d"].attrs["of"].tolist() == ["b", "both"]


def test_a_child_that_dies_costs_one_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attrs, "MOST_BYTES", 0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["x"] = ["a", "b"]
    others = children()
    with h5py.File(tmp_path / "x.h5") as file, AttributeReader(()) as reader:
        expected = reader.read(file, "x")
        (first,) = children() - others
        psutil.Process(first).kill()
        with pytest.raises(TypeError, match="can't be read within"):
            reader.read(file, "x")
        assert reader.read(file, "x") == expected
        (second,) = children() - others
        assert second != first
    assert children() <= others


def test_all_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attrs, "MAX_HEADER_BYTES", 1000)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in "abc":
            file.attrs[name] = name * 400
        file.attrs["d"] = "short"
        file["data"] = np.arange(10)
    path = settle(tmp_path / "x.h5")
    with pytest.raises(dsmem.Unsupported) as caught:
        dsmem.pin(path)
    reason = "an attribute with values of 400 bytes as JSON, where 200 are left of the 1,000 for all"
    assert list(caught.value.refusals) == [Refusal("/@c", reason)]
    pinned = dsmem.pin(path, skip_unsupported=True)
    with dsmem.attach(pinned.name) as found:
        assert sorted(found.attrs) == ["a", "b", "d"]


def test_an_unpinned_file_is_not_read_for_them(tmp_path: Path) -> None:
    path = many_references(tmp_path / "x.h5", 3000, 400_000)
    with h5py.File(path) as file, pytest.raises(NotMappable, match="/@x: an attribute that may be very large"):
        scan(file, str(path), mappable=True, file_bytes=path.stat().st_size)
    with dsmem.File(path, pin="never") as found:
        assert found.attrs["beside"] == 5
        assert found["data"].source == "mapped"


def test_what_is_not_selected_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attrs, "MAX_HEADER_BYTES", 1000)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in "ab":
            file.create_dataset(f"{name}/data", data=np.arange(10)).parent.attrs["text"] = name * 800
    pinned = dsmem.pin(settle(tmp_path / "x.h5"), only=["b/*"])
    with dsmem.attach(pinned.name) as found:
        assert found["b"].attrs["text"] == "b" * 800
