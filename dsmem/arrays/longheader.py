"""The header of a finished object, read in windows: parsed as a whole it takes 1 to 2 KB for each tensor.

Only the form that dsmem writes is read so, with `__metadata__` first: of any other, ValueError and its like are raised.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from dsmem.arrays import header, jsontext
from dsmem.arrays.jsontext import Text

_MOST_METADATA = 16
_COMPARED_BYTES = 1 << 20


class LongHeader:
    """Where the texts of `__metadata__` lie, and then the tensors. Raises ValueError and its like, or DamagedObject."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        size_bytes = os.fstat(fd).st_size
        self.data_start = 8 + header.length(memoryview(os.pread(fd, 8, 0)), size_bytes)
        self.data_bytes = size_bytes - self.data_start
        self.places: dict[str, tuple[int, int]] = {}
        """Of each text of `__metadata__`, as an escaped string of JSON without the quotes."""
        self._text = Text(jsontext.pieces(fd, 8, self.data_start))
        if next(self._text.keys(), None) != "__metadata__":
            raise ValueError("no __metadata__ at the beginning")
        for key in self._text.keys():  # noqa: SIM118 - no dict
            if key in self.places or len(self.places) == _MOST_METADATA:
                raise ValueError("__metadata__ is not as dsmem writes it")
            begin = 8 + self._text.position + 1
            for _ in self._text.string():
                pass
            self.places[key] = begin, 8 + self._text.position - 1
        self._metadata_end = 8 + self._text.position

    @property
    def position(self) -> int:
        """Characters of the JSON read so far."""
        return self._text.position

    def raw(self, key: str) -> bytes:
        """A text of `__metadata__` as it is written, still escaped."""
        begin, end = self.places[key]
        return os.pread(self._fd, end - begin, begin)

    def text(self, key: str) -> str:
        """A text of `__metadata__`."""
        found: str = json.loads(b'"%b"' % self.raw(key))
        return found

    def json(self, key: str) -> Text:
        """The JSON that a text of `__metadata__` is, to be read in windows, too."""
        begin, end = self.places[key]
        return Text(Text(jsontext.pieces(self._fd, begin - 1, end + 1)).string())

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Name and description of every tensor, once: read to the end they are what the rest of the header is."""
        for name, entry in self._text.entries("}", inside=True):
            if name == "__metadata__":
                raise ValueError("a second __metadata__")
            yield name, entry

    def end(self) -> None:
        """Raise ValueError unless nothing comes behind the tensors."""
        self._text.end()

    def is_written_as(self, other: LongHeader, *, but: str) -> bool:
        """Whether both say the same in the same words, but for a text of `__metadata__`, and for spaces at the end."""
        if self.places.keys() != other.places.keys():
            return False
        mine = [*(self.places[key] for key in self.places if key != but), (self._metadata_end, self.data_start)]
        theirs = [*(other.places[key] for key in self.places if key != but), (other._metadata_end, other.data_start)]
        return all(
            _are_equal(self._fd, one, other._fd, two, padded=one is mine[-1])
            for one, two in zip(mine, theirs, strict=True)
        )


def _are_equal(fd: int, one: tuple[int, int], other_fd: int, two: tuple[int, int], *, padded: bool) -> bool:
    """Whether the bytes between these offsets of two files are equal; `padded`: spaces make up for what is missing."""
    longest = max(one[1] - one[0], two[1] - two[0])
    if not padded and one[1] - one[0] != two[1] - two[0]:
        return False
    for at in range(0, longest, _COMPARED_BYTES):
        size_bytes = min(_COMPARED_BYTES, longest - at)
        pieces = [
            os.pread(where, max(min(size_bytes, end - begin - at), 0), begin + at)
            for where, (begin, end) in ((fd, one), (other_fd, two))
        ]
        if pieces[0].ljust(size_bytes) != pieces[1].ljust(size_bytes):
            return False
    return True
