"""Documents that are compared with the reference as they are encoded: a sample, or all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmem.errors import EngineDiffers
from dsmem.tokens import engines, feeding
from dsmem.tokens.cutting import BLOCK_BYTES
from dsmem.tokens.failures import translated
from dsmem.tokens.feeding import Comparing, is_longer
from dsmem.tokens.pieces import Piece
from dsmem.tokens.recipe import ALL, VERIFY_EVERY, Recipe

if TYPE_CHECKING:
    from dsmem.tokens.encoding import Encoder
    from dsmem.tokens.engines import Ids

_COMPARED_CHARACTERS = 128 << 10
"""Given to the reference at once, where all are compared; for more it waits for its turn."""


def portions(texts: list[str], most_bytes: int, at_once: int) -> Iterator[list[str]]:
    """Texts of up to `at_once` characters together, or one that is longer; they have `most_bytes` at most."""
    if most_bytes <= at_once or sum(map(len, texts)) <= at_once:
        if texts:
            yield texts
        return
    begin = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > at_once:
            yield texts[begin:index]
            begin, size = index, 0
        size += len(text)
    if begin < len(texts):
        yield texts[begin:] if begin else texts


class Verifying:
    """Compares a part's share of the sample with the reference."""

    def __init__(self, encoder: Encoder, piece: Piece, recipe: Recipe) -> None:
        self._reference = engines.reference_of(recipe.located)
        own = self._reference == recipe.engine
        self._encoder = encoder
        self._all = recipe.verify == ALL and not own
        self._left = recipe.verify if not own and piece.number % VERIFY_EVERY == 0 else 0
        self._asks = not self._all and not piece.is_spool  # whoever spools does not listen meanwhile
        self._share = max(1, -(-recipe.verify * BLOCK_BYTES // max(piece.weight_bytes, BLOCK_BYTES)))
        self.count = 0
        self.in_pieces = 0
        """Of them, documents too long for the reference to be given as a whole."""

    def look(
        self, texts: list[str], ids: Ids, lengths: Any, *, path: str, place: Callable[[int], str], begin: int
    ) -> None:
        """Compare some texts of a batch, evenly spread, or all."""
        if self._all:
            self._look_at_all(texts, ids, lengths, path, place, begin)
            return
        if self._left > 0:
            take = min(self._left, self._share)
            chosen = range(0, len(texts), max(1, len(texts) // take))
            chosen = chosen[:take]
            self._left -= len(chosen)
        else:
            return
        ends = np.cumsum(lengths)
        for index in chosen:
            self._compare(texts[index], ids[ends[index] - lengths[index] : ends[index]], path, place, begin + index)

    def _look_at_all(
        self, texts: list[str], ids: Ids, lengths: Any, path: str, place: Callable[[int], str], begin: int
    ) -> None:
        """Compare all, some at once: one by one the reference takes a third longer."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        first = 0
        for some in portions(texts, sys.maxsize, _COMPARED_CHARACTERS):
            last = first + len(some)
            mine = ids[ends[first] : ends[last]]
            if len(some) > 1:
                with translated(path):
                    theirs, theirs_each = self._encoder.reference(now=False).encode(some)
                is_same = np.array_equal(theirs_each, lengths[first:last]) and np.array_equal(mine, theirs)
                del theirs
            else:
                is_same = False
            if is_same:
                self.count += len(some)
            else:
                for index in range(first, last):
                    self._compare(texts[index], ids[ends[index] : ends[index + 1]], path, place, begin + index)
            first = last

    def look_at(self, texts: list[str], ids: Ids, lengths: Any, index: int, *, path: str) -> None:
        """Compare one text that is a file of its own."""
        if not self._all and self._left <= 0:
            return
        self._left -= 1
        end = int(lengths[: index + 1].sum())
        self._compare(texts[index], ids[end - int(lengths[index]) : end], path, lambda _: "", 0)

    def long(self) -> Comparing | None:
        """How the next long document is compared, or not at all."""
        if not self._all and self._left <= 0:
            return None
        self._left -= 1
        self.count += 1
        self.in_pieces += 1
        return Comparing(self._encoder.reference(now=self._asks), all=self._all)

    def take_back(self) -> None:
        """The last long document is left out."""
        self._left += 1
        self.count -= 1
        self.in_pieces -= 1

    def _compare(self, text: str, ids: Ids, path: str, place: Callable[[int], str], index: int) -> None:
        self.count += 1
        if is_longer(text, feeding.MOST_COMPARED_BYTES):
            self.in_pieces += 1
            comparing = Comparing(self._encoder.reference(now=self._asks), all=self._all)
            with translated(path):
                feeding.compare(self._encoder.engine, text, ids, path=path, place=place(index), comparing=comparing)
            return
        with translated(path):
            theirs = self._encoder.expected(text, now=self._asks)
        if np.array_equal(ids, theirs):
            return
        shorter = min(len(ids), len(theirs))
        differing = np.flatnonzero(ids[:shorter] != theirs[:shorter])
        at = int(differing[0]) if len(differing) else shorter
        where = place(index)
        named = f"{path}:{where}" if where else path
        raise EngineDiffers(
            f"{named}: the engine and {self._reference}, the reference, differ from token {at} of this document on",
            path=path,
            place=where,
        )
