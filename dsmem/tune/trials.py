"""Settings tried for real, side by side: each in processes of its own, taking turns, on a sample of the files.

Two processes of one setting differ by several percent, by where their memory lies: so each is started several times.

What they pin goes into the store, as in training, and is removed at the end, but for what was there before.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsmem.errors import DsmemError, UsageError
from dsmem.shm import listing
from dsmem.store.root import open_store
from dsmem.store.sweep import sweep
from dsmem.training import layouts, placing
from dsmem.training.episodes import EpisodeFile
from dsmem.tune.facts import Workload
from dsmem.tune.looking import GivenLayout, Looked
from dsmem.tune.settings import Settings
from dsmem.turns import balanced

PATIENCE_S = 600.0
"""For one answer: pinning all of the files, or a pass over the sample."""
_END_S, _LOOK_S = 10.0, 0.01
"""For a trial to end by itself, and how often it is looked at."""
STARTS = 3
"""How often a setting that may win is started: a sample is the median of one start."""
TURNS = 8
"""Passes over the sample, of each start."""
_SAMPLE_BYTES = 512 << 20
"""Decoded, of the files that are tried; at least one file."""
_AS_FAST = 0.97
"""Another setting must be so much faster than the first, and in each start than it was in any, to be taken instead."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a setting really took."""

    settings: Settings
    batch_s: float
    """The median of all starts."""
    samples: tuple[float, ...]
    """Of each start. What can't win any more is not started again."""
    opened_s: float
    """To make dataset and loader, pinning included where it came first."""


class TrialFailed(DsmemError, RuntimeError):
    """A process that tried a setting ended early, or failed; the message is its error."""


class Trial:
    """One training process that loads batches when it is told to; a context manager."""

    def __init__(
        self, files: Sequence[EpisodeFile], cameras: Sequence[str], settings: Settings, workload: Workload,
        *, chunk_size: int = 100, layout: GivenLayout = None, mask: str | None = None,
        steps: Sequence[int] | None = None, spare: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Start it; `opened` waits until it is ready. `steps`: always these, in this order; None = all, shuffled.

        `spare`: when it ends it removes what is pinned of the files but for these objects; None = it removes nothing.
        """
        request = {
            "paths": [file.path for file in files],
            "cameras": list(cameras),
            "batch_size": workload.batch_size,
            "step_s": workload.step_s or 0.0,
            "steps": None if steps is None else list(steps),
            "spare": None if spare is None else list(spare),
            "dataset": {
                **settings.dataset_options(),
                "chunk_size": chunk_size,
                "layout": plain_layout(layout),
                "mask": mask,
            },
            "loader": settings.loader_options(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dsmem.tune.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt is this process's to answer; it ends with its standard input
        )
        self._send(json.dumps(request))

    def opened(self) -> dict[str, Any]:
        """`opened_s`, `batches` of a pass, `objects` that it has pinned; raises TrialFailed."""
        return self._heard()

    def begin(self, what: str = "pass") -> None:
        """Begin a pass over all batches; `end` waits for it. "check": one that is not timed, but looked at."""
        self._send(what)

    def end(self) -> dict[str, Any]:
        """`batch_s`, and of a "check" a `mark`, the same for the same samples; raises TrialFailed."""
        return self._heard()

    def close(self, *, at_once: bool = False) -> None:
        """End it, and what it has started; `at_once`: whatever it is at."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if at_once:
            self._process.terminate()
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        if self._process.returncode is None:
            deadline = time.monotonic() + _END_S
            flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while os.waitid(os.P_PID, self._process.pid, flags) is None and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            # Not waited for yet, so nobody else has its number. Workers that it left behind would hold objects.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(at_once=kind is not None)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # `_heard` says why

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:  # it answers with one line at a time
            self._process.kill()
            raise TrialFailed(f"a trial did not answer for {PATIENCE_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise TrialFailed(f"a trial ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrialFailed(f"a trial failed: {answer['error']}")
        return answer


def compare(
    looked: Looked,
    settings: Sequence[Settings],
    workload: Workload,
    *,
    chunk_size: int = 100,
    layout: GivenLayout = None,
    mask: str | None = None,
    starts: int = STARTS,
    turns: int = TURNS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tried, ...]:
    """What each of the settings takes for a batch, in their order. Raises TrialFailed and UsageError.

    With several training processes that many run at once, and the slowest counts.
    """
    files, share = sample(looked.files, looked.data.data_bytes)
    report = progress or (lambda done, total: None)
    total = starts * len(settings) * (turns + 1)
    samples: list[list[float]] = [[] for _ in settings]
    opened: list[list[float]] = [[] for _ in settings]
    going = list(range(len(settings)))
    with _only(files) as spare:
        for start in range(starts):
            groups: dict[int, list[Trial]] = {}
            passes: dict[int, list[float]] = {which: [] for which in going}
            done = start * len(settings) * (turns + 1)
            with ExitStack() as stack:
                for which in going:
                    one = settings[which]
                    options: dict[str, Any] = {
                        "chunk_size": chunk_size, "layout": layout, "mask": mask, "spare": spare,
                    }  # fmt: skip
                    scaled = scale(one, share)
                    group = groups[which] = [
                        stack.enter_context(Trial(files, looked.data.cameras, scaled, workload, **options))
                        for _ in range(workload.processes)
                    ]
                    opened[which].append(max(trial.opened()["opened_s"] for trial in group))
                    for _ in range(warm_passes(one)):
                        _pass(group)
                    report(done + len(groups), total)
                for turn in range(turns):
                    for place in balanced(len(going), turn):
                        passes[going[place]].append(_pass(groups[going[place]]))
                        report(done + len(groups) + sum(map(len, passes.values())), total)
            for which, taken in passes.items():
                samples[which].append(statistics.median(taken))
            going = [0, *ahead(samples)]
            if len(going) == 1:
                break
    report(total, total)
    return tuple(
        Tried(one, statistics.median(taken), tuple(taken), opened_s[0])
        for one, taken, opened_s in zip(settings, samples, opened, strict=True)
    )


def ahead(samples: Sequence[Sequence[float]]) -> list[int]:
    """Which are clearly faster than the first: in the median, and each of their starts than any of the first."""
    first = samples[0]
    return [
        which
        for which, taken in enumerate(samples)
        if len(taken) == len(first)
        and max(taken) < min(first)
        and statistics.median(taken) < _AS_FAST * statistics.median(first)
    ]


def winner(tried: Sequence[Tried]) -> Tried:
    """The fastest of those that are `ahead` of the first, which is what was recommended; else that one."""
    found = [tried[which] for which in ahead([one.samples for one in tried])]
    return min(found, key=lambda one: one.batch_s, default=tried[0])


def sample(files: Sequence[EpisodeFile], data_bytes: int) -> tuple[list[EpisodeFile], float]:
    """Files spread over the set, of half a GiB together, and which share of the steps they hold."""
    steps = sum(file.steps for file in files)
    count = max(min(int(len(files) * _SAMPLE_BYTES / max(data_bytes, 1)), len(files)), 1)
    chosen = [files[int(at)] for at in np.linspace(0, len(files) - 1, count)]
    return chosen, sum(file.steps for file in chosen) / steps


def scale(settings: Settings, share: float) -> Settings:
    """The same for a part of the data: memory that holds a share of all holds that share of the part."""

    def part(size_bytes: int | None) -> int | None:
        return None if size_bytes is None or share >= 1 else int(size_bytes * share)

    if share >= 1:
        return settings
    return replace(settings, cache_bytes=part(settings.cache_bytes), memory_limit=part(settings.memory_limit))


def warm_passes(settings: Settings) -> int:
    """Until a pass finds what it can find: each worker has a cache of its own, and gets other batches each time."""
    if settings.cache_bytes is None or settings.cache_scope == "shared":
        return 1
    return min(2 * max(settings.num_workers, 1) + 1, 7)


def plain_layout(given: GivenLayout) -> Any:
    """A layout as JSON holds it; raises UsageError for one that it can't."""
    if not isinstance(given, layouts.Layout):
        return given
    if given in layouts.KNOWN:
        return given.name
    raise UsageError("to be tried, a layout must be a name or a mapping")


def _pass(group: Sequence[Trial]) -> float:
    for trial in group:
        trial.begin()
    return max(float(trial.end()["batch_s"]) for trial in group)


@contextmanager
def _only(files: Sequence[EpisodeFile]) -> Iterator[list[str]]:
    """Names of the objects that are there; what else is pinned of the files is removed at the end."""
    there = [entry.name for entry in listing.list_objects().entries]
    try:
        yield there
    finally:
        remove_pinned([file.path for file in files], there)  # a trial that was killed has removed nothing


def remove_pinned(paths: Sequence[str], spare: Collection[str]) -> None:
    """Remove what is pinned of the files and held by nobody, but for objects with these names; and abandoned caches."""
    store = open_store()
    if store is None:
        return
    wanted = {os.path.realpath(path) for path in paths}
    found = [one for one in listing.survey(store) if wanted & {source.path for source in one.sources}]
    placing.remove([one.name for one in found if one.name not in spare])
    sweep(store)
