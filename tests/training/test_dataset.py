"""`EpisodicDataset`: every sample is what plain h5py gives, wherever it was read from, and nothing ends a run."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import children
import h5py
import numpy as np
import pytest
import torch
from episodes import CAMERAS, GZIP, check_aloha, write_aloha, write_encoded, write_robomimic
from torch.utils.data import default_collate

import dsmem
from dsmem.errors import BrokenEpisodes, UsageError
from dsmem.training import (
    EpisodicDataset,
    OptimizedDataset,
    OptimizedEpisodicDataset,
    SharedMemoryManager,
    reading,
)
from dsmem.training.batches import collate
from dsmem.training.cache import ArrayCache
from dsmem.training.episodes import Stored

STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "gzip": GZIP,
    "shuffled, several rows a chunk": {"compression": "gzip", "shuffle": True, "chunks": (4, 12, 8, 3)},
    "scale-offset, which h5py alone reads": {"scaleoffset": 0, "chunks": (3, 12, 16, 3)},
}


def made(tmp_path: Path, options: dict[str, Any], count: int = 2) -> list[Path]:
    return [write_aloha(tmp_path / f"e{i}.h5", steps=9 + i, seed=i, **options) for i in range(count)]


def sources(dataset: EpisodicDataset) -> dict[str, int]:
    return {one.source: one.reads for one in dataset.performance_report().sources if one.reads}


@pytest.mark.parametrize("options", STORAGE.values(), ids=STORAGE)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not shared"])
def test_samples_are_those_of_plain_h5py(tmp_path: Path, options: dict[str, Any], shared: bool) -> None:
    paths = made(tmp_path, options)
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=shared, chunk_size=5)
    check_aloha(dataset, paths)
    check_aloha(dataset, paths)
    read = sources(dataset)
    if shared:
        assert set(read) == {"pinned"}
    elif not options:
        assert set(read) == {"mapped"}
    elif "scaleoffset" in options:
        assert set(read) == {"mapped", "h5py"}
    else:
        assert set(read) == {"mapped", "decoded", "cache"}


def test_without_mapping_h5py_reads(tmp_path: Path) -> None:
    paths = made(tmp_path, GZIP)
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, memory_mapping=False, chunk_size=3)
    check_aloha(dataset, paths)
    assert set(sources(dataset)) == {"h5py"}


def test_a_source_is_asked_once_for_what_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(reader: reading.FileReader, stored: Stored, start: int, stop: int) -> Any:
        asked.append(stored.path)
        return reading.FileReader._from_map(reader, stored, start, stop)

    monkeypatch.setitem(reading._READ, "mapped", counted)
    paths = made(tmp_path, GZIP, count=1)
    check_aloha(EpisodicDataset(paths, CAMERAS, use_shared_memory=False), paths)
    assert {asked.count(f"observations/images/{camera}") for camera in CAMERAS} == {1}
    assert asked.count("action") > 1


def test_a_batch_is_in_its_order(tmp_path: Path) -> None:
    dataset = EpisodicDataset(made(tmp_path, GZIP), CAMERAS)
    order = [12, 0, 5, 12, -1, 3]
    for index, sample in zip(order, dataset.__getitems__(order), strict=True):
        assert torch.equal(sample["images"]["top"], dataset[index]["images"]["top"])
        assert sample["step"] == dataset[index]["step"]
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match="of 19"):
            dataset[outside]


def test_samples_are_the_callers(tmp_path: Path) -> None:
    dataset = EpisodicDataset(made(tmp_path, {}), CAMERAS)
    before = dataset[4]["images"]["top"].clone()
    dataset[4]["images"]["top"].zero_()
    assert torch.equal(dataset[4]["images"]["top"], before)


def test_let_go_of_with_the_last_reference(tmp_path: Path) -> None:
    """No circle of references keeps the lease until the garbage collector comes by."""
    dataset = EpisodicDataset(made(tmp_path, GZIP), CAMERAS)
    names = dataset.pinned_objects
    assert dataset[3]["step"] == 3
    gc.disable()
    try:
        del dataset
        assert SharedMemoryManager().cleanup_all().removed == names
    finally:
        gc.enable()


def test_collate_copies_no_frame_again(tmp_path: Path) -> None:
    dataset = EpisodicDataset(made(tmp_path, GZIP), CAMERAS)
    samples = dataset.__getitems__([4, 2, 13])
    batch, plain = collate(samples), default_collate(list(samples))
    assert list(batch) == list(plain) and list(batch["images"]) == list(plain["images"])
    for camera in CAMERAS:
        assert torch.equal(batch["images"][camera], plain["images"][camera])
        assert batch["images"][camera].data_ptr() == samples[0]["images"][camera].data_ptr()
    assert torch.equal(batch["action"], plain["action"])
    assert batch["language_instruction"] == plain["language_instruction"]
    cropped = dataset.__getitems__([4, 2])
    for one in cropped:
        one["images"] = {camera: image[:5] for camera, image in one["images"].items()}
    assert collate(cropped)["images"]["top"].shape == (2, 5, 16, 3)
    samples[1]["images"] = {camera: image * 0 for camera, image in samples[1]["images"].items()}
    assert not collate(samples)["images"]["top"][1].any()  # what a hook changed is what is given


def test_robomimic(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demos.hdf5")
    dataset = EpisodicDataset([path], ["agentview"], chunk_size=2)
    assert len(dataset) == 4 + 5 + 6
    with h5py.File(path) as file:
        demo = file["data/demo_10"]
        sample = dataset[4 + 5 + 3]
        parts = [demo[f"obs/robot0_{name}"][3] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        np.testing.assert_array_equal(sample["state"], np.concatenate(parts).astype(np.float32))
        np.testing.assert_array_equal(sample["images"]["agentview"], demo["obs/agentview_image"][3])
        np.testing.assert_array_equal(sample["action"], demo["actions"][3:5].astype(np.float32))
    assert (sample["episode"], sample["step"], sample["language_instruction"]) == (2, 3, "open the drawer")
    assert len(EpisodicDataset([path], ["agentview"], mask="train")) == 5 + 6
    with pytest.raises(BrokenEpisodes, match="no mask/valid; there is train"):
        EpisodicDataset([path], ["agentview"], mask="valid")


def test_a_layout_by_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file["runs/a/cams/front"] = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
        file["runs/a/q"], file["runs/a/dq"] = np.ones((3, 2)), np.zeros((3, 1))
        file["runs/a/command"] = np.arange(3.0)
        file["runs/a"].attrs["task"] = "wave"
    layout = {"images": "cams/{camera}", "state": ["q", "dq"], "action": "command", "episodes": "runs"}
    with pytest.raises(BrokenEpisodes, match="give a layout="):
        EpisodicDataset([path], ["front"])
    dataset = EpisodicDataset([path], ["front"], layout={**layout, "language": "task"}, chunk_size=2)
    sample = dataset[1]
    assert sample["state"].tolist() == [1, 1, 0] and sample["action"].tolist() == [[1], [2]]
    assert sample["language_instruction"] == "wave" and sample["images"]["front"][0, 0, 0] == 48
    with pytest.raises(UsageError, match=r"missing=\['images'\]"):
        EpisodicDataset([path], ["front"], layout={"state": "q", "action": "command"})


@pytest.mark.parametrize("padded", [False, True], ids=["variable length", "padded"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("codec", ["png", "jpeg8"])
def test_encoded_frames(tmp_path: Path, padded: bool, shared: bool, codec: str) -> None:
    frames = write_encoded(tmp_path / "e.h5", padded=padded, codec=codec)
    dataset = EpisodicDataset([tmp_path / "e.h5"], ["top"], use_shared_memory=shared)
    for _ in range(2):
        for step, frame in enumerate(frames):
            np.testing.assert_array_equal(dataset[step]["images"]["top"], frame)
    assert sources(dataset)["cache"] >= len(frames)  # decoded once


def test_the_hooks(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Mine(EpisodicDataset):
        def get_language_instruction(self) -> str:
            return f"do it: {self.episode.language}"

        def _fallback_load_onestep(self, dataset_path: str, start_ts: int) -> Any:
            seen.append((dataset_path, start_ts))
            return "mine"

    paths = made(tmp_path, {})
    dataset = Mine(paths, CAMERAS, use_shared_memory=False)
    assert dataset[9]["language_instruction"] == "do it: task 1"
    assert not seen
    broken = Mine(paths, CAMERAS, use_shared_memory=False)
    os.rename(paths[1], tmp_path / "gone.h5")
    assert broken[9 + 4] == "mine" and seen == [(str(paths[1]), 4)]
    assert broken[3]["step"] == 3
    fallback = next(one for one in broken.performance_report().sources if one.source == "fallback")
    assert (fallback.reads, fallback.failures) == (1, 1)
    given = EpisodicDataset(paths[:1], CAMERAS, language_instruction="lift", transform=lambda one: one["step"] * 10)
    assert given[2] == 20


def test_the_fallback_reads_a_step_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = made(tmp_path, GZIP)
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, chunk_size=4)

    def broken(*_: Any) -> Any:
        raise OSError("nothing works today")

    for source in ("mapped", "decoded", "h5py"):
        monkeypatch.setitem(reading._READ, source, broken)
    check_aloha(dataset, paths)
    assert sources(dataset) == {"fallback": len(dataset)}
    assert any("nothing works today" in reason for reason in dataset.performance_report().reasons)


def test_shared_memory_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that is refused: the samples are the same, and the report says why."""
    paths = made(tmp_path, GZIP)
    (tmp_path / "root").symlink_to(tmp_path)
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "root"))
    dataset = EpisodicDataset(paths, CAMERAS, chunk_size=2)
    check_aloha(dataset, paths)
    report = dataset.performance_report()
    assert next(one for one in report.sources if one.source == "pinned").failures >= len(paths)
    assert any("symlink" in reason for reason in report.reasons)


def test_an_object_removed_in_the_midst_of_a_run(tmp_path: Path, store_root: Path) -> None:
    paths = made(tmp_path, GZIP)
    dataset = EpisodicDataset(paths, CAMERAS)
    for name in dataset.pinned_objects:
        (store_root / "objects" / name).unlink()
    check_aloha(pickle.loads(pickle.dumps(dataset)), paths)


def test_all_that_is_broken_is_named_at_once(tmp_path: Path) -> None:
    good = write_aloha(tmp_path / "good.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    whole = write_aloha(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(write_aloha(tmp_path / "short.h5"), "r+") as file:
        del file["action"]
        file["action"] = np.zeros((4, 4))
    with h5py.File(write_aloha(tmp_path / "blind.h5"), "r+") as file:
        del file["observations/images/top"]
    bad = [tmp_path / f"{name}.h5" for name in ("text", "cut", "short", "blind", "missing")]
    with pytest.raises(BrokenEpisodes) as caught:
        EpisodicDataset([good, *bad], CAMERAS)
    assert [one.path for one in caught.value.failures] == [str(path) for path in bad]
    text = str(caught.value)
    assert text.startswith("5 episodes can't be trained on")
    for said in ("not an HDF5 file", "truncated", "lengths differ: action 4", "no camera 'top'", "no such file"):
        assert said in text


def test_every_broken_demo_of_every_file_is_named(tmp_path: Path) -> None:
    paths = [write_robomimic(tmp_path / f"{number}.hdf5", seed=number) for number in range(5)]
    for path in paths:
        with h5py.File(path, "r+") as file:
            for demo in ("demo_1", "demo_2", "demo_10"):
                del file[f"data/{demo}/actions"]
    with pytest.raises(BrokenEpisodes) as caught:
        EpisodicDataset(paths, ["agentview"])
    for path in paths:
        for demo in ("demo_1", "demo_2", "demo_10"):
            assert f"{path}:/data/{demo}: no actions" in str(caught.value)
    assert len(caught.value.failures) == 15


def test_only_what_is_critical_is_pinned_when_not_all_fits(tmp_path: Path) -> None:
    paths = made(tmp_path, GZIP, 3)
    limit = 3 * (64 << 10) + 4096
    dataset = EpisodicDataset(paths, CAMERAS, memory_limit=limit, chunk_size=3, cache_bytes="64KiB")
    check_aloha(dataset, paths)
    read = sources(dataset)
    assert read["pinned"] == 2 * len(dataset) and read["decoded"] > 0
    assert len(dataset.pinned_objects) == 3
    for path in paths:
        with pytest.raises(dsmem.NotPinned, match="only in part"):
            dsmem.attach(path)


def test_cleanup_on_exit(tmp_path: Path, store_root: Path) -> None:
    paths = made(tmp_path, {})
    kept = EpisodicDataset(paths[:1], CAMERAS)
    assert kept[0]["step"] == 0
    dataset = EpisodicDataset(paths, CAMERAS, cleanup_on_exit=True)
    assert dataset[0]["step"] == 0 and len(dataset.pinned_objects) == 2
    check = partial(check_aloha, dataset, paths)
    children.call(check)  # a child that ends takes nothing away
    assert len(list((store_root / "objects").iterdir())) == 2
    del dataset, check
    assert [one.name for one in (store_root / "objects").iterdir()] == list(kept.pinned_objects)


def test_cleanup_on_exit_with_workers_still_there(tmp_path: Path, store_root: Path) -> None:
    """The workers that persist hold leases of their own when the main process comes to its end."""
    code = (
        "import sys\nfrom dsmem.training import create_optimized_dataloader\n"
        "loader, dataset = create_optimized_dataloader(\n"
        "    sys.argv[1:], ['top'], 4, 1, dataset_kwargs={'cleanup_on_exit': True})\n"
        "print(sum(len(batch['step']) for batch in loader), len(dataset.pinned_objects))\n"
    )
    command = [sys.executable, "-c", code, *map(str, made(tmp_path, GZIP))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["19", "2"]
    assert list((store_root / "objects").iterdir()) == []


def test_pickled_and_forked(tmp_path: Path) -> None:
    paths = made(tmp_path, {"scaleoffset": 0, "chunks": (3, 12, 16, 3)})
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, chunk_size=2)
    check_aloha(dataset, paths)
    inherited = dataset._here()

    def in_child() -> bool:
        check_aloha(dataset, paths)
        return dataset._here() is inherited  # its handles of h5py are the parent's

    assert not children.call(in_child)
    check_aloha(dataset, paths)  # the child's end closed nothing of ours
    check_aloha(pickle.loads(pickle.dumps(dataset)), paths)


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = made(tmp_path, GZIP)
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, enable_monitoring=True)
    check_aloha(dataset, paths)
    check_aloha(dataset, paths)
    report = json.loads(json.dumps(dataset.get_performance_report()))
    by_source = {one["source"]: one for one in report["sources"]}
    assert by_source["cache"]["reads"] == by_source["decoded"]["reads"] == 2 * len(dataset)
    assert by_source["decoded"]["size_bytes"] == 2 * len(dataset) * 12 * 16 * 3
    assert 0 < by_source["decoded"]["p50_s"] <= by_source["decoded"]["p99_s"]
    assert (report["hits"], report["misses"]) == (6 * len(dataset), 2 * len(dataset))
    (process,) = report["processes"]
    assert process["pid"] == os.getpid() and process["pss_bytes"] > 0
    times, sizes = zip(*process["cache_history"], strict=True)
    assert sizes[0] < sizes[-1] <= process["cache_bytes"] and list(times) == sorted(times)
    dataset.print_performance_report()
    shown = capsys.readouterr().out
    for said in ("decoded", "PSS", "p50", "p99", f"{report['misses']} misses", "cache over time"):
        assert said in shown
    dataset.clear_cache()
    assert dataset.get_performance_report()["processes"][0]["cache_bytes"] == 0


def test_a_long_history_is_thinned_out(tmp_path: Path) -> None:
    dataset = EpisodicDataset(made(tmp_path, {}), CAMERAS, use_shared_memory=False)
    for size in range(10_000):
        dataset._monitor.note_cache(size, 10_000)
    (process,) = dataset.performance_report().processes
    times, sizes = zip(*process.cache_history, strict=True)
    assert 32 <= len(sizes) <= 65 and sizes[-1] > 9_700 and sizes[0] < 500
    assert list(times) == sorted(times) and list(sizes[:-1]) == sorted(sizes[:-1])
    assert len({later - earlier for earlier, later in pairwise(sizes[:-1])}) == 1


def test_few_files_open(tmp_path: Path) -> None:
    """`cache_size` bounds the files that are open, and what was decoded of them."""
    paths = made(tmp_path, GZIP, 5)
    before = len(os.listdir("/proc/self/fd"))
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False, memory_map_cache_size=2)
    check_aloha(dataset, paths)
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 2 + 2
    cache = dataset._here().cache
    assert isinstance(cache, ArrayCache) and {key[0] for key in cache._items} <= {3, 4}


def test_old_names_and_misuse(tmp_path: Path) -> None:
    assert OptimizedEpisodicDataset is EpisodicDataset and OptimizedDataset is EpisodicDataset
    path = write_aloha(tmp_path / "e.h5")
    wrong: list[dict[str, Any]] = [
        {"dataset_path_list": str(path)},
        {"dataset_path_list": []},
        {"camera_names": "top"},
        {"cache_size": 3, "memory_map_cache_size": 4},
        {"chunk_size": 0},
        {"cache_size": -1},
        {"cache_bytes": "much"},
        {"memory_limit": -5},
        {"layout": "kitti"},
    ]
    for arguments in wrong:
        with pytest.raises(UsageError):
            EpisodicDataset(**{"dataset_path_list": [path], "camera_names": CAMERAS, **arguments})


@pytest.mark.parametrize("cache_scope", ["process", "shared"])
def test_the_system_reads_the_next_sample_while_one_is_decoded(
    tmp_path: Path, cache_scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_aloha(tmp_path / "e.h5", steps=8, **STORAGE["gzip"])
    asked: list[tuple[int, int]] = []

    def advise(fd: int, offset: int, size_bytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((offset, size_bytes))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    dataset = EpisodicDataset([path], CAMERAS, use_shared_memory=False, cache_bytes="64MiB", cache_scope=cache_scope)
    dataset.clear_cache()
    with h5py.File(path) as file:
        chunks = {
            step: {
                (info.byte_offset, info.size)
                for info in (file[f"observations/images/{one}"].id.get_chunk_info(step) for one in CAMERAS)
            }
            for step in range(8)
        }
    dataset.__getitems__([0, 3, 1])
    assert set(asked) == chunks[3]  # nobody knew before the first two that they would be decoded
    asked.clear()
    dataset.__getitems__([5, 1, 4])
    assert set(asked) == chunks[4]  # the cache holds step 1, and after it nobody knew of 5
    asked.clear()
    for _ in range(2):
        dataset.__getitems__([0, 1, 3, 4, 5])
    assert not asked
    dataset._here().close()
