"""Starting and stopping: exactly one daemon however many ask, and no process is hit that is not it."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import children
import pytest
from daemons import Plans, eventually

from dsmem import files
from dsmem.errors import InUse, ServerTimeout, UnsafeRoot
from dsmem.server import control, lifecycle, places
from dsmem.server.places import Daemon, Places
from dsmem.server.spec import Spec
from dsmem.store.root import make_store


def test_start_and_start_again(plan: Plans, where: Places) -> None:
    first = lifecycle.ensure_started(plan=plan())
    again = lifecycle.ensure_started(plan=plan())
    assert (first.already, again.already, again.pid) == (False, True, first.pid)
    assert lifecycle.stop(where).pid == first.pid
    assert lifecycle.stop(where).pid == 0
    assert os.listdir(where.directory) == []


def test_it_outlives_who_started_it_and_is_nobodys_child(plan: Plans, where: Places) -> None:
    pid = children.call(lambda: lifecycle.ensure_started(plan=plan()).pid)
    assert lifecycle.answering(where) == pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["PPid"]) != os.getpid()
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    lifecycle.stop(where)


@pytest.mark.slow
def test_thirty_two_clients_start_one_daemon(plan: Plans, where: Places) -> None:
    ours = plan(a="ok:")

    def client() -> tuple[int, float]:
        began = time.monotonic()
        lifecycle.ensure_started(60, plan=ours)
        pid = control.ask({"op": "ping"}, 30, where=where)["pid"]
        return pid, time.monotonic() - began

    with children.all_started([client] * 32) as clients:
        answers = [one.result(90) for one in clients]
    assert len({pid for pid, _ in answers}) == 1
    print("median", statistics.median(elapsed_s for _, elapsed_s in answers))
    assert lifecycle.stop(where).pid == answers[0][0]


@pytest.mark.slow
def test_starting_and_stopping_at_once(plan: Plans, where: Places) -> None:
    """Whatever order they come in, each returns, and in the end there is one daemon or none."""
    ours = plan()

    def start() -> int:
        return lifecycle.ensure_started(60, plan=ours).pid

    def stop() -> int:
        return lifecycle.stop(where).pid

    with children.all_started([start, stop] * 6) as clients:
        for one in clients:
            one.result(90)
    alone = lifecycle.ensure_started(60, plan=ours)
    assert lifecycle.answering(where) == alone.pid
    lifecycle.stop(where)
    assert places.holder(where) is None


def test_whoever_starts_it_and_is_killed_keeps_nobody_from_it(plan: Plans, where: Places) -> None:
    places.make_directory(where.directory)

    def hold() -> None:
        fd = files.open_own(where.starting, os.O_RDWR | os.O_CREAT)
        assert files.try_lock(fd, exclusive=True)
        time.sleep(60)

    with children.started(hold) as starter:
        eventually(lambda: os.path.exists(where.starting))
        time.sleep(0.05)
        with pytest.raises(ServerTimeout, match=r"within 0\.2 s"):
            lifecycle.ensure_started(0.2, plan=plan())
        starter.kill()
    assert lifecycle.ensure_started(plan=plan()).pid
    lifecycle.stop(where)


def test_a_stale_socket_lock_and_pid(plan: Plans, where: Places) -> None:
    """What a daemon that was killed leaves, the next one puts right."""
    first = lifecycle.ensure_started(plan=plan()).pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: places.holder(where) is None)
    assert sorted(os.listdir(where.directory)) == ["daemon.lock", "daemon.pid", "daemon.sock"]
    second = lifecycle.ensure_started(plan=plan())
    assert second.pid != first and not second.already
    os.kill(second.pid, signal.SIGKILL)
    eventually(lambda: places.holder(where) is None)
    assert lifecycle.stop(where).pid == 0
    assert os.listdir(where.directory) == []


def test_a_pid_that_has_become_anothers_is_never_hit(plan: Plans, where: Places) -> None:
    """The pid file and the lock file name an innocent process; no lock is held: nothing is signalled."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as innocent:
        try:
            lifecycle.ensure_started(plan=plan())
            lifecycle.stop(where)
            Path(where.lock).write_bytes(Daemon(innocent.pid, 12345).dump())
            Path(where.pid).write_text(f"{innocent.pid}\n")
            assert lifecycle.stop(where).pid == 0
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_a_lock_held_by_another_than_it_says_is_not_acted_on(where: Places) -> None:
    """The lock is held, and the pid in it lives, but was started at another time: it is another process."""
    places.make_directory(where.directory)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as innocent:
        try:
            fd = files.open_own(where.lock, os.O_RDWR | os.O_CREAT)
            assert files.try_lock(fd, exclusive=True)
            os.pwrite(fd, Daemon(innocent.pid, 12345).dump(), 0)
            with pytest.raises(InUse, match=f"not by pid {innocent.pid}"):
                lifecycle.stop(where, timeout_s=0.2)
            os.ftruncate(fd, 0)
            with pytest.raises(InUse, match="does not say who it is"):
                lifecycle.stop(where, timeout_s=0.2)
            os.close(fd)
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_one_that_hangs_is_killed(plan: Plans, where: Places) -> None:
    pid = lifecycle.ensure_started(plan=plan()).pid
    os.kill(pid, signal.SIGSTOP)
    assert lifecycle.answering(where, time.monotonic() + 0.1) == 0
    stopped = lifecycle.stop(where, timeout_s=0.6)
    assert (stopped.pid, stopped.killed) == (pid, True)
    assert os.listdir(where.directory) == []


def test_a_daemon_that_dies_while_it_starts_is_told(plan: Plans, where: Places, tmp_path: Path) -> None:
    broken = replace(plan(), places=replace(where, pid=str(tmp_path)))  # a directory is no pid file
    with pytest.raises(Exception, match="not a pid"):
        lifecycle.ensure_started(plan=broken)
    assert places.holder(where) is None
    with pytest.raises(FileExistsError, match="/dev/null"):
        lifecycle.ensure_started(plan=replace(plan(), places=replace(where, log="/dev/null/log")))


def test_a_lock_that_is_a_symlink_is_refused(plan: Plans, where: Places, tmp_path: Path) -> None:
    places.make_directory(where.directory)
    (tmp_path / "precious").write_text("x")
    os.symlink(tmp_path / "precious", where.lock)
    with pytest.raises(UnsafeRoot):
        lifecycle.ensure_started(plan=plan())
    with pytest.raises(UnsafeRoot):
        lifecycle.stop(where)
    assert (tmp_path / "precious").read_text() == "x"
    os.unlink(where.lock)


def test_a_store_of_its_own_has_a_server_of_its_own(
    plan: Plans, where: Places, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    from dsmem.config.resolve import resolve

    first = lifecycle.ensure_started(plan=plan()).pid
    monkeypatch.setenv("DSMEM_ROOT", str(store_root.parent / "other"))
    apart = lifecycle.plan_of(resolve())
    assert apart.places.directory != where.directory
    second = lifecycle.ensure_started(plan=apart).pid
    assert first != second
    assert lifecycle.stop(apart.places).pid == second
    assert lifecycle.stop(where).pid == first


def test_nothing_of_the_parent_is_held_open(plan: Plans, where: Places) -> None:
    """A daemon that inherited a pipe would keep its other end waiting for ever."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with socket.socket() as theirs:
        theirs.set_inheritable(True)
        lifecycle.ensure_started(plan=plan())
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    lifecycle.stop(where)


def test_release_frees_what_nobody_holds(where: Places, tmp_path: Path) -> None:
    from dsmem.server import building, catalogue
    from dsmem.store import leases

    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{name}": 1}}\n')
    store = make_store(where.data_root)
    specs = {name: Spec.parse(str(tmp_path / f"{name}.jsonl")) for name in ("a", "b")}
    published = {name: building.publish(store, spec) for name, spec in specs.items()}
    catalogue.write(store, specs)
    held = leases.lease(store, published["a"])
    freed = lifecycle.release(where)
    assert (freed.freed, freed.held) == ((published["b"],), (published["a"],))
    assert freed.freed_bytes > 0
    held.map.close()
    assert lifecycle.release(where).freed == (published["a"],)
    assert catalogue.read(store) == specs
