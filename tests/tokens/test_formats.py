"""Every format and compression gives the documents that were put in, no byte more or less, for any cut."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import tokentexts
from pyarrow import parquet

import dsmem
from dsmem.tokens import columns, encoding, inputs, tables
from dsmem.tokens.inputs import Wanted
from dsmem.tokens.verifying import verify

PART = 4096
"""Bytes of a part: many, so that every cut is met."""


@pytest.fixture
def texts() -> list[str]:
    return tokentexts.documents(60)


def bytes_of(texts: list[str]) -> list[list[int]]:
    return [[*text.encode(), 256] for text in texts]


def check(source: object, texts: list[str], tmp_path: Path, **options: object) -> dsmem.Tokenized:
    done = dsmem.tokenize(str(source), tmp_path / "out.bin", part_bytes=PART, **options)  # type: ignore[arg-type]
    assert tokentexts.written(tmp_path / "out.bin") == bytes_of(texts)
    assert done.documents == len(texts)
    assert done.text_bytes == sum(len(text.encode()) for text in texts)
    assert not (tmp_path / ".out.bin.parts").exists()
    return done


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


SKIPPABLE = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "gz of two": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "gz with zeros": lambda data: gzip.compress(data[:1000]) + bytes(7) + gzip.compress(data[1000:]) + bytes(70_000),
    "bz2": bz2.compress,
    "bz2 of two": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]) + bytes(9),
    "xz": lzma.compress,
    "xz of two": lambda data: lzma.compress(data[:1000]) + lzma.compress(data[1000:]),
    "xz with zeros": lambda data: lzma.compress(data[:1000]) + bytes(4) + lzma.compress(data[1000:]) + bytes(70_000),
    "zst": zstd,
    "zst of two": lambda data: zstd(data[:1000]) + zstd(data[1000:]),
    "zst with skippable frames": lambda data: SKIPPABLE + zstd(data[:1000]) + SKIPPABLE + zstd(data[1000:]) + SKIPPABLE,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "lines", "blank", "file"])
def test_text_formats(kind: str, compression: str, texts: list[str], tmp_path: Path) -> None:
    options: dict[str, object] = {}
    suffix = "txt"
    if kind == "jsonl":
        suffix = "jsonl"
        data = tokentexts.write_jsonl(tmp_path / "made", texts).read_bytes()
    elif kind == "json":
        suffix = "json"
        data = json.dumps([{"a": [{"text": "]"}], "text": text} for text in texts], indent=1).encode()
    elif kind == "lines":
        texts = [text.replace("\n", " ").rstrip("\r") for text in texts]
        data, options["split_on"] = ("\n".join(texts) + "\n").encode(), "line"
    elif kind == "blank":
        texts = ["one\ntwo", " three ", *(f"{number}\n x" * 9 for number in range(300))]
        data, options["split_on"] = "\n\n\n".join(texts).encode() + b"\n", "blank"
    else:
        texts = ["\n\n".join(texts)]
        data = texts[0].encode()
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(COMPRESSIONS[compression](data))
    done = check(path, texts, tmp_path, **options)
    assert (done.parts > 3) == (kind != "file")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_line_ends(line_end: str, last: str, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes((line_end.join(["a", "", " b ", "", "", "c\rd"]) + last + line_end).encode())
    check(path, ["a", "", " b ", "", "", f"c\rd{last}"], tmp_path, split_on="line")
    check(path, ["a", " b ", f"c\rd{last}"], tmp_path, split_on="blank", overwrite=True)
    path.write_bytes(b"\r\n\n\rfoo\n\n\r\n\rbar\r" + line_end.encode())
    check(path, ["\rfoo", "\rbar" + ("\r" if line_end == "\r\n" else "")], tmp_path, split_on="blank", overwrite=True)
    path.write_bytes(b"a\r\nb\r")
    check(path, ["a", "b\r"], tmp_path, split_on="line", overwrite=True)
    path.write_bytes(b"a\r\nb\xff\nc\r")
    check(path, ["a", "c\r"], tmp_path, split_on="line", overwrite=True, on_error="skip")


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xc3\xa9.jsonl"))
    path.write_text('{"text": "a"}')
    check(path, ["a"], tmp_path)
    (found,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["inputs"]
    assert found["path"] == str(path)
    assert Path(found["path"]).read_bytes() == b'{"text": "a"}'
    assert verify(tmp_path / "out.bin").ok
    path.write_text("no")
    with pytest.raises(dsmem.BadDocument, match="not JSON"):
        dsmem.tokenize(path, tmp_path / "no.bin", workers=1)


def test_a_directory_in_order_of_names(tmp_path: Path) -> None:
    texts = tokentexts.documents(30)
    inside = tmp_path / "in" / "deeper"
    inside.mkdir(parents=True)
    for number, text in enumerate(texts):
        (inside / f"{number:02d}.txt").write_bytes(text.encode())
    (inside / "notes.pdf").write_bytes(b"not text")
    check(tmp_path / "in", texts, tmp_path)
    check(f"{tmp_path}/in/**/*.txt", texts, tmp_path, overwrite=True)


@pytest.mark.parametrize("large", [False, True])
def test_tables(large: bool, texts: list[str], tmp_path: Path) -> None:
    kind = pa.large_string() if large else pa.string()
    table = pa.table({"n": list(range(len(texts))), "body": pa.array(texts, kind)})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    check(tmp_path / "x.parquet", texts, tmp_path, text_field="body")
    for name, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with writer(tmp_path / f"{name}.arrow", table.schema) as sink:
            sink.write_table(table, max_chunksize=9)
        done = check(tmp_path / f"{name}.arrow", texts, tmp_path, text_field="body", overwrite=True)
        assert done.parts > 3


def test_saved_datasets(texts: list[str], tmp_path: Path) -> None:
    half = datasets.Dataset.from_dict({"text": texts[::2]})
    half.save_to_disk(tmp_path / "one", num_shards=3)
    check(tmp_path / "one", texts[::2], tmp_path)
    both = datasets.DatasetDict({"train": half, "test": datasets.Dataset.from_dict({"text": texts[1::2]})})
    both.save_to_disk(tmp_path / "both")
    check(tmp_path / "both", texts[1::2], tmp_path, split="test", overwrite=True)
    with pytest.raises(dsmem.UsageError, match=r"has the splits train, test; say which with --split"):
        dsmem.tokenize(tmp_path / "both", tmp_path / "no.bin")


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a function here: what it gives is a dataset as `load_dataset` gives it, mapped from files."""
    texts = tokentexts.documents(20)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "cache")
    asked: list[object] = []

    def load_dataset(name: str, subset: str | None, *, split: str | None) -> object:
        asked.append((name, subset, split))
        return datasets.load_from_disk(tmp_path / "cache")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tokentexts.answering_hub(monkeypatch)
    check("someone/texts", texts, tmp_path, split="train", subset="en")
    assert asked == [("someone/texts", "en", "train")]

    def refuse(*_: object, **__: object) -> object:
        raise FileNotFoundError("Couldn't find any data file")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    tokentexts.silent_hub(monkeypatch)
    with pytest.raises(dsmem.SourceMissing, match=r"the hub can't be asked: .* does not answer: no route"):
        inputs.gather(["someone/other"])
    tokentexts.answering_hub(monkeypatch)
    with pytest.raises(dsmem.SourceMissing, match="someone/other is neither a file nor a dataset"):
        inputs.gather(["someone/other"])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetGenerationError("no rows\nat all"),
    ],
)
def test_errors_of_the_hubs_library_are_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    tokentexts.answering_hub(monkeypatch)
    first = str(error).splitlines()[0]
    with pytest.raises(dsmem.BadSource, match=f"^someone/other can't be loaded: {type(error).__name__}: {first}$"):
        inputs.gather(["someone/other"])


def test_a_selection_of_rows_is_not_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(tmp_path / "cache")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.load_from_disk(tmp_path / "cache").select([2, 0])
    )
    tokentexts.answering_hub(monkeypatch)
    with pytest.raises(dsmem.BadSource, match="someone/some is a selection of rows"):
        inputs.gather(["someone/some"])


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_two_columns_of_the_same_name_are_refused(form: str, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([1])], names=["text", "text", "n"])
    path = tmp_path / f"x.{form}"
    if form == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(dsmem.BadDocument, match=r"2 columns 'text': which is meant can't be told"):
        dsmem.tokenize(path, tmp_path / "out.bin")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_standard_input(compression: str, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tokentexts.write_jsonl(tmp_path / "made", texts).read_bytes()

    class Stdin:
        buffer = io.BytesIO(COMPRESSIONS[compression](data))

    monkeypatch.setattr(sys, "stdin", Stdin)
    check("-", texts, tmp_path, workers=1)


@pytest.mark.parametrize("compression", ["plain", "zst"])
def test_a_pipe_with_a_name_is_one_document(compression: str, tmp_path: Path) -> None:
    """What it holds comes byte by byte at first: fewer bytes at once than tell how it is compressed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "one document\n" * 9999

    def write() -> None:
        data = COMPRESSIONS[compression](text.encode())
        with pipe.open("wb", buffering=0) as file:
            for byte in data[:12]:
                file.write(bytes([byte]))
            file.write(data[12:])

    writer = threading.Thread(target=write)
    writer.start()
    check(pipe, [text], tmp_path, format="txt", workers=1)
    writer.join()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    texts = ["Größe", "naïve café", *("x" * number for number in range(200))]
    (tmp_path / "x.txt").write_bytes("\n".join(texts).encode(encoding))
    check(tmp_path / "x.txt", texts, tmp_path, split_on="line", encoding=encoding)
    check(tmp_path / "x.txt", ["\n".join(texts)], tmp_path, encoding=encoding, overwrite=True)


@pytest.mark.parametrize(
    "encoding", ["hex", "base64", "rot13", "zlib", "punycode", "idna", "undefined", "no such", "a\0"]
)
def test_what_is_no_encoding_of_text_is_refused_before_work(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(dsmem.UsageError, match="encod"):
        dsmem.tokenize(tmp_path / "none.txt", tmp_path / "out.bin", encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "data", "words"),
    [
        (
            "utf-16",
            "ab".encode("utf-16-le"),
            r"x\.txt:1: not utf-16: .* the encoding utf-16-le or utf-16-be needs none",
        ),
        ("utf-32", "ab".encode("utf-32-le"), r"x\.txt:1: not utf-32: it begins without a byte order mark"),
        ("unicode_escape", b"a\nb\\ud800", r"x\.txt:2: not unicode-?_?escape: it holds half of a surrogate pair"),
        ("utf-7", b"a\n+2AA-", r"x\.txt:2: not utf-7: .*surrogate"),
        ("ascii", b"a\n\xc3\xa9", r"x\.txt:2: not ascii: ordinal not in range"),
    ],
)
def test_text_that_is_not_in_its_encoding(encoding: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    for split_on in (None, "line"):
        with pytest.raises(dsmem.BadDocument, match=words):
            dsmem.tokenize(tmp_path / "x.txt", tmp_path / "out.bin", encoding=encoding, split_on=split_on)
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_bad_lines_in_other_encodings_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"text":"あ"}\n'.encode("shift_jis") + b'{"text":"\x81\x20"}\n{"text":"ok2"}\n')
    done = check(path, ["あ", "ok2"], tmp_path, on_error="skip", encoding="shift_jis")
    assert done.skipped_places == (f"{path}:2: not shift_jis",)
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n\xc3\xa9\n\nb\n")
    for split_on, texts in (("line", ["a", "", "b"]), ("blank", ["b"])):
        done = check(path, texts, tmp_path, on_error="skip", encoding="ascii", split_on=split_on, overwrite=True)
        assert done.skipped_places == (f"{path}:2: not ascii",)
    path.write_bytes(b"a\nb\\ud800\nc")
    done = check(
        path, ["a", "c"], tmp_path, on_error="skip", encoding="unicode_escape", split_on="line", overwrite=True
    )
    assert done.skipped == 1


@pytest.mark.parametrize(
    ("rest", "texts", "place"),
    [
        (b', {"text": "b"}', ["a", "b"], "element 3"),
        (b', {"text": "b", "c": "d', ["a"], "element 2"),
        (b', {"text": "b"', ["a"], "element 2"),
        (b",", ["a"], "element 2"),
        (b", {},, 5, {\n'b'}]", ["a"], "element 2"),
    ],
)
def test_what_is_bad_in_an_array_is_skipped(rest: bytes, texts: list[str], place: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"text": "a"}' + rest)
    done = check(path, texts, tmp_path, on_error="skip")
    assert done.skipped == (4 if b"," * 2 in rest else 1)
    assert done.skipped_places[0].startswith(f"{path}:{place}: ")


def test_json_that_is_lines_and_json_that_is_odd(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"text": "one"}\n\n  \n{"text": "two", "score": NaN}\n')
    check(path, ["one", "two"], tmp_path)
    path.write_text('\n [ {"text": "a\\"]}"},\n{"text":\n"b"} , {"b": [[1], {}], "text": "\\ud83d\\ude42"}\n] \n')
    check(path, ['a"]}', "b", "🙂"], tmp_path, overwrite=True)
    path.write_text('{\n "text": "one\\n}",\n "n": [{}]\n}')
    check(path, ["one\n}"], tmp_path, overwrite=True)
    path.write_text('\ufeff{\n "text": "one"}\n{"text":\n"two"} {"text": "three"}', encoding="utf-8")
    check(path, ["one", "two", "three"], tmp_path, overwrite=True)


BAD: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl:2: not JSON"),
    "no field": ("x.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', r"x\.jsonl:3: no field 'text'; there are: 'body'"),
    "no string": ("x.jsonl", b'{"text": null}\n', r"x\.jsonl:1: 'text' is null, not a string"),
    "no object": ("x.jsonl", b'["text"]\n', r"x\.jsonl:1: an array, not an object"),
    "no UTF-8": ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"x\.jsonl:2: not UTF-8: byte 0xff at position 11"),
    "half a pair": ("x.jsonl", b'{"text": "\\ud800"}\n', r"x\.jsonl:1: .*half of a surrogate pair"),
    "too deep": ("x.jsonl", b'{"text": ' + b"[" * 99999 + b"\n", r"x\.jsonl:1: not JSON"),
    "text": ("x.txt", b"one\ntwo\nthr\xffee", r"x\.txt:3: not UTF-8: byte 0xff"),
    "array": ("x.json", b'[{"text": "a"}, {"text": 1}]', r"x\.json:element 2: 'text' is a number"),
    "array without end": (
        "x.json",
        b'[{"text": "a"}, {"text": "b"}',
        r"x\.json:element 3: the file ends inside its JSON array",
    ),
    "array with a line end in a string": (
        "x.json",
        b'[{"text": "a"}, {"text":\n"b\nc"}]',
        r"x\.json:element 2: not JSON: Inv",
    ),
    "array with a tab in a string": ("x.json", b'[{"text": "a\tb"}]', r"x\.json:element 1: not JSON: Invalid control"),
    "array with a gap": ("x.json", b'[{"text": "a"},, {"text": "b"}]', r"x\.json:element 2: not JSON: Expecting value"),
    "array with a comma at its end": ("x.json", b'[{"text": "a"},\n]', r"x\.json:element 2: not JSON: Expecting value"),
    "array with a comma only": ("x.json", b"[,]", r"x\.json:element 1: not JSON: Expecting value"),
    "array with an odd space": ("x.json", b'[{"text": "a"}, \x0c]', r"x\.json:element 2: not JSON: Expecting value"),
    "array without a comma": ("x.json", b'[{"text": "a"} {"text": "b"}]', r"x\.json:element 1: not JSON: Extra data"),
    "array closed as an object": ("x.json", b'[{"text": "a"}}', r"x\.json:element 1: the JSON array is closed by }"),
    "array closed as an object inside": (
        "x.json",
        b'[{"text": "a", "b": [}]',
        r"x\.json:element 2: the file ends inside its JSON array",
    ),
    "array of strings": ("x.json", b'["a"]', r"x\.json:element 1: a string, not an object"),
    "array with more far behind": (
        "x.json",
        b'[{"text": "a"}]' + b" " * (3 << 20) + b"5",
        r"x\.json:element 2: the file goes on after its JSON array",
    ),
    "an object over lines in lines": (
        "x.jsonl",
        b'{\n "text": "a"\n}',
        r"x\.jsonl:1: not JSON: an object over several lines\? .* --format json",
    ),
    "an object over lines without end": (
        "x.json",
        b'{\n "text": "a"\n',
        r"x\.json:object 1: the file ends inside a JSON",
    ),
    "objects and more": ("x.json", b'{\n"text": "a"}\n5', r"x\.json:object 2: not an object, as those before"),
    "array with more": ("x.json", b'[{"text": "a"}] 5', r"x\.json:element 2: the file goes on after"),
    "gz cut off": (
        "x.jsonl",
        gzip.compress(b'{"text": "a"}\n' * 9)[:-9],
        r"x\.jsonl:10: the gz data is truncated after 126 B",
    ),
    "gz damaged": (
        "x.jsonl",
        gzip.compress(b'{"text": "a"}\n')[:-8] + b"01234567",
        r"x\.jsonl:2: the gz data is damaged after 14 B of text: .*data check",
    ),
    "zst cut off": ("x.jsonl", zstd(b'{"text": "a"}\n' * 9)[:-3], r"x\.jsonl:1: the zst data is truncated after 0 B"),
    "gz goes on": ("x.txt", gzip.compress(b"a") + b"more", r"gz data is damaged after 1 B of text: .*incorrect header"),
    "bz2 goes on": ("x.txt", bz2.compress(b"a") + b"more", r"bz2 data is damaged after 1 B of text: Invalid data"),
    "bz2 damaged behind the first": (
        "x.txt",
        bz2.compress(b"a") + bz2.compress(b"b")[:9] + b"more",
        r"the bz2 data is damaged after 1 B of text",
    ),
    "xz goes on": ("x.txt", lzma.compress(b"a") + b"more", r"the xz data is (truncated|damaged) after 1 B of text"),
    "xz with wrong zeros": ("x.txt", lzma.compress(b"a") + bytes(6), r"after 1 B of text: 6 zero bytes behind a str"),
    "xz damaged": ("x.txt", lzma.compress(b"a" * 999)[:40] + b"?" * 40, r"the xz data is damaged"),
    "no parquet": ("x.parquet", b"PAR1 no", r"x\.parquet can't be read as a table"),
    "no arrow": ("x.arrow", b"what is this", r"x\.arrow can't be read as a table"),
    "empty": ("x.jsonl", b"", r"no documents in .*x\.jsonl"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_told_with_its_place_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    name, data, words = BAD[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(dsmem.BadSource, match=words):
        dsmem.tokenize(tmp_path / name, tmp_path / "out.bin")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_tables_with_holes(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c"], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(dsmem.BadDocument, match=r"x\.parquet:row 2: 'text' is null") as caught:
        dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin")
    assert (caught.value.path, caught.value.place) == (str(tmp_path / "x.parquet"), "row 2")
    done = check(tmp_path / "x.parquet", ["a", "c"], tmp_path, on_error="skip")
    assert done.skipped == 1
    with pytest.raises(dsmem.BadDocument, match=r"no column 'body'; there are: 'text', 'n'"):
        dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "no.bin", text_field="body")
    with pytest.raises(dsmem.BadDocument, match=r"row 1: 'n' is a number"):
        dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "no.bin", text_field="n")


COLUMNS: dict[str, Callable[[list[str]], pa.Array]] = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large string": lambda texts: pa.array(texts, pa.large_string()),
    "view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("stored_bytes", [0, 64 << 20])
@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_are_cut_by_bytes(
    suffix: str, kind: str, stored_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts far below and far above what is encoded together, and every kind of column that holds text."""
    monkeypatch.setattr(columns, "BLOCK_BYTES", 100)
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 100)
    monkeypatch.setattr(tables, "_MOST_STORED_BYTES", stored_bytes)
    texts = ["", "ä" * 70, *(f"{number} Größe" * (number % 7) for number in range(400)), "x" * 5000, "", "z" * 100]
    table = pa.table({"n": range(len(texts)), "text": COLUMNS[kind](texts)})
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path, row_group_size=150)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            for batch in table.slice(3).to_batches(max_chunksize=150):
                writer.write_batch(batch)
        texts = texts[3:]
    check(path, texts, tmp_path)


def test_rows_together_have_the_bytes_of_a_block_or_are_one() -> None:
    sizes = [4, 6, 1, 0, 25, 10, 0, 0, 11, 3]
    column = pa.array(["unseen", *("x" * size for size in sizes), "unseen"]).slice(1, len(sizes))
    wanted = [(0, 2, 10), (2, 4, 1), (4, 5, 25), (5, 8, 10), (8, 9, 11), (9, 10, 3)]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        one = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
        assert list(columns.rows_together(one, 10)) == wanted
        assert list(columns.rows_together(one.slice(0, 0), 10)) == []
        assert list(columns.rows_together(pa.array([], kind), 10)) == []


def test_the_row_of_a_hole_is_told_whatever_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK_BYTES", 100)
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 100)
    texts: list[str | None] = ["word " * (number % 9) for number in range(1000)]
    texts[777] = None
    parquet.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=300)
    with pytest.raises(dsmem.BadDocument, match=r"x\.parquet:row 778: 'text' is null"):
        dsmem.tokenize(tmp_path / "x.parquet", tmp_path / "out.bin")
    kept = [text for text in texts if text is not None]
    assert check(tmp_path / "x.parquet", kept, tmp_path, on_error="skip").skipped == 1


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_bytes_of_lines_are_counted(end: bytes, tmp_path: Path) -> None:
    """`text_bytes`, which `check` compares, comes from the block where no line ends in a carriage return."""
    texts = ["Größe", "", "naïve café", "x" * 300, "last"]
    (tmp_path / "x.txt").write_bytes("\n".join(texts).encode() + end)
    check(tmp_path / "x.txt", texts, tmp_path, split_on="line")


def test_skipping_counts_all_and_names_the_first(tmp_path: Path) -> None:
    lines = [b'{"text": "%d"}' % number if number % 3 else b"\xff" for number in range(3000)]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    texts = [str(number) for number in range(3000) if number % 3]
    done = check(tmp_path / "x.jsonl", texts, tmp_path, on_error="skip")
    assert done.skipped == 1000
    assert len(done.skipped_places) == 20
    assert f"{tmp_path}/x.jsonl:4: not UTF-8" in done.skipped_places[1]
    assert json.loads((tmp_path / "out.json").read_bytes())["skipped"] == 1000


def test_a_bad_file_among_files_is_skipped(tmp_path: Path) -> None:
    for name, data in (("a", b"good"), ("b", b"\xff"), ("c", b"also")):
        (tmp_path / f"{name}.txt").write_bytes(data)
    done = check(f"{tmp_path}/*.txt", ["good", "also"], tmp_path, on_error="skip")
    assert done.skipped_places == (f"{tmp_path}/b.txt:1: not UTF-8: byte 0xff",)


def test_only_text_is_split(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(dsmem.UsageError, match="text files are split on line, and there is none: all are jsonl"):
        dsmem.tokenize(path, tmp_path / "out.bin", split_on="line")
    (tmp_path / "y.txt").write_text("b\nc\n")
    assert dsmem.tokenize([path, tmp_path / "y.txt"], tmp_path / "out.bin", split_on="line").documents == 3


def test_what_can_not_be_meant(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "x.unknown").write_text("a")
    (tmp_path / "none").mkdir()
    for names, words in (
        ([], "no input"),
        ([tmp_path / "x.txt", tmp_path / "x.txt"], "is there twice"),
        ([tmp_path / "x.unknown"], "its name does not say what it is"),
    ):
        with pytest.raises(dsmem.UsageError, match=words):
            inputs.gather([str(name) for name in names])
    with pytest.raises(dsmem.BadSource, match="a directory without files to tokenize"):
        inputs.gather([str(tmp_path / "none")])
    with pytest.raises(dsmem.SourceMissing):
        inputs.gather([f"{tmp_path}/*.nothing"])
    assert inputs.gather([str(tmp_path / "x.unknown")], Wanted("txt"))[0].format == "txt"
