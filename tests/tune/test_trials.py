"""Settings tried in processes of their own: they read, they are compared, and nothing stays of them."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import h5py
import numpy as np
import psutil
import pytest
import warm
from episodes import CAMERAS, GZIP, write_aloha

import dsmem
from dsmem import stopping
from dsmem.training import placing
from dsmem.tune import DatasetOptimizer, Settings, looking, sampling, trials
from dsmem.tune.facts import Workload
from dsmem.tune.trials import Trial, TrialFailed, Tried

SHARED = Settings(num_workers=0)
ALONE = Settings(use_shared_memory=False, num_workers=0, cache_bytes=1 << 20)


@pytest.fixture
def robots(tmp_path: Path) -> list[str]:
    return [str(write_aloha(tmp_path / f"episode_{n}.hdf5", steps=6 + n, seed=n, **GZIP)) for n in range(3)]


def pinned() -> list[str]:
    from dsmem.shm import listing

    return [entry.name for entry in listing.list_objects().entries]


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


def test_compared(robots: list[str], forked_trials: list[int]) -> None:
    kept = dsmem.pin(robots[0]).name
    looked = looking.look(robots, CAMERAS)
    seen: list[tuple[int, int]] = []
    settings = [SHARED, ALONE]
    tried = trials.compare(looked, settings, Workload(4), starts=2, turns=3, progress=lambda *at: seen.append(at))
    assert [one.settings for one in tried] == settings and seen[-1] == (16, 16) and seen == sorted(seen)
    assert 1 <= len(tried[1].samples) <= len(tried[0].samples) <= 2
    assert all(one.batch_s > 0 and one.opened_s > 0 for one in tried)
    assert (
        pinned() == [kept]
        and len(forked_trials) == sum(len(one.samples) for one in tried)
        and running(forked_trials) == []
    )


def test_the_same_samples_whatever_the_settings(robots: list[str], forked_trials: list[int]) -> None:
    looked = looking.look(robots, CAMERAS)
    marks = set()
    for settings in (SHARED, ALONE, replace(ALONE, num_workers=1, memory_mapping=False)):
        with Trial(looked.files, CAMERAS, settings, Workload(4)) as trial:
            assert trial.opened()["batches"] == 6
            trial.begin("check")
            marks.add(trial.end()["mark"])
    assert len(marks) == 1 and len(forked_trials) == 3 and running(forked_trials) == []


def test_a_trial_that_fails(robots: list[str], forked_trials: list[int]) -> None:
    looked = looking.look(robots, CAMERAS)
    os.unlink(robots[1])
    with pytest.raises(TrialFailed, match=r"BrokenEpisodes: .*episode_1\.hdf5"):
        trials.compare(looked, [SHARED], Workload(4), starts=1)
    assert len(forked_trials) == 1 and running(forked_trials) == []
    with Trial(looked.files[:1], CAMERAS, SHARED, Workload(4)) as trial:
        trial.opened()
        trial._process.kill()
        trial._process.wait()
        trial.begin()
        with pytest.raises(TrialFailed, match="exit code -9"):
            trial.end()
    assert len(placing.remove(pinned())) == 1  # who is killed removes nothing


def test_a_trial_that_does_not_answer(
    robots: list[str], forked_trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = looking.look(robots, CAMERAS)
    with Trial(looked.files[:1], CAMERAS, replace(SHARED, use_shared_memory=False), Workload(4)) as trial:
        trial.opened()
        trial._process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(trials, "PATIENCE_S", 0.2)
        trial.begin()
        with pytest.raises(TrialFailed, match="did not answer"):
            trial.end()
    assert len(forked_trials) == 1 and running(forked_trials) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_one_that_is_stopped(
    robots: list[str], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it can clean up itself or not; what was pinned before stays."""
    if number != signal.SIGKILL:  # then it is the trial that cleans up, and that is a real one
        warm.use(monkeypatch)
    kept = dsmem.pin(robots[0]).name
    looked = looking.look(robots, CAMERAS)

    def compare() -> None:
        with stopping.raised():
            trials.compare(looked, [Settings(num_workers=1)], Workload(4), turns=100000)

    ended = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt, signal.SIGKILL: children.ChildDied}[number]
    with children.started(compare) as parent:  # its trial is a process of its own, with workers
        wait_for(lambda: len(pinned()) == 3)
        (trial,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, number)
        with pytest.raises(ended) as told:
            parent.result(30)
        if isinstance(told.value, SystemExit):
            assert told.value.code == 143
        if number == signal.SIGKILL:  # then its trial does it, a moment later
            wait_for(lambda: pinned() == [kept])
        assert pinned() == [kept]
        wait_for(lambda: not children.runs(trial))


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_killed_trial_has_pinned_goes_too(robots: list[str], forked_trials: list[int]) -> None:
    kept = dsmem.pin(robots[0]).name
    files = looking.look(robots, CAMERAS).files
    with trials._only(files) as spare, Trial(files, CAMERAS, SHARED, Workload(4), spare=spare) as trial:
        trial.opened()
        assert spare == [kept] and len(pinned()) == 3
        trial._process.kill()
    assert pinned() == [kept]


def tried(*samples: float) -> Tried:
    return Tried(SHARED, statistics.median(samples), samples, 1.0)


def test_the_winner_must_be_clearly_faster() -> None:
    first, near, far = tried(1.0), tried(0.98), tried(0.9)
    assert trials.winner([first]) is first
    assert trials.winner([first, near]) is first and trials.winner([first, near, far]) is far
    first = tried(1.0, 1.1, 1.2)
    assert trials.winner([first, tried(0.8, 0.9, 1.01)]) is first  # one start of it was no faster
    assert trials.winner([first, tried(0.8)]) is first  # it fell behind, and was not started again
    best = tried(0.9, 0.99, 0.8)
    assert trials.winner([first, tried(0.98, 0.98, 0.99), best]) is best


def test_what_is_recommended_stays_unless_another_really_is_faster() -> None:
    """With 8 % of noise between processes of a setting, as `compare` goes on: who is not ahead gets no more starts."""
    chance = random.Random(1)

    def kept(truth: list[float]) -> int:
        samples: list[list[float]] = [[] for _ in truth]
        going = list(range(len(truth)))
        for _ in range(trials.STARTS):
            for which in going:
                samples[which].append(truth[which] * chance.gauss(1, 0.08))
            going = [0, *trials.ahead(samples)]
        found = [tried(*one) for one in samples]
        return found.index(trials.winner(found))

    runs = 2000
    assert sum(kept([1.0, 1.1, 1.2, 2.0]) > 0 for _ in range(runs)) < 0.01 * runs
    assert sum(kept([1.0, 1.0, 1.0, 1.0]) > 0 for _ in range(runs)) < 0.15 * runs  # any of them does
    assert sum(kept([1.0, 0.7, 1.1, 2.0]) == 1 for _ in range(runs)) > 0.9 * runs


def test_a_part_of_the_files_has_its_part_of_the_memory(robots: list[str]) -> None:
    looked = looking.look(robots, CAMERAS)
    files, share = trials.sample(looked.files, looked.data.data_bytes)
    assert len(files) == 3 and share == 1
    files, share = trials.sample(looked.files, 3 << 40)
    assert len(files) == 1 and share == pytest.approx(6 / 21)
    scaled = trials.scale(replace(ALONE, memory_limit=2100), share)
    assert scaled == replace(ALONE, cache_bytes=int((1 << 20) * 6 / 21), memory_limit=600)
    assert trials.scale(SHARED, 0.1) == SHARED


def test_the_winner_is_kept(robots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(looked: Any, settings: list[Settings], *_: Any, **__: Any) -> tuple[Tried, ...]:
        return tuple(Tried(one, 1.0 / (n + 1), (1.0 / (n + 1),), 0.1) for n, one in enumerate(settings))

    monkeypatch.setattr(trials, "compare", compare)
    found = DatasetOptimizer(robots, batch_size=4).optimize(measure=True)
    assert 2 <= len(found.measured) <= 4 and found.measured[0].settings == found.recommendation.chosen.settings
    assert found.settings == found.measured[-1].settings != found.recommendation.chosen.settings


def test_a_batch_handed_over_in_a_real_loader(robots: list[str], handed_over_s: Callable[..., float]) -> None:
    files = looking.look(robots, CAMERAS).files
    assert 0 < handed_over_s(files, CAMERAS, [3, 1, 4, 1, 5, 9, 2, 6], 4) < 10
    assert children.still_running() == []


def test_recommended_where_a_worker_has_no_room_for_a_batch(
    tmp_path: Path, handed_over_s: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A /dev/shm of 1 MiB, as containers have a small one: torch's workers put their batches there."""
    path = tmp_path / "e.hdf5"
    with h5py.File(path, "w") as file:
        file["action"] = file["observations/qpos"] = np.zeros((8, 2), np.float32)
        file.create_dataset("observations/images/top", data=np.ones((8, 480, 640, 3), np.uint8))

    def inside() -> tuple[str | None, int]:
        children.enter_mount_namespace()
        children.mount_tmpfs("/dev/shm", "size=1m")
        os.environ["DSMEM_ROOT"] = "/dev/shm/store"
        monkeypatch.setattr(sampling, "handed_over_s", handed_over_s)
        found = DatasetOptimizer([path], batch_size=8).optimize()
        return found.speeds.untried, found.settings.num_workers

    try:
        untried, workers = children.call(inside, timeout_s=120)
    except children.NamespacesRefused as exc:
        pytest.skip(f"no mounts of one's own here: {exc}")
    assert untried is not None and "\n" not in untried and len(untried) < 300 and workers == 0
