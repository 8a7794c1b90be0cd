"""Cuts lose no document and double none, whatever the documents and the size of a part."""

from __future__ import annotations

import io
import json
import os
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmem.tokens import cutting, spools, values
from dsmem.tokens.cutting import Separator

LINES = st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"n")), max_size=30)
BLANK = st.lists(st.sampled_from([b"a", b"bb\ncc", b"d\r\ne", b"\xc3\xa9", b" ", b"x" * 40]), max_size=30)
GAPS = st.lists(st.sampled_from([b"\n\n", b"\n\n\n\n", b"\r\n\r\n", b"\n\r\n"]), min_size=30, max_size=30)


def fail(offset: int) -> None:
    """No document is to be left out."""
    raise AssertionError(offset)


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
            blocks = [(offset, bytes(block)) for offset, block in cutting.blocks(fd, start, end, separator, fail)]
            assert all(data[offset:].startswith(block) for offset, block in blocks)
            assert b"".join(block for _, block in blocks) == data[start:end]
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
        chunks = iter(partial(io.BytesIO(data).read, block), b"")
        stretches = spools.stretches(chunks, "line", size, shown="x", unit="", skip_bad=False)
        found, firsts = [], []
        for one in stretches:
            found.append(bytes(one.data))
            firsts.append(one.first)
    assert b"".join(found) == data
    assert firsts == [1 + b"".join(found[:number]).count(b"\n") for number in range(len(found))]
    assert all(piece.endswith(b"\n") for piece in found[:-1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON, max_size=8), st.integers(1, 30), st.sampled_from([None, 1]), st.booleans(), st.integers(0, 30))
def test_elements(expected: list[object], scan: int, indent: int | None, ascii_only: bool, large: int) -> None:
    data = json.dumps(expected, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(values, "_SCAN_BYTES", scan)
        patched.setattr(values, "_LARGE_BYTES", large)
        found = [bytes(one or b"") for one in values.elements(io.BytesIO(data))]
    assert [json.loads(one) for one in found] == expected


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=8),
    st.integers(1, 30),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " ", "\n\n"]),
    st.integers(0, 30),
)
def test_objects(expected: list[object], scan: int, indent: int | None, between: str, large: int) -> None:
    data = between.join(json.dumps(one, indent=indent) for one in expected).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(values, "_SCAN_BYTES", scan)
        patched.setattr(values, "_LARGE_BYTES", large)
        found = [bytes(one or b"") for one in values.objects(io.BytesIO(data))]
    assert [json.loads(one) for one in found] == expected


LONG = st.lists(st.sampled_from([b"", b"a", b"x" * 50, b"y" * 99, b"z" * 100, b"w" * 350]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(LONG, st.sampled_from([b"\n", b"\n\n"]), st.integers(1, 400), st.booleans(), st.integers(1, 40))
def test_documents_that_are_too_long_are_left_out(
    rows: list[bytes], gap: bytes, size: int, ended: bool, scan: int
) -> None:
    separator: Separator = "line" if gap == b"\n" else "blank"
    rows = rows if separator == "line" else [row for row in rows if row]
    data = gap.join(rows) + (gap if ended and rows else b"")
    whole = [row + gap for row in rows[:-1]] + [row + gap * ended for row in rows[-1:]]
    starts = [sum(map(len, whole[:number])) for number in range(len(whole))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "MOST_DOCUMENT_BYTES", 100)
        patched.setattr(cutting, "_SCAN_BYTES", scan)
        patched.setattr(cutting, "BLOCK_BYTES", 30)
        fd = os.memfd_create("data")
        try:
            os.write(fd, data)
            found: list[tuple[int, bytes]] = []
            left_out: list[int] = []
            for place in range(0, len(data), size):
                end = min(place + size, len(data))
                bounds = cutting.bounds(fd, place, end, len(data), separator)
                blocks = cutting.blocks(fd, *bounds[:2], separator, left_out.append, is_open=bounds[2])
                found += [(offset, bytes(block)) for offset, block in blocks]
        finally:
            os.close(fd)
        chunks = iter(partial(io.BytesIO(data).read, 30), b"")
        stretches = spools.stretches(chunks, separator, size, shown="x", unit="", skip_bad=True)
        streamed: list[bytes] = []
        told: list[str] = []
        for one in stretches:
            streamed.append(bytes(one.data))
            told += one.left_out
    assert all(data[offset:].startswith(block) for offset, block in found)
    assert b"".join(block for _, block in found) == b"".join(one for one in whole if len(one) <= 100)
    assert left_out == [start for start, one in zip(starts, whole, strict=True) if len(one) > 100]
    # Whoever reads a stretch looks again: what is longer by less than a block may be in it.
    kept, count = b"".join(streamed), 0
    for row in whole:
        if len(row) <= 100 or (len(row) <= 130 and kept.startswith(row)):
            assert kept.startswith(row)
            kept = kept[len(row) :]
        else:
            count += 1
    assert not kept and len(told) == count


def test_elements_that_are_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MOST_DOCUMENT_BYTES", 300)
    monkeypatch.setattr(values, "_SCAN_BYTES", 10)
    long = {"text": 'x"][{},' * 100}
    data = json.dumps([1, long, {"a": 2}, long, [long]]).encode()
    assert list(values.elements(io.BytesIO(data))) == [b"1", None, b'{"a": 2}', None, None]
    data = json.dumps(long).encode() + b"\n" + b'{"a":\n2}' + json.dumps(long).encode()
    assert list(values.objects(io.BytesIO(data))) == [None, b'{"a":\n2}', None]
