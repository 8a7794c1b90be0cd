"""A row group is read by several workers, page by page, and gives the documents that were put in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokentexts
from pyarrow import parquet

import dsmem
from dsmem.tokens import excerpts, tables
from dsmem.tokens.excerpts import Excerpt
from dsmem.tokens.pages import Page

PART = 4096
SMALL: dict[str, Any] = {"write_batch_size": 10, "data_page_size": 500}
"""So that a small row group has many pages."""


def bytes_of(texts: list[str]) -> list[list[int]]:
    return [[*text.encode(), 256] for text in texts]


@pytest.fixture
def texts() -> list[str]:
    return tokentexts.documents(200)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("has_dictionary", [True, False])
def test_pages_of_every_kind(codec: str, version: str, has_dictionary: bool, texts: list[str], tmp_path: Path) -> None:
    texts = [*texts, *texts[:50] * 3, *texts]
    kind = pa.large_string() if has_dictionary else pa.string()
    schema = pa.schema([pa.field("n", pa.int64()), pa.field("text", kind, nullable=codec != "gzip")])
    table = pa.table({"n": range(len(texts)), "text": texts}, schema=schema)
    options: dict[str, Any] = {"compression": codec, "data_page_version": version, "use_dictionary": has_dictionary}
    options["dictionary_pagesize_limit"] = 3000
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=400, **SMALL, **options)
    done = dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin", part_bytes=PART)
    assert tokentexts.written(tmp_path / "out.bin") == bytes_of(texts)
    assert done.parts > 30


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_pages_of_other_encodings(encoding: str, texts: list[str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"text": encoding}}
    parquet.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", **SMALL, **options)
    done = dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin", part_bytes=PART)
    assert tokentexts.written(tmp_path / "out.bin") == bytes_of(texts)
    assert done.parts > 3


def test_a_dictionary_that_falls_short(texts: list[str], tmp_path: Path) -> None:
    """As pyarrow writes by default: pages refer to the dictionary until it is full, and hold texts then."""
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": texts}), path, dictionary_pagesize_limit=9000, **SMALL)
    found = tables.excerpts_of(str(path), tables.metadata_of(str(path)), 0, "text", [PART])
    (begin, end), *others = [one.dictionary for one, _ in found]
    assert 0 < begin < end and set(others[1:]) == {(0, 0)}
    assert sum(one.rows for one, _ in found) == len(texts)
    dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=PART)
    assert tokentexts.written(tmp_path / "out.bin") == bytes_of(texts)


def test_any_number_of_workers_and_a_killed_run(texts: list[str], tmp_path: Path) -> None:
    holes = [*texts[:150], None, *texts[150:]]
    parquet.write_table(pa.table({"text": holes}), tmp_path / "x.parquet", use_dictionary=False, **SMALL)
    more: dict[str, Any] = {"part_bytes": PART}
    sums = set()
    for count in (None, 1, 3):
        for made in tmp_path.glob("out.*"):
            made.unlink()
        with pytest.raises(dsmem.BadDocument, match=r"x\.parquet:row 151: 'text' is null"):
            dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin", workers=count, **more)
        done = dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin", workers=count, on_error="skip", **more)
        assert 0 < done.resumed_parts < done.parts
        assert done.skipped_places == (f"{tmp_path / 'x.parquet'}:row 151: 'text' is null, not a string",)
        sums.add((tmp_path / "out.bin").read_bytes())
    assert len(sums) == 1
    assert tokentexts.written(tmp_path / "out.bin") == bytes_of(texts)


def test_the_end_is_cut_smaller(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": [text * 4 for text in texts]}), path, use_dictionary=False, **SMALL)
    found = tables.excerpts_of(str(path), tables.metadata_of(str(path)), 0, "text", [90_000, 60_000, 30_000])
    sizes = [size for _, size in found]
    assert sizes[0] >= 90_000 > sizes[1] >= 60_000 and max(sizes[2:]) < sizes[1] < sizes[0]
    assert min(sizes[2:-1]) >= 30_000


def test_what_is_not_cut(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Column:
        max_definition_level = 1

    class Chunk:
        compression = "SNAPPY"
        num_values = 20

    def pages(size: int, dictionary: int = 9, rows: int = 10) -> list[Page]:
        first = Page(4, 9, dictionary, 5, 0, is_dictionary=True, repeats=False, refers=False)
        return [
            first,
            *(Page(at, at + 5, size, 5, rows, is_dictionary=False, repeats=False, refers=True) for at in (9, 14)),
        ]

    assert excerpts.cut(Column, Chunk, pages(100), [50]) == [
        (Excerpt((4, 9), (at, at + 5), 10, 1, True), 100) for at in (9, 14)
    ]
    assert [one.data for one, _ in excerpts.cut(Column, Chunk, pages(100), [150])] == [(9, 19)]
    assert excerpts.cut(Column, Chunk, pages(13 << 20), [50]) == []
    assert excerpts.cut(Column, Chunk, pages(100, dictionary=13 << 20), [50]) == []
    assert len(excerpts.cut(Column, Chunk, pages(100, dictionary=9 << 20), [50])) == 2
    monkeypatch.setattr(excerpts, "_MOST_DICTIONARY_BYTES", 10 << 20)
    assert excerpts.cut(Column, Chunk, pages(100, dictionary=9 << 20), [50]) == []
    assert len(excerpts.cut(Column, Chunk, pages(100, dictionary=9 << 20), [150])) == 1
    assert excerpts.cut(Column, Chunk, pages(100, rows=11), [50]) == []
    path = str(tmp_path / "x.parquet")
    parquet.write_table(pa.table({"text": [[text] for text in texts]}), path)
    assert tables.excerpts_of(path, tables.metadata_of(path), 0, "text", [9]) == []


def test_an_excerpt_survives_json() -> None:
    excerpt = Excerpt((4, 9), (10, 1 << 40), 1 << 33, 7, False)
    assert Excerpt.load(json.loads(json.dumps(excerpt.dump()))) == excerpt
