"""Where more workers than one are slower, the report says so; nothing is said where they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import Tensors, load, noise, same, save

from dsmem import checkpoint
from dsmem.checkpoint import ParallelFileSystemReader, ReadReport, workers
from dsmem.checkpoint import pace as paces
from dsmem.checkpoint.opened import Opened
from dsmem.checkpoint.pace import Pace

Disk = Callable[[pytest.MonkeyPatch], None]
SLEEP_S = 0.01


def _disk(monkeypatch: pytest.MonkeyPatch, sleep_s: Callable[[int], float]) -> None:
    """Every read of a tensor takes so long as `sleep_s` says of the number of reads at once."""
    read = Opened.read
    lock = threading.Lock()
    inside = 0

    def slow(self: Opened, buffers: list[memoryview], offset: int) -> None:
        nonlocal inside
        if sum(len(buffer) for buffer in buffers) < 300_000:
            read(self, buffers, offset)
            return
        with lock:
            inside += 1
            taken_s = sleep_s(inside)
        time.sleep(taken_s)
        read(self, buffers, offset)
        with lock:
            inside -= 1

    monkeypatch.setattr(Opened, "read", slow)
    monkeypatch.setattr(paces, "AFTER_S", 0.3)


def bad_at_parallel_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    _disk(monkeypatch, lambda inside: SLEEP_S * inside**2)


def good_at_parallel_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    _disk(monkeypatch, lambda inside: SLEEP_S)


def state() -> Tensors:
    return {f"x{number}": noise((300, 300), seed=number) for number in range(60)}


def read_dcp(tmp_path: Path) -> ReadReport:
    reader = ParallelFileSystemReader(save(state(), tmp_path / "c"), workers=3, sequential_below=1, io="pread")
    loaded = load({name: torch.zeros_like(one) for name, one in state().items()}, reader)
    assert all(same(loaded[name], one) for name, one in state().items())
    assert reader.last_report is not None
    return reader.last_report


def read_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadReport:
    monkeypatch.setattr("dsmem.checkpoint.extents.PIECE_BYTES", 400_000)
    safetensors.torch.save_file(state(), tmp_path / "m.safetensors")
    reports: list[ReadReport] = []
    loaded = checkpoint.load(
        tmp_path / "m.safetensors", workers=3, sequential_below=1, io="pread", report=reports.append
    )
    assert all(same(loaded[name], one) for name, one in state().items())
    return reports[0]


@pytest.mark.parametrize("disk", [bad_at_parallel_reads, good_at_parallel_reads])
@pytest.mark.parametrize("kind", ["dcp", "safetensors"])
def test_a_disk_that_is_bad_at_parallel_reads(
    tmp_path: Path, kind: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch)
    report = read_dcp(tmp_path) if kind == "dcp" else read_safetensors(tmp_path, monkeypatch)
    if disk is bad_at_parallel_reads:
        assert report.advice is not None
        assert report.advice.startswith("3 workers together read ") and "--workers 1" in report.advice
    else:
        assert report.advice is None


def test_small_reads(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "c")

    def advice(asked: workers.Workers) -> str | None:
        reader = ParallelFileSystemReader(path, workers=asked)
        load({"x0": torch.zeros(300, 300)}, reader)
        assert reader.last_report is not None
        return reader.last_report.advice

    assert advice(8) == "--workers 1 is faster here: it is less than 32.0 MiB"
    assert advice(1) is None and advice("auto") is None


def test_many_small_tensors_get_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsmem.checkpoint.workers.proc.usable_cpus", lambda: 8)

    def choose(asked: workers.Workers, small_bytes: int, *, network: bool = False) -> workers.Choice:
        return workers.choose(
            asked,
            1 << 30,
            small_bytes=small_bytes,
            largest_copy_bytes=0,
            budget_bytes=1 << 40,
            sequential_below=32 << 20,
            network=network,
        )

    assert choose("auto", 0).workers == 8
    assert choose("auto", 1 << 30).workers == 1
    assert choose("auto", 1 << 30, network=True).workers > 8
    asked = choose(4, 1 << 30)
    assert asked.workers == 4 and asked.advice is not None and "--workers 1" in asked.advice
    assert choose(4, 0).advice is None and choose(4, 1 << 30, network=True).advice is None


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_one_works_alone_now_and_then() -> None:
    """Four workers, tasks of 10 ms: not in the first half second, then for some percent of the time."""
    clock = Clock()
    pace = Pace(4, clock=clock)
    alone: list[float] = []
    running = 0
    while clock.now_s < 20:
        while pace.admits and running < 4:
            pace.begin()
            running += 1
        if running == 1:
            alone.append(clock.now_s)
        clock.now_s += 0.01
        for _ in range(running):
            pace.end(1 << 20)
        running = 0
    assert min(alone) > paces.AFTER_S and 0.02 < len(alone) * 0.01 / 20 < 0.12
    assert pace.slower() is None


def test_nobody_waits_where_sizes_are_not_known() -> None:
    clock = Clock()
    pace = Pace(2, clock=clock)
    for _ in range(1000):
        pace.begin()
        pace.begin()
        clock.now_s += 1
        pace.end(None)
        assert pace.admits
        pace.end(None)
