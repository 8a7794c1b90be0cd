"""Tables: what reading them takes is told before, bounded, and refused by name; what is read is what was put in."""

from __future__ import annotations

import json
import random
import shlex
import struct
import subprocess
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import children
import pyarrow as pa
import pytest
import tokentexts
from pyarrow import parquet
from pyarrow.parquet import encryption

import dsmem
from dsmem.cli import hints
from dsmem.cli.hints import Typed
from dsmem.tokens import arrowfiles, columns, failures, messages, pages, tables, turns
from dsmem.tokens.pages import Page

TEXTS = [f"{number} Größe 🙂 " * (number % 40) for number in range(3000)]


def written(path: Path) -> list[str]:
    return [bytes(ids[:-1]).decode() for ids in tokentexts.written(path)]


def pages_of(path: Path, field: str = "text") -> list[list[Page]]:
    about = parquet.read_metadata(path)
    return [list(tables._pages(str(path), about, [group], field)) for group in range(about.num_row_groups)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
@pytest.mark.parametrize("encoding", ["dictionary", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_pages_are_those_that_were_written(encoding: str, compression: str, version: str, tmp_path: Path) -> None:
    texts = [None if number % 7 == 3 else text for number, text in enumerate(TEXTS)]
    path = tmp_path / "x.parquet"
    parquet.write_table(
        pa.table({"n": range(len(texts)), "text": texts}),
        path,
        row_group_size=1700,
        compression=compression,
        data_page_version=version,
        data_page_size=1 << 14,
        write_batch_size=10,
        dictionary_pagesize_limit=1 << 16,
        use_dictionary=encoding == "dictionary",
        column_encoding=None if encoding == "dictionary" else {"text": encoding},
        write_page_checksum=True,
    )
    about = parquet.read_metadata(path)
    for group, found in enumerate(pages_of(path)):
        chunk = about.row_group(group).column(1)
        assert sum(page.rows for page in found) == chunk.num_values == about.row_group(group).num_rows
        assert found[-1].end - found[0].start == chunk.total_compressed_size
        assert all(before.end == page.start for before, page in pairwise(found))
        headers = chunk.total_compressed_size - sum(page.stored_bytes for page in found)
        assert sum(page.plain_bytes for page in found) == chunk.total_uncompressed_size - headers
        assert [page.is_dictionary for page in found][:2] == [encoding == "dictionary", False]
        assert any(page.repeats for page in found) == (encoding == "DELTA_BYTE_ARRAY")
    done = dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip")
    assert written(tmp_path / "out.bin") == [text for text in texts if text is not None]
    assert done.skipped == texts.count(None)


def test_what_stands_in_headers_is_not_trusted(tmp_path: Path) -> None:
    """Whatever bytes are changed: pages lie in their chunk and have sizes, or the file is told to be none."""
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": TEXTS[:300]}), path, data_page_size=1 << 10, write_batch_size=10)
    data = path.read_bytes()
    chunk = parquet.read_metadata(path).row_group(0).column(0)
    start, end = chunk.dictionary_page_offset, chunk.dictionary_page_offset + chunk.total_compressed_size
    heads = [page.start for page in pages_of(path)[0]]
    chance = random.Random(7)
    refused = 0
    with (tmp_path / "y").open("wb+", buffering=0) as file:
        for _ in range(2000):
            file.seek(0)
            changed = bytearray(data)
            for _ in range(chance.choice([1, 1, 3])):
                changed[chance.choice(heads) + chance.randrange(30)] = chance.randrange(256)
            file.write(changed)
            try:
                for page in pages.of_chunk(file.fileno(), start, end, chunk.num_values):
                    assert start <= page.start < page.end <= end
                    assert min(page.plain_bytes, page.stored_bytes, page.rows) >= 0
            except pages.BadPages:
                refused += 1
    assert 500 < refused < 2000


def test_a_page_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": TEXTS}), path, use_dictionary=False, compression="snappy")
    data = bytearray(path.read_bytes())
    (page,) = pages_of(path)[0]
    raw = _varint(page.plain_bytes)
    at = data.index(raw, page.start)
    for said in (page.plain_bytes - 1, page.plain_bytes + 1, (1 << (7 * len(raw) - 2)) - 1):
        data[at : at + len(raw)] = _varint(said)
        path.write_bytes(data)
        assert pages_of(path)[0][0].plain_bytes == said
        with pytest.raises(dsmem.BadSource, match=r"x\.parquet can't be read as a table"):
            dsmem.tokenize(path, tmp_path / "out.bin")
    data[at : at + len(raw)] = b"\xff" * len(raw)
    path.write_bytes(data)
    with pytest.raises(dsmem.BadSource, match="row group 0 has no whole pages where they should be"):
        dsmem.tokenize(path, tmp_path / "out.bin")
    assert [one.name for one in tmp_path.iterdir()] == ["x.parquet"]


def _varint(number: int) -> bytes:
    raw, found = number << 1, bytearray()
    while raw > 127:
        found.append(raw & 127 | 128)
        raw >>= 7
    return bytes([*found, raw])


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_pages_too_large_for_memory_are_refused_and_can_be_made_small(
    use_dictionary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_BYTES", 200_000)
    path = tmp_path / "my x.parquet"
    texts = [f"{number} " + "text " * 1000 for number in range(100)]
    parquet.write_table(pa.table({"text": texts, "n": range(100)}), path, use_dictionary=use_dictionary)
    kind = "a dictionary" if use_dictionary else "100 rows"
    words = rf"x\.parquet: a page of column 'text' \({kind} at byte 4\) holds 489\.0 KiB, .*: 1\.0 MiB of memory, "
    with pytest.raises(dsmem.TableTooLarge, match=words) as caught:
        dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    told = failures.again(json.loads(json.dumps(failures.described(caught.value))))  # as by a worker
    assert isinstance(told, dsmem.TableTooLarge)
    assert (str(told), vars(told)) == (str(caught.value), vars(caught.value))
    _follow(hints.table(told, Typed("dsmem tokenize", ("tokenize", str(path)))))
    small = tmp_path / "my x.small.parquet"
    assert max(page.plain_bytes for found in pages_of(small) for page in found) < 330_000
    monkeypatch.setattr(tables, "MOST_BYTES", 700_000)
    dsmem.tokenize(small, tmp_path / "out.bin")
    assert written(tmp_path / "out.bin") == texts


def _follow(hint: str) -> None:
    subprocess.run(shlex.split(hint.partition(" instead: ")[2]), check=True)


ARRAYS: dict[str, Callable[[list[str]], pa.Array]] = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large": lambda texts: pa.array(texts, pa.large_string()),
    "view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_record_batches(
    kind: str, form: str, compression: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(columns, "LONG_ROW_BYTES", 10_000)
    monkeypatch.setattr(arrowfiles, "BATCH_BYTES", 40_000)
    texts = [*TEXTS, "x" * 9999, "ä" * 30_000, "", *TEXTS[:9]]
    table = pa.table({"n": pa.array(range(len(texts))), "text": ARRAYS[kind](texts)})
    path = tmp_path / "x.arrow"
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if form == "file" else pa.ipc.new_stream)(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1100)
    done = dsmem.tokenize(path, tmp_path / "out.bin", part_bytes=100_000)
    assert written(tmp_path / "out.bin") == texts
    assert done.parts >= 2 or (kind == "dictionary" and compression)
    need_bytes = arrowfiles.ArrowFile(str(path)).need("text")
    if compression is None:
        assert need_bytes == 0
        return
    assert need_bytes > (kind != "dictionary" and max(batch.nbytes for batch in table.to_batches(1100)))
    monkeypatch.setattr(arrowfiles, "MOST_BYTES", need_bytes - 1)
    with pytest.raises(dsmem.TableTooLarge, match=r"x\.arrow: a record batch is compressed, and would take") as caught:
        dsmem.tokenize(path, tmp_path / "no.bin")
    if compression == "zstd" and kind == "string":
        _follow(hints.table(caught.value, Typed("dsmem tokenize", ())))
        dsmem.tokenize(tmp_path / "x.small.arrow", tmp_path / "out.bin", overwrite=True)
        assert written(tmp_path / "out.bin") == texts


def test_messages_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(path, pa.schema([("text", pa.string())]), options=options) as writer:
        writer.write_table(pa.table({"text": TEXTS}), max_chunksize=500)
    stream = pa.ipc.MessageReader.open_stream(path.read_bytes())
    found = [(bytes(message.metadata), bytes(message.body)) for message in stream]
    chance = random.Random(3)
    odd = 0
    for _ in range(3000):
        metadata, body = map(bytearray, chance.choice(found[1:]))
        metadata[chance.randrange(len(metadata))] = chance.randrange(256)
        try:
            messages._batch(memoryview(metadata), memoryview(body))
        except (messages.BadMessage, struct.error):
            odd += 1
    assert 0 < odd < 3000


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("offsets", [[0, 3, 900], [0, -5, 3], [2, 9, 4], [-1, 1, 3]])
def test_a_text_that_lies_elsewhere_is_not_read(offsets: list[int], large: bool, tmp_path: Path) -> None:
    kind, width = (pa.large_string(), pa.int64()) if large else (pa.string(), pa.int32())
    batch = pa.record_batch({"text": pa.array(["seven..", "bytes"], kind)})
    path = tmp_path / "x.arrow"
    with pa.ipc.new_stream(path, batch.schema) as writer:
        writer.write_batch(batch)
    before, after = (
        bytes(pa.array(some, width).buffers()[1])[: 3 * width.byte_width] for some in ([0, 7, 12], offsets)
    )
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))
    with pytest.raises(dsmem.BadSource, match=r"x\.arrow can't be read as a table"):
        dsmem.tokenize(tmp_path / "x.arrow", tmp_path / "out.bin")
    assert [one.name for one in tmp_path.iterdir()] == ["x.arrow"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_rows_too_long_are_told_and_left_out(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LONG_ROW_BYTES", 1000)
    monkeypatch.setattr(columns, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(columns, "MOST_DOCUMENT_BYTES", 5000)
    texts = ["a", "ä" * 2500, "b" * 5001, "c", "d" * 4999]
    bad = b"e" * 2000 + b"\xff" + b"e" * 2000
    column = pa.array([*(text.encode() for text in texts), bad, b"f"]).view(pa.string())
    table = pa.table({"text": column})
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(dsmem.BadDocument, match=rf"x\.{suffix}:row 3: longer than .*the most for a document among"):
        dsmem.tokenize(path, tmp_path / "out.bin")
    done = dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip")
    assert written(tmp_path / "out.bin") == ["a", "ä" * 2500, "c", "d" * 4999, "f"]
    assert [place.partition(": ")[0] for place in done.skipped_places] == [f"{path}:row 3", f"{path}:row 6"]
    assert done.skipped_places[1].endswith("not UTF-8: byte 0xff")


def _page(rows: int, plain_bytes: int, *, is_dictionary: bool = False, repeats: bool = False) -> Page:
    return Page(0, 0, plain_bytes, plain_bytes // 3, rows, is_dictionary, repeats, refers=False)


def test_rows_at_once_fit_memory() -> None:
    mib = 1 << 20
    assert 300 < tables._rows_at_once([_page(300, mib)] * 50) < 400
    assert tables._rows_at_once([_page(1_000_000, mib)] * 50) == 4096
    # One value that all rows have, and values that are each the one before and a little more.
    assert tables._rows_at_once([_page(0, 2 * mib, is_dictionary=True), _page(1000, 100)]) == 16
    assert tables._rows_at_once([_page(1000, 16 * mib, repeats=True)]) == 2
    # Long rows, of which many would be in a batch that was made for the others.
    mixed = [*[_page(100_000, mib)] * 99, *[_page(1, 20 * mib)] * 50]
    assert tables._rows_at_once(mixed) == 1
    assert tables._rows_at_once([*[_page(100_000, mib)] * 99, _page(1, 20 * mib)]) > 1000


def test_one_at_a_time_holds_much(tmp_path: Path) -> None:
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with tables.turn_for(turns.Turns(str(tmp_path)), tables.ALONE_BYTES + 1):
            inside.set()
            go_on.wait(10)
            order.append("first")

    def wait() -> None:
        with tables.turn_for(turns.Turns(str(tmp_path)), tables.ALONE_BYTES + 1):
            order.append("second")

    threads = [threading.Thread(target=hold), threading.Thread(target=wait)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    with tables.turn_for(turns.Turns(str(tmp_path)), tables.ALONE_BYTES):
        order.append("little")
    go_on.set()
    for thread in threads:
        thread.join()
    assert order == ["little", "first", "second"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.binary(), pa.large_binary()]
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_that_hold_no_text(suffix: str, kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([None, None], kind)})
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(dsmem.BadDocument, match=r"column 'text' holds .*, not text"):
        dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip")


class Keys(encryption.KmsClient):  # type: ignore[misc]
    """Keys that are kept beside what they encrypt."""

    def __init__(self, _: object) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return b64encode(key)

    def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
        return b64decode(wrapped)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_footer_plain", [True, False])
@pytest.mark.parametrize("column", ["other", "text"])
def test_encrypted_columns(column: str, is_footer_plain: bool, workers: int, tmp_path: Path) -> None:
    """What is not encrypted is read; pyarrow ends the process when the metadata of an encrypted column is looked at."""
    path, texts = tmp_path / "x.parquet", [f"text {number}" for number in range(500)]
    config = encryption.EncryptionConfiguration("footer", column_keys={"c": [column]}, plaintext_footer=is_footer_plain)
    properties = encryption.CryptoFactory(Keys).file_encryption_properties(encryption.KmsConnectionConfig(), config)
    table = pa.table({"other": range(500), "text": texts})
    parquet.write_table(table, path, row_group_size=200, encryption_properties=properties)

    def run() -> str | list[str]:
        try:
            dsmem.tokenize(path, tmp_path / "x.bin", workers=workers, part_bytes=1000)
        except dsmem.BadSource as exc:
            return str(exc)
        return written(tmp_path / "x.bin")

    found = children.call(run)
    if is_footer_plain and column == "other":
        assert found == texts
    else:
        assert isinstance(found, str) and "can't be read as a table" in found and "crypt" in found
        assert [one.name for one in tmp_path.iterdir()] == ["x.parquet"]
