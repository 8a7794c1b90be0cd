"""Tables of very many small entries, kept as bytes: one takes 10 to 80 of them, and as objects 300 to 700.

`marshal` makes them of it. Those behind the first 4 MiB lie on a disk (`dsmem.scratch`), where it takes 1 µs each to
read them in order; where there is none they are compressed. They never leave the process.
"""

from __future__ import annotations

import bisect
import marshal
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from dsmem.scratch import Scratch

V = TypeVar("V")
_TOGETHER = 32
_TOGETHER_BYTES = 64 << 10
"""A block has so many, or so many bytes. What is read in another order takes one each time: 3 µs from the disk, and 20
where they are compressed; of 1,024, a third smaller then, 180."""
_PLAIN_BYTES = 4 << 20
"""So much, the first, is left as it is: quick to read in any order."""
_NAMES_BYTES = 256 << 10
_LEVEL = 1
_ENDS = struct.Struct("=I")


class _Blocks:
    """Blocks of bytes by number: in memory, on a disk, or compressed."""

    def __init__(self, plain_bytes: int, scratch: Scratch | None = None) -> None:
        self._plain: list[bytes] = []
        self._left_bytes = plain_bytes
        self._packed: list[bytes] = []
        self._scratch = scratch or Scratch()
        self._places, self._sizes, self._sums = array("q"), array("I"), array("I")
        """Where those that are not plain begin on the disk, or, below 0, the complement of a number of `_packed`."""

    def __len__(self) -> int:
        return len(self._plain) + len(self._places)

    def append(self, block: bytes) -> None:
        if len(block) <= self._left_bytes:
            self._left_bytes -= len(block)
            self._plain.append(block)
            return
        self._left_bytes = 0
        place = self._scratch.append(block)
        if place is None:
            self._packed.append(zlib.compress(block, _LEVEL))
            place = -len(self._packed)
        self._places.append(place)
        self._sizes.append(len(block))
        self._sums.append(zlib.crc32(block))

    def __getitem__(self, number: int) -> bytes:
        if number < len(self._plain):
            return self._plain[number]
        index = number - len(self._plain)
        place = self._places[index]
        if place < 0:
            return zlib.decompress(self._packed[~place])
        block = self._scratch.read(place, self._sizes[index])
        if zlib.crc32(block) != self._sums[index]:  # the disk failed, or someone closed descriptors that are not theirs
            raise OSError("a temporary file does not hold any more what was written to it")
        return block


class Blobs:
    """Bytes after bytes; those behind the first are quickest to be read in order."""

    def __init__(self) -> None:
        self._full = _Blocks(_PLAIN_BYTES)
        """Of some blobs each: where each ends, and what they are."""
        self._firsts = array("I", [0])
        """The number of the first blob of each block, and of the one to come."""
        self._data = bytearray()
        self._ends = array("I")
        self._last = (-1, b"")
        """The block that was read last."""

    def __len__(self) -> int:
        return self._firsts[-1] + len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        block = bisect.bisect_right(self._firsts, number) - 1
        place = number - self._firsts[block]
        if block == len(self._full):
            return bytes(self._data[self._ends[place - 1] if place else 0 : self._ends[place]])
        last, data = self._last
        if last != block:
            data = self._full[block]
            self._last = block, data
        ends_bytes = _ENDS.size * (self._firsts[block + 1] - self._firsts[block])
        begin = _ENDS.unpack_from(data, _ENDS.size * (place - 1))[0] if place else 0
        (end,) = _ENDS.unpack_from(data, _ENDS.size * place)
        return data[ends_bytes + begin : ends_bytes + end]

    def append(self, blob: bytes) -> None:
        """Add one behind the others, of less than 4 GiB."""
        self._data += blob
        self._ends.append(len(self._data))
        if len(self._ends) == _TOGETHER or len(self._data) >= _TOGETHER_BYTES:
            self._full.append(self._ends.tobytes() + self._data)
            self._firsts.append(self._firsts[-1] + len(self._ends))
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
    """Texts in order that hold no NUL, as those of HDF5's links; `joined`: what `joined` gave.

    Many lie in `scratch`, which several may have in common: each of its own has a descriptor.
    """

    def __init__(self, joined: bytes = b"", scratch: Scratch | None = None) -> None:
        self._scratch = scratch
        self._full: _Blocks | None = None
        """What comes before the rest, if there are many."""
        self._joined = bytearray(joined)
        self._count = joined.count(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for joined in self._parts():
            begin = 0
            while begin < len(joined):
                end = joined.index(0, begin)
                yield joined[begin:end].decode("utf-8", "surrogateescape")
                begin = end + 1

    def _parts(self) -> Iterator[bytes | bytearray]:
        for number in range(0 if self._full is None else len(self._full)):
            yield self._full[number]  # type: ignore[index]
        yield self._joined

    def append(self, name: str | bytes) -> None:
        """Add one behind the others; bytes are UTF-8."""
        self._joined += name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        self._joined.append(0)
        self._count += 1
        if len(self._joined) >= _NAMES_BYTES:
            self._put()

    def _put(self) -> None:
        if self._full is None:
            self._full = _Blocks(0, self._scratch)
        self._full.append(bytes(self._joined))
        self._joined.clear()

    def are_stored(self) -> bool:
        """Whether they are many, most of which are in memory no more; then all are not, if no more are added."""
        if self._full is not None and self._joined:
            self._put()
        return self._full is not None

    def joined(self) -> bytes:
        """All of them, to be kept."""
        return b"".join(self._parts())
