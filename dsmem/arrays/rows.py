"""Tables of very many small entries, kept as bytes: one takes 10 to 80 of them, and as objects 300 to 700.

`marshal` makes 30 to 70 of it, which zlib makes smaller at 1 µs each; they never leave the process.
"""

from __future__ import annotations

import marshal
import struct
import zlib
from array import array
from collections.abc import Callable, Collection, Iterator
from typing import Any, Generic, TypeVar, cast

V = TypeVar("V")
_TOGETHER = 32
"""What is read in another order takes a block each time: some 20 µs; 1,024 are a third smaller, and take 180."""
_PLAIN_BLOCKS = 2048
"""So many, the first, are left as they are: they take little, and are quick to read in any order."""
_LEVEL = 1
_ENDS = struct.Struct("=I")


class Blobs:
    """Bytes after bytes; those behind the first 65,536 are compressed, and quickest to be read in order."""

    def __init__(self) -> None:
        self._full: list[bytes] = []
        """Blocks of `_TOGETHER` blobs: where each ends, and what they are."""
        self._data = bytearray()
        self._ends = array("I")
        self._last = (-1, b"")
        """The block that was decompressed last, and its bytes."""

    def __len__(self) -> int:
        return len(self._full) * _TOGETHER + len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        block, place = divmod(number, _TOGETHER)
        if block == len(self._full):
            return bytes(self._data[self._ends[place - 1] if place else 0 : self._ends[place]])
        data = self._block(block)
        begin = _ENDS.unpack_from(data, _ENDS.size * (place - 1))[0] if place else 0
        (end,) = _ENDS.unpack_from(data, _ENDS.size * place)
        return data[_TOGETHER * _ENDS.size + begin : _TOGETHER * _ENDS.size + end]

    def _block(self, number: int) -> bytes:
        if number < _PLAIN_BLOCKS:
            return self._full[number]
        last, data = self._last
        if last != number:
            data = zlib.decompress(self._full[number])
            self._last = number, data
        return data

    def append(self, blob: bytes) -> None:
        """Add one behind the others, of less than 4 GiB."""
        self._data += blob
        self._ends.append(len(self._data))
        if len(self._ends) == _TOGETHER:
            block = self._ends.tobytes() + self._data
            self._full.append(block if len(self._full) < _PLAIN_BLOCKS else zlib.compress(block, _LEVEL))
            self._data.clear()
            del self._ends[:]


class Rows(Generic[V]):
    """Values in order, made anew whenever one is asked for: numbers, texts, bytes, None, and tuples of them.

    Numbers of Python's: those of numpy would come back as bytes.
    """

    def __init__(self) -> None:
        self._blobs = Blobs()

    def __len__(self) -> int:
        return len(self._blobs)

    def __getitem__(self, number: int) -> V:
        return cast(V, marshal.loads(self._blobs[number]))

    def __iter__(self) -> Iterator[V]:
        return map(self.__getitem__, range(len(self)))

    def append(self, value: V) -> None:
        """Add a value behind the others; lists and tables of what is said above may be in it, too."""
        self._blobs.append(marshal.dumps(cast(Any, value)))


class Table(Generic[V]):
    """Entries with a name, in order. Whoever looks for names makes a dict of its `items`."""

    def __init__(self) -> None:
        self._rows: Rows[tuple[str, V]] = Rows()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, value: V) -> None:
        """Add an entry behind the others; nobody looks whether the name is there."""
        self._rows.append((name, value))

    def items(self) -> Iterator[tuple[str, V]]:
        """All entries."""
        return iter(self._rows)

    def kept(self, wanted: Callable[[str, V], bool]) -> Table[V]:
        """A table of those that are wanted."""
        table: Table[V] = Table()
        for name, value in self.items():
            if wanted(name, value):
                table.add(name, value)
        return table


class Names:
    """Texts in order that hold no NUL, as those of HDF5's links; `joined`: what `joined` gave."""

    def __init__(self, joined: bytes = b"") -> None:
        self._joined = bytearray(joined)
        self._count = joined.count(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for _ in range(self._count):
            end = self._joined.index(0, begin)
            yield self._joined[begin:end].decode("utf-8", "surrogateescape")
            begin = end + 1

    def append(self, name: str | bytes) -> None:
        """Add one behind the others; bytes are UTF-8."""
        self._joined += name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        self._joined.append(0)
        self._count += 1

    def without(self, names: Collection[str]) -> Names:
        """These but for some; the same object where there are none."""
        if not names:
            return self
        left = Names()
        for name in self:
            if name not in names:
                left.append(name)
        return left

    def joined(self) -> bytes:
        """All of them, to be kept."""
        return bytes(self._joined)
