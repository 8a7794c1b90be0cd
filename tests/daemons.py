"""What tests of the dataset server share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from dsmem.server import places
from dsmem.server.places import Places
from dsmem.server.plan import Plan


class Plans(Protocol):
    """`plan(a="ok:", b="fail:no")`: a plan whose children are `fakeloader`, a dataset for each keyword."""

    def __call__(self, *, watch_s: float = 0.02, loader: str = "fakeloader", **datasets: str) -> Plan: ...


def end(where: Places) -> None:
    """Kill the daemon that is there, if one is, and wait until it is gone."""
    running = places.holder(where)
    if running is not None and running.pid and running.lives():
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)
        eventually(lambda: places.holder(where) is None)


def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
