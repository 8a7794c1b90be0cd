"""A DataLoader over episodes, with the settings that suit them, for one process or for the ranks of several."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, get_worker_info

from dsmem.errors import UsageError
from dsmem.training.batches import collate
from dsmem.training.dataset import EpisodicDataset
from dsmem.training.lending import Borrower, Borrowing, Lender

_HELD = 4
"""Batches of a worker beside those it has prefetched: one that it fills, those that the caller holds."""
_log = logging.getLogger(__name__)


class EpisodicLoader(DataLoader[Any]):
    """torch's DataLoader with `set_epoch`: call it before each epoch of a distributed run.

    With `collate` and workers their batches come in memory that is used again once nothing of a batch is left.
    """

    _borrower: Borrower | None = None

    def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset, *args, **kwargs)
        if self.num_workers and self.collate_fn is collate and isinstance(dataset, EpisodicDataset):
            batches = (self.prefetch_factor or 2) + _HELD
            try:
                lender = Lender(self.num_workers, batches * len(dataset.camera_names))
            except (RuntimeError, OSError) as exc:  # no shared memory, or no descriptors, left
                _log.warning("each batch gets new memory: %s", exc)
                return
            # In its workers alone: with another loader's collate, nobody would say what is in use.
            self.worker_init_fn = partial(_with_lender, lender, _without_lender(self.worker_init_fn))
            self._borrower = Borrower(lender)

    def __iter__(self) -> Any:
        """As torch's; with persistent workers it drops what is left of an epoch that was broken off."""
        borrower = self._borrower
        if borrower is None:
            return super().__iter__()
        borrower.give_back()
        # Without persistent workers others may be at it that have not read what came for them.
        before = borrower.out() if self.persistent_workers else set()
        inner = super().__iter__()
        borrower.lost(before)
        return Borrowing(inner, borrower)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle this epoch unlike the others, in all ranks alike; without a distributed sampler it does nothing."""
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(epoch)


def _with_lender(lender: Lender, then: Callable[[int], None] | None, worker: int) -> None:
    info = get_worker_info()
    assert info is not None and isinstance(info.dataset, EpisodicDataset)
    info.dataset.lender = lender
    if then is not None:
        then(worker)


def _without_lender(given: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """What the user gave: a loader that is made again is given what the one before it had, with that one's lender."""
    while isinstance(given, partial) and given.func is _with_lender:
        given = given.args[1]
    return given


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
