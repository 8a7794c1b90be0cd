"""Tables as record batches whose memory is bounded, whatever the sizes of their row groups, pages and batches.

pyarrow reads a page of a Parquet file whole, and a compressed record batch of an Arrow file. What that takes is told
before (`dsmem.tokens.pages`, `dsmem.tokens.messages`): what takes much is read by one worker at a time, and what would
take more than MOST_BYTES is refused by name. Here are Parquet files and what both have in common.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsmem import units
from dsmem.errors import BadDocument, BadSource, TableTooLarge
from dsmem.tokens import excerpts, pages
from dsmem.tokens.cutting import BLOCK_BYTES
from dsmem.tokens.documents import need_column
from dsmem.tokens.excerpts import Excerpt, ExcerptFile
from dsmem.tokens.pages import BadPages, Page
from dsmem.tokens.turns import Turns

MOST_BYTES = 448 << 20
"""Of memory for pages, or for a record batch; what encodes them, and what other workers keep, comes on top."""
ALONE_BYTES = 32 << 20
"""Who needs more waits for its turn."""
BATCH_BYTES = 32 << 20
"""Of text in a batch, unless a single one is longer."""
_MOST_ROWS, _MOST_STORED_BYTES = 4096, 64 << 20
"""Of a Parquet file: rows decoded at once, and bytes of a row group read at once."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What a Parquet file says about the text in a row group."""

    text_bytes: int
    stored_bytes: int
    """Compressed."""
    rows: int


def text_of_group(metadata: Any, group: int, text_field: str) -> RowGroup:
    """The column of text in a row group."""
    mine = _chunks(metadata, group, text_field)
    return RowGroup(
        sum(one.total_uncompressed_size for one in mine),
        sum(one.total_compressed_size for one in mine),
        metadata.row_group(group).num_rows,
    )


def _chunks(metadata: Any, group: int, text_field: str) -> list[Any]:
    return [metadata.row_group(group).column(number) for number in _leaves(metadata, text_field)]


def _leaves(metadata: Any, text_field: str) -> list[int]:
    """Numbers of the columns of that name. What the file says of others is not looked at: if they are encrypted,
    pyarrow ends the process."""
    return [number for number in range(metadata.num_columns) if metadata.schema.column(number).path == text_field]


def _need_readable(path: str, file: Any, text_field: str) -> None:
    """Raise BadSource for a column that is encrypted, which pyarrow tells when it reads it only. Behind the footer of
    a file with such columns, if it is not encrypted itself, lies its signature."""
    with Path(path).open("rb") as raw:
        raw.seek(-8, os.SEEK_END)
        footer_bytes = int.from_bytes(raw.read(4), "little")
    if footer_bytes != file.metadata.serialized_size and file.metadata.num_row_groups:
        next(file.iter_batches(1, row_groups=[0], columns=[text_field]), None)


def row_groups(path: str, text_field: str) -> list[tuple[int, int]]:
    """Bytes in the column of text, and rows, of each of a Parquet file.

    Raises BadSource, BadDocument (no column of that name that could hold text).
    """
    from pyarrow import parquet

    with reading(path), parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        need_column(path, [schema.field(number).name for number in range(len(schema))], text_field)
        need_plain(path, text_field, schema.field(text_field).type)
        _need_readable(path, file, text_field)
        found = [text_of_group(file.metadata, group, text_field) for group in range(file.metadata.num_row_groups)]
        return [(one.text_bytes, one.rows) for one in found]


def need_plain(path: str, text_field: str, kind: Any) -> None:
    """Raise BadDocument for a column of bytes, lists or structures: none of them is text, and each may hold much."""
    from pyarrow import types

    held = kind.value_type if types.is_dictionary(kind) else kind
    is_bytes = types.is_binary(held) or types.is_large_binary(held) or types.is_binary_view(held)
    if is_bytes or types.is_nested(held) or types.is_run_end_encoded(held):
        raise BadDocument(f"{path}: column {text_field!r} holds {kind}, not text", path=path)


def hold_little() -> None:
    """In a process that does nothing else: what pyarrow gives back goes to the system. Its own allocator keeps some 20
    MiB more of pages of 3.5 MiB, in every worker."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def metadata_of(path: str) -> Any:
    """What the footer of a Parquet file says, for `excerpts_of`; raises BadSource."""
    from pyarrow import parquet

    with reading(path):
        return parquet.read_metadata(path)


def excerpts_of(
    path: str, metadata: Any, group: int, text_field: str, sizes: Sequence[int]
) -> list[tuple[Excerpt, int]]:
    """A row group in excerpts of at least so many bytes of text, and how many each has; none where it can't be cut.

    Raises BadSource.
    """
    for number in _leaves(metadata, text_field):
        column, chunk = metadata.schema.column(number), metadata.row_group(group).column(number)
        if excerpts.fits(column, chunk):
            return excerpts.cut(column, chunk, _pages(path, metadata, [group], text_field), sizes)
    return []


@contextmanager
def of_row_groups(
    path: str, start: int, end: int, text_field: str, turns: Turns, excerpt: Excerpt | None = None
) -> Iterator[Iterator[Any]]:
    """The column of text in these row groups, or in an excerpt of the first; its worker waits for its turn where they
    take much.

    Raises BadSource, TableTooLarge.
    """
    from pyarrow import parquet

    with ExitStack() as stack:
        stack.enter_context(reading(path))
        if excerpt is None:
            about = parquet.read_metadata(path)
            groups = [text_of_group(about, group, text_field) for group in range(start, end)]
            read = list(_pages(path, about, range(start, end), text_field))
            # What lies in the file for a row group is read at once where that is a little faster and bounded.
            is_large = max(one.stored_bytes for one in groups) > min(_MOST_STORED_BYTES, ALONE_BYTES)
            opened: Any = path
        else:
            import pyarrow as pa

            behind = stack.enter_context(Path(path).open("rb", buffering=0))
            opened = pa.PythonFile(ExcerptFile(behind.fileno(), excerpt, text_field), "r")
            read = list(_pages_of_excerpt(path, start, excerpt))
            about, is_large, start, end = None, True, 0, 1
        need_bytes = _need_bytes(read)
        if need_bytes > MOST_BYTES:
            raise _too_large(path, text_field, read, need_bytes)
        stack.enter_context(turn_for(turns, need_bytes))
        with parquet.ParquetFile(
            opened,
            metadata=about,
            memory_map=False,
            pre_buffer=False,
            buffer_size=BLOCK_BYTES if is_large else 0,
        ) as file:
            found = file.iter_batches(
                batch_size=_rows_at_once(read),
                row_groups=range(start, end),
                columns=[text_field],
                use_threads=False,
            )
            columns = _first_columns(found, is_large=need_bytes > ALONE_BYTES)
            try:
                yield columns
            finally:
                columns.close()  # it holds on to the last batch
                del found, columns, file


def _release() -> None:
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _first_columns(batches: Iterator[Any], *, is_large: bool) -> Generator[Any]:
    for batch in batches:
        column = batch.column(0)
        del batch
        if is_large:
            _release()  # as much as the batch, from making it
        yield column
        del column  # or it would lie beside the next


def _pages_of_excerpt(path: str, group: int, excerpt: Excerpt) -> Iterator[Page]:
    with Path(path).open("rb", buffering=0) as file:
        (begin, end), (first, last) = excerpt.dictionary, excerpt.data
        try:
            if begin < end:
                yield next(pages.of_chunk(file.fileno(), begin, end, 1))
            yield from pages.of_chunk(file.fileno(), first, last, excerpt.rows)
        except BadPages as exc:
            raise _no_pages(path, group) from exc


def _no_pages(path: str, group: int) -> BadSource:
    return BadSource(f"{path} can't be read as a table: row group {group} has no whole pages where they should be")


def _pages(path: str, about: Any, groups: Sequence[int], text_field: str) -> Iterator[Page]:
    with Path(path).open("rb", buffering=0) as file:
        for group in groups:
            for chunk in _chunks(about, group, text_field):
                start = chunk.data_page_offset
                if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                    start = chunk.dictionary_page_offset
                end = min(start + chunk.total_compressed_size, os.fstat(file.fileno()).st_size)
                try:
                    yield from pages.of_chunk(file.fileno(), start, end, chunk.num_values)
                except BadPages as exc:
                    raise _no_pages(path, group) from exc


def _need_bytes(found: Sequence[Page]) -> int:
    """What pyarrow takes: a page as it lies and decoded, and as much again for what it makes of it; a dictionary stays
    beside the pages that refer to it."""
    stored = max((page.stored_bytes for page in found), default=0)
    data = max((page.plain_bytes for page in found if not page.is_dictionary), default=0)
    dictionary = max((page.plain_bytes for page in found if page.is_dictionary), default=0)
    return stored + 2 * (data + dictionary)


def _rows_at_once(found: Sequence[Page]) -> int:
    """So many rows that they have about as many bytes as are encoded together, and never more than BATCH_BYTES, but
    for a single one."""
    data = [page for page in found if not page.is_dictionary]
    rows = np.array([page.rows for page in data], np.int64)
    sizes = np.array([page.plain_bytes for page in data], np.int64)
    dictionary = max((page.plain_bytes for page in found if page.is_dictionary), default=0)
    largest = int(sizes.max(initial=0))
    # For every batch room for all that is left of the page is taken, so a large page is not read in many.
    wanted = max(2 * BLOCK_BYTES, min(largest // 16, BATCH_BYTES // 2))
    mean = (int(sizes.sum()) + dictionary) // max(1, int(rows.sum()))
    count = min(_MOST_ROWS, wanted // max(1, mean) + 1)
    if any(page.repeats for page in data):
        count = min(count, BATCH_BYTES // max(1, largest))
    if dictionary:
        count = min(count, BATCH_BYTES // dictionary)
    ends, before = np.cumsum(rows), np.cumsum(sizes) - sizes
    while count > 1:
        # The last page that a batch can reach which begins with the last row of a page.
        last = np.minimum(np.searchsorted(ends, ends + count - 1), len(data) - 1)
        if int((before[last] + sizes[last] - before).max(initial=0)) <= max(BATCH_BYTES, largest):
            break
        count //= 2
    return max(1, count)


def _too_large(path: str, text_field: str, found: Sequence[Page], need_bytes: int) -> TableTooLarge:
    largest = max(found, key=lambda page: page.plain_bytes)
    kind = "a dictionary" if largest.is_dictionary else f"{largest.rows} rows"
    return TableTooLarge(
        f"{path}: a page of column {text_field!r} ({kind} at byte {largest.start}) holds "
        f"{units.format_bytes(largest.plain_bytes)}, and pages are read whole: {units.format_bytes(need_bytes)} of "
        f"memory, where {units.format_bytes(MOST_BYTES)} is the most",
        path=path,
        text_field=text_field,
    )


@contextmanager
def turn_for(turns: Turns, need_bytes: int) -> Iterator[None]:
    """Inside, nobody else of this run holds pages or batches that need as much; nothing may be left of them."""
    if need_bytes <= ALONE_BYTES:
        yield
        return
    import pyarrow as pa

    before = pa.default_memory_pool()
    with turns.alone():
        if "mimalloc" in pa.supported_memory_backends():
            pa.set_memory_pool(pa.mimalloc_memory_pool())  # of large pages it gives all back, the system's does not
        try:
            yield
        finally:
            _release()
            pa.set_memory_pool(before)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What pyarrow says about a file that is no table, as BadSource."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowSerializationError) as exc:
        raise BadSource(f"{path} can't be read as a table: {str(exc).splitlines()[0]}") from exc
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise BadSource(f"{path} can't be read as a table: {str(exc).splitlines()[0]}") from exc
