"""The data files of llm.c: a header of 256 int32 (magic, version, count), then the ids, uint16 or uint32.

Each document begins with the end-of-text token and none ends with it (karpathy/llm.c: dev/data/data_common.py,
`write_datafile`, and dev/data/fineweb.py); a bos that documents begin with stands for it. The count is an int32: a file
holds fewer than 2**31 tokens, and what has more goes to `OUT_000000.bin`, `OUT_000001.bin`, …, cut between documents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from dsmem.errors import BadSource, UsageError
from dsmem.progress import Progress
from dsmem.tokens.drafts import Drafts
from dsmem.tokens.index import BLOCK, Ends, blocks_of
from dsmem.tokens.inspecting import manifest_of
from dsmem.tokens.joining import counter
from dsmem.tokens.layout import ITEM_BYTES, LARGEST_ID
from dsmem.tokens.opening import LLMC_HEADER_BYTES, LLMC_VERSIONS, TokenFile, Tokens

_MOST_TOKENS = (1 << 31) - 1
_BLOCK_TOKENS = 1 << 22
Array = np.ndarray[Any, np.dtype[Any]]


def write(drafts: Drafts, target: str, file: TokenFile, ends: Ends, eot: int | None, progress: Progress) -> int:
    """Write the drafts of all files; returns the tokens in them. Raises UsageError, BadSource, OSError."""
    change = _change(file, ends, eot)
    total = file.tokens + change.grown * len(ends)
    cuts = [len(ends)] if total <= _MOST_TOKENS else list(_cuts(ends, change.grown, file.path))
    magic, version = next(known for known, dtype in LLMC_VERSIONS.items() if dtype == file.dtype)
    names = [target]
    if len(cuts) > 1:
        names = [f"{target.removesuffix('.bin')}_{shard:06d}.bin" for shard in range(len(cuts))]
    drafts.claim(*names)
    count = counter(total * ITEM_BYTES[file.dtype], progress)
    tokens = file.map()
    for name, first, last in zip(names, [0, *cuts], cuts, strict=False):
        start, stop = (int(ends[at - 1]) if at else 0 for at in (first, last))
        here = stop - start + change.grown * (last - first)
        with Path(drafts.begin(name)).open("wb") as opened:
            opened.write(struct.pack("<iii", magic, version, here).ljust(LLMC_HEADER_BYTES, b"\0"))
            for piece in change.applied(tokens, ends, first, last):
                opened.write(piece.view(np.uint8).data)
                count(piece.nbytes)
    return total


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to every document."""

    begins_with: int | None
    """The id that is put in front of it; None where it begins with one already."""
    drops: tuple[int, ...]
    """The ids at its end that are left out, in any order."""

    @property
    def grown(self) -> int:
        """By how many tokens each document is longer afterwards."""
        return (self.begins_with is not None) - len(self.drops)

    def applied(self, tokens: Tokens, ends: Ends, first: int, last: int) -> Iterator[Array]:
        """The tokens of documents `first` to `last` − 1 in blocks; raises BadSource where an end is not as told."""
        for starts, stops in _together(ends, first, last):
            if len(stops) == 1 and stops[0] - starts[0] > _BLOCK_TOKENS:
                yield from self._large(tokens, int(starts[0]), int(stops[0]))
                continue
            base = int(starts[0])
            block = tokens[base : int(stops[-1])]
            lengths = stops - starts - len(self.drops)
            if len(lengths) and lengths.min() < 0:
                raise _not_as_told()
            kept = np.ones(len(block), np.bool_)
            for back in range(1, len(self.drops) + 1):
                kept[stops - base - back] = False
            self._check(block[~kept])
            if self.begins_with is None:
                yield block[kept]
                continue
            changed = np.empty(int(lengths.sum()) + len(lengths), tokens.dtype)
            fronts = np.cumsum(lengths + 1) - (lengths + 1)
            behind = np.ones(len(changed), np.bool_)
            behind[fronts] = False
            changed[fronts] = self.begins_with
            changed[behind] = block[kept]
            yield changed

    def _large(self, tokens: Tokens, start: int, stop: int) -> Iterator[Array]:
        if self.begins_with is not None:
            yield np.array([self.begins_with], tokens.dtype)
        end = stop - len(self.drops)
        self._check(tokens[end:stop])
        for at in range(start, end, _BLOCK_TOKENS):
            yield tokens[at : min(at + _BLOCK_TOKENS, end)]

    def _check(self, dropped: Array) -> None:
        if not np.isin(dropped, self.drops).all():
            raise _not_as_told()


def _not_as_told() -> BadSource:
    return BadSource("documents do not end as the manifest says; `dsmem tokens verify` names them")


def _change(file: TokenFile, ends: Ends, eot: int | None) -> _Change:
    manifest = manifest_of(file)
    if manifest is None:
        if eot is None:
            raise UsageError(f"nothing beside {file.path} names the end-of-text token: give its id (--eot 50256)")
        found = _seen(file, ends, eot)
    else:
        markers = ((manifest.bos, manifest.tokenizer.bos_id), (manifest.eos, manifest.tokenizer.eos_id))
        drops = tuple(one for place, one in markers if place == "append" and one is not None)
        begins = [one for place, one in markers if place == "prepend" and one is not None]
        front = manifest.tokenizer.eos_id if eot is None else eot
        if front is None and not begins:
            raise UsageError(f"the manifest of {file.path} names no end-of-text token: give its id (--eot 50256)")
        found = _Change(None if begins and eot in (None, begins[0]) else front, drops)
    if found.begins_with is not None and not 0 <= found.begins_with <= LARGEST_ID[file.dtype]:
        raise UsageError(f"{found.begins_with} is no id of {file.dtype}")
    return found


def _seen(file: TokenFile, ends: Ends, eot: int) -> _Change:
    """Without a manifest: whether every document begins, or else ends, with the token."""
    tokens = file.map()
    fronts, tails = True, True
    for starts, stops in _together(ends, 0, len(ends)):
        some = stops > starts
        fronts &= bool(some.all() and (tokens[starts[some]] == eot).all())
        tails &= bool(some.all() and (tokens[stops[some] - 1] == eot).all())
    if fronts:
        return _Change(None, ())
    return _Change(eot, (eot,) if tails else ())


def _cuts(ends: Ends, grown: int, path: str) -> Iterator[int]:
    """Where each file ends, in documents, so that it holds as many as it can."""
    number, base, last = 0, 0, 0
    for _, block in blocks_of(ends):
        after = block.astype(np.int64) + grown * np.arange(number + 1, number + len(block) + 1)
        while int(after[-1]) - base > _MOST_TOKENS:
            fitting = int(np.searchsorted(after, base + _MOST_TOKENS, "right"))
            new_base = int(after[fitting - 1]) if fitting else last
            if new_base == base:
                raise BadSource(f"document {number + fitting} of {path} is too long for llm.c")
            base = new_base
            yield number + fitting
        number, last = number + len(block), int(after[-1])
    yield number


def _together(ends: Ends, first: int, last: int) -> Iterator[tuple[Array, Array]]:
    """(starts, stops) of documents in blocks of some MiB, or of one document that is larger."""
    for at in range(first, last, BLOCK):
        stops = np.array(ends[at : min(at + BLOCK, last)], np.int64)
        starts = np.concatenate((np.array([int(ends[at - 1]) if at else 0]), stops[:-1]))
        here = 0
        while here < len(stops):
            until = max(here + 1, int(np.searchsorted(stops, starts[here] + _BLOCK_TOKENS, "right")))
            yield cast(Array, starts[here:until]), cast(Array, stops[here:until])
            here = until
