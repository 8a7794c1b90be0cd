"""Trials of `dsmem tune` as forks of the warm test process: a fresh interpreter takes seconds to import torch.

`tests/tune/test_trials.py` has real ones, too, where what is left of a process matters.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import util
from types import SimpleNamespace
from typing import Any, ClassVar

import children
import pytest

from dsmem.tune import trial, trials


class Fork:
    """What `trials.Trial` uses of subprocess.Popen, of `python -m dsmem.tune.trial`."""

    _others: ClassVar[list[Fork]] = []
    """Whose pipes a new one must not have: each ends when its standard input does."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        assert command[-2:] == ["-m", "dsmem.tune.trial"] and options["start_new_session"]
        requests, requesting = os.pipe()
        answered, answers = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = children.fork()
        if self.pid == 0:
            os.close(requesting)
            os.close(answered)
            self._run(requests, answers)
        os.close(requests)
        os.close(answers)
        self.stdin, self.stdout = os.fdopen(requesting, "w"), os.fdopen(answered)
        self.returncode: int | None = None
        self._others.append(self)

    def _run(self, requests: int, answers: int) -> None:
        code = 70
        try:
            os.setsid()
            for one in self._others:
                one.stdin.close()
                one.stdout.close()
            os.dup2(requests, 0)
            os.dup2(answers, 1)
            sys.stdin = os.fdopen(0)
            # What the test process has to do at its end is not this one's: as multiprocessing does it.
            util._finalizer_registry.clear()  # type: ignore[attr-defined]
            try:
                trial.main()
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else 0
            util._exit_function()  # type: ignore[attr-defined]
        finally:
            os._exit(code)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._others.remove(self)
        return self.returncode


def use(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let trials be forks; the pids of all that are started from now on."""
    pids: list[int] = []

    def start(*arguments: Any, **options: Any) -> Fork:
        made = Fork(*arguments, **options)
        pids.append(made.pid)
        return made

    monkeypatch.setattr(trials, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    return pids
