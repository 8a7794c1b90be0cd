"""Rows of a dataset as record batches of a good size: about 10,000 rows, 4 to 32 MB, in memory one at a time.

`datasets` writes 1,000 rows a batch, and opening a file costs about 10 µs for each; a row group of 500 MB would have to
be read whole for one row. An order other than that of the files is gathered here, once, for all who read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

ROWS = 10_000
LEAST_BYTES, MOST_BYTES = 4 << 20, 32 << 20


def rows_per_batch(rows: int, size_bytes: int) -> int:
    """10,000, more where that is less than 4 MiB, fewer where it is more than 32 MiB; at least 1."""
    if rows == 0 or size_bytes == 0:
        return ROWS
    per_row = size_bytes / rows
    return max(1, int(min(max(ROWS, LEAST_BYTES / per_row), MOST_BYTES / per_row)))


def of_dataset(dataset: Dataset, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """All rows in the dataset's order, files that they name (images, audio) taken in."""
    import pyarrow as pa
    from datasets.features.features import require_storage_embed
    from datasets.table import embed_table_storage

    rows = rows_per_batch(len(dataset), size_of(dataset))
    embed = any(require_storage_embed(feature) for feature in dataset.features.values())
    for table in _tables(dataset, rows):
        found = embed_table_storage(table) if embed else table
        for batch in found.combine_chunks().to_batches(max_chunksize=rows):
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def size_of(dataset: Dataset) -> int:
    """Bytes of its rows in Arrow; of a selection, its part of the whole."""
    table = dataset.data.table
    size_bytes = int(table.nbytes)
    return size_bytes if table.num_rows in (0, len(dataset)) else size_bytes * len(dataset) // table.num_rows


def _tables(dataset: Dataset, rows: int) -> Iterator[pa.Table]:
    """Slices of so many rows; an indices mapping is followed."""
    if dataset._indices is None:
        table = dataset.data.table
        for start in range(0, len(dataset), rows):
            yield table.slice(start, rows)
    else:
        yield from dataset.with_format("arrow").iter(batch_size=rows)
