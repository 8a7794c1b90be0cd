"""Whether several workers were worth it: in a read that takes long, one works alone for a moment, now and then.

A read that ends within half a second never stops for it; of a longer one it takes a few percent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dsmem import units

AFTER_S = 0.5
"""Then one works alone for the first time; the next time after twice as long, and so on."""
SHARE = 0.05
"""Of the time before, for which one works alone."""
FEWEST = 2
"""Tasks that one does alone, at least."""
FASTER = 1.25
"""One alone must have been so many times as fast as all together to be said to be faster."""


@dataclass(slots=True)
class _Stretch:
    alone: bool
    began_s: float
    tasks: int = 0
    size_bytes: int = 0
    elapsed_s: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / max(self.elapsed_s, 1e-9)


class Pace:
    """Told of every task by the pool, under its lock; decides when a worker has to wait."""

    def __init__(self, workers: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._workers = workers
        self._clock = clock
        self._running = 0
        self._draining = False
        self._began_s = clock()
        self._next_s = AFTER_S
        self._now = _Stretch(False, self._began_s)
        self._done: list[_Stretch] = []

    @property
    def admits(self) -> bool:
        """Whether one more task may begin beside those that run."""
        return self._running == 0 or not (self._draining or self._now.alone)

    def begin(self) -> None:
        """A task begins."""
        self._running += 1

    def end(self, size_bytes: int | None) -> None:
        """A task has ended that brought so many bytes; None: nobody knows, and so there is nothing to find out."""
        self._running -= 1
        if size_bytes is None:
            return
        now_s, stretch = self._clock(), self._now
        stretch.tasks += 1
        stretch.size_bytes += size_bytes
        stretch.elapsed_s = now_s - stretch.began_s
        if stretch.alone:
            before_s = stretch.began_s - self._began_s
            if stretch.tasks >= FEWEST and stretch.elapsed_s >= SHARE * before_s:
                self._next_s = 2 * before_s
                self._turn(now_s)
        elif self._workers > 1 and now_s - self._began_s >= self._next_s:
            self._draining = True
            if self._running == 0:
                self._draining = False
                self._turn(now_s)

    def _turn(self, now_s: float) -> None:
        self._done.append(self._now)
        self._now = _Stretch(not self._now.alone, now_s)

    def slower(self) -> str | None:
        """What to say if one alone was faster than all together, before and after; None if not, or if nobody knows."""
        stretches = [*self._done, self._now]
        alone = [one for one in stretches if one.alone and one.tasks >= FEWEST]
        together = [one.bytes_per_s for one in stretches if not one.alone and one.tasks >= 2 * self._workers]
        alone_bytes_per_s = sum(one.size_bytes for one in alone) / max(sum(one.elapsed_s for one in alone), 1e-9)
        if len(together) < 2 or alone_bytes_per_s < FASTER * max(together):
            return None
        return (
            f"{self._workers} workers together read {units.format_bytes(round(max(together)))} a second, one alone "
            f"{units.format_bytes(round(alone_bytes_per_s))}: --workers 1 is faster here"
        )
