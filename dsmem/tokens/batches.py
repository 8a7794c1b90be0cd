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
BLOCK_BYTES = 4 << 20
IGNORED = -100
"""What torch's cross_entropy leaves out by default."""


class Batch(tuple[torch.Tensor, torch.Tensor]):
    """`x, y = batch`: both [rows, seq_len], y one token ahead. And, where they were asked for, the segments."""

    tokens: torch.Tensor | None = None
    """[rows, seq_len + 1], contiguous: x and y are views of it; None for packed documents."""
    cu_seqlens: torch.Tensor | None = None
    """int32: where the segments of the rows, taken as one sequence, begin, and the end of the last."""
    position_ids: torch.Tensor | None = None
    """[rows, seq_len], int64: the place of each token in its segment."""
    max_seqlen: int | None = None
    """Tokens of the longest segment."""

    def mark(self, segments: Segments) -> None:
        """Add the segments."""
        self.cu_seqlens = torch.from_numpy(segments.cu_seqlens)
        self.position_ids = torch.from_numpy(segments.position_ids)
        self.max_seqlen = segments.max_seqlen

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, *, non_blocking: bool = False) -> Batch:
        """On that device, widened there: uint16 crosses the bus as 2 bytes a token, and a block in one copy."""

        def moved(one: torch.Tensor) -> torch.Tensor:
            there = one.to(device, non_blocking=non_blocking)
            return there if dtype is None else there.to(dtype)

        block = None if self.tokens is None else moved(self.tokens)
        x, y = (moved(self[0]), moved(self[1])) if block is None else (block[:, :-1], block[:, 1:])
        batch = type(self)((x, y))
        batch.tokens, batch.max_seqlen = block, self.max_seqlen
        if self.cu_seqlens is not None and self.position_ids is not None:
            batch.cu_seqlens = self.cu_seqlens.to(device, non_blocking=non_blocking)
            batch.position_ids = self.position_ids.to(device, non_blocking=non_blocking)
        return batch


class Reader(Protocol[Work]):
    """Reads the work of some steps at once."""

    def steps_at_once(self, batch_size: int) -> int:
        """How many steps are worth reading together."""
        ...

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the memory for so many rows."""
        ...

    def read(self, works: Sequence[Work], memory: torch.Tensor) -> list[Batch]:
        """Read the works, one after the other, into the first rows of the memory; a batch for each."""
        ...


class WindowReader:
    """Windows, and with `mark` the documents that they run over."""

    def __init__(self, windows: Windows, *, mark: bool) -> None:
        self._windows = windows
        self._ends = [ends_of(file) for file in windows.files] if mark else None

    def steps_at_once(self, batch_size: int) -> int:
        """As many as fill a block: what one gather and its views cost, they share."""
        return max(BLOCK_BYTES // (8 * (self._windows.seq_len + 1) * batch_size), 1)

    def shape(self, rows: int) -> tuple[int, ...]:
        """[rows, seq_len + 1]."""
        return rows, self._windows.seq_len + 1

    def read(self, works: Sequence[Indices], memory: torch.Tensor) -> list[Batch]:
        """See Reader; a work is numbers of windows."""
        sizes = [len(work) for work in works]
        block = memory[: sum(sizes)]
        self._windows.read(np.concatenate(works), block.numpy())
        parts = [torch.split_with_sizes(one, sizes) for one in (block[:, :-1], block[:, 1:], block)]
        batches = [Batch(pair) for pair in zip(*parts[:2], strict=True)]
        for batch, tokens in zip(batches, parts[2], strict=True):
            batch.tokens = tokens
        if self._ends is not None:
            for batch, work in zip(batches, works, strict=True):
                batch.mark(self._segments(work, self._ends))
        return batches

    def _segments(self, work: Indices, ends: Sequence[Any]) -> Segments:
        seq_len, rows = self._windows.seq_len, np.arange(len(work))
        cuts = [
            cuts_in(ends[number], starts, rows[own], seq_len, self._windows.files[number].path)
            for number, own, starts in self._windows.locate(work)
        ]
        return Segments.of(np.concatenate(cuts), len(work), seq_len)


class PackReader:
    """Packed documents. Targets are the next token of the same document, IGNORED where there is none."""

    def __init__(self, files: Sequence[TokenFile], seq_len: int, *, pad_id: int) -> None:
        self._maps = [file.map() for file in files]
        if not 0 <= pad_id < 1 << 31:
            raise UsageError(f"pad_id={pad_id} is no token")
        self._seq_len, self._pad_id = seq_len, pad_id

    def steps_at_once(self, batch_size: int) -> int:
        """One: what it takes is in the pieces."""
        return 1

    def shape(self, rows: int) -> tuple[int, ...]:
        """[2, rows, seq_len]: inputs, targets."""
        return 2, rows, self._seq_len

    def read(self, works: Sequence[Sequence[Row]], memory: torch.Tensor) -> list[Batch]:
        """See Reader; padding is a segment of its own."""
        (work,) = works
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
        batch = Batch((x, y))
        batch.mark(Segments.of(np.array(cuts, np.int64), len(work), self._seq_len))
        return [batch]
