"""Several files mixed by weight: each has a cursor and epochs of its own, and it never ends.

Which file a sample comes from is drawn by its position alone, seeded: after n samples a file of weight w has given
n * w of them, give or take a few sqrt(n). Weights may change at a resume: the cursors stay, and what was read is not
read again before its file is through. Ranks and batch sizes may change as in every order.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from dsmem.errors import UsageError
from dsmem.tokens.order import Share, Step, mapping_of, whole_numbers
from dsmem.tokens.permutation import Indices, Permutation

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cursors:
    """How many samples all ranks took together, and how many of each file."""

    consumed: int
    cursors: Indices


class Mixture:
    """An Order over windows that are numbered through several files."""

    kind = "mixture"

    def __init__(
        self,
        paths: Sequence[str],
        offsets: Indices,
        weights: Sequence[float],
        share: Share,
        *,
        seed: int,
        shuffle: bool,
    ) -> None:
        """`offsets`: the first window of each file and the number of all. Raises UsageError for bad weights."""
        if len(weights) != len(paths):
            raise UsageError(f"{len(weights)} weights for {len(paths)} files")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise UsageError(f"weights {list(weights)}: they are 0 or more, and one is more than 0")
        self._paths = [os.path.abspath(path) for path in paths]
        self._names = names_of(self._paths)
        self._firsts, self._counts = offsets[:-1], np.diff(offsets)
        for name, weight, count in zip(self._names, weights, self._counts.tolist(), strict=True):
            if weight and not count:
                raise UsageError(f"{name} has a weight of {weight:g} and not one window")
        self._bounds = np.cumsum(weights) / math.fsum(weights)
        # What rounding leaves above the last bound belongs to the last file that has a weight at all.
        self._bounds[max(i for i, weight in enumerate(weights) if weight) :] = 1
        self._share, self._seed, self._shuffle = share, seed, shuffle
        self._at = Cursors(0, np.zeros(len(paths), np.int64))
        self._others: dict[str, Any] = {}
        """Cursors of files that a restored state has and this mixture has not: kept for a later one."""

    def about(self) -> dict[str, Any]:
        """See Order. Weights are not in it: they may change."""
        return {"seed": self._seed, "shuffle": self._shuffle}

    def position(self) -> dict[str, Any]:
        """See Order."""
        told = zip(self._names, self._at.cursors.tolist(), self._counts.tolist(), self._paths, strict=True)
        files = {name: {"consumed": cursor, "samples": count, "path": path} for name, cursor, count, path in told}
        return {"consumed": self._at.consumed, "files": {**self._others, **files}}

    def restore(self, position: Mapping[str, Any]) -> None:
        """See Order. A file that the state does not know begins at its start; raises UsageError if it knows none."""
        consumed = whole_numbers(position, "consumed")["consumed"]
        files = mapping_of(position, "files")
        saved = {name: str(mapping_of(files, name).get("path", name)) for name in files}
        known = same_files(self._paths, saved)
        if files and not known:
            raise UsageError(f"the state is of other files: {', '.join(saved.values())}")
        cursors, names, others = np.zeros_like(self._counts), list(names_of(self._paths)), dict(files)
        for place, name in known.items():
            found = whole_numbers(mapping_of(files, name), "consumed", "samples")
            del others[name]
            if found["samples"] != self._counts[place]:
                raise UsageError(f"{name} has {self._counts[place]} samples, and had {found['samples']}")
            cursors[place], names[place] = found["consumed"], name  # its order hangs on the name that it had
        for place in set(range(len(names))) - known.keys():
            _log.warning("the state knows nothing of %s: it begins at its start", self._paths[place])
            if names[place] in files:
                names[place] = self._paths[place]
        self._at, self._names, self._others = Cursors(consumed, cursors), names, others

    def move(self, after: Cursors) -> None:
        """See Order."""
        self._at = after

    def next_epoch(self) -> None:
        """See Order; there is but one."""

    def steps_an_epoch(self) -> None:
        """See Order."""

    def steps(self) -> Iterator[Step[Indices]]:
        """See Order; the work of a step is the numbers of its windows, and there is always another step."""
        share, consumed, cursors = self._share, self._at.consumed, self._at.cursors
        for count in share.stretches():
            picks = self.picks(consumed, count * share.samples).reshape(count, share.samples)
            taken = np.stack([(picks == place).sum(axis=1) for place in range(len(self._names))], axis=1)
            after = cursors + np.cumsum(taken, axis=0)
            indices = self._numbers(picks.reshape(-1), cursors).reshape(picks.shape)
            for row, reached in zip(indices[:, share.rank :: share.world_size], after, strict=True):
                consumed += share.samples
                yield Step(row, Cursors(consumed, reached))
            cursors = after[-1]

    def picks(self, start: int, count: int) -> Indices:
        """Which file each of these positions reads from."""
        key = hashlib.sha256(f"{self._seed}/mixture".encode()).digest()
        words = np.arange(start, start + count, dtype=np.uint64) + np.uint64(int.from_bytes(key[:8], "little") >> 1)
        for _ in range(2):  # the finaliser of splitmix64
            words ^= words >> np.uint64(30)
            words *= np.uint64(0xBF58476D1CE4E5B9)
            words ^= words >> np.uint64(27)
            words *= np.uint64(0x94D049BB133111EB)
            words ^= words >> np.uint64(31)
        drawn = (words >> np.uint64(11)).astype(np.float64) / (1 << 53)
        return np.searchsorted(self._bounds, drawn, side="right")

    def _numbers(self, picks: Indices, cursors: Indices) -> Indices:
        """The windows that these picks read, in turn, each file from its cursor on."""
        numbers = np.empty(len(picks), np.int64)
        for place, name in enumerate(self._names):
            own = np.flatnonzero(picks == place)
            if not len(own):
                continue
            count = int(self._counts[place])
            epochs, inside = np.divmod(cursors[place] + np.arange(len(own)), count)
            if self._shuffle:
                for epoch in np.unique(epochs).tolist():
                    here = epochs == epoch
                    inside[here] = Permutation(count, self._seed, epoch, name=name)(inside[here])
            numbers[own] = self._firsts[place] + inside
        return numbers


def names_of(paths: Sequence[str]) -> list[str]:
    """What a state calls the files: by as many last parts of their paths as tell them apart, so that they may move."""
    if len(set(paths)) < len(paths):
        raise UsageError("a mixture that has a file twice: give it once, with both weights together")
    parts = [path.split("/") for path in paths]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-size:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def same_files(paths: Sequence[str], saved: Mapping[str, str]) -> dict[int, str]:
    """Which of these is which of a state's (name: path): the same path; else the name, and where several have it the
    directory, too: the more of it the better.
    """
    found: dict[int, str] = {}
    bases = Counter(map(os.path.basename, paths)), Counter(map(os.path.basename, saved.values()))
    pairs = []
    for place, path in enumerate(paths):
        for name, before in saved.items():
            base = os.path.basename(path)
            least = 1 if bases[0][base] == bases[1][base] == 1 else 2
            alike = _alike(path, before)
            if alike >= least:
                pairs.append((path == before, alike, place, name))
    for _, _, place, name in sorted(pairs, key=lambda pair: pair[:2], reverse=True):
        if place not in found and name not in found.values():
            found[place] = name
    return found


def _alike(path: str, other: str) -> int:
    """How many last parts they have in common."""
    both = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
