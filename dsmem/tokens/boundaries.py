"""Where documents end, for windows: those that lie within one, and the ends that a window runs over.

All is looked up in the stored ends, which are mapped; no id is taken for an end of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from dsmem.errors import BadSource
from dsmem.tokens.layout import Beside
from dsmem.tokens.opening import TokenFile, Tokens
from dsmem.tokens.permutation import Indices

_EVERY = 64
"""Documents between two sums that are kept: 8 bytes for so many documents."""
_AT_ONCE = 1 << 18
IntArray = np.ndarray[Any, np.dtype[Any]]


def ends_of(file: TokenFile) -> Tokens:
    """The document ends of a file; raises BadSource where no side file has them."""
    ends = file.documents()
    if ends is None:
        beside = Beside.of(file.path)
        raise BadSource(f"{file.path}: nothing tells where its documents end; neither {beside.docs} nor {beside.idx}")
    return ends


def bounds_of(ends: Tokens, documents: Indices, path: str) -> tuple[Indices, Indices]:
    """First token of each of these documents, and the token after its last; raises BadSource for ends that fall."""
    starts = np.where(documents > 0, ends[documents - 1].astype(np.int64), 0)
    stops = ends[documents].astype(np.int64)
    if (stops < starts).any():
        raise _falling(documents[stops < starts][0], path)
    return starts, stops


def _falling(document: int, path: str) -> BadSource:
    return BadSource(f"{path}: document {document} ends before the one in front of it")


class WithinDocuments:
    """Windows of seq_len + 1 tokens that cross no end: in each document from its start, every `stride` tokens.

    What is left at the end of a document, and documents that are too short, are in no window. Costs one pass over the
    ends and 8 bytes for every 64 documents; again where this is unpickled, if a file is given: only its path travels.
    """

    def __init__(self, ends: Tokens, seq_len: int, stride: int, *, file: TokenFile | None = None) -> None:
        self._file = file
        self._seq_len, self._stride = seq_len, stride
        self._look(ends)
        self.count = int(self._sums[-1])

    def _look(self, ends: Tokens) -> None:
        self._ends = ends
        hasher = xxhash.xxh3_128()
        sums = [np.zeros(1, np.int64)]
        for start in range(0, len(ends), _AT_ONCE):
            hasher.update(np.ascontiguousarray(ends[start : start + _AT_ONCE]).data)
            _, counts = self._of(np.arange(start, min(start + _AT_ONCE, len(ends))))
            total = sums[-1][-1] + np.cumsum(counts)
            sums.append(total[_EVERY - 1 :: _EVERY])
            if len(total) % _EVERY:  # the last of all
                sums.append(total[-1:])
        self._sums = np.concatenate(sums)
        """Windows before document 0, 64, 128, …, and in all."""
        self._digest = hasher.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        left_behind = () if self._file is None else ("_ends", "_sums")
        return {name: value for name, value in self.__dict__.items() if name not in left_behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            digest = self._digest
            self._look(ends_of(self._file))
            if self._digest != digest:
                raise BadSource(f"the document ends of {self._file.path} have changed since this was pickled")

    def starts(self, indices: Indices) -> Indices:
        """The first token of each of these windows."""
        stretch = np.searchsorted(self._sums, indices, side="right") - 1
        documents = stretch[:, None] * _EVERY + np.arange(_EVERY)
        firsts, counts = self._of(np.minimum(documents, len(self._ends) - 1))
        before = np.cumsum(counts, axis=1)
        left = indices - self._sums[stretch]
        column = (before <= left[:, None]).sum(axis=1)
        rows = np.arange(len(indices))
        inside = left - before[rows, column] + counts[rows, column]
        found: Indices = firsts[rows, column] + inside * self._stride
        return found

    def _of(self, documents: Indices) -> tuple[Indices, Indices]:
        """First token and number of windows of these documents."""
        firsts, ends = bounds_of(self._ends, documents, "" if self._file is None else self._file.path)
        return firsts, np.maximum((ends - firsts - self._seq_len - 1) // self._stride + 1, 0)


@dataclass(frozen=True, slots=True)
class Segments:
    """Where one attention segment ends and the next begins, in B rows of T tokens taken as one sequence."""

    cu_seqlens: np.ndarray[Any, np.dtype[np.int32]]
    """Starts of the segments and, last, B * T; the first is 0, every row begins one."""
    position_ids: np.ndarray[Any, np.dtype[np.int64]]
    """[B, T]: the place of each token in its segment."""

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment."""
        return int(np.diff(self.cu_seqlens).max(initial=0))

    @classmethod
    def of(cls, cuts: IntArray, rows: int, seq_len: int) -> Segments:
        """From where segments begin, in any order, row starts or not among them."""
        whole = rows * seq_len
        bounds = np.unique(np.concatenate([np.arange(0, whole + 1, seq_len), cuts]))
        places = np.arange(whole) - np.repeat(bounds[:-1], np.diff(bounds))
        return cls(bounds.astype(np.int32), places.reshape(rows, seq_len))


def cuts_in(ends: Tokens, starts: Indices, rows: Indices, seq_len: int, path: str) -> Indices:
    """Document ends inside of windows, as places in the batch: `rows` says in which row each window lies.

    Raises BadSource where ends in these windows, or the two in front of them and behind, fall: to look at all of them
    would take a pass.
    """
    # Keys of another type than the ends would have numpy convert all the ends.
    low = np.searchsorted(ends, starts.astype(ends.dtype), side="right")
    high = np.searchsorted(ends, (starts + seq_len).astype(ends.dtype), side="left")
    counts = high - low
    if (counts < 0).any():  # so does a search among ends that fall
        raise _falling(low[counts < 0][0], path)
    # Two ends more on either side, up to where the search for the next window leads: a search passes by ends that fall,
    # and where it stops is what tells of them.
    behind = np.searchsorted(ends, (starts + seq_len).astype(ends.dtype), side="right")
    looked, bounds = _ranges(np.maximum(low - 2, 0), np.minimum(np.maximum(behind, high) + 2, len(ends)))
    around = ends[looked]
    falls = around[1:] < around[:-1]
    falls[bounds[1:-1] - 1] = False  # from one window to the next
    if falls.any():
        raise _falling(looked[1:][falls][0], path)
    beyond = around > ends[-1]
    if beyond.any():
        raise _falling(looked[beyond][0] + 1, path)  # or one behind it
    documents, _ = _ranges(low, high)
    cuts: Indices = ends[documents].astype(np.int64) - np.repeat(starts - rows * seq_len, counts)
    return cuts


def _ranges(begins: Indices, stops: Indices) -> tuple[Indices, Indices]:
    """The numbers of all these ranges, one range after the other, and where each begins among them."""
    counts = stops - begins
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], counts), bounds
