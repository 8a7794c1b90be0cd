"""Memory of batches that is used again: never while anything of a batch is left, whatever becomes of the batch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from episodes import CAMERAS, GZIP, write_aloha

from dsmem.training import EpisodicDataset, EpisodicLoader, create_optimized_dataloader
from dsmem.training.batches import Samples, collate
from dsmem.training.lending import Batch, Borrower, Lender, Loan

STEPS = 24


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_aloha(tmp_path / f"e{number}.h5", steps=STEPS, seed=number, **GZIP) for number in range(2)]


def expected(paths: list[Path]) -> dict[tuple[int, int], torch.Tensor]:
    dataset = EpisodicDataset(paths, CAMERAS)
    return {(one["episode"], one["step"]): one["images"]["top"] for one in (dataset[i] for i in range(len(dataset)))}


def check(batch: Any, right: dict[tuple[int, int], torch.Tensor]) -> None:
    for row, place in enumerate(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True)):
        assert torch.equal(batch["images"]["top"][row], right[place])


def lender_of(loader: EpisodicLoader) -> Lender:
    assert loader._borrower is not None
    return loader._borrower._lender


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_blocks_are_used_again(paths: list[Path], context: str) -> None:
    right = expected(paths)
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 3, 1, multiprocessing_context=context)
    blocks: set[tuple[int, int]] = set()
    loans: set[Loan] = set()
    for _ in range(3):
        for batch in loader:
            assert isinstance(batch, Batch) and len(batch.loans) == len(CAMERAS)
            loans |= {one for one in batch.loans if one is not None}
            blocks |= {(one.worker, one.block) for one in batch.loans if one is not None}
            check(batch, right)
    assert len(loans) == 3 * len(loader) * len(CAMERAS)
    assert len(blocks) <= 6 * len(CAMERAS)


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch,
        lambda batch: {
            "images": {"top": batch["images"]["top"][1:][:-1]},
            **{k: batch[k][1:-1] for k in ("episode", "step")},
        },
        lambda batch: {**batch, "images": {"top": batch["images"]["top"].numpy()}},
    ],
    ids=["batches", "views", "arrays"],
)
def test_what_is_kept_stays_as_it_is(paths: list[Path], keep: Callable[[Any], Any]) -> None:
    """More than there are blocks: then each batch has new memory."""
    right = expected(paths)
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 3, 1)
    kept = [keep(batch) for _ in range(2) for batch in loader]
    assert len(kept) == 2 * len(loader) > lender_of(loader)._lent.shape[1] // len(CAMERAS)
    for batch in kept:
        images = batch["images"]["top"]
        check({**batch, "images": {"top": torch.as_tensor(images)}}, right)
    del batch, images
    kept.clear()
    again = [batch.loans for _ in range(2) for batch in loader]
    assert None not in again[-1]  # they are back


def test_an_epoch_that_is_broken_off(paths: list[Path]) -> None:
    """What was on its way is dropped by the loader, and comes back as well."""
    right = expected(paths)
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 2, 2)
    held = next(iter(loader))
    kept = copy.copy(held)
    for _ in range(20):
        for number, batch in enumerate(loader):
            check(batch, right)
            if number == 1:
                break
    check(kept, right)
    for _ in range(2):  # what was lent while an epoch began is found when the next one does
        lent = [batch.loans for batch in loader]
        assert lent[-1] and None not in lent[-1]
    del held, kept
    del batch  # the last one of a loop above
    assert loader._borrower is not None
    loader._borrower.give_back()
    assert lender_of(loader).out() == set()


def test_without_persistent_workers(paths: list[Path]) -> None:
    right = expected(paths)
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 4, 1, persistent_workers=False)
    for one, two in zip(loader, loader, strict=True):  # two sets of workers at once
        check(one, right)
        check(two, right)
        assert {len(one.loans), len(two.loans)} == {len(CAMERAS)}


def test_hooks_may_do_as_they_like(paths: list[Path]) -> None:
    """A worker that keeps a frame, and one that changes it, get what they made."""
    right = expected(paths)

    class Keeps(EpisodicDataset):
        def __getitems__(self, indices: Any) -> Any:
            samples = super().__getitems__(indices)
            kept = self.__dict__.setdefault("kept", [])
            for sample in samples:
                place = (sample["episode"], sample["step"])
                kept.append((place, sample["images"]["top"], sample["images"]["top"].clone()))
                for _, frame, copied in kept:
                    assert torch.equal(frame, copied)
            return samples

    loader, _ = create_optimized_dataloader(paths, CAMERAS, 4, 1, dataset_class=Keeps)
    for _ in range(2):
        for batch in loader:
            check(batch, right)

    class Dims(EpisodicDataset):
        def __getitems__(self, indices: Any) -> Any:
            samples = super().__getitems__(indices)
            samples[0]["images"] = {camera: image // 2 for camera, image in samples[0]["images"].items()}
            return samples

    loader, _ = create_optimized_dataloader(paths, CAMERAS, 4, 1, dataset_class=Dims)
    for batch in loader:
        assert not isinstance(batch, Batch)
        place = (batch["episode"][0].item(), batch["step"][0].item())
        assert torch.equal(batch["images"]["top"][0], right[place] // 2)


def test_another_collate_is_lent_nothing(paths: list[Path]) -> None:
    dataset = EpisodicDataset(paths, CAMERAS)
    right = expected(paths)
    assert EpisodicLoader(dataset, 4, num_workers=1, collate_fn=collate)._borrower is not None
    loader = EpisodicLoader(dataset, 4, num_workers=1, collate_fn=list)
    assert loader._borrower is None
    kept: list[Any] = [sample for samples in loader for sample in samples]
    for sample in kept:
        assert torch.equal(sample["images"]["top"], right[sample["episode"], sample["step"]])


def test_the_users_own_initialisation_of_workers(paths: list[Path]) -> None:
    def begin(worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        info.dataset.camera_names = ("top",)  # type: ignore[attr-defined]  # seen in what comes
        torch.manual_seed(worker)

    loader, dataset = create_optimized_dataloader(paths, CAMERAS, 4, 1, worker_init_fn=begin)
    assert next(iter(loader)).loans
    assert dataset.lender is None


def test_a_loader_made_again_runs_what_the_user_gave_once(paths: list[Path]) -> None:
    """As frameworks make a loader anew, with the arguments that it has as attributes."""
    ran: list[int] = []
    first, dataset = create_optimized_dataloader(paths, CAMERAS, 4, 1, worker_init_fn=ran.append)
    second = EpisodicLoader(dataset, 4, num_workers=1, collate_fn=collate, worker_init_fn=first.worker_init_fn)
    again = EpisodicLoader(dataset, 4, num_workers=1, collate_fn=collate, worker_init_fn=second.worker_init_fn)
    assert isinstance(again.worker_init_fn, partial)
    assert again.worker_init_fn.args == (lender_of(again), ran.append)
    assert next(iter(again)).loans


def test_what_is_sent_to_another_process_is_not_used_again(paths: list[Path]) -> None:
    right = expected(paths)
    loader, _ = create_optimized_dataloader(paths, CAMERAS, 3, 1)
    batch = next(iter(loader))
    sent = Batch({**batch, "images": {"top": batch["images"]["top"]}})
    letter = ForkingPickler.dumps(sent["images"]["top"])
    gone = {(one.worker, one.block) for one in batch.loans[:1] if one is not None}
    assert gone
    del batch, sent["images"]
    for _ in range(3):
        for batch in loader:
            check(batch, right)
            assert not gone & {(one.worker, one.block) for one in batch.loans if one is not None}
    received = pickle.loads(bytes(letter))
    assert torch.equal(received, torch.stack([right[place] for place in _places(sent)]))


def _places(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch["episode"].tolist(), batch["step"].tolist(), strict=True))


def test_pinned_copies_give_back_at_once() -> None:
    lender = Lender(1, 2)
    borrower = Borrower(lender)

    class Pinned:
        def is_pinned(self) -> bool:
            return True

    batch = Batch({"images": {"top": Pinned()}})
    lender._lent.numpy()[0, 1] = 5
    batch.loans = (Loan(0, 1, 5),)
    assert lender.out() == {Loan(0, 1, 5)}
    assert copy.copy(batch).loans == pickle.loads(pickle.dumps(batch.loans)) == batch.loans  # as torch does it
    borrower.received(batch)
    assert lender.out() == set()


def test_outside_of_workers_nothing_is_lent(paths: list[Path]) -> None:
    dataset = EpisodicDataset(paths, CAMERAS)
    dataset.lender = Lender(1, 4)
    batch = collate(dataset.__getitems__([0, 1]))
    assert set(batch.loans) == {None} and dataset.lender.take(10) is None
    assert collate(Samples([{"a": 1}])) == {"a": torch.tensor([1])}
