"""Processes that help: how they end, and what of the process that they come from they leave alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dsmem import helpers


def ran(work: str, then: str) -> subprocess.CompletedProcess[str]:
    """A process that has such a fork, and ends well."""
    code = f"import atexit, os, signal, sys, time\nfrom dsmem import helpers\nfork = helpers.Fork({work})\n{then}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("lambda: None", "0"),
        ("lambda: 1 / 0", "1"),
        ("lambda: sys.exit('gone')", "1"),
        ("lambda: os.kill(os.getpid(), 9)", "-9"),
    ],
)
def test_a_fork_tells_how_it_ended(work: str, code: str) -> None:
    done = ran(work, "print(fork.wait(), fork.poll(), fork.wait()); fork.kill()")
    assert done.stdout.split() == [code] * 3
    assert ("ZeroDivisionError" in done.stderr) == ("/" in work)


def test_a_fork_is_killed_and_does_nothing_that_its_parent_was_to_do() -> None:
    done = ran("lambda: time.sleep(60)", "print(fork.poll()); fork.kill(); print(fork.wait(), fork.poll())")
    assert done.stdout.split() == ["None", "-9", "-9"]
    code = (
        "import atexit\nfrom dsmem import helpers\natexit.register(print, 'bye')\nprint('once')\n"
        "helpers.Fork(lambda: None).wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["once", "bye"]


def test_an_interrupt_is_for_the_parent() -> None:
    done = ran(
        "lambda: (os.kill(os.getpid(), signal.SIGINT), os._exit(7))",
        "print(fork.wait(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    )
    assert done.stdout.split() == ["7", "True", "False"]


def test_an_interrupt_while_a_helper_starts_is_for_the_parent(tmp_path: Path) -> None:
    """As a terminal sends it to all of them."""
    (tmp_path / "said").touch()
    with open(tmp_path / "said", "r+b") as said:
        fd = said.fileno()
        helper = helpers.start(
            "dsmem.pinning.decoder", 0, 0, fds=(fd, fd, fd), stdin=subprocess.PIPE, stdout=fd, stderr=fd
        )
        with helper:
            helper.send_signal(signal.SIGINT)  # long before it has started
            helper.communicate(timeout=60)
        assert helper.returncode == 0
        assert said.read() == b""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("heard_by", ["this thread", "another"])
def test_an_interrupt_while_a_helper_is_started_leaves_none(monkeypatch: pytest.MonkeyPatch, heard_by: str) -> None:
    made: list[subprocess.Popen[bytes]] = []
    heard, over = threading.Event(), threading.Event()
    another = threading.Thread(target=over.wait)

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            made.append(self)
            if heard_by == "another":
                assert another.ident is not None
                signal.pthread_kill(another.ident, signal.SIGINT)
                while not heard.is_set():  # the handler runs in this thread all the same, whatever its mask
                    time.sleep(0.001)
            else:
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def hear(number: int, frame: object) -> None:
        heard.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = signal.signal(signal.SIGINT, hear)
    another.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            helpers.start("dsmem.pinning.decoder", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
        over.set()
        another.join()
    (helper,) = made
    assert helper.returncode == -signal.SIGKILL
    assert helper.stdin is not None and helper.stdin.closed


def test_descriptors_are_passed_under_other_numbers_than_those_of_standard_streams() -> None:
    code = (
        "import os; from dsmem import helpers\n"
        "os.close(0); assert os.pipe()[0] == 0\n"
        "with helpers.passed((0, 7)) as fds:\n"
        "    assert fds[0] > 2 and fds[1] == 7 and os.path.sameopenfile(fds[0], 0) and not os.get_inheritable(fds[0])\n"
        "os.fstat(0)\n"
        "try: os.fstat(fds[0])\n"
        "except OSError: print('closed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "closed\n"
