"""Some pages of a column of a Parquet file as a Parquet file of their own, so that several workers read one row group.

A row group is often hundreds of MiB, and pyarrow reads it from its first page on. What lies in the file is handed on
as it is: the dictionary, if there is one, and the pages, behind them a footer that tells of this one column. It is
written by Thrift's compact protocol (`FileMetaData` in parquet.thrift of apache/parquet-format).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dsmem.tokens.pages import Page

_MAGIC = b"PAR1"
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
"""By pyarrow's names: its LZ4 is LZ4_RAW; the older one, which it does not name, is not read so."""
_BYTE_ARRAY, _UTF8 = 6, 0
_PLAIN, _RLE, _DICTIONARY = 0, 3, 8
_INT, _LONG, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
"""Types of Thrift's compact protocol."""
_SMALL_PAGE_BYTES = 12 << 20
"""What is larger is read by whole row groups: it takes turns."""
_MOST_DICTIONARY_BYTES = 64 << 20
"""Of a dictionary, read for each excerpt that refers to it, together."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Which pages: bytes of the file."""

    dictionary: tuple[int, int]
    """From where to before where; the same twice if there is none."""
    data: tuple[int, int]
    rows: int
    codec: int
    """Parquet's number of how pages are compressed."""
    is_optional: bool
    """Rows may hold nothing."""

    def dump(self) -> tuple[int, ...]:
        """For JSON."""
        return (*self.dictionary, *self.data, self.rows, self.codec, int(self.is_optional))

    @classmethod
    def load(cls, raw: Sequence[int]) -> Excerpt:
        """From what `dump` gave."""
        begin, end, first, last, rows, codec, is_optional = raw
        return cls((begin, end), (first, last), rows, codec, bool(is_optional))


def fits(column: Any, chunk: Any) -> bool:
    """Whether a column chunk, by pyarrow's `ColumnSchema` and metadata, holds a text or nothing in each row, in pages
    that can be handed on."""
    is_flat = column.max_repetition_level == 0 and column.max_definition_level <= 1
    is_text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "STRING"
    return bool(is_flat and is_text and chunk.compression in _CODECS)


def cut(column: Any, chunk: Any, found: Iterable[Page], sizes: Sequence[int]) -> list[tuple[Excerpt, int]]:
    """The pages of a column chunk that fits in excerpts of at least so many bytes, decoded, and how many each has; the
    last of the sizes counts for all that follow. None at all where pages or a dictionary are too large for that."""
    excerpts: list[tuple[Excerpt, int]] = []
    dictionary, dictionary_bytes = (0, 0), 0
    start = end = held_bytes = rows = 0
    refers = False

    def add() -> None:
        nonlocal held_bytes, rows, refers
        is_optional = column.max_definition_level > 0
        needed = dictionary if refers else (0, 0)
        one = Excerpt(needed, (start, end), rows, _CODECS[chunk.compression], is_optional)
        excerpts.append((one, held_bytes))
        held_bytes = rows = 0
        refers = False

    for page in found:
        if page.plain_bytes > _SMALL_PAGE_BYTES:
            return []
        if page.is_dictionary:
            dictionary, dictionary_bytes = (page.start, page.end), page.plain_bytes
            continue
        if not rows:
            start = page.start
        end, held_bytes, rows = page.end, held_bytes + page.plain_bytes, rows + page.rows
        refers = refers or page.refers
        if held_bytes >= sizes[min(len(excerpts), len(sizes) - 1)]:
            add()
    if rows:
        add()
    references = sum(one.dictionary[0] < one.dictionary[1] for one, _ in excerpts)
    if references > 1 and references * dictionary_bytes > _MOST_DICTIONARY_BYTES:
        return []
    return excerpts if sum(one.rows for one, _ in excerpts) == chunk.num_values else []


class ExcerptFile(io.RawIOBase):
    """An excerpt as a file to read; the file behind stays open."""

    def __init__(self, fd: int, excerpt: Excerpt, name: str) -> None:
        self._fd = fd
        self._at = 0
        (begin, end), (first, last) = excerpt.dictionary, excerpt.data
        dictionary_at = len(_MAGIC)
        data_at = dictionary_at + end - begin
        footer_at = data_at + last - first
        footer = _footer(
            name,
            excerpt,
            dictionary_at=dictionary_at if begin < end else None,
            data_at=data_at,
            size_bytes=footer_at - dictionary_at,
        )
        self._tail = footer + len(footer).to_bytes(4, "little") + _MAGIC
        self._parts = [(0, dictionary_at, None), (dictionary_at, data_at, begin), (data_at, footer_at, first)]
        self._footer_at = footer_at
        self._size = footer_at + len(self._tail)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """That many bytes, fewer at the end only."""
        found: list[bytes] = []
        left = self._size - self._at if size < 0 else min(size, self._size - self._at)
        while left > 0 and (data := self._some(left)):
            found.append(data)
            self._at += len(data)
            left -= len(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def _some(self, size: int) -> bytes:
        for begin, end, there in self._parts:
            if begin <= self._at < end:
                size = min(size, end - self._at)
                if there is None:
                    return _MAGIC[self._at : self._at + size]
                return os.pread(self._fd, size, there + self._at - begin)
        at = self._at - self._footer_at
        return self._tail[at : at + size]


def _footer(name: str, excerpt: Excerpt, *, dictionary_at: int | None, data_at: int, size_bytes: int) -> bytes:
    """FileMetaData of one column and one row group."""
    text, rows = name.encode(), excerpt.rows
    column = _struct((1, _INT, _BYTE_ARRAY), (3, _INT, int(excerpt.is_optional)), (4, _BINARY, text), (6, _INT, _UTF8))
    root = _struct((4, _BINARY, b"schema"), (5, _INT, 1))
    about = _struct(
        (1, _INT, _BYTE_ARRAY),
        (2, _LIST, _list(_INT, [_number(one) for one in (_PLAIN, _RLE, _DICTIONARY)])),
        (3, _LIST, _list(_BINARY, [_binary(text)])),
        (4, _INT, excerpt.codec),
        (5, _LONG, rows),
        (6, _LONG, size_bytes),
        (7, _LONG, size_bytes),
        (9, _LONG, data_at),
        *([] if dictionary_at is None else [(11, _LONG, dictionary_at)]),
    )
    chunk = _struct((2, _LONG, 0), (3, _STRUCT, about))
    group = _struct((1, _LIST, _list(_STRUCT, [chunk])), (2, _LONG, size_bytes), (3, _LONG, rows))
    return _struct(
        (1, _INT, 1), (2, _LIST, _list(_STRUCT, [root, column])), (3, _LONG, rows), (4, _LIST, _list(_STRUCT, [group]))
    )


def _struct(*fields: tuple[int, int, Any]) -> bytes:
    """Fields by number, type and value; lists and structures are bytes already."""
    found, before = bytearray(), 0
    for number, kind, value in fields:
        found.append((number - before) << 4 | kind)
        before = number
        if kind in (_INT, _LONG):
            found += _number(value)
        else:
            found += _binary(value) if kind == _BINARY else value
    return bytes(found) + b"\0"


def _list(kind: int, values: Sequence[bytes]) -> bytes:
    return bytes([len(values) << 4 | kind]) + b"".join(values)


def _binary(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _number(value: int) -> bytes:
    return _varint(value << 1 ^ value >> 63)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
