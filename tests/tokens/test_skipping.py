"""`on_error="skip"` leaves out what is bad about one document, tells of it, and keeps all others."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokentexts import written

import dsmem
from dsmem.tokens import cutting

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": partial(bz2.compress, compresslevel=1),
    "xz": partial(lzma.compress, preset=0),
    "zst": zstandard.ZstdCompressor().compress,
}


def bytes_of(texts: list[str]) -> list[list[int]]:
    return [[*text.encode(), 256] for text in texts]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "lines", "blank"])
def test_documents_that_are_too_long_are_skipped(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MOST_DOCUMENT_BYTES", 3000)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 400)
    texts = ["a", "b" * 20_000, "c", "d" * 9000, "e" * 2000]
    lines = [json.dumps({"text": text}) for text in texts]
    path = tmp_path / f"x.{suffix if suffix.startswith('json') else 'txt'}"
    plain = "\n".join(lines) if "jsonl" in suffix else f"[{','.join(lines)}]"
    if path.suffix == ".txt":
        plain = ("\n" if suffix == "lines" else "\n\n").join(texts)
    path.write_bytes(gzip.compress(plain.encode()) if suffix.endswith("gz") else plain.encode())
    split_on = suffix.removesuffix("s") if path.suffix == ".txt" else None
    more: dict[str, Any] = {"split_on": split_on, "part_bytes": 1000}
    done = dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip", **more)
    assert written(tmp_path / "out.bin") == bytes_of(["a", "c", "e" * 2000])
    unit = "element " if suffix == "json" else ""
    places = (2, 4) if suffix != "blank" else (3, 7)
    told = [f"{path}:{unit}{place}: longer than 2.9 KiB, the most for" for place in places]
    assert done.skipped == 2
    assert [place[: len(words)] for place, words in zip(done.skipped_places, told, strict=True)] == told
    with pytest.raises(
        dsmem.BadDocument, match=f"x.{suffix[:4] if split_on is None else 'txt'}.*:{unit}{places[0]}: lo"
    ):
        dsmem.tokenize(path, tmp_path / "no.bin", **more)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "lines", "file"])
def test_of_what_is_cut_off_the_documents_before_the_end_count(kind: str, compression: str, tmp_path: Path) -> None:
    texts = [random.Random(number).randbytes(90).hex() for number in range(5_000)]
    lines = [json.dumps({"text": text}) for text in texts]
    path = tmp_path / f"x.{'json' if kind == 'json' else 'jsonl' if kind == 'jsonl' else 'txt'}"
    plain = f"[{', '.join(lines)}]" if kind == "json" else "\n".join(lines if kind == "jsonl" else texts)
    packed = COMPRESSIONS[compression](plain.encode())
    path.write_bytes(packed[: len(packed) * 3 // 4])
    more: dict[str, Any] = {"split_on": "line" if kind == "lines" else None, "verify": 0}
    with pytest.raises(dsmem.BadDocument, match=rf"{path}.*: the {compression} data is truncated after \d.* of text"):
        dsmem.tokenize(path, tmp_path / "out.bin", **more)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    if kind == "file":
        with pytest.raises(dsmem.NoDocuments, match="1 bad one was left out"):
            dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip", **more)
        return
    done = dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip", **more)
    found = written(tmp_path / "out.bin")
    assert found == bytes_of(texts[: len(found)])
    # Of bzip2 and Zstandard a block that is cut off gives nothing.
    assert len(found) * 3 > len(texts) * (2 if compression in ("gz", "xz") else 1)
    assert done.skipped == 1
    unit = "element " if kind == "json" else ""
    assert done.skipped_places[0].startswith(
        f"{path}:{unit}{len(found) + 1}: the {compression} data is truncated after"
    )


@pytest.mark.parametrize("where", ["checksum", "data"])
@pytest.mark.parametrize("compression", ["gz", "xz", "zst"])
def test_of_what_is_damaged_all_before_counts(compression: str, where: str, tmp_path: Path) -> None:
    texts = [random.Random(number).randbytes(40).hex() for number in range(9000)]
    plain = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "xz": partial(lzma.compress, check=lzma.CHECK_CRC32),
        "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    }
    packed = bytearray(pack[compression](plain))
    if where == "data":  # a second stream that is none from its first byte on
        packed += b"\x1f\x8b\x08" + b"\xff" * 99 if compression == "gz" else b"\xff" * 99
    else:
        packed[{"gz": -8, "xz": packed.rindex(b"YZ") - 22, "zst": -4}[compression]] ^= 1
    (tmp_path / "x.jsonl").write_bytes(packed)
    done = dsmem.tokenize(tmp_path / "x.jsonl", tmp_path / "out.bin", on_error="skip")
    assert written(tmp_path / "out.bin") == bytes_of(texts)
    assert done.skipped == 1
    assert f"x.jsonl:9001: the {compression} data is damaged after 817.4 KiB" in done.skipped_places[0]


@pytest.mark.parametrize(("form", "texts", "place"), [("jsonl", ["a", "b", "c"], "3"), ("txt", ["c"], "")])
def test_streams_that_are_cut_off_are_skipped(
    form: Any, texts: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')[:-9])

    monkeypatch.setattr(sys, "stdin", Stdin)
    last = tmp_path / "last"
    last.write_text('{"text": "c"}\n' if form == "jsonl" else "c")
    done = dsmem.tokenize(["-", last], tmp_path / "out.bin", format=form, on_error="skip", workers=1)
    assert written(tmp_path / "out.bin") == bytes_of(texts)
    assert done.skipped == 1
    where = f"standard input:{place}" if place else "standard input"
    assert done.skipped_places[0].startswith(f"{where}: the gz data is truncated after 28 B of text")
