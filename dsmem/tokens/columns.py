"""Columns of text of Arrow tables as documents: a row each, many short ones together, a long one as it lies."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any

from dsmem.tokens.cutting import BLOCK_BYTES, MOST_DOCUMENT_BYTES, too_long
from dsmem.tokens.documents import Batch, Fault, Faults, kind_of

_ROWS_AT_ONCE = 1 << 16
"""Of a column, whose lengths are looked at together."""
_OTHER_BYTES = 64
"""Of a value that is no text, as if it had a length."""
LONG_ROW_BYTES = 4 << 20
"""A longer text is encoded bit by bit as it lies."""


def rows(columns: Iterable[Any], first_row: int, *, path: str, text_field: str, faults: Faults) -> Iterator[Batch]:
    """A text in each row of Arrow arrays, a column bit by bit, `first_row` (from 1) being the first."""
    for column in _together(columns):
        for begin, end, text_bytes in rows_together(column, BLOCK_BYTES):
            part = column.slice(begin, end - begin)
            if end - begin == 1 and text_bytes > LONG_ROW_BYTES:
                yield from _long_row(part, text_bytes, first_row + begin, path, faults)
            else:
                yield _of_column(part, text_bytes, first_row + begin, path, text_field, faults)
        first_row += len(column)


def _together(columns: Iterable[Any]) -> Iterator[Any]:
    """The same, small ones put together: encoding many small batches takes longer."""
    import pyarrow as pa

    held: list[Any] = []
    held_bytes = 0
    for column in columns:
        size_bytes = column.nbytes
        is_small = size_bytes < BLOCK_BYTES // 2 and not pa.types.is_dictionary(column.type)
        if held and (not is_small or held_bytes + size_bytes > 2 * BLOCK_BYTES):
            yield pa.concat_arrays(held)
            held, held_bytes = [], 0
        if is_small:
            held.append(column)
            held_bytes += size_bytes
        else:
            yield column
    if held:
        yield pa.concat_arrays(held)


def rows_together(column: Any, block_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Rows from one to before another that have about so many bytes together, or one that has more; and their bytes.

    Encoding about BLOCK_BYTES at once is a quarter faster than encoding what does not stay in the cache.
    """
    import numpy as np

    for first in range(0, len(column), _ROWS_AT_ONCE):
        lengths = _lengths(column.slice(first, _ROWS_AT_ONCE))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        begin, rows = 0, len(lengths)
        while begin < rows:
            end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + block_bytes, "right")) - 1)
            yield first + begin, first + end, int(offsets[end] - offsets[begin])
            begin = end


def _lengths(column: Any) -> Any:
    """Bytes of each row of a column, int64, some for each of what is no text; raises ArrowInvalid for one that lies
    outside of its buffers, which pyarrow does not look at."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import types

    kind, rows = column.type, len(column)
    lengths = np.full(rows, _OTHER_BYTES, np.int64)
    inside = True
    if types.is_dictionary(kind):
        values = _lengths(column.dictionary)
        indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        inside = not rows or (indices.min() >= 0 and indices.max() < max(1, len(values)))
        if inside and len(values):
            lengths = values[indices]
    elif types.is_string_view(kind):
        column.cast(pa.binary_view()).validate(full=True)
        if rows:
            views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)
            lengths = views[column.offset : column.offset + rows, 0].astype(np.int64)
    elif _is_text(kind) and rows:
        _, found, data = column.buffers()
        width = np.int64 if types.is_large_string(kind) else np.int32
        offsets = np.frombuffer(found, width)[column.offset : column.offset + rows + 1]
        lengths = np.diff(offsets).astype(np.int64)
        inside = offsets[0] >= 0 and lengths.min() >= 0 and offsets[-1] <= (0 if data is None else data.size)
    if not inside:
        raise pa.ArrowInvalid("a text lies outside of its record batch")
    if column.null_count:
        lengths = lengths * column.is_valid().to_numpy(zero_copy_only=False)
    return lengths


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _long_row(part: Any, text_bytes: int, row: int, path: str, faults: Faults) -> Iterator[Batch]:
    """One text, which is not made a string: that could take four times its bytes."""
    place = f"row {row}".__str__
    if text_bytes > MOST_DOCUMENT_BYTES:
        faults.add(path, place, too_long())
        return
    data = _as_it_lies(part)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, text_bytes, 1 << 20):
            decoder.decode(data[at : at + (1 << 20)], final=at + (1 << 20) >= text_bytes)
    except UnicodeDecodeError as exc:
        faults.add(path, place, f"not UTF-8: byte 0x{exc.object[exc.start]:02x}")
        return
    yield Batch(path, [], lambda _: f"row {row}", text_bytes, text_bytes, text_bytes, long=data)


def _as_it_lies(part: Any) -> memoryview:
    """The bytes of a single text; a scalar of pyarrow's would be a copy, made of another."""
    import numpy as np
    from pyarrow import types

    kind = part.type
    if types.is_dictionary(kind):
        return _as_it_lies(part.dictionary.slice(part.indices[0].as_py(), 1))
    if types.is_string_view(kind):
        return memoryview(part[0].as_buffer())
    _, found, data = part.buffers()
    offsets = np.frombuffer(found, np.int64 if types.is_large_string(kind) else np.int32)
    begin, end = offsets[part.offset : part.offset + 2].tolist()
    return memoryview(data)[begin:end]


def _of_column(part: Any, text_bytes: int, first_row: int, path: str, text_field: str, faults: Faults) -> Batch:
    try:
        values = part.to_pylist()
    except UnicodeDecodeError:
        values = [_one(value) for value in part]
    if set(map(type, values)) <= {str}:
        return Batch(path, values, lambda index: f"row {first_row + index}", text_bytes, text_bytes, text_bytes)
    texts: list[str] = []
    rows: list[int] = []
    for number, value in enumerate(values, first_row):
        if type(value) is str:
            texts.append(value)
            rows.append(number)
            continue
        reason = value.reason if isinstance(value, Fault) else f"{text_field!r} is {kind_of(value)}, not a string"
        faults.add(path, f"row {number}".__str__, reason)
    return Batch(path, texts, lambda index: f"row {rows[index]}", text_bytes, text_bytes)


def _one(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as exc:
        return Fault(f"not UTF-8: byte 0x{exc.object[exc.start]:02x}")
