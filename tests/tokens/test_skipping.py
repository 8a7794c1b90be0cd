"""`on_error="skip"` leaves out what is bad about one document, tells of it, and keeps all others."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import re
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


CHECKED: dict[str, Callable[[bytes], bytes]] = {
    **COMPRESSIONS,
    "xz": partial(lzma.compress, check=lzma.CHECK_CRC32),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def rows_of(count: int) -> tuple[list[str], list[bytes]]:
    texts = [random.Random(number).randbytes(40).hex() for number in range(count)]
    return texts, [json.dumps({"text": text}).encode() + b"\n" for text in texts]


@pytest.mark.parametrize("where", ["checksum", "data", "behind"])
@pytest.mark.parametrize("compression", CHECKED)
def test_of_what_is_damaged_all_counts_that_a_checksum_holds_for(compression: str, where: str, tmp_path: Path) -> None:
    """Two streams, of which the second is damaged, or something that is none behind them."""
    texts, rows = rows_of(18_000)
    packed = bytearray(b"".join(CHECKED[compression](b"".join(some)) for some in (rows[:9000], rows[9000:])))
    if where == "behind":
        packed += b"\x1f\x8b\x08" + b"\xff" * 99 if compression == "gz" else b"\xff" * 99
    elif where == "data":
        packed[-5000] ^= 4
    else:
        packed[{"gz": -8, "xz": packed.rindex(b"YZ") - 22, "zst": -4, "bz2": -5}[compression]] ^= 1
    path = tmp_path / "x.jsonl"
    path.write_bytes(packed)
    done = dsmem.tokenize(path, tmp_path / "out.bin", on_error="skip")
    found = written(tmp_path / "out.bin")
    assert found == bytes_of(texts[: len(found)])
    if compression == "bz2":  # each of its blocks has a checksum, and this that of the last is of the whole stream
        least = {"checksum": 16_000, "data": 16_000, "behind": 18_000}[where]
        assert least <= len(found) <= least + 2000
    else:
        assert len(found) == (18_000 if where == "behind" else 9000)
    assert done.skipped == 1
    between = "after 1.6 MiB" if where == "behind" else r"(after|between 817\.4 KiB and) .*[KM]iB"
    between = r"(after|between)" if compression == "bz2" else between
    told = rf"{path}:{len(found) + 1}: the {compression} data is damaged {between}"
    assert re.match(told, done.skipped_places[0])


@pytest.mark.parametrize("workers", [None, 2])
def test_parts_of_a_run_that_stopped_at_damage_are_not_taken_over(workers: int | None, tmp_path: Path) -> None:
    """They are of what was decoded before it, of which some may be wrong."""
    texts, rows = rows_of(18_000)
    packed = bytearray(b"".join(gzip.compress(b"".join(some)) for some in (rows[:5000], rows[5000:])))
    packed[-8] ^= 4
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[:100])))
    (tmp_path / "b.jsonl.gz").write_bytes(packed)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[5000:])))
    inputs = sorted(tmp_path.iterdir())
    more: dict[str, Any] = {"part_bytes": 1 << 16, "workers": workers}
    for _ in range(2):
        with pytest.raises(dsmem.BadDocument, match=r"b\.jsonl\.gz:18001: the gz data is damaged after"):
            dsmem.tokenize(inputs, tmp_path / "out.bin", **more)
        assert len(list((tmp_path / ".out.bin.parts").glob("part-*.json"))) > 12

        def stop(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes * 0.8:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            dsmem.tokenize(inputs, tmp_path / "out.bin", on_error="skip", progress=stop, **more)
    done = dsmem.tokenize(inputs, tmp_path / "out.bin", on_error="skip", **more)
    expected = [*texts[:100], *texts[:5000], *texts[5000:]]
    assert written(tmp_path / "out.bin") == bytes_of(expected)
    assert done.skipped == 1 and done.resumed_parts > 3
    assert ":5001: the gz data is damaged between 454.1 KiB and" in done.skipped_places[0]


def test_of_a_stream_what_may_be_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be taken back; what is behind the last checksum, or cut off, is known in time."""
    _, rows = rows_of(9000)
    packed = bytearray(gzip.compress(b"".join(rows)))

    class Stdin:
        buffer = io.BytesIO(bytes(packed[:-8]) + b"12345678")

    monkeypatch.setattr(sys, "stdin", Stdin)
    with pytest.raises(dsmem.BadSource, match=r"standard input: the gz data is damaged after .* may be wrong"):
        dsmem.tokenize("-", tmp_path / "out.bin", on_error="skip", workers=1)
    assert not (tmp_path / "out.bin").exists()
    Stdin.buffer = io.BytesIO(bytes(packed) + b"\x1f\x8b\x08\xff")
    done = dsmem.tokenize("-", tmp_path / "out.bin", on_error="skip", workers=1)
    assert (done.documents, done.skipped) == (9000, 1)


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
