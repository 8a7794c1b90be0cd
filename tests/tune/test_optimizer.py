"""`DatasetOptimizer` over real files: what it finds in them; what it recommends is taken, and reads the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from episodes import CAMERAS, GZIP, SHAPE, check_aloha, write_aloha, write_encoded, write_robomimic

import dsmem
from dsmem.errors import BrokenEpisodes, UsageError
from dsmem.training import EpisodicDataset, create_optimized_dataloader, episodes
from dsmem.tune import DatasetOptimizer, auto_optimize_dataset, sampling


@pytest.fixture
def robots(tmp_path: Path) -> list[Path]:
    return [write_aloha(tmp_path / f"episode_{n}.hdf5", steps=6 + n, seed=n, **GZIP) for n in range(3)]


def test_what_is_recommended_can_be_used(robots: list[Path], store_root: Path) -> None:
    config, analysis = auto_optimize_dataset(robots, CAMERAS, batch_size=4, gpus=2)
    assert not store_root.exists()  # it only looked
    assert set(config) == {"memory_mapping", "shared_memory", "dataloader", "optimization"}
    options = {"use_shared_memory": config["shared_memory"]["enabled"], **config["optimization"]}
    check_aloha(EpisodicDataset(robots, CAMERAS, **options), robots)
    loading = {**config["dataloader"], "num_workers": 0}
    loader, _ = create_optimized_dataloader(robots, CAMERAS, 4, dataset_kwargs=options, **loading)
    assert sum(len(batch["step"]) for batch in loader) == 6 + 7 + 8
    assert json.loads(json.dumps(analysis))["data"]["steps"] == 21
    assert {"system", "data", "speeds", "workload", "recommendation", "config"} <= set(analysis)


def test_what_it_finds(robots: list[Path]) -> None:
    found = DatasetOptimizer(robots).analyze_datasets()
    assert (found.files, found.episodes, found.steps, found.layouts) == (3, 3, 21, ("aloha",))
    assert found.cameras == tuple(sorted(CAMERAS))
    by_name = {one.name: one for one in found.storages}
    top = by_name["observations/images/top"]
    assert (top.count, top.rows, top.item_shape, top.chunks) == (3, 21, SHAPE, (1, *SHAPE))
    assert (top.layout, top.filters, top.is_mapped, top.role) == ("chunked", ("gzip",), False, "image")
    assert top.size_bytes == 21 * 12 * 16 * 3 and top.stored_bytes > 0
    action = by_name["action"]
    assert (action.layout, action.is_mapped, action.role, action.dtype) == ("contiguous", True, "action", "float32")
    assert found.data_bytes == sum(one.size_bytes for one in found.storages)
    assert found.mapped_bytes == found.critical_bytes == action.size_bytes + by_name["observations/qpos"].size_bytes


def test_robomimic_demos_are_one_kind(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demos.hdf5")
    found = DatasetOptimizer([path], mask="train").analyze_datasets()
    assert (found.episodes, found.steps, found.layouts) == (2, 5 + 6, ("robomimic",))
    assert found.cameras == ("agentview_image",)
    names = {one.name: one.count for one in found.storages}
    assert names["actions"] == 2 and all(not name.startswith("data/") for name in names)


def test_encoded_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    timed = sampling._frames_s

    def frames_s(*args: Any) -> float:
        taken.append(timed(*args))
        return taken[-1]

    monkeypatch.setattr(sampling, "_frames_s", frames_s)
    for padded in (True, False):
        path = tmp_path / f"{padded}.hdf5"
        write_encoded(path, padded=padded)
        optimizer = DatasetOptimizer([path], batch_size=2)
        found = optimizer.optimize()
        one = next(one for one in found.data.storages if one.role == "image")
        assert one.is_encoded and one.item_shape == SHAPE and one.size_bytes == 5 * 12 * 16 * 3
        assert found.data.is_encoded
        assert 0 <= found.speeds.frames_s <= taken[-1]
        assert taken.pop() > 0 and not taken
        assert "encoded" in {reason.code for reason in found.recommendation.reasons}


def test_stored_in_different_ways(tmp_path: Path) -> None:
    paths = [write_aloha(tmp_path / "a.hdf5"), write_aloha(tmp_path / "b.hdf5", chunks=(1, *SHAPE))]
    found = DatasetOptimizer(paths, ["top"]).optimize()
    tops = [one for one in found.data.storages if one.role == "image"]
    assert [(one.layout, one.count) for one in tops] == [("contiguous", 1), ("chunked", 1)]
    assert len({one.name for one in tops}) == 2 and all(one.step_s for one in tops)


def test_a_changed_file_is_told(robots: list[Path]) -> None:
    dsmem.pin(robots[0])
    assert DatasetOptimizer(robots).analyze_datasets().changing == ()
    with h5py.File(robots[0], "a") as file:
        file["action"][0] = 7
    found = DatasetOptimizer(robots, gpus=4).optimize()
    assert found.data.changing == (str(robots[0]),) and found.recommendation.not_shared == "changing"
    asked = DatasetOptimizer(robots[1:], gpus=4, changing=True).optimize()
    assert asked.recommendation.not_shared == "changing"


def test_changed_while_it_was_looked_at(robots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    survey = episodes.survey

    def slow(*arguments: Any, **options: Any) -> object:
        found = survey(*arguments, **options)
        os.utime(robots[1])
        return found

    monkeypatch.setattr(episodes, "survey", slow)
    assert DatasetOptimizer(robots).analyze_datasets().changing == (str(robots[1]),)


def test_broken_ones_are_all_named(robots: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.hdf5"
    bad.write_text("no")
    with pytest.raises(BrokenEpisodes) as caught:
        DatasetOptimizer([*robots, bad], CAMERAS).optimize()
    assert [failure.path for failure in caught.value.failures] == [str(bad)]


def test_arguments_that_mean_nothing(robots: list[Path], tmp_path: Path) -> None:
    for make in (
        lambda: DatasetOptimizer([]),
        lambda: DatasetOptimizer(str(robots[0])),
        lambda: DatasetOptimizer(robots, "top"),
        lambda: DatasetOptimizer(robots, batch_size=0),
        lambda: DatasetOptimizer(robots, gpus=-1),
        lambda: DatasetOptimizer(robots, step_s=-1.0),
        lambda: auto_optimize_dataset(robots, preset="huge"),
    ):
        with pytest.raises(UsageError):
            make()
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["action"] = np.zeros((3, 2))
    with pytest.raises(UsageError, match="no camera found"):
        DatasetOptimizer([tmp_path / "none.h5"]).analyze_datasets()


def test_report(robots: list[Path]) -> None:
    text = DatasetOptimizer(robots, batch_size=2).report()
    for part in ("machine", "files", "observations/images/top", "gzip", "because", "expected"):
        assert part in text


def test_a_preset_is_taken_and_its_cost_told(robots: list[Path]) -> None:
    config, analysis = auto_optimize_dataset(robots, CAMERAS, preset="large")
    assert config["dataloader"]["num_workers"] == 8 and analysis["preset"]["batch_s"] > 0
