"""Work in threads: everything is done, and the first error, whoever raises it, ends it and is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from dsmem import parallel


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
