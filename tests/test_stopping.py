"""Being told to end: an exception within the block, the handlers of before after it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from dsmem import stopping


@pytest.mark.parametrize("number", stopping.ENDING)
def test_it_is_an_exception_within_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, stopping.raised():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_so() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.raised():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_what_is_held_is_raised_behind_the_block_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with stopping.held(lambda: told.append("kept")):
            interrupt()
            interrupt()
            told.append("worked")
        pytest.fail("it has to be raised")
    assert told == ["kept", "worked"]
    assert signal.getsignal(signal.SIGINT) is before


def test_after_a_release_the_first_is_raised_at_once_and_the_others_not_at_all() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stopping.held() as held:
        held.release()
        try:
            interrupt()
            pytest.fail("it has to be raised")
        finally:
            for _ in range(3):
                interrupt()
    assert caught.value.__context__ is None


def test_a_release_raises_what_was_held() -> None:
    with stopping.held() as held:
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            held.release()
        interrupt()  # once is enough


def test_one_that_is_held_again_is_raised_behind_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), stopping.held() as held:
        held.release()
        held.hold()
        interrupt()


def test_an_interrupt_matters_more_than_the_error_of_the_block() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stopping.held():
        interrupt()
        raise ValueError
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError), stopping.held():
        raise ValueError


def test_held_within_held() -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), stopping.held() as outer:
        outer.release()
        with stopping.held(lambda: told.append("inner")):
            interrupt()
            interrupt()
            told.append("worked")
    assert told == ["inner", "worked"]


def test_a_handler_that_raises_nothing_is_called_at_once() -> None:
    heard: list[int] = []
    handler: Callable[..., None] = lambda number, frame: heard.append(number)  # noqa: E731
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with stopping.held():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_another_thread_nothing_is_held() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with stopping.held() as held:
            seen.append(signal.getsignal(signal.SIGINT))
            held.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
