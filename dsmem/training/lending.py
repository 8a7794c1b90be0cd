"""Memory of batches that workers use again, once the main process has let go of what lies in it.

New shared memory costs several times what is copied into it, in pages taken and zeroed. A worker lends a block with a
number never used before; the main process gives that number back when no tensor, array or view of the block is left.
Until then, and wherever something is lost on the way, the block is not used again: new memory is taken, as torch does.
What the main process sends on to another one by torch.multiprocessing is lost in that sense. A process that is forked
must not read the batches that it inherits.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef, shared_cache
from torch.utils.data import get_worker_info

_uses: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
"""How many tensors share a storage; None in a torch that does not say: then no memory is used again."""


@dataclass(frozen=True, slots=True)
class Loan:
    """A block that is out."""

    worker: int
    block: int
    number: int


class Batch(dict[str, Any]):
    """A batch whose frames may be in lent memory: `loans` has one for each of its images, None where one is not."""

    loans: tuple[Loan | None, ...] = ()


@dataclass(slots=True)
class _Owned:
    """A block of this worker."""

    flat: torch.Tensor
    at_rest: int | None
    """`uses` of it when there is no tensor but this one."""
    number: int = 0
    """Of the last loan."""


def shared_integers(*shape: int) -> torch.Tensor:
    """Zeros, int64, that workers share, forked or spawned; raises RuntimeError or OSError where there is no room."""
    made = shared_bytes(8 * int(np.prod(shape))).view(torch.int64).view(shape)
    made.numpy()[...] = 0
    return made


def shared_bytes(size_bytes: int) -> torch.Tensor:
    """New uint8 [size_bytes] in shared memory, as torch's own collate has it in a worker."""
    # Not Tensor.share_memory_: it copies with OpenMP, which hangs in a fork of a process that has used it.
    storage = torch.UntypedStorage._new_shared(size_bytes)  # type: ignore[no-untyped-call]  # torch's is not annotated
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def uses(flat: torch.Tensor) -> int | None:
    """A number that is larger while other tensors, arrays or storages share its memory; None where torch can't say."""
    if _uses is None:
        return None
    storage = flat.untyped_storage()  # the same object for all who ask, and no use by itself
    return _uses(storage._cdata) + sys.getrefcount(storage)


class Lender:
    """The blocks of all workers of a loader. Made in the main process, taken along by fork and pickling."""

    def __init__(self, workers: int, blocks: int) -> None:
        """`blocks`: how many each worker has at most; raises RuntimeError or OSError without shared memory."""
        self._lent = shared_integers(workers, blocks)
        self._returned = shared_integers(workers, blocks)
        self._pid = 0
        self._owned: list[_Owned] = []

    def take(self, size_bytes: int) -> tuple[int, torch.Tensor] | None:
        """In a worker: a block that is free, made if need be, and its number; None where there is none.

        uint8 [size_bytes or more]; it is free again once the tensor is gone, unless it is lent.
        """
        info = get_worker_info()
        if info is None or info.id >= len(self._lent) or _uses is None:
            return None
        if self._pid != os.getpid():  # what a fork inherited is the parent's
            self._owned, self._pid = [], os.getpid()
        returned = self._returned.numpy()[info.id]
        for block, one in enumerate(self._owned):
            if one.number not in (0, returned[block]) or len(one.flat) < size_bytes:
                continue
            if uses(one.flat) == one.at_rest:
                return block, one.flat
        if len(self._owned) == len(returned):
            return None
        flat = shared_bytes(size_bytes)
        self._owned.append(_Owned(flat, uses(flat)))
        return len(self._owned) - 1, flat

    def lend(self, block: int) -> Loan:
        """In a worker: a block goes to the main process with the next batch."""
        info = get_worker_info()
        assert info is not None
        one = self._owned[block]
        one.number = secrets.randbits(62) + 1
        self._lent.numpy()[info.id, block] = one.number
        return Loan(info.id, block, one.number)

    def give_back(self, loan: Loan) -> None:
        """In the main process: nothing of that block is used any more."""
        self._returned.numpy()[loan.worker, loan.block] = loan.number

    def out(self) -> set[Loan]:
        """All that is lent and was not given back, in the main process or on the way to it."""
        lent, returned = self._lent.numpy().copy(), self._returned.numpy()
        places = np.argwhere(lent != returned).tolist()
        return {Loan(worker, block, int(lent[worker, block])) for worker, block in places}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": 0, "_owned": []}


class Borrower:
    """What the main process has of a lender: it gives back what is no longer used."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._held: list[tuple[Loan, StorageWeakRef, object]] = []
        """Each with the key of its entry in torch's cache of storages that came: sending it on replaces the entry."""
        self._gone: set[Loan] = set()
        """What is never given back: another process may use it."""

    def received(self, batch: Any) -> None:
        """A batch has come."""
        loans = batch.loans if isinstance(batch, Batch) else ()
        for loan, image in zip(loans, batch["images"].values() if loans else (), strict=True):
            if loan is None:
                continue
            if image.is_pinned():  # a copy, made by the loader's thread
                self._lender.give_back(loan)
            else:
                mine = StorageWeakRef(image.untyped_storage())  # type: ignore[no-untyped-call]  # torch's is not
                came = [(key, one) for key, one in list(shared_cache.items()) if one.cdata == mine.cdata]
                if came:
                    key, reference = came[0]
                    self._held.append((loan, reference, key))
                else:
                    self._gone.add(loan)

    def give_back(self) -> None:
        """What the caller has let go of since."""
        kept = []
        for loan, reference, key in self._held:
            if not reference.expired():  # type: ignore[no-untyped-call]  # torch's is not annotated
                kept.append((loan, reference, key))
            elif shared_cache.get(key) is reference:  # type: ignore[no-untyped-call]
                self._lender.give_back(loan)
            else:
                self._gone.add(loan)
        self._held = kept

    def out(self) -> set[Loan]:
        """What is lent and has not come yet."""
        return self._lender.out() - {loan for loan, _, _ in self._held} - self._gone

    def lost(self, loans: set[Loan]) -> None:
        """Batches with these were dropped by the loader: an epoch was broken off."""
        for loan in loans:
            self._lender.give_back(loan)


class Borrowing:
    """The iterator of a loader, its batches noted."""

    def __init__(self, inner: Any, borrower: Borrower) -> None:
        self._inner = inner
        self._borrower = borrower

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._borrower.give_back()
        batch = next(self._inner)
        self._borrower.received(batch)
        return batch

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
