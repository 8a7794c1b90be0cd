"""Cuts lose no document and double none, whatever the documents and the size of a part."""

from __future__ import annotations

import io
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmem.tokens import cutting
from dsmem.tokens.cutting import Separator

LINES = st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"n")), max_size=30)
BLANK = st.lists(st.sampled_from([b"a", b"bb\ncc", b"d\r\ne", b"\xc3\xa9", b" ", b"x" * 40]), max_size=30)
GAPS = st.lists(st.sampled_from([b"\n\n", b"\n\n\n\n", b"\r\n\r\n", b"\n\r\n"]), min_size=30, max_size=30)


def ranges(data: bytes, size: int, separator: Separator) -> list[bytes]:
    """The content of each part of a file."""
    fd = os.memfd_create("data")
    try:
        os.write(fd, data)
        places = [*range(0, len(data), size), len(data)]
        cuts = [cutting.boundary(fd, place, len(data), separator) for place in places]
        assert cuts == sorted(cuts) and cuts[0] == 0 and cuts[-1] == len(data)
        found = []
        for start, end in pairwise(cuts):
            blocks = [bytes(block) for block in cutting.blocks(fd, start, end, separator)]
            assert b"".join(blocks) == data[start:end]
            found.append(data[start:end])
        return found
    finally:
        os.close(fd)


@settings(max_examples=80, deadline=None)
@given(LINES, st.integers(1, 40), st.booleans(), st.integers(1, 9), st.integers(1, 64))
def test_lines(rows: list[bytes], size: int, ended: bool, scan: int, block: int) -> None:
    data = b"\n".join(rows) + (b"\n" if ended else b"")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "_SCAN_BYTES", scan)
        patched.setattr(cutting, "BLOCK_BYTES", block)
        parts = ranges(data, size, "line")
    assert b"".join(parts) == data
    assert all(part == b"" or part.endswith(b"\n") or data.endswith(part) for part in parts)
    starts = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10), len(data)]
    at = 0
    for number, part in enumerate(parts):
        assert at == next(start for start in starts if start >= min(number * size, len(data)))
        at += len(part)


@settings(max_examples=80, deadline=None)
@given(BLANK, GAPS, st.integers(1, 40), st.integers(5, 30))
def test_paragraphs(rows: list[bytes], gaps: list[bytes], size: int, scan: int) -> None:
    data = b"".join(row + gap for row, gap in zip(rows, gaps, strict=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "_SCAN_BYTES", scan)
        parts = ranges(data, size, "blank")
    assert b"".join(parts) == data
    begins = {sum(len(row + gap) for row, gap in zip(rows[:n], gaps, strict=False)) for n in range(len(rows) + 1)}
    at = 0
    for part in parts:
        assert at in begins
        at += len(part)


@settings(max_examples=80, deadline=None)
@given(LINES, st.integers(1, 60), st.integers(1, 20))
def test_streams(rows: list[bytes], size: int, block: int) -> None:
    data = b"\n".join(rows)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "BLOCK_BYTES", block)
        found = list(cutting.pieces(io.BytesIO(data).read, "line", size))
    assert b"".join(found) == data
    assert all(piece.endswith(b"\n") for piece in found[:-1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON, max_size=8), st.integers(1, 30), st.sampled_from([None, 1]), st.booleans())
def test_elements(values: list[object], scan: int, indent: int | None, ascii_only: bool) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "_SCAN_BYTES", scan)
        found = list(cutting.elements(io.BytesIO(data), path="x"))
    assert [json.loads(one) for one in found] == values


def test_a_document_that_is_too_long_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MOST_DOCUMENT_BYTES", 3000)
    monkeypatch.setattr(cutting, "_SCAN_BYTES", 100)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 200)
    data = b"short\n" + b"x" * 5000 + b"\nshort\n"
    with pytest.raises(cutting.TooLong, match=r"longer than 2\.9 KiB"):
        ranges(data, 1000, "line")
    with pytest.raises(cutting.TooLong):
        list(cutting.pieces(io.BytesIO(data).read, "line", 400))
    with pytest.raises(cutting.TooLong):
        list(cutting.elements(io.BytesIO(b'["' + data.replace(b"\n", b" ") + b'"]'), path="x"))
