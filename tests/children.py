"""Forks of the warm test process: each runs one function, hands its result back, and never outlives the test."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import psutil

T = TypeVar("T")
PATIENCE_S = 60.0
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 0x4000, 1 << 18


class ChildDied(Exception):
    """The child ended without a result; `status` is what waitpid says."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the child ended with {os.waitstatus_to_exitcode(status)}")
        self.status = status


class ChildFailed(Exception):
    """The function raised something that can't be pickled; the message is the child's traceback."""


class NamespacesRefused(Exception):
    """This system lets this user have no mounts of their own."""


@dataclass(slots=True)
class Child(Generic[T]):
    """A running fork, leader of its own process group unless told."""

    pid: int
    _pipe: int
    _leads: bool
    _status: int | None = field(default=None)

    def result(self, timeout_s: float = PATIENCE_S) -> T:
        """What the function returned; raises what it raised, ChildDied when it was killed, TimeoutError."""
        deadline = time.monotonic() + timeout_s
        answer = b""
        # By length, not to the end: a fork of the child has the pipe too, and may outlive it.
        while len(answer) < 8 or len(answer) < 8 + int.from_bytes(answer[:8], "little"):
            ready, _, _ = select.select([self._pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"child {self.pid} said nothing for {timeout_s} s")
            part = os.read(self._pipe, 1 << 16)
            if not part:
                raise ChildDied(self.wait(deadline))
            answer += part
        status = self.wait(deadline)
        if status != 0:
            raise ChildDied(status)
        worked, value, trace = pickle.loads(answer[8:])
        if worked:
            result: T = value
            return result
        if isinstance(value, BaseException):
            value.add_note(trace)
            raise value
        raise ChildFailed(trace)

    def wait(self, deadline: float | None = None) -> int:
        """The status of waitpid."""
        deadline = deadline if deadline is not None else time.monotonic() + PATIENCE_S
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
            elif time.monotonic() > deadline:
                raise TimeoutError(f"child {self.pid} does not end")
            else:
                time.sleep(0.0005)
        return self._status

    def kill(self) -> None:
        """SIGKILL for this process alone, and its end."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def kill_group(self) -> None:
        """SIGKILL for its process group, and the end of all of it: orphans become ours meanwhile, init may be slow."""
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            self.group_is_gone()
        finally:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def group_is_gone(self) -> bool:
        """Whether nobody is left in its process group (give whoever reaps orphans a moment)."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                while os.waitpid(-self.pid, os.WNOHANG)[0]:
                    pass
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.001)
        return False

    def close(self) -> None:
        """Kill whatever is left of it."""
        if self._pipe >= 0:
            if self._status is None:
                (Child.kill_group if self._leads else Child.kill)(self)
            os.close(self._pipe)
            self._pipe = -1


@contextmanager
def started(function: Callable[[], T]) -> Iterator[Child[T]]:
    """The function running in a fork; killed at the end of the block if it still runs."""
    child = _fork(function)
    try:
        yield child
    finally:
        child.close()


@contextmanager
def all_started(functions: list[Callable[[], T]], *, own_groups: bool = True) -> Iterator[list[Child[T]]]:
    """Many at once; without `own_groups` they stay in the process group of this process."""
    running: list[Child[T]] = []
    try:
        for function in functions:
            running.append(_fork(function, leads=own_groups))
        yield running
    finally:
        for child in running:
            child.close()


def call(function: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """The function's result, computed in a fork."""
    with started(function) as child:
        return child.result(timeout_s)


def runs(process: psutil.Process) -> bool:
    """Whether it does more than wait for whoever takes up orphans, which may take seconds to do that."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def alive(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after that time; none, as soon as none does."""
    deadline = time.monotonic() + timeout_s
    while (found := [one for one in processes if runs(one)]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def still_running() -> list[str]:
    """Command lines of what this process has started, down to the last; SharedMemory's tracker stays with it."""
    found = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [one for one in found if "resource_tracker" not in one]


def fork() -> int:
    """os.fork. Python 3.12 warns of forks beside threads: those of this process (a watchdog, BLAS) hold no locks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _fork(function: Callable[[], T], *, leads: bool = True) -> Child[T]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = fork()
    if pid:
        os.close(writing)
        if leads:
            with suppress(PermissionError, ProcessLookupError):  # it has done so itself, or is gone
                os.setpgid(pid, pid)
        return Child(pid, reading, leads)
    try:
        os.close(reading)
        if leads:
            os.setpgid(0, 0)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _run(function, writing)
    finally:
        os._exit(70)


def _run(function: Callable[[], T], writing: int) -> None:
    try:
        answer = pickle.dumps((True, function(), ""))
    except BaseException as exc:  # noqa: BLE001 - handed to the parent, which raises it
        trace = "".join(traceback.format_exception(exc))
        try:
            answer = pickle.dumps((False, exc, trace))
            pickle.loads(answer)
        except Exception:  # noqa: BLE001 - then as text
            answer = pickle.dumps((False, None, trace))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(len(answer).to_bytes(8, "little") + answer)
    os._exit(0)


def enter_mount_namespace() -> None:
    """Give this process (a child) mounts of its own; raises NamespacesRefused where that is not allowed."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid == 0:
            _checked(_LIBC.unshare(_CLONE_NEWNS))
        else:
            _checked(_LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        _checked(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    except OSError as exc:
        raise NamespacesRefused(str(exc)) from exc


def mount_tmpfs(point: str, options: str, *, read_only: bool = False) -> None:
    """Mount a tmpfs in the namespace of this process."""
    _checked(_LIBC.mount(b"tmpfs", os.fsencode(point), b"tmpfs", 0, options.encode()))
    if read_only:
        _checked(_LIBC.mount(b"tmpfs", os.fsencode(point), None, _MS_REMOUNT | _MS_RDONLY, None))


def become(uid: int) -> None:
    """Drop this process (a child of root) to another user, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _checked(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
