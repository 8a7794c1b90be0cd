"""Of a run of tests that is killed nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import children
import orphans
import psutil
import pytest

DETACHED = "import os, subprocess, sys; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"


@pytest.fixture
def kept() -> Iterator[list[psutil.Process]]:
    found: list[psutil.Process] = []
    yield found
    for one in found:
        if children.runs(one):
            one.kill()


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_killed_run_has_started_ends(killed: bool, kept: list[psutil.Process]) -> None:
    said, saying = os.pipe()

    def run() -> None:
        watching = orphans.watch()
        forked = children.fork()  # has what this process has open, and outlives it
        if forked == 0:
            signal.pause()
        os.write(saying, f"{forked}\n".encode())
        started = subprocess.run([sys.executable, "-S", "-c", DETACHED], stdout=saying, check=True)
        assert started.returncode == 0
        if killed:
            signal.pause()
        orphans.leave(watching)

    with children.started(run) as running, open(said, closefd=False) as lines:
        kept += [psutil.Process(int(lines.readline())) for _ in range(2)]
        if killed:
            running.kill()
        else:
            running.result()
    deadline = time.monotonic() + (20 if killed else 0.3)
    while children.runs(kept[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children.runs(kept[1]) != killed
    os.close(said)
    os.close(saying)
