"""Memory of batches made without workers: used again, and never while anything of a batch is left."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import CAMERAS, GZIP, write_aloha

from dsmem.training import EpisodicDataset, create_optimized_dataloader
from dsmem.training.pool import Pool

STEPS = 12


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_aloha(tmp_path / f"e{number}.h5", steps=STEPS, seed=number, **GZIP) for number in range(2)]


def expected(dataset: EpisodicDataset) -> dict[tuple[int, int], torch.Tensor]:
    return {(one["episode"], one["step"]): one["images"]["top"] for one in (dataset[i] for i in range(len(dataset)))}


def listed(memory: Any) -> Any:
    return memory.tolist()


def check(batch: Any, image: torch.Tensor, right: dict[tuple[int, int], torch.Tensor]) -> None:
    for row, place in enumerate(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)):
        assert torch.equal(image[row], right[place])


def test_memory_is_used_again(paths: list[Path]) -> None:
    loader, dataset = create_optimized_dataloader(paths, CAMERAS, 4, 0, dataset_kwargs={"use_shared_memory": False})
    right = expected(dataset)
    seen = set()
    for _ in range(4):
        for batch in loader:
            seen.add(batch["images"]["top"].data_ptr())
            check(batch, batch["images"]["top"], right)
    assert len(seen) <= 3 and all(place % 4096 == 0 for place in seen)
    del batch
    dataset.clear_cache()
    assert dataset._pool._flats == []


@pytest.mark.parametrize(
    "keep",
    [
        lambda image: image,
        lambda image: image[1:],
        lambda image: image.numpy(),
        lambda image: image.untyped_storage(),
        lambda image: np.from_dlpack(image)[:, 2],
        lambda image: memoryview(image.numpy())[1:],
    ],
    ids=["tensor", "view", "array", "storage", "dlpack", "memoryview"],
)
def test_what_is_kept_stays_as_it_is(paths: list[Path], keep: Callable[[torch.Tensor], Any]) -> None:
    """More than there are blocks: then each batch has new memory."""
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 2, 0, dataset_kwargs={"use_shared_memory": False})
    kept = [(keep(image), listed(keep(image))) for batch in loader for image in batch["images"].values()]
    assert len(kept) > 4 * len(CAMERAS)
    for _ in range(3):
        for _ in loader:
            continue
    assert all(listed(one) == before for one, before in kept)


def test_what_another_process_may_read_is_not_used_again() -> None:
    pool = Pool(1)
    block = pool.take(100)
    assert block is not None
    first = block.fill_(7).share_memory_()  # type: ignore[no-untyped-call]  # as torch.multiprocessing does with what it sends
    place = first.data_ptr()
    del block, first
    again = pool.take(100)
    assert again is not None and again.data_ptr() != place and not again.is_shared()  # type: ignore[no-untyped-call]


def test_blocks_that_are_too_small_make_room() -> None:
    pool = Pool(2)
    held = pool.take(10)
    pool.take(20)
    large = pool.take(5000)
    assert large is not None and len(large) == 5000 and len(pool._flats) == 2
    assert pool.take(1) is None and held is not None
    assert pickle.loads(pickle.dumps(pool))._most == 2


def test_threads(paths: list[Path]) -> None:
    dataset = EpisodicDataset(paths, CAMERAS, use_shared_memory=False)
    right = expected(dataset)
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        try:
            for wanted in np.random.default_rng(seed).integers(0, len(dataset), (60, 3)).tolist():
                samples = dataset.__getitems__(wanted)
                for one in samples:
                    assert torch.equal(one["images"]["top"], right[one["episode"], one["step"]])
        except BaseException as exc:
            failures.append(exc)
            raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_samples_as_they_are_come_from_a_worker(paths: list[Path]) -> None:
    """A collate of one's own that hands on what it gets: the samples are pickled."""
    loader, dataset = create_optimized_dataloader(paths, CAMERAS, 4, 1, collate_fn=_as_it_is)
    right = expected(dataset)
    for samples in loader:
        for one in samples:
            assert torch.equal(one["images"]["top"], right[one["episode"], one["step"]])


def _as_it_is(samples: Any) -> Any:
    return samples
