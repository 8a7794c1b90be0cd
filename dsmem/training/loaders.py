"""A DataLoader over episodes, with the settings that suit them, for one process or for the ranks of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from dsmem.errors import UsageError
from dsmem.training.batches import collate
from dsmem.training.dataset import EpisodicDataset


class EpisodicLoader(DataLoader[Any]):
    """torch's DataLoader with `set_epoch`: call it before each epoch of a distributed run."""

    def set_epoch(self, epoch: int) -> None:
        """Shuffle this epoch unlike the others, in all ranks alike; without a distributed sampler it does nothing."""
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(epoch)


def create_optimized_dataloader(
    dataset_paths: Sequence[str | os.PathLike[str]],
    camera_names: Sequence[str],
    batch_size: int,
    num_workers: int = 4,
    use_distributed: bool = False,
    *,
    dataset_class: Callable[..., Any] = EpisodicDataset,
    dataset_kwargs: Mapping[str, Any] | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    pin_memory: bool = True,
    persistent_workers: bool = True,
    prefetch_factor: int = 2,
    **loader_kwargs: Any,
) -> tuple[EpisodicLoader, Any]:
    """(loader, dataset): `dataset_class(dataset_paths, camera_names, **dataset_kwargs)` in a DataLoader.

    `use_distributed`: each rank gets its part, by a DistributedSampler: the ranks of torch.distributed, else those that
    torchrun sets (RANK, WORLD_SIZE), else `rank` and `world_size`. `pin_memory` holds only where CUDA is;
    `persistent_workers` and `prefetch_factor` only with workers. Further arguments are DataLoader's.
    Raises UsageError, and what the dataset raises.
    """
    if num_workers < 0 or batch_size < 1:
        raise UsageError(f"{batch_size=}, {num_workers=}: at least 1 and 0")
    place = _place(rank, world_size) if use_distributed else None  # before the work of making the dataset
    dataset = dataset_class(dataset_paths, camera_names, **(dataset_kwargs or {}))
    options: dict[str, Any] = {
        "drop_last": drop_last,
        "num_workers": num_workers,
        "collate_fn": collate,
        **loader_kwargs,
    }
    if place is not None:
        options["sampler"] = DistributedSampler(
            dataset, num_replicas=place[1], rank=place[0], shuffle=shuffle, seed=seed, drop_last=drop_last
        )
    else:
        options["shuffle"] = shuffle
        options.setdefault("generator", torch.Generator().manual_seed(seed))
    if num_workers:
        options.update(persistent_workers=persistent_workers, prefetch_factor=prefetch_factor)
    options["pin_memory"] = pin_memory and torch.cuda.is_available()
    return EpisodicLoader(dataset, batch_size, **options), dataset


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, number of ranks)."""
    if rank is None and world_size is None:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        try:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except (KeyError, ValueError) as exc:
            raise UsageError(
                "use_distributed=True, and neither torch.distributed nor torchrun (RANK, WORLD_SIZE) says which rank "
                "this is; start it with torchrun, or give rank= and world_size="
            ) from exc
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise UsageError(f"{rank=} of {world_size=} can't be")
    return rank, world_size
