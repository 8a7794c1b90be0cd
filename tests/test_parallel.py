"""Work in threads: everything is done, and the first error, whoever raises it, ends it and is raised."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from dsmem import parallel
from dsmem.parallel import Room


def test_every_task_is_run_once() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def task(i: int) -> Callable[[], None]:
        def run() -> None:
            with lock:
                done.append(i)

        return run

    parallel.run((task(i) for i in range(200)), 4)
    assert sorted(done) == list(range(200))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_task_is_raised(threads: int) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        parallel.run([fail, *[lambda: None] * 10], threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_whoever_makes_the_tasks_is_raised(threads: int) -> None:
    def tasks() -> Iterator[Callable[[], None]]:
        yield lambda: None
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        parallel.run(tasks(), threads)


def test_no_thread_works_when_it_has_ended_however_many_interrupts_come() -> None:
    """Memory that they write to is given back next: a store to a file that has become shorter would be SIGBUS."""
    begun, done = [0], [0]

    def task() -> None:
        begun[0] += 1
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.002)
        done[0] += 1

    before = signal.getsignal(signal.SIGINT)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            parallel.run([task] * 50, 1)
        assert begun == done
    assert begun == [5]  # and none begins after the first
    assert signal.getsignal(signal.SIGINT) is before


def test_room_is_never_taken_twice() -> None:
    room, taken, most = Room(10), [0], [0]
    lock = threading.Lock()

    def work(size: int) -> None:
        with room.taken(size):
            with lock:
                taken[0] += min(size, 10)
                most[0] = max(most[0], taken[0])
            time.sleep(0.001)
            with lock:
                taken[0] -= min(size, 10)

    parallel.run((partial(work, size) for size in [3, 4, 5, 10, 99, 1, 0, 7] * 5), 6)
    assert 5 < most[0] <= 10
    with room.taken(10):  # all of it is there again
        pass


def test_room_comes_back_after_an_error() -> None:
    room = Room(1)
    with pytest.raises(ZeroDivisionError), room.taken(1):
        raise ZeroDivisionError
    with room.taken(1):
        pass
