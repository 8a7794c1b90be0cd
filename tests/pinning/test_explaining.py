"""`explain` tells what `pin` will do: the same datasets, tiers and refusals, without a store and without data."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import zoo

import dsmem
from dsmem.errors import SourceMissing


def test_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(10.0)
        file.create_dataset("packed", data=np.zeros(4000, "<i4"), chunks=(1000,), compression="gzip", shuffle=True)
        file.create_dataset("scaled", data=np.arange(100), chunks=(10,), scaleoffset=0)
        file["texts"] = np.array(["a", "b"], zoo.TEXT)
        file["null"] = h5py.Empty("<f4")
        file["none"] = np.zeros((0, 3))
        zoo.HELD["compact"](file.create_group("small"))
        file.create_dataset("unwritten", shape=(5,), dtype="<i4")
        zoo.HELD["bfloat16"](file.create_group("brain"))
    found = {one.path: one for one in dsmem.explain(path).datasets}
    hows = {name: (one.layout, one.tier, one.why) for name, one in found.items() if not name.startswith("brain")}
    assert hows == {
        "plain": ("contiguous", "contiguous", "contiguous"),
        "packed": ("chunked", "chunked", "chunked, shuffle + gzip"),
        "scaled": ("chunked", "h5py", "chunked, scaleoffset: only HDF5 decodes scaleoffset"),
        "texts": ("contiguous", "h5py", "variable length"),
        "null": ("contiguous", "empty", "a null dataspace"),
        "none": ("contiguous", "empty", "no items"),
        "small/x": ("compact", "h5py", "compact"),
        "small/never": ("compact", "h5py", "compact"),
        "small/big_scalar": ("compact", "h5py", "compact"),
        "unwritten": ("contiguous", "h5py", "not allocated in full"),
    }
    packed = found["packed"]
    assert (packed.shape, packed.dtype, packed.chunks, packed.filters) == (
        (4000,),
        "int32",
        (1000,),
        ("shuffle", "gzip"),
    )
    with h5py.File(path, "r") as file:
        stored = file["packed"].id.get_storage_size()
    assert (packed.size_bytes, packed.stored_bytes, packed.ratio) == (16_000, stored, round(16_000 / stored, 3))
    assert found["plain"].ratio == 1.0 and found["unwritten"].ratio is None and found["null"].shape is None
    assert any("16-bit float" in (one.note or "") for name, one in found.items() if name.startswith("brain"))


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_refuses_what_pin_refuses(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.h5"
    builder, expected = zoo.REFUSED[name]
    with h5py.File(path, "w", **zoo.OPTIONS[name]) as file:
        builder(file)
    assert {one.path for one in dsmem.explain(path).refused} == expected.keys()


def test_leaves_no_trace(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(1000)
    monkeypatch.setenv("DSMEM_ROOT", "/nowhere/at/all")

    def read(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    assert [one.path for one in dsmem.explain(path, only=["x"]).datasets] == ["x"]
    assert not store_root.exists() and not (tmp_path / "cache").exists()


def test_what_can_not_be_explained(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(SourceMissing):
        dsmem.explain(path)
    path.write_text("text")
    with pytest.raises(dsmem.BadSource):
        dsmem.explain(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(dsmem.BadSource, match="nothing matches y; it holds x"):
        dsmem.explain(path, only=["y"])
    with h5py.File(path, "a"), pytest.raises(dsmem.SourceBusy):
        dsmem.explain(path)
