"""The process that decodes small chunks (`python -m`): bands on standard input, a line for each on standard output.

Plain bands (`ChunkedDataset.is_plain`) need neither numpy nor the codecs, and are decoded before those are imported.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from dsmem import files, helpers, malloc
from dsmem.errors import BadSource
from dsmem.hdf5.stored import StoredChunks
from dsmem.store import writing

if TYPE_CHECKING:
    from dsmem.hdf5.chunks import Band, ChunkedDataset

_MOST_MAPPED = 32
"""Datasets whose chunk tables are mapped at once: each takes three maps, and a descriptor for each map."""
_KEPT_BYTES = 8 << 20
"""Of malloc's: what a band of chunks took is there for the next one, without page faults (9 % of all CPU)."""


class _Target:
    """The draft: through a map where it is in place, else by write(2)."""

    def __init__(self, fd: int, mapped_bytes: int) -> None:
        self._fd = fd
        self._map = writing.mapped(fd, mapped_bytes) if mapped_bytes else None

    def write_pieces(self, offset: int, pieces: Sequence[bytearray]) -> None:
        if self._map is None:
            writing.pwrite_pieces(self._fd, pieces, offset)
        else:
            writing.populated(self._map, offset, sum(map(len, pieces)))[:] = b"".join(pieces)

    def decode(self, dataset: ChunkedDataset, band: Band, offset: int) -> int:
        import numpy as np

        if self._map is not None:
            return dataset.decode(band, np.frombuffer(writing.populated(self._map, offset, band.size_bytes), np.uint8))
        out = np.empty(band.size_bytes, np.uint8)
        done = dataset.decode(band, out)
        files.pwrite_full(self._fd, out.data, offset)
        return done


class _Dataset:
    def __init__(self, known: dict[str, Any], fd: int, tables_fd: int) -> None:
        self._known = known
        self._stored = StoredChunks(fd, known["label"])
        self._tables_fd = tables_fd
        self._chunk_bytes = known["item_bytes"]
        for extent in known["chunks"]:
            self._chunk_bytes *= extent
        chunks = 1
        for count in known["grid"]:
            chunks *= count
        self._columns = [self._column(code, start, chunks) for code, start in known["columns"]]

    def _column(self, code: str, start: int, items: int) -> memoryview | int:
        """One column of its chunk table, read-only, shared with the parent; an int: all are that."""
        if not code:
            return start
        before = start % mmap.ALLOCATIONGRANULARITY
        whole = mmap.mmap(
            self._tables_fd,
            before + items * struct.calcsize(code),
            offset=start - before,
            prot=mmap.PROT_READ,
            flags=mmap.MAP_SHARED,
        )
        numbers: memoryview = memoryview(whole)[before:].cast(code)  # type: ignore[call-overload]  # as numpy calls it
        return numbers

    @cached_property
    def _decoding(self) -> ChunkedDataset:
        import numpy as np

        from dsmem.hdf5.chunks import ChunkedDataset, ChunkTable
        from dsmem.hdf5.codecs import Filter, Pipeline

        known = self._known
        filters = [Filter(code, tuple(values), name) for code, values, name in known["filters"]]
        grid = tuple(known["grid"])
        offsets, sizes, masks = (
            np.broadcast_to(np.int64(column), math.prod(grid))
            if isinstance(column, int)
            else np.frombuffer(column, column.format)
            for column in self._columns
        )
        return ChunkedDataset(
            self._stored,
            ChunkTable(grid, offsets, sizes, masks),
            shape=tuple(known["shape"]),
            chunks=tuple(known["chunks"]),
            item_bytes=known["item_bytes"],
            pipeline=Pipeline(filters, self._chunk_bytes),
            fill=bytes.fromhex(known["fill_hex"]),
            label=known["label"],
        )

    def decode(self, target: _Target, is_plain: bool, place: Sequence[int]) -> int:
        """Decode a band (the fields of `Band`) into the target; returns how many bytes it is."""
        first, last, start, size_bytes = place[:4]
        offset = self._known["place"] + start
        if is_plain:
            offsets, sizes = (
                [column] * (last - first) if isinstance(column, int) else column[first:last].tolist()
                for column in self._columns[:2]
            )
            pieces = self._stored.inflated(offsets, sizes, self._chunk_bytes)
            if pieces is not None:
                target.write_pieces(offset, pieces)
                return size_bytes
        from dsmem.hdf5.chunks import Band

        return target.decode(self._decoding, Band(*place), offset)  # type: ignore[arg-type]  # JSON keeps its bool


def main(arguments: Sequence[str]) -> None:
    """Serve one parent: its pid, the descriptors, the size of the map, and whether numpy will be needed."""
    parent, fd, draft_fd, tables_fd, mapped_bytes, with_numpy = (int(argument) for argument in arguments)
    helpers.end_with_parent(parent)
    helpers.ignore_interrupts()
    malloc.tune(mapped_bytes=_KEPT_BYTES, trimmed_bytes=_KEPT_BYTES)
    target = _Target(draft_fd, mapped_bytes)
    told: list[bytes] = []

    @lru_cache(_MOST_MAPPED)
    def dataset(number: int) -> _Dataset:
        return _Dataset(json.loads(told[number]), fd, tables_fd)

    if with_numpy:
        import dsmem.hdf5.chunks  # noqa: F401 - while the parent reads the chunk index
    for line in sys.stdin.buffer:
        if line.startswith(b"{"):
            told.append(line)
            continue
        number, is_plain, *place = json.loads(line)
        answer: dict[str, object]
        try:
            answer = {"done": dataset(number).decode(target, is_plain, place)}
        except BadSource as exc:
            answer = {"error": str(exc)}
        except OSError as exc:
            answer = {"errno": exc.errno or errno.EIO}
        except MemoryError:
            answer = {"errno": errno.ENOMEM}
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
