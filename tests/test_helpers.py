"""Forks that help: how they end, and what of the process that they come from they leave alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


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
