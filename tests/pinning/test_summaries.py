"""What was pinned of very many datasets: as the tuple that it is of few, but made when it is looked at."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import settle

import dsmem
from dsmem.pinning import summaries
from dsmem.pinning.summaries import Summaries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(20):
            file[f"{number}"] = np.arange(number)
        file["text"] = ["a", "bc"]
        file["nothing"] = h5py.Empty("f4")
        file.create_dataset("packed", data=np.arange(100), chunks=(10,), compression="gzip")
    return settle(tmp_path / "x.h5")


def test_few_are_a_tuple(path: Path) -> None:
    assert type(dsmem.pin(path).datasets) is tuple


def test_many_are_like_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "_MOST_AT_ONCE", 10)
    many, there = dsmem.pin(path).datasets, dsmem.pin(path).datasets
    assert isinstance(many, Summaries) and isinstance(there, Summaries)
    assert many == there and len(there) == 23
    there = tuple(there)
    assert many == there and there == many and hash(many) == hash(there) and repr(many) == repr(there)
    assert many != list(there) and many != there[1:]
    assert len(many) == 23 and many[-1] == there[-1] and many[3:7] == there[3:7] and there[5] in many
    assert copy.deepcopy(many) == there and type(pickle.loads(pickle.dumps(many))) is tuple
    path.unlink()
    assert tuple(many) == there
    with pytest.raises(IndexError):
        many[23]
