"""`TokenDataset`: windows of a token file for a torch DataLoader, and the sampler that shuffles them in no memory."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from dsmem.errors import UsageError
from dsmem.tokens.arguments import need_whole
from dsmem.tokens.layout import TokenDtype
from dsmem.tokens.opening import TokenFile, open_all
from dsmem.tokens.permutation import Permutation
from dsmem.tokens.windows import Windows

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Sample: TypeAlias = tuple[torch.Tensor, torch.Tensor]
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.uint16: np.dtype(np.uint16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}
_INDICES_AT_ONCE = 16384


def numpy_dtype(dtype: torch.dtype, files: Sequence[TokenFile]) -> np.dtype[Any]:
    """The numpy dtype of what is given out; raises UsageError for one that the ids do not fit."""
    if dtype not in _NUMPY:
        raise UsageError(f"dtype={dtype}: token ids are given out as {', '.join(map(str, _NUMPY))}")
    if dtype is torch.uint16:
        for file in files:
            if file.dtype != "uint16":
                raise UsageError(f"dtype={dtype}: {file.path} holds {file.dtype}")
    return _NUMPY[dtype]


class TokenDataset(Dataset[Sample]):
    """Map-style `(x, y)` windows of one token file or several: y is x, one token ahead.

    x and y are [seq_len] of `dtype` (torch.int64, int32 or uint16), views of one block of seq_len + 1 that is yours.
    `len` = tokens - seq_len with stride 1; stride=seq_len is an epoch without overlap. No window runs from one file
    into the next; with `within_documents` none crosses the end of a document either. uint32 ids from 2**31 on do not
    fit int32, which is not looked at. Pickles as its paths. Raises SourceMissing, BadSource, UsageError.
    """

    def __init__(
        self,
        path: Paths,
        seq_len: int,
        *,
        stride: int = 1,
        token_dtype: TokenDtype | None = None,
        dtype: torch.dtype = torch.int64,
        within_documents: bool = False,
    ) -> None:
        need_whole(seq_len=seq_len, stride=stride)
        files = open_all(path, token_dtype=token_dtype)
        self.windows = Windows(files, seq_len, stride, within_documents=within_documents)
        self.dtype = dtype
        self._numpy = numpy_dtype(dtype, files)

    @property
    def seq_len(self) -> int:
        """Tokens of x, and of y."""
        return self.windows.seq_len

    def __len__(self) -> int:
        return self.windows.count

    def __getitem__(self, index: int) -> Sample:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"window {place} of {len(self)}")
        block = torch.from_numpy(self.windows.read_one(place % len(self), self._numpy))
        return block[:-1], block[1:]

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """A whole batch in one gather; a DataLoader asks for it by itself."""
        places = np.asarray(indices, np.int64)
        if len(places) and not (-len(self) <= places.min() and places.max() < len(self)):
            raise IndexError(f"windows {places.min()} to {places.max()} of {len(self)}")
        block = np.empty((len(places), self.seq_len + 1), self._numpy)
        self.windows.read(places % len(self), block)
        return Rows(torch.from_numpy(block))

    @staticmethod
    def collate(rows: Sequence[Sample]) -> Sample:
        """For `DataLoader(collate_fn=…)`: the batch as it was gathered, which the default copies row by row."""
        if not isinstance(rows, Rows):  # something between the two took the samples one by one
            x, y = default_collate(list(rows))
            return x, y
        return rows.block[:, :-1], rows.block[:, 1:]

    def sampler(
        self, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1, *, consumed: int = 0
    ) -> WindowSampler:
        """For `DataLoader(sampler=…)`: shuffled without an array of indices, which `shuffle=True` makes."""
        return WindowSampler(len(self), seed, epoch, rank, world_size, consumed=consumed)


class LargeTokenDataset(TokenDataset):
    """`TokenDataset` under the names that older code knows."""

    def __init__(
        self,
        data_path: Paths,
        sequence_length: int,
        *,
        stride: int = 1,
        token_dtype: TokenDtype | None = None,
        dtype: torch.dtype = torch.int64,
        within_documents: bool = False,
    ) -> None:
        super().__init__(
            data_path,
            sequence_length,
            stride=stride,
            token_dtype=token_dtype,
            dtype=dtype,
            within_documents=within_documents,
        )


class Rows(Sequence[Sample]):
    """The samples of a batch, as views of the block that holds all of them: [rows, seq_len + 1]."""

    def __init__(self, block: torch.Tensor) -> None:
        self.block = block

    def __len__(self) -> int:
        return len(self.block)

    def __iter__(self) -> Iterator[Sample]:
        return zip(self.block[:, :-1].unbind(), self.block[:, 1:].unbind(), strict=True)

    def __getitem__(self, row: int) -> Sample:  # type: ignore[override] # no slices: nobody takes a part of a batch
        return self.block[row, :-1], self.block[row, 1:]


class WindowSampler(Sampler[int]):
    """The indices of one rank in one epoch, in constant memory; the same number for every rank.

    All ranks share one order, and rank r takes every world_size-th place of it from `consumed` + r on: `consumed`
    counts what all ranks took, so a run goes on where it stopped with any other number of ranks or batch size. Up to
    world_size - 1 windows at the end of an epoch are left out.
    """

    def __init__(
        self, windows: int, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1, *, consumed: int = 0
    ) -> None:
        check_rank(rank, world_size)
        if not 0 <= consumed <= windows:
            raise UsageError(f"consumed={consumed} of {windows} windows")
        self._windows, self._seed, self._epoch = windows, seed, epoch
        self._rank, self._world_size = rank, world_size
        self._consumed = consumed

    def set_epoch(self, epoch: int) -> None:
        """Another order, from its start."""
        self._epoch, self._consumed = epoch, 0

    def __len__(self) -> int:
        return (self._windows - self._consumed) // self._world_size

    def __iter__(self) -> Iterator[int]:
        permutation = Permutation(self._windows, self._seed, self._epoch)
        first, count = self._consumed + self._rank, len(self)
        for start in range(0, count, _INDICES_AT_ONCE):
            places = np.arange(start, min(start + _INDICES_AT_ONCE, count), dtype=np.int64)
            yield from permutation(first + places * self._world_size).tolist()


def check_rank(rank: int, world_size: int) -> None:
    """Raises UsageError for a rank that is none."""
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} of world_size={world_size}: ranks count from 0")
