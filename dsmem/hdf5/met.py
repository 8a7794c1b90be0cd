"""Objects that several links may lead to, by their addresses and files; most are on a disk (`dsmem.scratch`)."""

from __future__ import annotations

import numpy as np

from dsmem.arrays.columns import Column, Numbers, in_order
from dsmem.arrays.rows import Rows
from dsmem.hdf5.places import Place

_RECENT = 1 << 15
"""Objects whose places are in a dict."""
_MOST_RUNS = 8
_Run = tuple[Numbers, Numbers, Numbers]
"""Addresses in order; and of each the number of its file, and of its path."""
_CODES = "Q", "Q", "I"


class Met:
    """Paths by place."""

    def __init__(self) -> None:
        self._paths: Rows[str] = Rows()
        self._recent: dict[tuple[int, int], int] = {}
        """The number of the path of each, by address and file."""
        self._runs: list[_Run] = []

    def add(self, where: Place, path: str) -> None:
        """Note where an object was met first."""
        self._recent[where.addr, where.fileno] = len(self._paths)
        self._paths.append(path)
        if len(self._recent) >= _RECENT:
            self._put_away()

    def path(self, where: Place) -> str | None:
        """Where it was met first, if it was."""
        number = self._recent.get((where.addr, where.fileno))
        if number is not None:
            return self._paths[number]
        address = np.uint64(where.addr)
        for addresses, files, numbers in self._runs:
            first = int(np.searchsorted(addresses, address))
            if first == len(addresses) or addresses[first] != address:
                continue
            last = int(np.searchsorted(addresses, address, side="right"))
            (here,) = np.nonzero(files[first:last] == np.uint64(where.fileno))
            if len(here):
                return self._paths[int(numbers[first + int(here[0])])]
        return None

    def _put_away(self) -> None:
        """The recent ones become a run; many runs become one."""
        places = np.array(list(self._recent), np.uint64)
        runs = [(places[:, 0], places[:, 1], np.fromiter(self._recent.values(), np.uint32, len(places)))]
        self._recent.clear()
        if len(self._runs) == _MOST_RUNS:
            runs += self._runs
            self._runs.clear()
        self._runs.append(_merged(runs))


def _merged(runs: list[_Run]) -> _Run:
    columns = [Column(code) for code in _CODES]
    for run in runs:
        for column, some in zip(columns, run, strict=True):
            column.extend(some)
    every = [column.array() for column in columns]
    columns = [Column(code) for code in _CODES]
    for order in in_order(every[0]):
        for column, all_of_it in zip(columns, every, strict=True):
            column.extend(all_of_it[order])
    addresses, files, numbers = (column.array() for column in columns)
    return addresses, files, numbers
