"""What `dsmem tune` recommends, and keeps after trying, beside a small grid of settings, on three kinds of files.

100 % of the limit is the best of the others. Two processes of the same setting differ, by where their memory lies: in
every round each setting has a new process, as a training script would be, and a sample is the median of its passes.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from dsmem.bench import episode_sets
from dsmem.bench.harness import Comparison, Contender
from dsmem.bench.results import Role
from dsmem.bench.sizes import Need
from dsmem.bench.workbench import Case, Effort, Workbench

if TYPE_CHECKING:
    from dsmem.training.episodes import EpisodeFile
    from dsmem.tune import Settings
    from dsmem.tune.trials import Trial

    Running = tuple[Trial, int]
    Entry = tuple[str, Role, Settings]

KINDS: tuple[episode_sets.Kind, ...] = ("gzip", "contiguous", "jpeg")
FILES = 10
BATCH = 8
WORKERS = (0, 1, 2, 4)
DEFAULT_WORKERS = 4
_SHARE = 4
"""Of the size of the run: workers that do not share hold all of it each."""
_PASSES = 9
"""Of each process, timed."""
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
            f"tune: {', '.join(kinds)} and {', '.join(map(str, workers))} workers only, nothing of --measure; all with "
            "--size and --runs"
        )
    for kind in kinds:
        directory = bench.new_file(f"episodes-{kind}")
        directory.mkdir()
        try:
            size_bytes = bench.size_bytes // _SHARE
            paths, _ = episode_sets.make(directory, size_bytes, files=FILES if size_bytes >= 32 << 20 else 2, kind=kind)
            with bench.place.store():
                optimizer = DatasetOptimizer(paths, episode_sets.CAMERAS, BATCH, gpus=0)
                analysis = optimizer.optimize(measure=not hurried)
                recommended = analysis.recommendation.chosen.settings
                defaults = Settings(num_workers=DEFAULT_WORKERS)
                ours, *others = _entries(recommended, None if hurried else analysis.settings, workers)
                again: list[Entry] = [] if hurried else [("the same, to see the noise", "dsmem", recommended)]
                tried = [ours, *again, (f"the defaults: {_said(defaults)}", "recipe", defaults), *others]
                title = f"a batch of {BATCH}, warm, {kind} episodes, each round in new processes"
                yield Comparison(title, 0, _contenders(paths, tried), rounds=bench.runs)
        finally:
            shutil.rmtree(directory)


def _entries(recommended: Settings, kept: Settings | None, workers: Sequence[int]) -> list[Entry]:
    """What is recommended, and all others of the grid, among them what `tune --measure` keeps, where that was asked.

    None is there twice: what is recommended is not measured again, so its limit is the best of the others.
    """
    from dsmem.tune import Settings

    name = "recommended" if kept != recommended else "recommended, and kept by --measure"
    entries: list[Entry] = [(f"{name}: {_said(recommended)}", "dsmem", recommended)]
    grid = {_said(recommended): recommended}
    for shared, count in product((True, False), workers):
        one = Settings(use_shared_memory=shared, num_workers=count, cache_bytes=_CACHE_BYTES)
        if grid.setdefault(_said(one), one) is one and (kept is None or _said(one) != _said(kept)):
            entries.append((_said(one), "limit", one))
    if kept not in (None, recommended):
        entries.insert(1, (f"kept by --measure: {_said(kept)}", "limit" if _said(kept) in grid else "dsmem", kept))
    return entries


def _said(settings: Settings) -> str:
    shared = "shared" if settings.use_shared_memory else "not shared"
    cache = ", one cache" if settings.cache_bytes and settings.cache_scope == "shared" else ""
    return f"{shared}, {settings.num_workers} workers{cache}"


def _contenders(paths: list[str], tried: Sequence[Entry]) -> list[Contender]:
    from dsmem.tune.looking import look

    files = look(paths, episode_sets.CAMERAS).files
    return [
        Contender(name, role, _passes, answer=_mark, around=partial(_process, files, settings), samples=_median)
        for name, role, settings in tried
    ]


@contextmanager
def _process(files: Sequence[EpisodeFile], settings: Settings) -> Iterator[Running]:
    """One that has gone through the data often enough, and what all samples of a pass come to."""
    from dsmem.tune import trials
    from dsmem.tune.facts import Workload

    with trials.Trial(files, episode_sets.CAMERAS, settings, Workload(BATCH)) as trial:
        trial.opened()
        trial.begin("check")
        mark = trial.end()["mark"]
        for _ in range(trials.warm_passes(settings) - 1):
            trial.begin()
            trial.end()
        yield trial, mark


def _passes(running: Running) -> tuple[float, int]:
    """Seconds for a batch, as the process itself has them."""
    trial, mark = running
    taken = []
    for _ in range(_PASSES):
        trial.begin()
        taken.append(float(trial.end()["batch_s"]))
    return statistics.median(taken), mark


def _median(done: tuple[float, int]) -> list[float]:
    return [done[0]]


def _mark(done: tuple[float, int]) -> int:
    return done[1]


CASE = Case(
    "tune",
    "what is recommended is among the fastest settings, and faster than the defaults",
    compare,
    need=Need(memory=4, shared=0.5, files=0.5),
    effort=Effort(md5=0.5, fill=0.5, copy=10, fixed_s=25),
    takes_file=False,
)
