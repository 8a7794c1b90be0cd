"""Processes that help this one: fresh interpreters that import what this one imports, and never outlive it."""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: int) -> list[str]:
    """The command line of a helper, for `end_with_parent` too."""
    return [sys.executable, "-P", "-m", module, str(os.getpid()), *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment of a helper: it finds the modules where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def end_with_parent(parent: int) -> None:
    """In a helper: have the kernel kill it when the thread that started it ends, however it is busy then."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that wanted help is gone")


def ending(code: int) -> str:
    """How a helper ended, by its return code."""
    return f"signal {-code}" if code < 0 else f"exit status {code}"
