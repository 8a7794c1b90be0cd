"""Starting the daemon, seeing to it that exactly one runs, and ending it without ever hitting another process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dsmem import files, helpers
from dsmem.config.resolve import ServerSettings, resolve
from dsmem.errors import DsmemError, InUse, NoServer, ServerTimeout
from dsmem.server import control, frames, logs, places
from dsmem.server.frames import Decoder
from dsmem.server.places import Places
from dsmem.server.plan import Plan
from dsmem.store.root import make_store, open_store

START_S = 10.0
STOP_S = 10.0
_POLL_S = 0.005
_TURN_S = 0.1
_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that answers."""

    pid: int
    already: bool
    """It ran before."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `stop` ended; `pid` is 0 when nothing ran."""

    pid: int
    facts: dict[str, Any]
    """What the server said of itself last; {} when it said nothing."""
    killed: bool = False
    """It did not end by itself."""


def plan_of(chosen: ServerSettings, *, log_level: str = "info") -> Plan:
    """What a daemon with these settings is to do, the datasets of the configuration among it."""
    from dsmem.server.spec import Spec

    limit = chosen.sample_limit.value
    datasets = []
    for one in chosen.datasets.value:
        spec = Spec.of(one.name, one.subset, split=one.split, sample_limit=limit)
        datasets.append((one.dataset_name or one.name, spec))
    return Plan(places.find(chosen), tuple(datasets), tuple(chosen.rows()), log_level=log_level)


def ensure_started(timeout_s: float = START_S, *, plan: Plan | None = None) -> Started:
    """A daemon answers after this: the one that runs, or one that is started now, however many ask for it at once.

    Raises ServerTimeout, and whatever kept the daemon from starting.
    """
    began = time.monotonic()
    plan = plan if plan is not None else plan_of(resolve())
    where = plan.places
    deadline = began + timeout_s
    turn_due = began
    while True:
        pid = answering(where, deadline)
        if pid:
            return Started(pid, True, time.monotonic() - began)
        if time.monotonic() < min(turn_due, deadline):
            time.sleep(_POLL_S)  # looking for a socket is cheap: those who wait leave the processor to who starts
            continue
        turn_due = time.monotonic() + _TURN_S
        with _turn(where) as mine:
            if mine:
                pid = answering(where, deadline)  # whoever had the turn before has started it
                if pid:
                    return Started(pid, True, time.monotonic() - began)
                pid, already = spawn(plan, deadline)
                if pid and not already:
                    return Started(pid, False, time.monotonic() - began)
        if time.monotonic() > deadline:
            raise ServerTimeout(f"no server answered within {timeout_s:g} s", timeout_s=timeout_s)
        time.sleep(_POLL_S)


def answering(where: Places, deadline: float | None = None) -> int:
    """The pid of the daemon that answers; 0 when none does."""
    if not os.path.lexists(where.socket):
        return 0
    left_s = _ANSWER_S if deadline is None else max(min(deadline - time.monotonic(), _ANSWER_S), 0.05)
    try:
        return int(control.ask({"op": "ping"}, left_s, where=where)["pid"])
    except (NoServer, ServerTimeout):
        return 0


def spawn(plan: Plan, deadline: float) -> tuple[int, bool]:
    """Start a daemon that outlives this process, and wait until clients are answered: (pid, whether one ran before).

    Raises what kept it from starting, ServerTimeout.
    """
    stderr = logs.open_log(plan.places.log)
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs, helpers.passed((theirs.fileno(),)) as passed:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-S", "-m", "dsmem.server.daemon", *map(str, passed)],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    cwd="/",
                    pass_fds=passed,
                    env=_environment(),
                )
        finally:
            os.close(stderr)
        try:
            answer = _first_word(ours, plan, deadline)
        finally:
            # It ends as soon as it has forked; killed before that, there is no daemon.
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if answer.get("ok") is True:
        return int(answer["pid"]), False
    if answer.get("kind") == "AlreadyRuns":
        return int(answer["pid"]), True
    raise control.reported(answer)


def _environment() -> dict[str, str]:
    """Of a daemon: without site (-S: a few ms less), so that what site would find is named."""
    found = helpers.environment()
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return {**found, "PYTHONPATH": os.pathsep.join([found["PYTHONPATH"], home])}


def _first_word(channel: socket.socket, plan: Plan, deadline: float) -> dict[str, Any]:
    decoder = Decoder(frames.ANSWER_BYTES)
    try:
        channel.settimeout(max(deadline - time.monotonic(), 0.1))
        channel.sendall(frames.encode(plan.as_dict()))
        while part := channel.recv(1 << 16):
            answer = decoder.feed(part)
            if answer is not None:
                return answer
    except TimeoutError as exc:
        raise ServerTimeout(f"the server did not get ready in time; its log: {plan.places.log}") from exc
    except OSError as exc:
        raise DsmemError(f"the server ended while it started ({exc}); its log: {plan.places.log}") from exc
    raise DsmemError(f"the server ended while it started; its log: {plan.places.log}")


@contextmanager
def _turn(where: Places) -> Iterator[bool]:
    """Whether it is ours to start a daemon: one process at a time."""
    if where.directory.startswith(f"{where.root}/"):
        make_store(where.root)
    places.make_directory(where.directory)
    fd = files.open_own(where.starting, os.O_RDWR | os.O_CREAT)
    try:
        mine = files.try_lock(fd, exclusive=True) and files.names_inode(where.starting, os.fstat(fd))
        try:
            yield mine
        finally:
            if mine:
                files.unlink_if_there(where.starting)
    finally:
        os.close(fd)


def until_loaded(where: Places, timeout_s: float, *, names: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """What the server says of itself, again and again until nothing is loading any more, or time is up.

    `names`: tell of these datasets only, and wait for them alone; None = all.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.02
    while True:
        facts = control.ask({"op": "status"}, where=where)
        if names is not None:
            facts["datasets"] = [one for one in facts["datasets"] if one["name"] in names]
        yield facts
        if not any(is_loading(one) for one in facts["datasets"]) or time.monotonic() > deadline:
            return
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, 0.25)


def is_loading(told: Mapping[str, Any]) -> bool:
    """Whether the server is at work on a dataset of which it told this."""
    return told["state"] in ("waiting", "loading") or bool(told["refreshing"])


def stop(where: Places, *, timeout_s: float = STOP_S) -> Stopped:
    """End the daemon: by asking, else by SIGTERM, else by SIGKILL. The data stays.

    A signal goes only to the process that holds the lock and has the start time written there, by a pidfd, so that a
    pid which has become another's is never hit. Raises InUse when it can't be told who holds the lock.
    """
    running = places.holder(where)
    if running is None:
        _tidy(where)
        return Stopped(0, {})
    facts: dict[str, Any] = {}
    try:
        facts = control.ask({"op": "stop"}, min(timeout_s, _ANSWER_S), where=where)
    except (NoServer, ServerTimeout):
        facts = {}
    deadline = time.monotonic() + timeout_s
    if facts and _ended(where, deadline):
        return Stopped(int(facts["pid"]), facts)
    running = places.holder(where)
    if running is None:
        return Stopped(int(facts.get("pid", 0)), facts)
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(where, number)
        if _ended(where, time.monotonic() + timeout_s / 2):
            _tidy(where)
            return Stopped(running.pid, facts, killed=number == signal.SIGKILL)
    raise ServerTimeout(f"pid {running.pid} does not end", timeout_s=timeout_s)


def _signal(where: Places, number: signal.Signals) -> None:
    running = places.holder(where)
    if running is None:
        return
    if not running.pid:
        raise InUse(f"{where.lock} is held by a process that does not say who it is")
    try:
        pidfd = os.pidfd_open(running.pid)
    except ProcessLookupError:
        pidfd = -1
    try:
        # The pidfd is of one process for good; only now its start time says whether it is the daemon.
        if pidfd < 0 or not running.lives():
            if places.holder(where) == running:
                raise InUse(f"{where.lock} is held, but not by pid {running.pid}, which wrote it")
            return
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _ended(where: Places, deadline: float) -> bool:
    while places.holder(where) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _tidy(where: Places) -> None:
    """Remove the socket, the lock and the pid file that a killed daemon has left."""
    try:
        fd = files.open_own(where.lock)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if files.try_lock(fd, exclusive=True) and files.names_inode(where.lock, os.fstat(fd)):
            for path in (where.socket, where.pid, where.lock):
                files.unlink_if_there(path)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Released:
    """What `stop --release` freed, and what stays because somebody holds it."""

    freed: tuple[str, ...]
    freed_bytes: int
    held: tuple[str, ...]


def release(where: Places) -> Released:
    """Remove the tables that the catalogue names and nobody holds; their names stay known."""
    from dsmem.server import catalogue
    from dsmem.store import objects

    stores = [store for store in map(open_store, where.data_roots) if store is not None]
    known = next((catalogue.read(store) for store in stores if store.root == where.data_root), {})
    meant = {(spec.source, spec.selection) for spec in known.values()}
    freed, held, freed_bytes = [], [], 0
    for store, found in [(one, found) for one in stores for found in objects.scan(one)]:
        if found.provenance is None or (found.provenance.source, found.provenance.selection) not in meant:
            continue
        try:
            if objects.remove(store, found.name, spare_kept=True):
                freed.append(found.name)
                freed_bytes += found.size_bytes
        except InUse:
            held.append(found.name)
    return Released(tuple(freed), freed_bytes, tuple(held))
