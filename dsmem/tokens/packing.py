"""Whole documents packed into sequences of seq_len tokens, by best fit, in bounded memory.

Documents are taken in groups, in the seeded order of the epoch: up to 4,096, or as many as hold 2**26 tokens (one, if
it is longer; some hundred bytes of memory for each sequence of a group). A document longer than seq_len is cut into
full sequences and a rest. Rests and short documents, longest first, each go where they leave the least room, else begin
a new sequence (best-fit decreasing, as in Ding et al., "Fewer truncations improve language modeling", 2024). Groups are
packed on their own and their sequences shuffled: a position is a group and the sequences taken of it, so resuming packs
one group again. Every rank packs every group.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsmem.errors import UsageError
from dsmem.tokens.boundaries import bounds_of, ends_of
from dsmem.tokens.opening import TokenFile
from dsmem.tokens.order import Share, Step, whole_numbers
from dsmem.tokens.permutation import Permutation

GROUP_DOCUMENTS = 4096
GROUP_TOKENS = 1 << 26


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of one, within a sequence."""

    file: int
    start: int
    """Its first token in the file."""
    length: int
    continues: bool
    """The document goes on after it: the token after its last is its target, too."""


Row = Sequence[Piece]
"""A sequence: pieces one after the other, then padding."""


@dataclass(frozen=True, slots=True)
class PackedPosition:
    """A place in the sequences of an epoch."""

    epoch: int = 0
    group: int = 0
    """Documents before the group."""
    consumed: int = 0
    """Sequences of the group that all ranks took together."""


class Packing:
    """An Order over packed sequences."""

    kind = "packed"

    def __init__(self, files: Sequence[TokenFile], seq_len: int, share: Share, *, seed: int, shuffle: bool) -> None:
        """Raises BadSource where document ends are not known, UsageError where there is no document."""
        if seq_len < 1:
            raise UsageError(f"seq_len={seq_len}: at least 1")
        self._ends = [ends_of(file) for file in files]
        self._paths = [file.path for file in files]
        self._offsets = np.cumsum([0, *(len(ends) for ends in self._ends)], dtype=np.int64)
        self._documents = int(self._offsets[-1])
        if not self._documents:
            raise UsageError(f"no document in {files[0].path}")
        self._seq_len, self._share = seq_len, share
        self._seed, self._shuffle = seed, shuffle
        self._at = PackedPosition()

    def about(self) -> dict[str, Any]:
        """See Order."""
        return {"documents": self._documents, "seed": self._seed, "shuffle": self._shuffle}

    def position(self) -> dict[str, Any]:
        """See Order."""
        return asdict(self._at)

    def restore(self, position: Mapping[str, Any]) -> None:
        """See Order."""
        at = PackedPosition(**whole_numbers(position, "epoch", "group", "consumed"))
        if at.group > self._documents:
            raise UsageError(f"document {at.group} of {self._documents}")
        self._at = at

    def move(self, after: PackedPosition) -> None:
        """See Order."""
        self._at = after

    def next_epoch(self) -> None:
        """See Order."""
        self._at = PackedPosition(self._at.epoch + 1)

    def steps_an_epoch(self) -> None:
        """See Order: how many sequences there are is known once they are packed."""

    def steps(self) -> Iterator[Step[Sequence[Row]]]:
        """See Order; the work of a step is its sequences."""
        share, epoch = self._share, self._at.epoch
        waiting: list[Row] = []
        for row, after in self._sequences():
            waiting.append(row)
            if len(waiting) == share.samples:
                yield Step(waiting[share.rank :: share.world_size], after)
                waiting = []
        if rows := share.rows_of(len(waiting)):
            yield Step(waiting[share.rank :: share.world_size][:rows], PackedPosition(epoch, self._documents))

    def _sequences(self) -> Iterator[tuple[Row, PackedPosition]]:
        """From the position on, each with the position after it."""
        epoch, start, consumed = self._at.epoch, self._at.group, self._at.consumed
        while start < self._documents:
            rows, end = self.group(epoch, start)
            if consumed > len(rows):
                raise UsageError(f"{consumed} sequences consumed of a group that has {len(rows)}")
            for number in range(consumed, len(rows)):
                yield rows[number], PackedPosition(epoch, start, number + 1)
            start, consumed = end, 0

    def group(self, epoch: int, start: int) -> tuple[list[Row], int]:
        """The sequences of the group that begins with this document of the epoch, and where the next one begins."""
        places = np.arange(start, min(start + GROUP_DOCUMENTS, self._documents))
        documents = Permutation(self._documents, self._seed, epoch)(places) if self._shuffle else places
        files = np.searchsorted(self._offsets, documents, side="right") - 1
        firsts, ends = np.empty_like(documents), np.empty_like(documents)
        for file in np.unique(files).tolist():
            own = files == file
            inside = documents[own] - self._offsets[file]
            firsts[own], ends[own] = bounds_of(self._ends[file], inside, self._paths[file])
        # At least one document, whatever it holds.
        count = max(int(np.searchsorted(np.cumsum(ends - firsts), GROUP_TOKENS, side="right")), 1)
        rows: list[Row] = []
        short: list[Piece] = []
        for file, first, end in zip(
            files[:count].tolist(), firsts[:count].tolist(), ends[:count].tolist(), strict=True
        ):
            full = (end - first) // self._seq_len
            rest = first + full * self._seq_len
            for at in range(first, rest, self._seq_len):
                rows.append((Piece(file, at, self._seq_len, at + self._seq_len < end),))
            if rest < end:
                short.append(Piece(file, rest, end - rest, False))
        short.sort(key=lambda piece: -piece.length)
        rows += ([short[i] for i in held] for held in best_fit([piece.length for piece in short], self._seq_len))
        if self._shuffle:
            shuffled = Permutation(len(rows), self._seed, epoch, name=f"group {start}")
            rows = [rows[i] for i in shuffled(np.arange(len(rows))).tolist()]
        return rows, start + count


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each length into the bin that it leaves the least room in, else into a new one; the indices by bin."""
    bins: list[list[int]] = []
    rooms: list[int] = []
    """Rooms that bins have, increasing, each once."""
    with_room: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            held, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            held = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[held].append(index)
        left = room - length
        if left and left in with_room:
            with_room[left].append(held)
        elif left:
            insort(rooms, left)
            with_room[left] = [held]
    return bins
