"""The links of a group are told in h5py's order, however HDF5 tells of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import pytest

from dsmem import stopping
from dsmem.hdf5 import links


def names_of(group: Any) -> tuple[list[str], list[int]]:
    with stopping.held() as held:
        held.release()
        names, types = links.listed(group.id, held)
        return list(names), list(types)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("by_creation", [False, True])
@pytest.mark.parametrize(("many", "at_once"), [(3, 2), (50, 7), (1 << 14, 64)])
def test_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libver: str, by_creation: bool, many: int, at_once: int
) -> None:
    monkeypatch.setattr(links, "_MANY", many)
    monkeypatch.setattr(links, "_AT_ONCE", at_once)
    made = [f"{'é' * (number % 3)}{number}" for number in random.Random(0).sample(range(1000), 300)]
    with h5py.File(tmp_path / "x.h5", "w", libver=libver, track_order=by_creation) as file:
        for number, name in enumerate(made):
            if number % 3:
                file[name] = h5py.SoftLink("/nowhere")
            else:
                file.create_group(name)
    with h5py.File(tmp_path / "x.h5") as file:
        names, types = names_of(file["/"])
        assert names == list(file) == (made if by_creation else sorted(made, key=str.encode))
        for name, kind in zip(names, types, strict=True):
            assert kind == (h5py.h5l.TYPE_HARD if isinstance(file.get(name, getlink=True), h5py.HardLink) else 1)


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_MANY", 0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert names_of(file["/"]) == ([], [])


class Lying:
    """A group that says that it has fewer links."""

    def __init__(self, group: Any, count: int) -> None:
        self._group = group
        self._count = count

    def get_num_objs(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def test_more_than_a_damaged_group_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index whose parts come again and again has no end."""
    monkeypatch.setattr(links, "_MANY", 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in "edcba":
            file.create_group(name)
        with stopping.held() as held:
            held.release()
            assert list(links.listed(Lying(file.id, 5), held)[0]) == list("abcde")
            with pytest.raises(OSError, match="more links than it says"):
                links.listed(Lying(file.id, 4), held)
