"""Objects of a file that several links may lead to, by their addresses; most are on a disk (`dsmem.scratch`)."""

from __future__ import annotations

import numpy as np

from dsmem.arrays.columns import Column, Numbers, in_order
from dsmem.arrays.rows import Rows

_RECENT = 1 << 15
"""Objects whose addresses are in a dict."""
_MOST_RUNS = 8


class Met:
    """Paths by address."""

    def __init__(self) -> None:
        self._paths: Rows[str] = Rows()
        self._recent: dict[int, int] = {}
        """The number of the path of each."""
        self._runs: list[tuple[Numbers, Numbers]] = []
        """Addresses in order, and the number of each."""

    def add(self, address: int, path: str) -> None:
        """Note where an object was met first."""
        self._recent[address] = len(self._paths)
        self._paths.append(path)
        if len(self._recent) >= _RECENT:
            self._put_away()

    def path(self, address: int) -> str | None:
        """Where it was met first, if it was."""
        number = self._recent.get(address)
        if number is not None:
            return self._paths[number]
        wanted = np.uint64(address)
        for addresses, numbers in self._runs:
            index = int(np.searchsorted(addresses, wanted))
            if index < len(addresses) and addresses[index] == wanted:
                return self._paths[int(numbers[index])]
        return None

    def _put_away(self) -> None:
        """The recent ones become a run; many runs become one."""
        count = len(self._recent)
        runs = [(np.fromiter(self._recent, np.uint64, count), np.fromiter(self._recent.values(), np.uint32, count))]
        self._recent.clear()
        if len(self._runs) == _MOST_RUNS:
            runs += self._runs
            self._runs.clear()
        self._runs.append(_merged(runs))


def _merged(runs: list[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    addresses, numbers = Column("Q"), Column("I")
    for some, their_numbers in runs:
        addresses.extend(some)
        numbers.extend(their_numbers)
    address_of, number_of = addresses.array(), numbers.array()
    addresses, numbers = Column("Q"), Column("I")
    for order in in_order(address_of):
        addresses.extend(address_of[order])
        numbers.extend(number_of[order])
    return addresses.array(), numbers.array()
