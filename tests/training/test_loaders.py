"""`create_optimized_dataloader`: workers of both kinds, and the ranks of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from episodes import CAMERAS, GZIP, write_aloha
from torch.utils.data import DistributedSampler, SequentialSampler

import dsmem
from dsmem.errors import UsageError
from dsmem.training import EpisodicDataset, create_optimized_dataloader

MIXED: dict[str, Any] = {"scaleoffset": 0, "chunks": (3, 12, 16, 3)}
"""Frames that h5py alone reads: its handles must not cross a fork."""


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    plain = write_aloha(tmp_path / "e0.h5", steps=5, seed=0, **GZIP)
    return [plain, write_aloha(tmp_path / "e1.h5", steps=6, seed=1, **MIXED)]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not shared"])
def test_workers(paths: list[Path], context: str, shared: bool) -> None:
    loader, dataset = create_optimized_dataloader(
        paths,
        CAMERAS,
        4,
        num_workers=2 if context == "fork" else 1,
        dataset_kwargs={"use_shared_memory": shared, "chunk_size": 3, "enable_monitoring": True},
        multiprocessing_context=context,
    )
    expected = {(one["episode"], one["step"]): one["images"]["top"] for one in (dataset[i] for i in range(11))}
    before = {one.source: one.reads for one in dataset.performance_report().sources}
    for _ in range(2):
        seen = set()
        for batch in loader:
            for row, place in enumerate(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)):
                assert torch.equal(batch["images"]["top"][row], expected[place])
                seen.add(place)
        assert seen == set(expected)
    report = dataset.performance_report()  # what the workers did is in it
    grown = {one.source: one.reads - before[one.source] for one in report.sources}
    assert sum(grown.values()) >= 2 * 11 * 4
    assert ({source for source, reads in grown.items() if reads} == {"pinned"}) is shared
    assert len(report.processes) == (3 if context == "fork" else 2)
    assert sum(one.failures for one in report.sources) == 0


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_a_cache(tmp_path: Path, context: str) -> None:
    """What one worker has decoded, no other decodes again: nor in the next epoch, in another order."""
    files = [write_aloha(tmp_path / f"e{number}.h5", steps=20, seed=number, **GZIP) for number in range(2)]
    options = {"use_shared_memory": False, "cache_scope": "shared", "cache_bytes": "8MiB", "chunk_size": 3}
    loader, dataset = create_optimized_dataloader(
        files, CAMERAS, 4, num_workers=2, dataset_kwargs=options, multiprocessing_context=context
    )
    for _ in range(3):
        for batch in loader:
            for row, (episode, step) in enumerate(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)):
                with h5py.File(files[episode]) as file:
                    assert torch.equal(
                        batch["images"]["top"][row], torch.from_numpy(file["observations/images/top"][step])
                    )
    report = dataset.performance_report()
    reads = {one.source: one.reads for one in report.sources}
    assert reads["decoded"] == 2 * len(dataset) and reads["cache"] == 2 * 2 * len(dataset)
    assert report.shared_cache is not None and report.shared_cache.items == 2 * len(dataset)
    assert len(report.processes) == 3 and not any(one.failures for one in report.sources)


def test_what_the_loader_is_given(paths: list[Path]) -> None:
    class Mine(EpisodicDataset):
        pass

    made = create_optimized_dataloader(
        paths, CAMERAS, 3, 1, dataset_class=Mine, dataset_kwargs={"chunk_size": 2}, prefetch_factor=5, drop_last=True
    )
    loader, dataset = made
    assert type(dataset) is Mine and dataset.chunk_size == 2 and loader.dataset is dataset
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 5, True)
    assert loader.pin_memory is torch.cuda.is_available()
    assert len(loader) == 3
    loader.set_epoch(3)  # nothing to do
    plain, _ = create_optimized_dataloader(paths, CAMERAS, 3, 0, shuffle=False)
    assert isinstance(plain.sampler, SequentialSampler) and not plain.persistent_workers
    ranked, _ = create_optimized_dataloader(paths, CAMERAS, 3, 0, True, rank=1, world_size=2)
    assert isinstance(ranked.sampler, DistributedSampler) and ranked.sampler.rank == 1


def test_misuse(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="torchrun"):
        create_optimized_dataloader(paths, CAMERAS, 2, use_distributed=True)
    with pytest.raises(UsageError, match="can't be"):
        create_optimized_dataloader(paths, CAMERAS, 2, use_distributed=True, rank=2, world_size=2)
    with pytest.raises(UsageError, match="batch_size=0"):
        create_optimized_dataloader(paths, CAMERAS, 0)


RANK = """
import json, os, sys
import torch.distributed as dist
from dsmem.training import EpisodicDataset, create_optimized_dataloader
out, *paths = sys.argv[1:]
dist.init_process_group("gloo")
loader, dataset = create_optimized_dataloader(
    paths, ["top"], 2, num_workers=1, use_distributed=True, drop_last=False, dataset_kwargs={"chunk_size": 2}
)
epochs = []
for epoch in range(2):
    loader.set_epoch(epoch)
    epochs.append([p for b in loader for p in zip(b["episode"].tolist(), b["step"].tolist())])
both = EpisodicDataset(paths, ["top"], use_shared_memory=False, cache_scope="shared")
for turn in range(2):  # the second rank finds what the first has decoded
    if turn == dist.get_rank():
        [both[index] for index in range(len(both))]
    dist.barrier()
cached = {one.source: one.reads for one in both.performance_report().sources}
report = {"epochs": epochs, "objects": dataset.pinned_objects, "sources": [
    one.source for one in dataset.performance_report().sources if one.reads], "cached": cached}
gathered = [None, None]
dist.all_gather_object(gathered, report)
if dist.get_rank() == 0:
    with open(out, "w") as file:
        json.dump(gathered, file)
dist.destroy_process_group()
"""


def test_torchrun(paths: list[Path], tmp_path: Path) -> None:
    """Two ranks by gloo: each sees its half, anew each epoch, both from the same objects."""
    script, out = tmp_path / "rank.py", tmp_path / "out.json"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(out), *map(str, paths)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(out.read_text())
    everything = {(0, step) for step in range(5)} | {(1, step) for step in range(6)}
    for epoch in range(2):
        halves = [[tuple(place) for place in rank["epochs"][epoch]] for rank in (first, second)]
        assert [len(half) for half in halves] == [6, 6]
        assert set(halves[0]) | set(halves[1]) == everything
        assert len(set(halves[0]) & set(halves[1])) <= 1  # 11 steps for two ranks: one is seen twice
    assert first["epochs"][0] != first["epochs"][1]
    assert first["objects"] == second["objects"]
    assert first["sources"] == second["sources"] == ["pinned"]
    assert (first["cached"]["decoded"], first["cached"]["cache"]) == (5, 0)
    assert (second["cached"]["decoded"], second["cached"]["cache"]) == (0, 5)
    assert [one.name for one in _objects()] == sorted(first["objects"])


def _objects() -> list[Any]:
    from dsmem.training import SharedMemoryManager

    return sorted(SharedMemoryManager().list(), key=lambda one: one.name)


def test_a_worker_that_was_forked_while_the_parent_read(paths: list[Path]) -> None:
    """The parent's handle of h5py still reads after its workers, which inherited it, have ended."""
    loader, dataset = create_optimized_dataloader(
        paths, CAMERAS, 4, 2, dataset_kwargs={"use_shared_memory": False}, persistent_workers=False
    )
    before = dataset[8]["images"]["top"]
    assert sum(len(batch["step"]) for batch in loader) == 11
    assert torch.equal(dataset[8]["images"]["top"], before)
    assert dsmem.File(paths[1])["observations/images/top"].shape[0] == 6
