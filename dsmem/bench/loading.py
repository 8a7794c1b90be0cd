"""DataLoaders whose workers persist, over any dataset of episodes: passes that are timed, and forgetting in between.

Importing this imports torch: only the case that measures training does.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from dsmem.training import EpisodicDataset, EpisodicLoader
from dsmem.training.batches import Samples, collate

_FORGET = -1
"""An index that is no sample."""


class Episodes(EpisodicDataset):
    """A dataset whose cache is cleared, in the process that is asked, by a batch of _FORGET."""

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        if indices[0] != _FORGET:
            return super().__getitems__(indices)
        found = super().__getitems__([0])  # a worker has to answer with something
        self.clear_cache()
        return found


class _Started(Dataset[Any]):
    """Any other dataset: it has nothing to forget."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[0 if index == _FORGET else index]


class _Batches:
    """A shuffled order, the same each time, so that batch n goes to the same worker; or one batch that forgets each."""

    def __init__(self, count: int, batch: int, workers: int) -> None:
        self.forgetting = False
        self._forget = [[_FORGET]] * max(workers, 1)
        order: list[int] = np.random.default_rng(0).permutation(count).tolist()
        self._batches = [order[first : first + batch] for first in range(0, count, batch)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._forget if self.forgetting else self._batches)


class Loader:
    """A DataLoader over a dataset; its workers start with the first use."""

    def __init__(self, dataset: Any, *, batch: int, workers: int) -> None:
        options: dict[str, Any] = {}
        if workers:
            # Not forked: a process of many threads that forks may leave its children a lock that nobody frees.
            options = {"persistent_workers": True, "multiprocessing_context": "spawn"}
        self._batches = _Batches(len(dataset), batch, workers)
        options.update(batch_sampler=self._batches, num_workers=workers)
        self._loader: DataLoader[Any] = (
            EpisodicLoader(dataset, collate_fn=collate, **options)  # as create_optimized_dataloader has it
            if isinstance(dataset, Episodes)
            else DataLoader(_Started(dataset), **options)
        )

    def __len__(self) -> int:
        return len(self._batches)

    def read(self) -> list[Any]:
        """All batches, as a training loop takes them; of each, what tells it from others."""
        return [
            (
                batch["episode"].tolist(),
                batch["step"].tolist(),
                batch["action"].sum().item(),
                batch["state"].sum().item(),
                [image[:, ::16, ::16].clone() for image in batch["images"].values()],
            )
            for batch in self._loader
        ]

    def forget(self) -> None:
        """Clear the caches of all workers, which run afterwards."""
        self._batches.forgetting = True
        try:
            for _ in self._loader:
                continue
        finally:
            self._batches.forgetting = False


def answer(seen: list[Any]) -> tuple[object, ...]:
    """What a pass came to, for comparison."""
    frames = 0
    for *_, images in seen:
        for image in images:
            frames = zlib.crc32(image.numpy(), frames)
    return (frames, *((tuple(numbers), tuple(steps), action, state) for numbers, steps, action, state, _ in seen))


def drop_pages(paths: Sequence[str]) -> None:
    """Let the page cache forget files; what is mapped, and what lies in a tmpfs, stays."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # pages that are not written yet are not dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
