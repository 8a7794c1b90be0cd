"""Objects are found by their addresses, however many were met."""

from __future__ import annotations

import random

import pytest

from dsmem.hdf5 import met
from dsmem.hdf5.met import Met


@pytest.mark.parametrize("recent", [1, 3, 10_000])
def test_paths(monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(met, "_RECENT", recent)
    found = Met()
    addresses = [random.Random(n).getrandbits(63) for n in range(200)]
    for number, address in enumerate(addresses):
        assert found.path(address) is None
        found.add(address, f"x{number}")
        assert found.path(address) == f"x{number}"
    assert [found.path(address) for address in addresses] == [f"x{number}" for number in range(200)]
    assert all(found.path(address + 1) is None for address in addresses)
