"""Processes that help this one: fresh interpreters that import what this one imports, or forks; none outlives it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from dsmem import files, stopping

if TYPE_CHECKING:
    import subprocess

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: int) -> list[str]:
    """The command line of a helper, for `end_with_parent` too."""
    return [sys.executable, "-P", "-m", module, str(os.getpid()), *map(str, arguments)]


def start(
    module: str,
    *arguments: int,
    fds: tuple[int, ...] = (),
    stdin: int,
    stdout: int,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
    bufsize: int = -1,
    start_new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Run a module as a helper, told this process's pid, the descriptors that it inherits, and the arguments.

    The rest is what `subprocess.Popen` takes. No interrupt comes to it before `ignore_interrupts`, unless it has a
    session of its own: Python's answer to one while it starts is a traceback.
    """
    import subprocess

    if stderr is None and not _is_passed_on(2):
        stderr = subprocess.DEVNULL  # not the first file that it opens
    process = None
    try:
        with stopping.held():  # other threads hear an interrupt that this one's mask keeps off
            before = signal.pthread_sigmask(signal.SIG_BLOCK, () if start_new_session else (signal.SIGINT,))
            try:
                with passed(fds) as theirs:
                    process = subprocess.Popen(
                        command(module, *theirs, *arguments),
                        stdin=stdin,
                        stdout=stdout,
                        stderr=stderr,
                        pass_fds=theirs,
                        env=environment() if env is None else env,
                        bufsize=bufsize,
                        start_new_session=start_new_session,
                    )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        if process is None:
            raise
        process.kill()  # an interrupt: nobody will hear of it
        process.wait()  # by itself `with` waits for a moment only, where an interrupt ends it
        with process:
            raise
    return process


@contextmanager
def passed(fds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The descriptors, to be passed to a child, under numbers that its standard streams do not take."""
    with ExitStack() as stack:
        theirs = [fd if fd > files.LAST_STANDARD else files.copied_above_standard(fd) for fd in fds]
        for fd in set(theirs) - set(fds):
            stack.callback(os.close, fd)
        yield tuple(theirs)


def _is_passed_on(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # closed
        return False


def ignore_interrupts() -> None:
    """In a helper: the parent decides what becomes of an interrupt, also of one that came while this started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def environment() -> dict[str, str]:
    """The environment of a helper: it finds the modules where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def end_with_parent(parent: int) -> None:
    """In a helper: have the kernel kill it when the thread that started it ends, however it is busy then."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


class Fork:
    """A child that does one thing, seen as `subprocess.Popen` shows one. Only for a process that has one thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._code: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child ignores it
        try:
            self.pid = os.fork()
            if not self.pid:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what becomes of an interrupt
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                end_after(work)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kill(self) -> None:
        """End it, however busy it is."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Its return code; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Its return code, when it has ended."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, how)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def end_after(work: Callable[[], object]) -> NoReturn:
    """In a fork: do that and end at once, without anything that this process was to do before it was forked."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit:
        pass
    except BaseException:  # noqa: BLE001 - what a process says that ends by an error
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def ending(code: int) -> str:
    """How a helper ended, by its return code."""
    return f"signal {-code}" if code < 0 else f"exit status {code}"
