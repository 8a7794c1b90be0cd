"""`pin(verify=True)` of a file that is pinned already: what lies in the store is compared with the file."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import dsmem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(50_000)
        file.create_dataset("packed", data=np.arange(50_000), chunks=(5_000,), compression="gzip")
        file["words"] = ["one", "two", "three"]
    return path


@pytest.mark.parametrize("untrusted", [False, True])
def test_an_intact_object_passes(path: Path, store_root: Path, untrusted: bool) -> None:
    first = dsmem.pin(path)
    again = dsmem.pin(path, verify=True, untrusted=untrusted)
    assert (again.name, again.already) == (first.name, True)
    assert [entry.name for entry in os.scandir(store_root / "objects")] == [first.name]


@pytest.mark.parametrize("dataset", ["plain", "packed", "words"])
def test_a_flipped_bit_is_found(path: Path, store_root: Path, dataset: str) -> None:
    pinned = dsmem.pin(path)
    flip(store_root / "objects" / pinned.name, b"three" if dataset == "words" else None, dataset)
    assert dsmem.pin(path).already, "who does not ask for it does not wait for it"
    with pytest.raises(dsmem.DamagedObject, match=r"is not what .*train\.h5 holds") as caught:
        dsmem.pin(path, verify=True)
    assert caught.value.name == pinned.name


def flip(stored: Path, text: bytes | None, dataset: str) -> None:
    """Change one bit of a dataset's data in an object."""
    data = bytearray(stored.read_bytes())
    if text is not None:
        place = data.rindex(text)
    else:
        data_start = 8 + int.from_bytes(data[:8], "little")
        place = data_start + (0 if dataset == "plain" else len(data[data_start:]) // 2)
    data[place] ^= 1
    stored.chmod(0o600)
    with stored.open("r+b") as file:
        file.write(data)
    stored.chmod(0o400)
