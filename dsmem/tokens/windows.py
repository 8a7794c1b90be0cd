"""Windows of seq_len + 1 tokens over token files, numbered through all files; none runs from one file into the next.

Nothing is held but maps, which are made when they are first needed and left behind when this is pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from dsmem.errors import UsageError
from dsmem.tokens.boundaries import WithinDocuments, ends_of
from dsmem.tokens.layout import ITEM_BYTES
from dsmem.tokens.opening import TokenFile, Tokens
from dsmem.tokens.permutation import Indices

_GATHER_BYTES = 512 << 10
"""What is gathered at once before it is widened, so that it stays in the cache."""
_PAGE_BYTES = 4096
_UNLOCKED_ITEMS = 500
"""More items than these numpy gathers without Python's lock (NPY_BEGIN_THREADS_THRESHOLDED)."""
_FEWEST_BYTES = 512
"""Of a piece of a window: smaller ones take longer to gather than the lock is worth."""


class Starts(Protocol):
    """Where the windows of one file begin."""

    count: int

    def starts(self, indices: Indices) -> Indices:
        """The first token of each of these windows."""
        ...


class Even:
    """A window at every `stride` tokens."""

    def __init__(self, tokens: int, seq_len: int, stride: int) -> None:
        self.count = max((tokens - seq_len - 1) // stride + 1, 0)
        self._stride = stride

    def starts(self, indices: Indices) -> Indices:
        """The first token of each of these windows."""
        return indices * self._stride


class Windows:
    """Numbered windows and how they are read. Threads and forks may share one."""

    def __init__(
        self,
        files: Sequence[TokenFile],
        seq_len: int,
        stride: int,
        *,
        within_documents: bool = False,
        in_threads: bool = False,
    ) -> None:
        """`in_threads`: they are read beside other threads, which Python's lock shall not keep waiting.

        Raises UsageError where there is no window at all, BadSource where documents are wanted and not known.
        """
        if seq_len < 1 or stride < 1:
            raise UsageError(f"seq_len={seq_len} and stride={stride}: both are at least 1")
        self.files = tuple(files)
        self.seq_len = seq_len
        self._in_threads = in_threads
        self._layout: list[Starts] = [
            WithinDocuments(ends_of(file), seq_len, stride, file=file)
            if within_documents
            else Even(file.tokens, seq_len, stride)
            for file in files
        ]
        self.offsets = np.cumsum([0, *(one.count for one in self._layout)], dtype=np.int64)
        """The first window of each file, and the number of all."""
        self.count = int(self.offsets[-1])
        if not self.count:
            tokens = sum(file.tokens for file in files)
            where = "any document" if within_documents else f"the {tokens} tokens"
            raise UsageError(
                f"no window: {seq_len} tokens and one more do not fit into {where} of {self.files[0].path}"
            )
        self._maps: list[tuple[Tokens, Tokens] | None] = [None] * len(files)
        self._pages = {
            item: np.append(np.arange(0, seq_len, _PAGE_BYTES // item), seq_len) for item in ITEM_BYTES.values()
        }
        """Tokens of a window that touch each of its pages, by bytes of a token."""

    def locate(self, indices: Indices) -> Iterator[tuple[int, Any, Indices]]:
        """File by file: its number, the rows whose windows are its own, and where those windows begin."""
        if len(self.files) == 1:
            yield 0, slice(None), self._layout[0].starts(indices)
            return
        numbers = np.searchsorted(self.offsets, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            yield number, rows, self._layout[number].starts(indices[rows] - self.offsets[number])

    def read(self, indices: Indices, out: Tokens) -> None:
        """Read these windows into `out`, [len(indices), seq_len + 1] of any integer type, widened in the copy."""
        for number, rows, starts in self.locate(indices):
            if isinstance(rows, slice):
                self._gather(number, starts, out)
            else:
                own = np.empty((len(rows), self.seq_len + 1), out.dtype)
                self._gather(number, starts, own)
                out[rows] = own

    def read_one(self, index: int, dtype: np.dtype[Any]) -> Tokens:
        """One window in memory of its own."""
        number = int(np.searchsorted(self.offsets, index, side="right")) - 1
        inside = np.array([index - int(self.offsets[number])], np.int64)
        start = int(self._layout[number].starts(inside)[0])
        return self._mapped(number)[0][start : start + self.seq_len + 1].astype(dtype)

    def _gather(self, number: int, starts: Indices, out: Tokens) -> None:
        ids, windows = self._mapped(number)
        item = ITEM_BYTES[self.files[number].dtype]
        at_once = max(_GATHER_BYTES // ((self.seq_len + 1) * item), 1)
        pages = self._pages[item]
        for first in range(0, len(starts), at_once):
            here = starts[first : first + at_once]
            # Windows lie far apart: a load from every page first lets the processor wait for all of them at once, where
            # the copies below would wait for one after the other (a quarter less time in all, 64 windows of 1,024).
            ids[here[:, None] + pages]
            taken = self._in_pieces(ids, here) if self._in_threads else None
            if taken is None:
                taken = windows[here].view(ids.dtype).reshape(len(here), -1)
            out[first : first + at_once] = taken

    def _in_pieces(self, ids: Tokens, starts: Indices) -> Tokens | None:
        """[len(starts), seq_len + 1], a few percent slower; None where that is not worth it.

        numpy keeps Python's lock while it gathers up to 500 items: with a window as one, threads would read in turns.
        """
        width = self.seq_len + 1
        pieces = _UNLOCKED_ITEMS // len(starts) + 1
        size = -(-width // pieces)  # the last piece may reach beyond the window, but not beyond the file
        if size * ids.itemsize < _FEWEST_BYTES or int(starts.max()) + pieces * size > len(ids):
            return None
        items = np.ndarray((len(ids) - size + 1,), f"V{size * ids.itemsize}", ids, strides=(ids.itemsize,))
        taken = items[starts[:, None] + np.arange(0, pieces * size, size)]
        found: Tokens = taken.view(ids.dtype).reshape(len(starts), -1)[:, :width]
        return found

    def _mapped(self, number: int) -> tuple[Tokens, Tokens]:
        found = self._maps[number]
        if found is None:
            ids = self.files[number].map()
            # A window is one item: they are gathered a third faster than as rows of a sliding_window_view.
            width = np.dtype(f"V{(self.seq_len + 1) * ids.itemsize}")
            count = max(len(ids) - self.seq_len, 0)
            found = self._maps[number] = ids, np.ndarray((count,), width, ids, strides=(ids.itemsize,))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self.files)}
