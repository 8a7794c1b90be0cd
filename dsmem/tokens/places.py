"""Where parts begin in the one file of ids: each where the one before ends, whoever is counted first."""

from __future__ import annotations

from collections.abc import Iterator

from dsmem.errors import SourceChanged


class Places:
    """Learns the sizes of parts in any order and tells where each begins, in order of their numbers from 0."""

    def __init__(self) -> None:
        self._sizes_bytes: dict[int, int] = {}
        self._placed: dict[int, int] = {}
        self._next = 0
        self._end_bytes = 0

    def count(self, number: int, size_bytes: int, *, placed_at: int | None = None) -> None:
        """A part has so many bytes, and was written at `placed_at` by an earlier run, if any."""
        self._sizes_bytes[number] = size_bytes
        if placed_at is not None:
            self._placed[number] = placed_at

    def known(self) -> Iterator[tuple[int, int]]:
        """Number and start of every part whose place is known by now and was not told before.

        Raises SourceChanged if an earlier run has written one elsewhere.
        """
        while self._next in self._sizes_bytes:
            number, start_bytes = self._next, self._end_bytes
            self._end_bytes += self._sizes_bytes.pop(number)
            self._next += 1
            placed = self._placed.pop(number, None)
            if placed is None:
                yield number, start_bytes
            elif placed != start_bytes:
                raise SourceChanged(
                    f"part {number} of an earlier run begins at byte {placed} instead of {start_bytes}: "
                    "parts before it have other tokens now; --restart begins anew"
                )

    def finish(self) -> None:
        """All parts are counted, and those of this run were told their places; raises SourceChanged as `known` does."""
        untold = list(self.known())
        assert not untold and not self._sizes_bytes, (untold, self._sizes_bytes)
