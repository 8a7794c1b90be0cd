"""What tests start ends with them, also when pytest is killed: a process waits for that, and kills what has its mark.

The mark is in the environment of every process that is executed, daemons too. A fork that executes nothing has it not,
and is not killed: it ends with its parent only where it was asked to, as those of `children` are; nor does it hold the
watcher up. When pytest ends by itself nothing is killed: what a test has left is seen then.
"""

from __future__ import annotations

import os
import secrets
import signal
from contextlib import suppress
from pathlib import Path

import children

MARK = "TESTS_OF_DSMEM"
"""Of no name that the fixture of the store takes away."""
_writing: set[int] = set()
"""The ends that tell of this process: those who have them are this process to the watcher."""


def _let_go() -> None:
    while _writing:
        os.close(_writing.pop())


os.register_at_fork(after_in_child=_let_go)


def watch() -> int:
    """Begin; the descriptor tells of the end of this process, `leave` of one that is no accident."""
    reading, writing = os.pipe()
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    between = children.fork()
    if between == 0:
        try:
            os.close(writing)
            if children.fork() == 0:  # no child of this process: tests look at those
                _wait(reading, f"{MARK}={mark}".encode())
        finally:
            os._exit(0)
    os.waitpid(between, 0)
    os.close(reading)
    os.environ[MARK] = mark
    _writing.add(writing)
    return writing


def leave(writing: int) -> None:
    """This process ends by itself."""
    _writing.remove(writing)
    os.write(writing, b".")
    os.close(writing)


def _wait(reading: int, mark: bytes) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)  # who reads what pytest writes must not wait for this process
    if os.read(reading, 1):
        return
    while sum(_kill(int(name), mark) for name in os.listdir("/proc") if name.isdigit()):
        continue  # they may have started others


def _kill(pid: int, mark: bytes) -> bool:
    """Whether it has the mark, and has been there until now."""
    with suppress(OSError):  # gone, or another user's
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
            return True
    return False
