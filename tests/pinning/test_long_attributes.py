"""Long attributes lie in a tensor of their own, read as h5py reads them, and are never all in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from samples import MIB, assert_reads_as_h5py, settle

import dsmem
from dsmem.arrays import header, tree, views
from dsmem.hdf5 import attrs
from dsmem.hdf5.attrs import AttributeReader
from dsmem.store import objects
from dsmem.store.root import make_store

LONG = 100_000
COMPOUND = np.zeros(LONG // 10, [("a", "<i2"), ("b", ">f8")])


def write(path: Path) -> Path:
    random = np.random.default_rng(0)
    lists = np.empty(3, object)
    lists[:] = [random.integers(0, 9, LONG // n).astype("<i4") for n in (4, 5, 6)]
    values: dict[str, Any] = {
        "text": "é" * LONG,
        "bytes": np.bytes_(b"b" * LONG),
        "numbers": random.random((LONG // 80, 10)),
        "big-endian": np.arange(LONG, dtype=">i4"),
        "compound": COMPOUND,
        "texts": np.array([f"text {n}" for n in range(LONG // 10)], object),
        "short": 5,
        "none": np.zeros((0, 3), "<f4"),
    }
    with h5py.File(path, "w", libver="latest") as file:
        nodes = [file, file.create_group("group"), file.create_dataset("group/data", data=np.arange(10))]
        file["type"] = np.dtype("<f4")
        for node in (*nodes, file["type"]):
            for name, value in values.items():
                node.attrs[name] = value
        file.attrs.create("lists", lists, dtype=h5py.vlen_dtype("<i4"))
        file.attrs.create(b"not \xff UTF-8", "x" * LONG, dtype=h5py.string_dtype())
        file.attrs.create("not UTF-8 itself", b"\xff" * LONG, dtype=h5py.string_dtype())
    return settle(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("long") / "x.h5")


@pytest.mark.parametrize("held", ["all", "none", "some"])
@pytest.mark.parametrize("untrusted", [False, True], ids=["here", "in a child"])
def test_reads_as_h5py(path: Path, held: str, untrusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if held != "all":
        monkeypatch.setattr(attrs, "_MOST_HELD_BYTES", MIB if held == "some" else 0)
    pinned = dsmem.pin(path, untrusted=untrusted)
    with dsmem.attach(pinned.name) as file:
        assert_reads_as_h5py(file, path)


def test_they_lie_apart(path: Path) -> None:
    pinned = dsmem.pin(path)
    parsed = objects.read_header(make_store(), pinned.name)
    assert parsed.data_start < LONG
    tensor = parsed.tensor(tree.ATTRIBUTES_NAME)
    assert tensor.dtype == "U8"
    table = json.loads(parsed.metadata[views.ATTRIBUTES_KEY])
    assert table["group"]["short"] == {"dtype": "<i8", "shape": None, "data": "BQAAAAAAAAA="}
    assert list(table["group"]["text"]) == ["str"]
    begin, end = table["group"]["text"]["str"]["at"]
    assert end - begin == 2 * LONG
    assert [one.path for one in pinned.datasets] == ["group/data"]


def test_many_together_lie_apart_too_but_for_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To say where a short one lies would take more of the header than it does."""
    monkeypatch.setattr(attrs, "_MOST_TOGETHER", 1000)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(100):
            file.attrs[f"{number}"] = f"{number:0300}"
            file.attrs[f"short {number}"] = f"{number:050}"
        file["data"] = np.arange(10)
    path = settle(tmp_path / "x.h5")
    pinned = dsmem.pin(path)
    assert objects.read_header(make_store(), pinned.name).tensor(tree.ATTRIBUTES_NAME).shape == (97 * 300,)
    with dsmem.attach(pinned.name) as file:
        assert_reads_as_h5py(file, path)


def test_only_those_of_what_is_selected(path: Path) -> None:
    pinned = dsmem.pin(path, only=["group/data"])
    with dsmem.attach(pinned.name) as file, h5py.File(path) as plain:
        np.testing.assert_array_equal(file["group/data"].attrs["compound"], plain["group/data"].attrs["compound"])
        assert file["group"].attrs["text"] == plain["group"].attrs["text"]
        assert "type" not in file


def test_an_attribute_that_changes_its_length_is_not_published(
    path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attrs, "_MOST_HELD_BYTES", 0)
    through = AttributeReader.raw
    monkeypatch.setattr(AttributeReader, "raw", lambda *given: through(*given)[1:])
    with pytest.raises(dsmem.SourceChanged, match="changed while it was read"):
        dsmem.pin(path)
    assert not list((store_root / "objects").iterdir())


def test_places_outside_are_damage(path: Path) -> None:
    pinned = dsmem.pin(path)
    at = Path(make_store().object_path(pinned.name))
    content = at.read_bytes()
    parsed = objects.read_header(make_store(), pinned.name)
    text = parsed.metadata[views.ATTRIBUTES_KEY]
    begin, end = json.loads(text)[""]["text"]["str"]["at"]
    old = json.dumps(f"[{begin},{end}]")[1:-1].encode()
    assert content.count(old, 0, parsed.data_start) == 1
    new = f"[{begin},{10 ** len(str(end)) - 1}]".encode()
    at.chmod(0o600)
    at.write_bytes(content.replace(old, new, 1))
    with dsmem.attach(pinned.name) as file:
        assert file["group/data"].attrs["short"] == 5
        with pytest.raises(dsmem.DamagedObject, match="its attributes can't be read"):
            file.attrs["text"]


def test_a_header_without_the_tensor_is_damage() -> None:
    raw: dict[str, object] = {}
    table = {"": {"x": {"str": {"at": [0, 1]}}}}
    parsed = header.Header(raw, {views.TREE_KEY: "{}", views.ATTRIBUTES_KEY: json.dumps(table)}, 8, 0)
    contents = views.TreeContents(parsed, np.empty(0, np.uint8), "pinned", "", label="x")
    with pytest.raises(dsmem.DamagedObject, match="x"):
        contents.attributes("")["x"]


def test_two_of_one_name_do_not_move_those_behind_them(tmp_path: Path) -> None:
    """In a damaged file."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["first"] = np.arange(7000)
        file.attrs["other"] = np.arange(7000)[::-1]
        file.create_dataset("x", data=1).attrs["behind"] = np.arange(7000) * 3
    path.write_bytes(path.read_bytes().replace(b"other\0", b"first\0"))
    settle(path)
    pinned = dsmem.pin(path)
    with dsmem.attach(pinned.name) as ours, h5py.File(path) as theirs:
        np.testing.assert_array_equal(ours["x"].attrs["behind"], theirs["x"].attrs["behind"])
        np.testing.assert_array_equal(ours.attrs["first"], theirs.attrs["first"])
