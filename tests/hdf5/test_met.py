"""Objects are found by their addresses and files, however many were met."""

from __future__ import annotations

import random

import pytest

from dsmem.hdf5 import met
from dsmem.hdf5.met import Met
from dsmem.hdf5.places import Place


@pytest.mark.parametrize("recent", [1, 3, 10_000])
def test_paths(monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(met, "_RECENT", recent)
    found = Met()
    addresses = [random.Random(n).getrandbits(64) for n in range(100)]
    places = [Place(file, address, 1) for address in addresses for file in (2, 1)]
    for number, where in enumerate(places):
        assert found.path(where) is None
        found.add(where, f"x{number}")
        assert found.path(where) == f"x{number}"
    assert [found.path(where) for where in places] == [f"x{number}" for number in range(200)]
    assert all(found.path(Place(1, address ^ 1, 1)) is None for address in addresses)
    assert all(found.path(Place(3, address, 1)) is None for address in addresses)
