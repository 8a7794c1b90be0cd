"""The daemon: its states, its datasets, children that fail in every way, and what is left when it is killed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import pytest
from daemons import Plans, eventually

from dsmem.config.resolve import resolve
from dsmem.errors import LoadFailed, UnsafeRoot, UsageError
from dsmem.server import catalogue, control, daemon, lifecycle, places
from dsmem.server.places import Places
from dsmem.server.plan import Plan
from dsmem.server.spec import Spec
from dsmem.shm import cleaning
from dsmem.store.root import Store, make_store


def status(where: Places) -> dict[str, Any]:
    return control.ask({"op": "status"}, where=where)


def loaded(where: Places) -> dict[str, dict[str, Any]]:
    """What the server says of each dataset once none is loading."""
    *_, facts = lifecycle.until_loaded(where, 30)
    return {one["name"]: one for one in facts["datasets"]}


def test_one_that_fails_does_not_keep_others_from_serving(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(
        plan=plan(
            good="ok:",
            bad="fail:the columns differ",
            killed="die:9",
            silent="silent:",
            nonsense="nonsense:",
            flood="flood:",
            crashed="die:11",
        )
    )
    found = loaded(where)
    assert found["good"]["state"] == "ready" and found["good"]["rows"] == 10
    assert {one["state"] for name, one in found.items() if name != "good"} == {"failed"}
    assert found["bad"]["error"] == "BadSource: the columns differ"
    assert found["killed"]["error"] == "the process that loaded it ended (signal 9)"
    assert found["crashed"]["error"].endswith("(signal 11)")
    assert found["silent"]["error"] == "the process that loaded it said nothing"
    assert "made no sense" in found["nonsense"]["error"] and "made no sense" in found["flood"]["error"]
    assert status(where)["status"] == "degraded"
    log = Path(where.log).read_text()
    assert "bad could not be loaded: BadSource: the columns differ" in log
    assert "Traceback" in log and "fakeloader.py" in log
    assert lifecycle.stop(where).pid


def test_states(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(plan=plan(slow="slow:0.4", quick="ok:"))
    assert status(where)["status"] == "loading"
    assert {one["state"] for one in loaded(where).values()} == {"ready"}
    assert status(where)["status"] == "ready"
    control.ask({"op": "add", "name": "bad", "spec": {"path": "fail:no"}}, where=where)
    loaded(where)
    assert status(where)["status"] == "degraded"
    control.ask({"op": "remove", "dataset": "bad"}, where=where)
    assert status(where)["status"] == "ready"
    lifecycle.stop(where)


def test_progress_is_told(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(plan=plan(a="count:"))
    seen = {facts["datasets"][0]["done_bytes"] for facts in lifecycle.until_loaded(where, 20)}
    assert len(seen - {0}) >= 2
    lifecycle.stop(where)


def test_what_is_removed_while_it_loads_ends_at_once(plan: Plans, where: Places) -> None:
    pid = lifecycle.ensure_started(plan=plan(endless="slow:1000")).pid
    eventually(lambda: _children(pid))
    control.ask({"op": "remove", "dataset": "endless"}, where=where)
    assert not _children(pid)
    assert status(where)["datasets"] == []
    assert catalogue.read(Store(where.data_root)) == {}
    lifecycle.stop(where)


def test_another_source_under_the_same_name_takes_its_place(plan: Plans, where: Places) -> None:
    pid = lifecycle.ensure_started(plan=plan(a="slow:1000")).pid
    control.ask({"op": "add", "name": "a", "spec": {"path": "ok:"}}, where=where)
    assert loaded(where)["a"]["object"] == "ok-object"
    eventually(lambda: not _children(pid))
    lifecycle.stop(where)


def test_a_refresh_while_it_loads_is_not_lost(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(plan=plan(a="slow:0.2"))
    control.ask({"op": "refresh"}, where=where)
    eventually(lambda: status(where)["datasets"][0]["loads"] == 2)
    assert status(where)["datasets"][0]["generation"] == 1  # the same object again
    lifecycle.stop(where)


def test_a_client_that_waits_hears_that_it_was_removed(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(plan=plan(a="slow:1000"))
    request = {"op": "wait", "dataset": "a", "timeout_s": 30}
    with children.started(lambda: control.ask(request, 30, where=where)) as waiting:
        time.sleep(0.1)
        control.ask({"op": "remove", "dataset": "a"}, where=where)
        with pytest.raises(LoadFailed, match="it was removed"):
            waiting.result()
    lifecycle.stop(where)


def test_the_catalogue_outlives_it(plan: Plans, where: Places) -> None:
    lifecycle.ensure_started(plan=plan(a="ok:", b="fail:no"))
    loaded(where)
    lifecycle.stop(where)
    assert catalogue.read(Store(where.data_root)) == {"a": Spec("ok:"), "b": Spec("fail:no")}
    lifecycle.ensure_started(plan=plan())
    assert status(where)["datasets"] == []  # no ref leads to either, so neither is loaded unasked
    assert control.ask({"op": "wait", "dataset": "a", "timeout_s": 20}, 25, where=where)["dataset"]["state"] == "ready"
    with pytest.raises(LoadFailed):
        control.ask({"op": "wait", "dataset": "b", "timeout_s": 20}, 25, where=where)
    assert [one["name"] for one in status(where)["datasets"]] == ["a", "b"]
    lifecycle.stop(where)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_and_nothing_stays(number: signal.Signals, plan: Plans, where: Places) -> None:
    pid = lifecycle.ensure_started(plan=plan(a="slow:1000")).pid
    eventually(lambda: _children(pid))
    (child,) = _children(pid)
    os.kill(pid, number)
    eventually(lambda: places.holder(where) is None)
    eventually(lambda: not os.path.exists(f"/proc/{child}"))
    assert os.listdir(where.directory) == []
    assert f"ending: {number.name}" in Path(where.log).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.05, 0.1, 0.3])
def test_killed_at_any_moment(delay_s: float, plan: Plans, where: Places) -> None:
    """The next one starts, and neither a child nor a lock is left."""
    ours = plan(a="count:", b="slow:1000")
    with children.started(lambda: daemon.serve(ours)) as first:
        eventually(lambda: (running := places.holder(where)) is not None and running.pid == first.pid)
        time.sleep(delay_s)
        family = _children(first.pid)
        first.kill()
        assert first.wait() == signal.SIGKILL
    for child in family:
        eventually(lambda child=child: not _lives(child))  # type: ignore[misc]
    started = lifecycle.ensure_started(plan=replace(ours, datasets=(("c", Spec("ok:")),)))
    assert not started.already
    assert loaded(where)["c"]["state"] == "ready"
    assert lifecycle.stop(where).pid == started.pid
    assert os.listdir(where.directory) == []


def test_half_written_files_go(plan: Plans, where: Places) -> None:
    """Killed between making a file and giving it its name."""
    store = make_store(where.data_root)
    for directory in (where.directory, catalogue.directory(store)):
        places.make_directory(directory)
        (Path(directory) / ".tmp-1-2").write_bytes(b"x")
    lifecycle.ensure_started(plan=plan())
    lifecycle.stop(where)
    assert os.listdir(where.directory) == [] and os.listdir(catalogue.directory(store)) == []


def test_it_ends_when_its_lock_is_removed(plan: Plans, where: Places) -> None:
    first = lifecycle.ensure_started(plan=plan()).pid
    os.unlink(where.lock)
    eventually(lambda: not _lives(first))
    second = lifecycle.ensure_started(plan=plan())
    assert second.pid != first and not second.already
    lifecycle.stop(where)


def test_a_store_that_was_deleted(plan: Plans, where: Places, tmp_path: Path) -> None:
    """What was there is gone; the server lives and loads again what it is asked for."""
    source = tmp_path / "rows.txt"
    source.write_text("a\nb\n")
    lifecycle.ensure_started(plan=plan(a=str(source)))
    first = loaded(where)["a"]["object"]
    for path in sorted(Path(where.data_root).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path(where.data_root).rmdir()
    eventually(lambda: status(where)["datasets"][0]["state"] == "evicted")
    answer = control.ask({"op": "wait", "dataset": "a", "timeout_s": 20}, 25, where=where)
    assert answer["dataset"]["object"] == first
    assert os.path.exists(Store(where.data_root).object_path(first))
    lifecycle.stop(where)


def test_clean_all_spares_lock_socket_and_pid(plan: Plans, where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the store, where no runtime directory is: all that a running server needs stays."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    ours = plan(a="ok:")
    inside = places.find(resolve())
    assert inside.directory == f"{where.root}/server"
    ours = replace(ours, places=inside)
    pid = lifecycle.ensure_started(plan=ours).pid
    cleaning.clean(cleaning.plan(everything=True))
    time.sleep(0.05)
    assert lifecycle.answering(inside) == pid
    assert sorted(os.listdir(inside.directory)) == ["catalogue.json", "daemon.lock", "daemon.pid", "daemon.sock"]
    assert lifecycle.stop(inside).pid == pid


def test_two_at_once_are_one(plan: Plans, where: Places) -> None:
    first = lifecycle.ensure_started(plan=plan())
    with pytest.raises(daemon.AlreadyRuns, match=f"pid {first.pid}"):
        daemon.serve(plan())
    lifecycle.stop(where)


def test_pid_files(plan: Plans, where: Places, tmp_path: Path) -> None:
    mine = replace(where, pid=str(tmp_path / "sub" / "my.pid"))
    ours = replace(plan(), places=mine)
    started = lifecycle.ensure_started(plan=ours)
    assert Path(mine.pid).read_text() == f"{started.pid}\n"
    lifecycle.stop(mine)
    assert not Path(mine.pid).exists()
    Path(mine.pid).write_text("import torch\n")
    with pytest.raises(UsageError, match="not a pid"):
        lifecycle.ensure_started(plan=ours)
    assert Path(mine.pid).read_text() == "import torch\n"
    Path(mine.pid).write_text("4194304\n")  # of a server that was killed
    assert lifecycle.ensure_started(plan=ours).pid
    lifecycle.stop(mine)


def test_a_runtime_directory_that_others_may_write_to_is_refused(plan: Plans, where: Places) -> None:
    places.make_directory(where.directory)
    os.chmod(where.directory, 0o777)
    with pytest.raises(UnsafeRoot, match="only it can write"):
        lifecycle.ensure_started(plan=plan())
    os.chmod(where.directory, 0o700)


def test_a_data_directory(plan: Plans, where: Places, tmp_path: Path) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("a\n")
    apart = replace(where, data_root=str(tmp_path / "data"))
    lifecycle.ensure_started(plan=replace(plan(a=str(source)), places=apart))
    found = loaded(where)["a"]
    assert (tmp_path / "data" / "objects" / found["object"]).exists()
    assert not os.path.exists(Store(where.root).object_path(found["object"]))
    assert status(where)["root"] == str(tmp_path / "data")  # told to those who only know the store
    lifecycle.stop(where)


def test_systemd_is_told(plan: Plans, where: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        command = [sys.executable, "-m", "dsmem", "server", "run"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            try:
                assert systemd.recv(100) == b"READY=1"
                assert lifecycle.answering(where) == running.pid
                running.send_signal(signal.SIGTERM)
                assert systemd.recv(100) == b"STOPPING=1"
                assert running.wait(20) == 0
            finally:
                running.kill()


def test_systemd_that_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/gone")
    with caplog.at_level(logging.WARNING):
        daemon.notify("READY=1")
    assert "could not be told READY=1" in caplog.text
    monkeypatch.delenv("NOTIFY_SOCKET")
    daemon.notify("READY=1")


def test_plans_survive_the_wire(plan: Plans) -> None:
    whole = replace(plan(a="ok:"), settings=(("timeout_s", 30.0, "default"),))
    assert Plan.from_dict(whole.as_dict()) == whole


def test_what_it_imports(where: Places) -> None:
    """33–64 ms to be ready: nothing heavy, no asyncio, and nothing of the command line."""
    probe = (
        "import sys, dsmem.server.daemon\n"
        "heavy = {'asyncio', 'numpy', 'pyarrow', 'datasets', 'torch', 'h5py', 'typer', 'rich', 'yaml', 'psutil'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
