"""Tasks run by threads, their outcomes handled by the thread that asked: torch's planners are not made for threads.

A task may lead to further tasks. On an interrupt, or when handling fails, the running tasks finish first,
however many further interrupts come.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dsmem import stopping
from dsmem.checkpoint.pace import Pace
from dsmem.checkpoint.scratch import Scratch

Outcome = TypeVar("Outcome")
Task = Callable[[Scratch], Outcome]
_AHEAD = 2
"""Outcomes a worker may have that nobody has handled yet: what they hold (loaded tensors) is memory."""


class Pool(Generic[Outcome]):
    """Runs tasks with `workers` threads, or in the calling thread if that is one.

    With `size_of`, the bytes that an outcome stands for, it finds out whether several workers are worth it (`pace`).
    """

    def __init__(self, workers: int, size_of: Callable[[Outcome], int] | None = None) -> None:
        self._workers = workers
        self._size_of = size_of
        self.pace = Pace(workers)
        """Of the last run."""
        self.stopping = False
        """Nobody wants what is still to be done: a task of many parts looks at this between them."""

    def run(self, tasks: Iterable[Task[Outcome]], handle: Callable[[Outcome], Iterable[Task[Outcome]]]) -> None:
        """Run every task; `handle` gets each outcome, in the calling thread, and returns tasks that come next.

        Tasks must not raise: what they fail at is part of the outcome.
        """
        self.stopping = False
        if self._workers == 1:
            waiting = deque(tasks)
            scratch = Scratch()
            while waiting:
                waiting.extendleft(reversed(list(handle(waiting.popleft()(scratch)))))
            return
        self._run_in_threads(deque(tasks), handle)

    def _run_in_threads(
        self, waiting: deque[Task[Outcome]], handle: Callable[[Outcome], Iterable[Task[Outcome]]]
    ) -> None:
        outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        changed = threading.Condition()
        running = len(waiting)
        unhandled = 0
        pace, size_of = Pace(self._workers), self._size_of
        self.pace = pace

        def may_take() -> bool:
            return bool(waiting) and unhandled < _AHEAD * self._workers and pace.admits

        def take_tasks() -> None:
            nonlocal unhandled
            scratch = Scratch()
            while True:
                with changed:
                    while not self.stopping and running and not may_take():
                        changed.wait()
                    if self.stopping or not running:
                        return
                    task = waiting.popleft()
                    unhandled += 1
                    pace.begin()
                try:
                    outcome: Outcome | BaseException = task(scratch)
                except BaseException as exc:  # noqa: BLE001 - raised in the caller, below
                    outcome = exc
                with changed:
                    pace.end(size_of(outcome) if size_of and not isinstance(outcome, BaseException) else None)
                outcomes.put(outcome)

        threads = [
            threading.Thread(target=take_tasks, name=f"dsmem-{number}", daemon=True) for number in range(self._workers)
        ]
        with stopping.held() as held:
            try:
                for thread in threads:
                    thread.start()
                held.release()
                while running:
                    outcome = outcomes.get()
                    if isinstance(outcome, BaseException):
                        raise outcome
                    more = list(handle(outcome))
                    with changed:
                        unhandled -= 1
                        running += len(more) - 1
                        waiting.extendleft(reversed(more))
                        changed.notify_all()
            finally:
                held.hold()
                with changed:
                    self.stopping = True
                    changed.notify_all()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
