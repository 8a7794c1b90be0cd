"""Pages of a column of a Parquet file, from their headers alone: how large each is before anything is decoded.

Headers are of Thrift's compact protocol (`PageHeader` in parquet.thrift of apache/parquet-format). pyarrow reads a page
whole and tells nobody its size before. What stands there is believed for limits only: whoever decodes reads the same
headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD_BYTES, _MOST_HEAD_BYTES = 512, 16 << 20
"""Read for a header; up to so many where it holds long statistics."""
_MOST_DEPTH = 8
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_DELTA_BYTE_ARRAY = 7
_OF_DICTIONARY = (2, 8)
"""Encodings: values of a dictionary, by number."""
_TYPE, _PLAIN_BYTES, _STORED_BYTES, _DATA_HEADER, _DICTIONARY_HEADER, _DATA_V2_HEADER = 1, 2, 3, 5, 7, 8
"""Fields of a PageHeader."""
_VALUES, _ENCODING, _V2_ENCODING = 1, 2, 4
"""Fields of the headers in it."""
Fields = dict[int, "int | Fields"]


class BadPages(Exception):
    """What is there are no headers of pages."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page."""

    start: int
    """Of its header, in the file."""
    end: int
    plain_bytes: int
    stored_bytes: int
    rows: int
    """Values, of a column that is not repeated; 0 for a dictionary."""
    is_dictionary: bool
    repeats: bool
    """Its values may have parts of one before them: more bytes together than the page."""
    refers: bool
    """Its values are those of the dictionary."""


def of_chunk(fd: int, start: int, end: int, rows: int) -> Iterator[Page]:
    """The pages of a column chunk, up to that many rows; raises BadPages."""
    at = start
    while rows > 0:
        fields, body = _header(fd, at, end)
        plain_bytes, stored_bytes = _number(fields, _PLAIN_BYTES), _number(fields, _STORED_BYTES)
        kind = _number(fields, _TYPE)
        page_rows = 0
        encoding = -1
        if kind in (_DATA, _DATA_V2):
            inner = fields.get(_DATA_HEADER if kind == _DATA else _DATA_V2_HEADER)
            if not isinstance(inner, dict):
                raise BadPages
            page_rows = _number(inner, _VALUES)
            encoding = _number(inner, _ENCODING if kind == _DATA else _V2_ENCODING)
        if plain_bytes < 0 or stored_bytes < 0 or page_rows < 0 or body + stored_bytes > end:
            raise BadPages
        yield Page(
            at,
            body + stored_bytes,
            plain_bytes,
            stored_bytes,
            page_rows,
            is_dictionary=kind == _DICTIONARY,
            repeats=encoding == _DELTA_BYTE_ARRAY,
            refers=encoding in _OF_DICTIONARY,
        )
        rows -= page_rows
        at = body + stored_bytes


def _number(fields: Fields, field: int) -> int:
    found = fields.get(field)
    if not isinstance(found, int):
        raise BadPages
    return found


def _header(fd: int, at: int, end: int) -> tuple[Fields, int]:
    """The fields of the header at a place of a file, and where it ends."""
    size = _HEAD_BYTES
    while True:
        data = os.pread(fd, min(size, max(end - at, 0)), at)
        try:
            fields, length = _struct(data, 0, 0)
        except IndexError as exc:
            if len(data) < size or size >= _MOST_HEAD_BYTES:
                raise BadPages from exc
            size *= 16
            continue
        return fields, at + length


def _struct(data: bytes, at: int, depth: int) -> tuple[Fields, int]:
    """Integers and structures in a structure, by their numbers, and where it ends; IndexError where data does."""
    if depth > _MOST_DEPTH:
        raise BadPages
    fields: Fields = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        if not head:
            return fields, at
        if head >> 4:
            field += head >> 4
        else:
            raw, at = _varint(data, at)
            field = _signed(raw)
        kind = head & 15
        if kind in (1, 2):  # a boolean: true, false
            fields[field] = 2 - kind
        elif kind == 3:
            fields[field] = data[at]
            at += 1
        elif kind in (4, 5, 6):
            raw, at = _varint(data, at)
            fields[field] = _signed(raw)
        elif kind == 7:
            at += 8
        elif kind == 8:
            size, at = _varint(data, at)
            at += size
        elif kind == 12:
            fields[field], at = _struct(data, at, depth + 1)
        else:
            raise BadPages  # lists, sets and maps: there are none in headers of pages


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise BadPages


def _signed(raw: int) -> int:
    return (raw >> 1) ^ -(raw & 1)
