"""The indices beside a `.bin`, Megatron-LM's `.idx` and the document ends in `.docs.npy`, written in blocks.

Both are written from a stream of document ends and never held whole: 8 bytes a document are already 8 GB at a billion.
The form of `.idx` is that of megatron/core/datasets/indexed_dataset.py (`_IndexWriter`, `_IndexReader`), version 1:
after the counts come int32 lengths, int64 byte pointers, and int64 document indices that start at 0; here every
sequence is a document, so the last is 0, 1, …, documents.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from dsmem.errors import BadSource
from dsmem.tokens.layout import IDX_CODES, IDX_MAGIC, IDX_VERSION, ITEM_BYTES, TokenDtype

BLOCK = 1 << 17
"""Documents looked at at once."""
LONGEST_IDX_DOCUMENT = (1 << 31) - 1
_HEADER = struct.Struct("<9sQBQQ")
_NPY_HEADER_BYTES = 128
Ends = np.ndarray[tuple[int], np.dtype[np.uint64]]


class EndsWriter:
    """Writes a `.docs.npy` from blocks of lengths; the header, which holds the count, is written last."""

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = Path(path).open("wb")  # noqa: SIM115 - closed by `close`
        self._file.write(bytes(_NPY_HEADER_BYTES))
        self.documents = 0
        self.tokens = 0
        self.longest = 0

    def __enter__(self) -> EndsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                npy.write_array_header_1_0(
                    self._file, {"descr": "<u8", "fortran_order": False, "shape": (self.documents,)}
                )
                assert self._file.tell() == _NPY_HEADER_BYTES
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, lengths: Ends) -> None:
        """Append documents of these lengths in tokens."""
        if len(lengths):
            ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(self.tokens)
            self._file.write(np.ascontiguousarray(ends, "<u8").data)
            self.documents += len(lengths)
            self.tokens = int(ends[-1])
            self.longest = max(self.longest, int(lengths.max()))


def blocks_of(ends: Ends) -> Iterator[tuple[int, Ends]]:
    """The ends in blocks of BLOCK in memory, each with the end before it (0 for the first)."""
    before = 0
    for start in range(0, len(ends), BLOCK):
        block = np.array(ends[start : start + BLOCK], np.uint64)
        yield before, block
        before = int(block[-1])


def check_rising(ends: Ends, path: str) -> None:
    """Raise BadSource where a document of `path` ends before the one in front of it: one pass over the ends."""
    first = 0
    for before, block in blocks_of(ends):
        falls = np.flatnonzero(block < np.concatenate((np.array([before], np.uint64), block[:-1])))
        if len(falls):
            raise BadSource(f"{path}: document {first + int(falls[0])} ends before the one in front of it")
        first += len(block)


def lengths_of(before: int, ends: Ends) -> Ends:
    """Tokens of each document, from the ends and the end before them."""
    return np.diff(ends, prepend=np.uint64(before))


def write_index(path: str, ends: Ends, dtype: TokenDtype) -> None:
    """Write Megatron's `.idx` for documents with these ends; each must be at most LONGEST_IDX_DOCUMENT long."""
    with Path(path).open("wb") as file:
        for piece in pieces(ends, dtype):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def pieces(ends: Ends, dtype: TokenDtype) -> Iterator[memoryview]:
    """The bytes of the `.idx`, in order."""
    item_bytes = np.uint64(ITEM_BYTES[dtype])
    yield memoryview(_HEADER.pack(IDX_MAGIC, IDX_VERSION, IDX_CODES[dtype], len(ends), len(ends) + 1))
    for before, block in blocks_of(ends):
        yield lengths_of(before, block).astype("<i4").view(np.uint8).data
    for before, block in blocks_of(ends):
        starts = np.concatenate((np.array([before], np.uint64), block[:-1]))
        yield (starts * item_bytes).astype("<i8").view(np.uint8).data
    for first in range(0, len(ends) + 1, BLOCK):
        yield np.arange(first, min(first + BLOCK, len(ends) + 1), dtype="<i8").view(np.uint8).data
