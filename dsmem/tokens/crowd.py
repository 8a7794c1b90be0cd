"""How many workers of `dsmem tokenize` fit into the memory that all of its processes may take, and how many of them
into places for what is long.

By what was measured (docs/figures.md). The process itself, the one that workers come from and what few hold take the
same however many workers there are. Each of them has what lies in batches, and a table of the vocabulary that
fastokens makes for each thread that encodes; what is long takes more in some, while those that wait have less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsmem.tokens.engines import EngineName

MOST_BYTES = 1 << 30
"""For all processes together."""
PLACES = 8
_WEIGHTS = 1, 2, 4
_SPARE_BYTES = 64 << 20
_ALL_BYTES, _ALL_BYTES_OF_ID = 225 << 20, 600
"""Of all processes but for what is each worker's, and of that for each id."""
_EACH_BYTES, _TABLE_BYTES_OF_ID = 15 << 20, 128
"""Of a worker; of ids as many as the next power of two."""
_GROWING = 4
"""Workers at once whose table becomes twice as large, the new one beside the old, before they give both back: so many
were seen of nine, on two CPUs, where every word is new (some 600,000 of them, with 200,000 tokens)."""
_TABLES_BYTES, _ALL_TABLES_BYTES = 14 << 20, 100 << 20
"""Of a worker that reads tables besides, and of all that do."""
_LOADED_BYTES_OF_ID, _COMPARING_BYTES_OF_ID = 1200, 300
"""Of a worker that loads the tokenizer by itself; of one that compares all by what is loaded elsewhere."""
_WAITING_BYTES = 26 << 20
"""Of a worker that waits for others to be done with what is long; each of those takes half as much again."""


def most_workers(
    largest_id: int,
    engine: EngineName,
    *,
    has_tables: bool = False,
    compares_all: bool = False,
    is_shared: bool = True,
) -> int:
    """So many fit, at least one; `has_tables`: of Arrow and Parquet; `compares_all`: with the reference; `is_shared`:
    workers are forked where the tokenizer is loaded already."""
    left_bytes, each_bytes = _left_bytes(largest_id), _each_bytes(largest_id, engine)
    left_bytes -= _GROWING * 2 * _table_bytes(largest_id, engine)
    if has_tables:
        left_bytes -= _ALL_TABLES_BYTES
        each_bytes += _TABLES_BYTES
    if compares_all:
        each_bytes += _COMPARING_BYTES_OF_ID * largest_id
    if not is_shared:
        each_bytes += _LOADED_BYTES_OF_ID * largest_id
    most = left_bytes // each_bytes
    while most > 1 and not _do_fit(most, _WEIGHTS[-1], largest_id, engine):
        most -= 1
    return max(most, 1)


def weight(workers: int, largest_id: int, engine: EngineName) -> int:
    """How many of the places what is long takes in each of so many workers, so that all fit."""
    return next((taken for taken in _WEIGHTS if _do_fit(workers, taken, largest_id, engine)), PLACES)


def _do_fit(workers: int, taken: int, largest_id: int, engine: EngineName) -> bool:
    long = min(PLACES // taken, workers)
    long_bytes = _each_bytes(largest_id, engine) * 3 // 2
    return long * long_bytes + (workers - long) * _WAITING_BYTES <= _left_bytes(largest_id)


def _each_bytes(largest_id: int, engine: EngineName) -> int:
    return _EACH_BYTES + _table_bytes(largest_id, engine)


def _table_bytes(largest_id: int, engine: EngineName) -> int:
    """Of what each thread that encodes remembers words in."""
    return _TABLE_BYTES_OF_ID << largest_id.bit_length() if engine == "fastokens" else 0


def _left_bytes(largest_id: int) -> int:
    return MOST_BYTES - _SPARE_BYTES - _ALL_BYTES - _ALL_BYTES_OF_ID * largest_id
