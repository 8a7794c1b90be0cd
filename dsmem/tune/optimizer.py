"""`DatasetOptimizer`: look at the machine and at the files, measure a sample, recommend; and say why.

`auto_optimize_dataset` does it in one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dsmem.errors import UsageError
from dsmem.tune import estimating, looking, machine, planning, reporting, sampling, trials
from dsmem.tune.estimating import Estimate
from dsmem.tune.facts import Data, Speeds, System, Workload
from dsmem.tune.looking import GivenLayout, Looked
from dsmem.tune.planning import Recommendation
from dsmem.tune.settings import Settings, preset
from dsmem.tune.trials import Tried

Config = dict[str, dict[str, Any]]
SCHEMA = 1
Progress = Callable[[int, int], None]
_TRIED = 4


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that was found and what follows from it."""

    system: System
    data: Data
    speeds: Speeds
    workload: Workload
    recommendation: Recommendation
    preset: Estimate | None = None
    """What the preset that was asked for would cost."""
    measured: tuple[Tried, ...] = ()
    """What settings took that were tried: the recommended ones first, then the next best."""

    @property
    def settings(self) -> Settings:
        """Those of the preset, if one was asked for; the fastest of those that were tried; else those recommended."""
        if self.preset is not None:
            return self.preset.settings
        return trials.winner(self.measured).settings if self.measured else self.recommendation.chosen.settings

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `json.dumps` takes them."""
        config = self.settings.as_config()
        return {"schema": SCHEMA, **asdict(self), "config": config}


class DatasetOptimizer:
    """Recommends how to read a set of episodes on this machine.

    `camera_names`: None = all that the first file has. `gpus`: training processes of this machine; None = one for each
    GPU that is there, one without. `step_s`: how long a training step takes, if it is known. `changing`: the files are
    known to keep changing. `chunk_size`, `layout`, `mask`: those of `EpisodicDataset`.
    """

    def __init__(
        self,
        dataset_paths: Sequence[str | os.PathLike[str]],
        camera_names: Sequence[str] | None = None,
        batch_size: int = 8,
        *,
        gpus: int | None = None,
        step_s: float | None = None,
        chunk_size: int = 100,
        layout: GivenLayout = None,
        mask: str | None = None,
        changing: bool = False,
    ) -> None:
        if isinstance(dataset_paths, str | os.PathLike) or not dataset_paths:
            raise UsageError("dataset_paths is a list of at least one path")
        if isinstance(camera_names, str):
            raise UsageError("camera_names is a list of names")
        if batch_size < 1 or (gpus is not None and gpus < 0) or (step_s is not None and not 0 <= step_s < 1e6):
            raise UsageError(f"{batch_size=}, {gpus=}, {step_s=}: at least 1, 0 and 0")
        self.paths = [os.fspath(path) for path in dataset_paths]
        self._camera_names = camera_names
        self._batch_size = batch_size
        self._gpus = gpus
        self._step_s = step_s
        self._chunk_size = chunk_size
        self._layout = layout
        self._mask = mask
        self._changing = changing
        self._system: System | None = None
        self._looked: Looked | None = None
        self._analysis: Analysis | None = None

    def analyze_system(self) -> System:
        """CPUs, memory, shared memory and GPUs, as this process may use them."""
        if self._system is None:
            self._system = machine.look(gpus=self._gpus)
        return self._system

    def analyze_datasets(self) -> Data:
        """What the files hold and how it is stored. Raises BrokenEpisodes, UsageError."""
        return self._look().data

    def optimize(
        self, *, preset_name: str | None = None, measure: bool = False, progress: Progress | None = None
    ) -> Analysis:
        """Measure a sample, and recommend; with a preset its settings are taken, and what they cost is told.

        `measure`: try the recommended settings and the next best for real, in processes of their own, and take the
        fastest; it takes about a minute. What is pinned for that is removed. Raises BrokenEpisodes, UsageError,
        TrialFailed.
        """
        asked = None if preset_name is None else preset(preset_name)
        system, looked = self.analyze_system(), self._look()
        workload = Workload(self._batch_size, max(system.gpus, 1), self._step_s)
        measured = sampling.measure(
            looked, batch_size=self._batch_size, chunk_size=self._chunk_size, layout=self._layout, mask=self._mask
        )
        data = replace(looked.data, storages=measured.storages)
        recommendation = planning.recommend(system, data, measured.speeds, workload, chunk_size=self._chunk_size)
        estimate = None
        if asked is not None:
            estimate = estimating.estimate(system, data, measured.speeds, workload, asked)
        tried: tuple[Tried, ...] = ()
        if measure:
            best = [recommendation.chosen, *recommendation.alternatives][:_TRIED]
            settings = list(dict.fromkeys(one.settings for one in best))
            options: dict[str, Any] = {"chunk_size": self._chunk_size, "layout": self._layout, "mask": self._mask}
            tried = trials.compare(looked, settings, workload, progress=progress, **options)
        self._analysis = Analysis(system, data, measured.speeds, workload, recommendation, estimate, tried)
        return self._analysis

    def report(self) -> str:
        """All of it as text."""
        return "\n".join(reporting.lines(self._analysis if self._analysis is not None else self.optimize()))

    @property
    def config(self) -> Config:
        """The sections of dsmem.yaml, and `optimization`: keywords for `EpisodicDataset` beside use_shared_memory."""
        found = self._analysis if self._analysis is not None else self.optimize()
        return found.settings.as_config()

    def _look(self) -> Looked:
        if self._looked is None:
            cameras = self._camera_names
            if cameras is None:
                cameras = looking.cameras_of(self.paths[0], layout=self._layout)
            found = looking.look(self.paths, cameras, layout=self._layout, mask=self._mask)
            if self._changing:
                found = replace(found, data=replace(found.data, changing=tuple(self.paths)))
            self._looked = found
        return self._looked


def auto_optimize_dataset(
    dataset_paths: Sequence[str | os.PathLike[str]],
    camera_names: Sequence[str] | None = None,
    batch_size: int = 8,
    **options: Any,
) -> tuple[Config, dict[str, Any]]:
    """(config, analysis): what `DatasetOptimizer`, which takes the same arguments, recommends, and why.

    config: the sections of dsmem.yaml (`memory_mapping`, `shared_memory`, `dataloader`), and `optimization`: keywords
    for `EpisodicDataset` beside paths, cameras and use_shared_memory. analysis: system, data, speeds, recommendation
    with its reasons, as plain values. `preset`: take its settings instead. `measure`: try the best ones for real.

        config, analysis = auto_optimize_dataset(paths, cameras, batch_size=8)
        loader, dataset = create_optimized_dataloader(
            paths, cameras, 8, **config["dataloader"],
            dataset_kwargs={"use_shared_memory": config["shared_memory"]["enabled"], **config["optimization"]},
        )
    """
    preset_name, measure = options.pop("preset", None), bool(options.pop("measure", False))
    optimizer = DatasetOptimizer(dataset_paths, camera_names, batch_size, **options)
    analysis = optimizer.optimize(preset_name=preset_name, measure=measure)
    return analysis.settings.as_config(), analysis.as_dict()
