"""The private place goes whatever happens, and with it every process; the environment is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import children
import psutil
import pytest

import dsmem
from dsmem.bench import scratch as module
from dsmem.bench import sources
from dsmem.bench.scratch import scratch
from dsmem.bench.team import Team, WorkerFailed, team

PATIENCE_S = 60


def test_it_is_private_and_gone_at_the_end(scratch_parents: tuple[Path, Path]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with scratch() as place:
        assert (place.files.parent, place.shared.parent) == scratch_parents
        assert [path.stat().st_mode & 0o777 for path in (place.files, place.shared)] == [0o700, 0o700]
        (place.files / "deep").mkdir()
        (place.files / "deep" / "file").write_bytes(b"x")
    assert not place.files.exists() and not place.shared.exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_stores_are_fresh_and_not_the_users(store_root: Path) -> None:
    with scratch() as place:
        before = dict(os.environ)
        with place.store() as first:
            source = sources.make_training_file(place.files / "a.h5", 1 << 20)
            dsmem.pin(source.path)
            assert os.environ["DSMEM_ROOT"] == str(first)
            assert first.is_relative_to(place.shared)
        assert dict(os.environ) == before
        assert not first.exists()
        with place.store() as second, pytest.raises(dsmem.NotPinned):
            assert second != first
            dsmem.attach(source.path)
    assert not store_root.exists()


def test_a_variable_that_was_not_set_is_not_set_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    with scratch() as place, place.store():
        assert os.environ["XDG_CACHE_HOME"] == str(place.files / "cache")
    assert "XDG_CACHE_HOME" not in os.environ


def test_without_a_root_of_ones_own_it_is_dev_shm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch_parents: tuple[Path, Path]
) -> None:
    monkeypatch.delenv("DSMEM_ROOT")
    assert module.shared_directory() == Path("/dev/shm")
    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path / "none"))
    assert module.shared_directory() == scratch_parents[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as raised, scratch() as place, place.store():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert raised.value.code == 128 + number
    assert not place.files.exists() and not place.shared.exists()


def test_in_a_thread_it_leaves_signals_alone() -> None:
    seen: list[object] = []

    def use() -> None:
        with scratch():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


_HOLD = """
import sys, time
import dsmem
from dsmem.bench import sources
from dsmem.bench.scratch import scratch
from dsmem.bench.team import team
with scratch() as place, team(2) as members, place.store():
    source = sources.make_training_file(place.files / "a.h5", 4 << 20)
    dsmem.pin(source.path)
    with members.holding("attach", source, processes=2):
        print("holding", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("whole_group", [False, True], ids=["alone", "its group"])
def test_killed_while_processes_hold_data(
    number: signal.Signals, whole_group: bool, scratch_parents: tuple[Path, Path]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"holding\n"
        descendants = psutil.Process(process.pid).children(recursive=True)
        assert len(descendants) == 3  # two that hold, and the janitor
        (os.killpg if whole_group else os.kill)(process.pid, number)
        process.wait(PATIENCE_S)
    alive = children.alive(descendants, PATIENCE_S)
    assert alive == []
    assert [list(parent.iterdir()) for parent in scratch_parents] == [[], []]


def test_a_process_that_dies_is_an_error() -> None:
    with scratch() as place, place.store():
        source = sources.make_training_file(place.files / "a.h5", 1 << 20)
        with team(2) as members:
            victim = [one for one in psutil.Process().children() if "dsmem.bench.worker" in one.cmdline()][-1]
            victim.kill()
            with (
                pytest.raises(WorkerFailed, match="killed by SIGKILL"),
                members.holding("preload", source, processes=2),
            ):
                raise AssertionError("nothing is held")


def test_what_a_process_fails_with_is_told_and_the_others_are_heard() -> None:
    with scratch() as place, place.store(), team(2) as members:
        source = sources.make_training_file(place.files / "a.h5", 1 << 20)
        with pytest.raises(WorkerFailed, match=r"NotPinned: .* is not pinned"):
            _hold(members, source)
        dsmem.pin(source.path)
        assert _hold(members, source) == 2  # answers of the failed request are not taken for these


def _hold(members: Team, source: sources.Source) -> int:
    with members.holding("attach", source, processes=2) as held:
        return len(held.answers)
