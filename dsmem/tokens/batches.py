"""What a loader hands out, and how it is read into memory: plain windows, marked ones, packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from dsmem.errors import UsageError
from dsmem.tokens.boundaries import Segments, cuts_in, ends_of
from dsmem.tokens.opening import TokenFile
from dsmem.tokens.packing import Row
from dsmem.tokens.permutation import Indices
from dsmem.tokens.windows import Windows

Work = TypeVar("Work", contravariant=True)
IGNORED = -100
"""What torch's cross_entropy leaves out by default."""


class Batch(tuple[torch.Tensor, torch.Tensor]):
    """`x, y = batch`: both [rows, seq_len], y one token ahead. And, where they were asked for, the segments."""

    tokens: torch.Tensor | None
    """[rows, seq_len + 1], contiguous: x and y are views of it; None for packed documents."""
    cu_seqlens: torch.Tensor | None
    """int32: where the segments of the rows, taken as one sequence, begin, and the end of the last."""
    position_ids: torch.Tensor | None
    """[rows, seq_len], int64: the place of each token in its segment."""
    max_seqlen: int | None
    """Tokens of the longest segment."""

    @classmethod
    def of_block(cls, tokens: torch.Tensor, segments: Segments | None = None) -> Batch:
        """Of a block of windows."""
        return cls._of(tokens[:, :-1], tokens[:, 1:], tokens, segments)

    @classmethod
    def of_pair(cls, x: torch.Tensor, y: torch.Tensor, segments: Segments) -> Batch:
        """Of inputs and targets that are in memory of their own."""
        return cls._of(x, y, None, segments)

    @classmethod
    def _of(cls, x: torch.Tensor, y: torch.Tensor, tokens: torch.Tensor | None, segments: Segments | None) -> Batch:
        batch = cls((x, y))
        batch.tokens = tokens
        batch.cu_seqlens = None if segments is None else torch.from_numpy(segments.cu_seqlens)
        batch.position_ids = None if segments is None else torch.from_numpy(segments.position_ids)
        batch.max_seqlen = None if segments is None else segments.max_seqlen
        return batch

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, *, non_blocking: bool = False) -> Batch:
        """On that device, widened there: uint16 crosses the bus as 2 bytes a token, and a block in one copy."""

        def moved(one: torch.Tensor) -> torch.Tensor:
            there = one.to(device, non_blocking=non_blocking)
            return there if dtype is None else there.to(dtype)

        block = None if self.tokens is None else moved(self.tokens)
        x, y = (moved(self[0]), moved(self[1])) if block is None else (block[:, :-1], block[:, 1:])
        batch = type(self)((x, y))
        batch.tokens, batch.max_seqlen = block, self.max_seqlen
        for name in ("cu_seqlens", "position_ids"):
            one = getattr(self, name)
            setattr(batch, name, None if one is None else one.to(device, non_blocking=non_blocking))
        return batch


class Reader(Protocol[Work]):
    """Reads the work of a step."""

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the memory for so many rows."""
        ...

    def read(self, work: Work, memory: torch.Tensor) -> Batch:
        """Read into the first rows of the memory."""
        ...


class WindowReader:
    """Windows, and with `mark` the documents that they run over."""

    def __init__(self, windows: Windows, *, mark: bool) -> None:
        self._windows = windows
        self._ends = [ends_of(file) for file in windows.files] if mark else None

    def shape(self, rows: int) -> tuple[int, ...]:
        """[rows, seq_len + 1]."""
        return rows, self._windows.seq_len + 1

    def read(self, work: Indices, memory: torch.Tensor) -> Batch:
        """See Reader; the work is the numbers of windows."""
        block = memory[: len(work)]
        self._windows.read(work, block.numpy())
        return Batch.of_block(block, None if self._ends is None else self._segments(work, self._ends))

    def _segments(self, work: Indices, ends: Sequence[Any]) -> Segments:
        seq_len, rows = self._windows.seq_len, np.arange(len(work))
        cuts = [cuts_in(ends[number], starts, rows[own], seq_len) for number, own, starts in self._windows.locate(work)]
        return Segments.of(np.concatenate(cuts), len(work), seq_len)


class PackReader:
    """Packed documents. Targets are the next token of the same document, IGNORED where there is none."""

    def __init__(self, files: Sequence[TokenFile], seq_len: int, *, pad_id: int) -> None:
        self._maps = [file.map() for file in files]
        if not 0 <= pad_id < 1 << 31:
            raise UsageError(f"pad_id={pad_id} is no token")
        self._seq_len, self._pad_id = seq_len, pad_id

    def shape(self, rows: int) -> tuple[int, ...]:
        """[2, rows, seq_len]: inputs, targets."""
        return 2, rows, self._seq_len

    def read(self, work: Sequence[Row], memory: torch.Tensor) -> Batch:
        """See Reader; padding is a segment of its own."""
        x, y = memory[0, : len(work)], memory[1, : len(work)]
        inputs, targets = x.numpy(), y.numpy()
        cuts: list[int] = []
        for number, row in enumerate(work):
            at = 0
            for piece in row:
                end = at + piece.length
                ids = self._maps[piece.file][piece.start : piece.start + piece.length + piece.continues]
                inputs[number, at:end] = ids[: piece.length]
                targets[number, at : at + len(ids) - 1] = ids[1:]
                if not piece.continues:
                    targets[number, end - 1] = IGNORED
                at = end
                cuts.append(number * self._seq_len + at)
            inputs[number, at:] = self._pad_id
            targets[number, at:] = IGNORED
        return Batch.of_pair(x, y, Segments.of(np.array(cuts, np.int64), len(work), self._seq_len))
