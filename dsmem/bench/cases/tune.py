"""What `dsmem tune` recommends, beside all other settings of a small grid and the defaults, on three kinds of files.

100 % of the limit is the best of the others. Every setting is tried in a process of its own, as a training script
would, and all take turns.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from dsmem.bench import episode_sets
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from dsmem.tune import Settings
    from dsmem.tune.trials import Trial

KINDS: tuple[episode_sets.Kind, ...] = ("gzip", "contiguous", "jpeg")
FILES = 10
BATCH = 8
WORKERS = (0, 1, 2, 4)
DEFAULT_WORKERS = 4
_SHARE = 4
"""Of the size of the run: workers that do not share hold all of it each."""
_HURRIED = (KINDS[:1], (0, 2))
_CACHE_BYTES = 64 << 30
"""Of the grid: as much as there is."""


def compare(bench: Workbench) -> Generator[Comparison]:
    """A comparison for each kind of files."""
    from dsmem.tune import DatasetOptimizer, Settings

    hurried = bench.runs == 1
    kinds, workers = _HURRIED if hurried else (KINDS, WORKERS)
    if hurried:
        bench.note(
            f"tune: {', '.join(kinds)} and {', '.join(map(str, workers))} workers only; all with --size and --runs"
        )
    for kind in kinds:
        directory = bench.new_file(f"episodes-{kind}")
        directory.mkdir()
        try:
            size_bytes = bench.size_bytes // _SHARE
            paths, _ = episode_sets.make(directory, size_bytes, files=FILES if size_bytes >= 32 << 20 else 2, kind=kind)
            with bench.place.store(), ExitStack() as stack:
                optimizer = DatasetOptimizer(paths, episode_sets.CAMERAS, BATCH, gpus=0)
                recommended = optimizer.optimize().settings
                defaults = Settings(num_workers=DEFAULT_WORKERS)
                tried: list[tuple[str, Role, Settings]] = [
                    (f"recommended: {_said(recommended)}", "dsmem", recommended),
                    (f"the defaults: {_said(defaults)}", "recipe", defaults),
                    *((_said(one), "limit", one) for one in _grid(workers, recommended)),
                ]
                contenders = _contenders(stack, paths, tried)
                yield Comparison(f"a batch of {BATCH}, warm, {kind} episodes", 0, contenders)
        finally:
            shutil.rmtree(directory)


def _grid(workers: tuple[int, ...], recommended: Settings) -> Iterator[Settings]:
    """All the others: what is recommended would only be measured twice."""
    from dsmem.tune import Settings

    for shared, count in product((True, False), workers):
        if (shared, count) == (recommended.use_shared_memory, recommended.num_workers):
            continue
        yield Settings(use_shared_memory=shared, num_workers=count, cache_bytes=_CACHE_BYTES)


def _said(settings: Settings) -> str:
    return f"{'shared' if settings.use_shared_memory else 'not shared'}, {settings.num_workers} workers"


def _contenders(stack: ExitStack, paths: list[str], tried: list[tuple[str, Role, Settings]]) -> list[Contender]:
    """Each with a process that has gone through the data often enough."""
    from dsmem.tune import trials
    from dsmem.tune.facts import Workload
    from dsmem.tune.looking import look

    files = look(paths, episode_sets.CAMERAS).files
    running = [
        stack.enter_context(trials.Trial(files, episode_sets.CAMERAS, settings, Workload(BATCH)))
        for _, _, settings in tried
    ]
    contenders = []
    for (name, role, settings), trial in zip(tried, running, strict=True):
        batches = trial.opened()["batches"]
        for _ in range(trials.warm_passes(settings)):
            _pass(trial, None)
        trial.begin("check")
        mark = trial.end()["mark"]
        run = partial(_pass, trial)
        contenders.append(Contender(name, role, run, answer=partial(_same, mark), operations=batches))
    return contenders


def _pass(trial: Trial, _: object) -> None:
    trial.begin()
    trial.end()


def _same(mark: int, _: Any) -> int:
    """What all samples of a pass come to."""
    return mark


CASE = Case(
    "tune",
    "what is recommended is among the fastest settings, and faster than the defaults",
    compare,
    need=Need(memory=4, shared=0.5, files=0.5),
    effort=Effort(md5=0.5, fill=0.5, copy=10, fixed_s=12),
    takes_file=False,
)
