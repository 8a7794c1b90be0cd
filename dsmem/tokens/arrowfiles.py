"""The column of text in an Arrow file, of either form, by record batches.

The file is mapped; pages of the map are given back as they are done with. A compressed batch is read whole.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from dsmem import units
from dsmem.errors import TableTooLarge
from dsmem.tokens import messages
from dsmem.tokens.columns import rows_together
from dsmem.tokens.documents import need_column
from dsmem.tokens.tables import BATCH_BYTES, MOST_BYTES, need_plain, reading, turn_for
from dsmem.tokens.turns import Turns


def record_batches(path: str, text_field: str) -> list[tuple[int, int]]:
    """Bytes in the column of text, as they lie, and rows of each record batch of an Arrow file.

    Raises BadSource, BadDocument (no column of that name that could hold text), TableTooLarge.
    """
    with reading(path), ArrowFile(path) as file:
        names = file.schema.names
        need_column(path, names, text_field)
        need_plain(path, text_field, file.schema.field(text_field).type)
        file.need(text_field)
        return file.sizes(text_field)


@contextmanager
def of_batches(path: str, start: int, end: int, text_field: str, turns: Turns) -> Iterator[Iterator[Any]]:
    """The column of text in these record batches, bit by bit; as `of_row_groups`."""
    with reading(path), ArrowFile(path) as file, turn_for(turns, file.need(text_field)):
        columns = file.columns(text_field, start, end)
        try:
            yield columns
        finally:
            columns.close()  # it holds on to the last batch


class ArrowFile:
    """An Arrow file, of either form, mapped; what is read of it is good until the next is asked for."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._path = path
        with Path(path).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise pa.ArrowInvalid("it is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._whole = pa.py_buffer(self._map)
        self._is_file = self._map[:6] == b"ARROW1"
        self.schema = self._open().schema
        self._messages = list(self._read_messages())
        self._is_compressed = any(one.decompressed_bytes for one in self._messages)

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *_: object) -> None:
        """The map ends with the last buffer that lies in it."""

    def _open(self, fields: Sequence[int] = ()) -> Any:
        """A reader; of these columns only, which then are copied."""
        import pyarrow as pa

        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=list(fields))
        opened = pa.ipc.open_file if self._is_file else pa.ipc.open_stream
        return opened(pa.BufferReader(self._whole), options=options)

    def _read_messages(self) -> Iterator[messages.Batch]:
        import pyarrow as pa

        begin = 8 if self._is_file else 0
        stream = pa.ipc.MessageReader.open_stream(pa.BufferReader(self._whole.slice(begin)))
        try:
            yield from messages.batches(stream)
        except messages.BadMessage as exc:
            raise pa.ArrowInvalid("its messages are none of Arrow's") from exc

    def need(self, text_field: str) -> int:
        """Bytes that the largest record batch takes in memory, with all dictionaries; raises TableTooLarge."""
        dictionaries = sum(one.need_bytes for one in self._messages if one.is_dictionary)
        largest = max((one.need_bytes for one in self._messages if not one.is_dictionary), default=0)
        if largest + dictionaries > MOST_BYTES:
            raise TableTooLarge(
                f"{self._path}: a record batch is compressed, and would take "
                f"{units.format_bytes(largest + dictionaries)} of memory, where {units.format_bytes(MOST_BYTES)} is "
                "the most",
                path=self._path,
                text_field=text_field,
                is_parquet=False,
            )
        return largest + dictionaries

    def sizes(self, text_field: str) -> list[tuple[int, int]]:
        """Bytes and rows of each record batch."""
        if self._is_compressed:
            return [(one.decompressed_bytes, one.rows) for one in self._messages if not one.is_dictionary]
        return [(column.nbytes, len(column)) for column in self._of(text_field, 0, sys.maxsize)]

    def _of(self, text_field: str, start: int, end: int) -> Iterator[Any]:
        number = self.schema.get_field_index(text_field)
        reader = self._open([number] if self._is_compressed else ())
        if self._is_file:
            for one in range(start, min(end, reader.num_record_batches)):
                yield reader.get_batch(one).column(text_field)
        else:
            yield from map(itemgetter(text_field), islice(reader, start, end))

    def columns(self, text_field: str, start: int, end: int) -> Generator[Any]:
        """The column of text in these batches, in slices."""
        columns = self._of(text_field, start, end)
        while (column := next(columns, None)) is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            for begin, stop, _ in rows_together(column, BATCH_BYTES):
                yield column.slice(begin, stop - begin)
                self._map.madvise(mmap.MADV_DONTNEED)
            del column  # or it would lie beside the next
