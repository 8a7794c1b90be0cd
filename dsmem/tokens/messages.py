"""Messages of Arrow files: what a record batch takes once its buffers are decompressed, told before they are.

The metadata of a message is a flatbuffer (`Message.fbs`, `RecordBatch` in apache/arrow, format/); a compressed buffer
begins with its length once it is decompressed, an int64, -1 for one that was left as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER_TYPE, _HEADER = 1, 2
"""Fields of a Message."""
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_DATA = 1
"""Field of a DictionaryBatch: its RecordBatch."""
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
"""Fields of a RecordBatch."""
_BUFFER = struct.Struct("<qq")


class BadMessage(Exception):
    """What is there is no message of Arrow's."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A record batch, or the values of a dictionary."""

    rows: int
    is_dictionary: bool
    decompressed_bytes: int
    """Of all its columns; 0 where it lies as it is read."""
    need_bytes: int
    """To read it: that, and what is copied of it before."""


def batches(reader: Any) -> Iterator[Batch]:
    """Of each message that pyarrow's MessageReader gives; raises BadMessage."""
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        try:
            found = _batch(memoryview(message.metadata), memoryview(message.body or b""))
        except struct.error as exc:
            raise BadMessage from exc
        if found is not None:
            yield found


def _batch(metadata: memoryview, body: memoryview) -> Batch | None:
    root = _at("<I", metadata, 0)
    kind_at, header_at = _field(metadata, root, _HEADER_TYPE), _field(metadata, root, _HEADER)
    kind = _at("<B", metadata, kind_at) if kind_at else 0
    if kind not in (_DICTIONARY, _BATCH) or not header_at:
        return None
    table = _follow(metadata, header_at)
    if kind == _DICTIONARY:
        table = _follow(metadata, _field(metadata, table, _DATA))
    rows_at = _field(metadata, table, _LENGTH)
    rows = _at("<q", metadata, rows_at) if rows_at else 0
    size_bytes = 0
    if _field(metadata, table, _COMPRESSION):
        vector = _follow(metadata, _field(metadata, table, _BUFFERS))
        for number in range(_at("<I", metadata, vector)):
            start, length = _BUFFER.unpack_from(metadata, vector + 4 + number * _BUFFER.size)
            if length >= 8 and start >= 0:
                size_bytes += max(_at("<q", body, start), length)
    return Batch(rows, kind == _DICTIONARY, size_bytes, size_bytes + len(body) if size_bytes else 0)


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is; 0 where it has none."""
    vtable = table - _at("<i", data, table)
    if vtable < 0:
        raise BadMessage
    entry = 4 + 2 * number
    offset = _at("<H", data, vtable + entry) if entry < _at("<H", data, vtable) else 0
    return table + offset if offset else 0


def _follow(data: memoryview, at: int) -> int:
    return at + _at("<I", data, at)


def _at(form: str, data: memoryview, at: int) -> int:
    if at < 0:
        raise BadMessage
    found: int = struct.unpack_from(form, data, at)[0]
    return found
