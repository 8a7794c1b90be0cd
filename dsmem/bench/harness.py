"""Contenders measured in turns: in every round each runs, and over the rounds each comes after every other.

In an order that only rotates, the same predecessor would leave its pages and caches to the same successor every time.

No number leaves before all results were found equal; one round that is not counted comes first.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, get_args

from dsmem import proc, turns
from dsmem.bench.results import Compared, Measured, Quantity, Role
from dsmem.errors import DsmemError

_SAMPLING_S = 0.004
_ENOUGH = 100
"""Samples, to tell of one in a hundred."""


class ResultsDiffer(DsmemError, AssertionError):
    """Contenders that should have done the same did not: no speed of theirs means anything."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do it. `run` alone is timed; it gets what `around` yields."""

    name: str
    role: Role
    run: Callable[[Any], Any]
    answer: Callable[[Any], object] | None = None
    """What the result of `run` comes to, for comparison with the others; None where there is nothing to compare."""
    question: str = ""
    """Answers to the same question must be equal."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Set-up and clean-up of each turn."""
    repeat: int = 1
    """Samples a turn."""
    operations: int = 1
    """How many operations a run does: a sample is the time of one."""
    part: int = 1
    """A run works on one part of so many of the data, what it does to all being too slow: a sample is so many times as
    long. Say so in the name."""
    amount: Callable[[Any], int] | None = None
    """The sample of a memory comparison, from the result of `run`."""
    samples: Callable[[Any], Sequence[float]] | None = None
    """Seconds, from the result of a `run` that has taken the times itself."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared: the first recipe is the one that ratios refer to."""

    title: str
    size_bytes: int
    contenders: Sequence[Contender]
    quantity: Quantity = "time"
    expected: Mapping[str, object] = field(default_factory=dict)
    """Question → the answer that is known to be right."""
    watch: str | None = None
    """A directory of shared memory whose growth counts as memory: the peak is taken in the round not counted."""
    rounds: int | None = None
    """The same for any number of runs: what is counted and not timed needs one."""


def measure(comparison: Comparison, *, runs: int, deadline: float = float("inf")) -> Compared:
    """Run the rounds; past the deadline (time.monotonic()) no further one begins, but one is always counted.

    Raises ResultsDiffer, and whatever a contender raises.
    """
    contenders = comparison.contenders
    counted = comparison.rounds or runs
    samples: list[list[float]] = [[] for _ in contenders]
    peaks: list[int | None] = [None] * len(contenders)
    right: dict[str, tuple[str, object]] = {q: ("the known answer", known) for q, known in comparison.expected.items()}
    done = 0
    began = time.monotonic()
    if comparison.rounds is None:
        for index, contender in enumerate(contenders):
            with _Peak(comparison.watch) as peak:
                _, answer = _turn(contender, repeat=1)
            peaks[index] = peak.size_bytes
            _check(comparison, contender, answer, right)
    round_s = time.monotonic() - began
    while done < counted and (done == 0 or time.monotonic() + round_s < deadline):
        began = time.monotonic()
        for index in turns.balanced(len(contenders), done):
            taken, answer = _turn(contenders[index], repeat=contenders[index].repeat)
            samples[index] += taken
            _check(comparison, contenders[index], answer, right)
        done += 1
        round_s = time.monotonic() - began
    return _summed_up(comparison, samples, peaks, done)


def _turn(contender: Contender, *, repeat: int) -> tuple[list[float], object]:
    samples: list[float] = []
    result: Any = None
    with contender.around() as subject:
        gc.collect()
        for _ in range(repeat):
            result = None  # what the run before left is freed outside of the time
            began = time.perf_counter()
            result = contender.run(subject)
            elapsed_s = time.perf_counter() - began
            if contender.samples is not None:
                samples += contender.samples(result)
            elif contender.amount is not None:
                samples.append(contender.amount(result))
            else:
                samples.append(contender.part * elapsed_s / contender.operations)
        answer = None if contender.answer is None else contender.answer(result)
        del result, subject  # before `around` takes away what they lie in
    return samples, answer


def _check(comparison: Comparison, contender: Contender, answer: object, right: dict[str, tuple[str, object]]) -> None:
    if contender.answer is None:
        return
    first, known = right.setdefault(contender.question, (contender.name, answer))
    if answer != known:
        what = f" ({contender.question})" if contender.question else ""
        raise ResultsDiffer(f"{comparison.title}: {contender.name} gave something else than {first}{what}")


def _summed_up(
    comparison: Comparison, samples: Sequence[Sequence[float]], peaks: Sequence[int | None], runs: int
) -> Compared:
    medians = [statistics.median(taken) for taken in samples]
    by_role: dict[Role, list[float]] = {role: [] for role in get_args(Role)}
    for contender, median in zip(comparison.contenders, medians, strict=True):
        by_role[contender.role].append(median)
    recipe = by_role["recipe"][0] if by_role["recipe"] else None
    limit = min(by_role["limit"], default=None)
    measured = []
    for contender, taken, median, peak in zip(comparison.contenders, samples, medians, peaks, strict=True):
        timed = comparison.quantity == "time"
        measured.append(
            Measured(
                name=contender.name,
                role=contender.role,
                samples=len(taken),
                median_s=median if timed else None,
                min_s=min(taken) if timed else None,
                max_s=max(taken) if timed else None,
                p99_s=_p99(taken) if timed else None,
                median_bytes=None if timed else round(median),
                min_bytes=None if timed else round(min(taken)),
                max_bytes=None if timed else round(max(taken)),
                bytes_per_s=comparison.size_bytes / median if timed and comparison.size_bytes else None,
                ratio_to_recipe=None if recipe is None else recipe / median,
                percent_of_limit=None if limit is None else 100 * limit / median,
                times_data=None if timed else median / comparison.size_bytes,
                peak_bytes=peak,
            )
        )
    return Compared(comparison.title, comparison.quantity, comparison.size_bytes, runs, tuple(measured))


def _p99(samples: Sequence[float]) -> float | None:
    """99 of 100 are not above it; None where there are too few to say."""
    return statistics.quantiles(samples, n=100)[98] if len(samples) >= _ENOUGH else None


class _Peak:
    """The most memory that this process took in a stretch of time, beyond what it had before; looked at every 4 ms."""

    def __init__(self, shared: str | None) -> None:
        self._shared = shared
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dsmem-peak", daemon=True)
        self._before = 0
        self._highest = 0
        self.size_bytes: int | None = None

    def __enter__(self) -> _Peak:
        if self._shared is not None:
            self._before = self._highest = self._now(self._shared)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shared is not None:
            self._stop.set()
            self._thread.join()
            self.size_bytes = self._highest - self._before

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLING_S):
            assert self._shared is not None
            self._highest = max(self._highest, self._now(self._shared))

    @staticmethod
    def _now(shared: str) -> int:
        own = proc.memory_of(os.getpid())
        found = os.statvfs(shared)
        shared_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
        return own.pss_bytes - (own.pss_shared_memory_bytes or 0) + shared_bytes
