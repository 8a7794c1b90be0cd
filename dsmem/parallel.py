"""Work spread over threads, for code that releases the GIL: the first error stops the rest and is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from dsmem import stopping


def run(tasks: Iterable[Callable[[], None]], threads: int) -> None:
    """Run every task, up to `threads` at a time, in the order given; on an interrupt the running ones finish first.

    However many interrupts come: when this ends, however it does, none of the threads is at work.
    """
    remaining = iter(tasks)
    taking = threading.Lock()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                with taking:
                    task = next(remaining, None)
                if task is None:
                    return
                task()
            except BaseException as exc:  # noqa: BLE001 - raised in the caller, below
                errors.append(exc)
                stop.set()

    workers = [threading.Thread(target=work, name=f"dsmem-{i}", daemon=True) for i in range(threads)]
    started: list[threading.Thread] = []
    with stopping.held(stop.set):
        try:
            for worker in workers:
                worker.start()
                started.append(worker)
        except BaseException:
            stop.set()
            raise
        finally:
            for worker in started:
                worker.join()
    if errors:
        raise errors[0]


class Room:
    """Bytes that threads may have at once, all together; who finds too little left waits until others are done."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = self._left_bytes = size_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Take so many while the block lasts; of more than there are, all."""
        size_bytes = min(size_bytes, self._size_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._left_bytes >= size_bytes)
            self._left_bytes -= size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._left_bytes += size_bytes
                self._changed.notify_all()
