"""Tables kept as bytes give back what was put in, in order, and take little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays.rows import Blobs, Names, Rows, Table
from dsmem.scratch import Scratch

TEXTS = st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.binary() | st.just(...),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=8))
def test_rows(values: list[Any]) -> None:
    rows: Rows[Any] = Rows()
    for value in values:
        rows.append(value)
    assert len(rows) == len(values)
    assert list(rows) == values
    assert [rows[number] for number in reversed(range(len(rows)))] == values[::-1]
    with pytest.raises(IndexError):
        rows[len(values)]


@pytest.fixture(params=["on a disk", "compressed"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where blocks go that are not plain."""
    append, room = Scratch.append, {"on a disk": 10**9, "compressed": 0, "some on a disk": 5000}

    def limited(scratch: Scratch, data: bytes) -> int | None:
        begin = append(scratch, data)
        return None if begin is None or begin + len(data) > room.get(request.param, 10**9) else begin

    monkeypatch.setattr(Scratch, "append", limited)
    return str(request.param)


@pytest.mark.parametrize("plain_bytes", [0, 10_000, 1_000_000])
@pytest.mark.parametrize("where", ["on a disk", "compressed", "some on a disk"], indirect=True)
def test_many_rows_are_read_in_any_order_and_while_more_are_added(
    monkeypatch: pytest.MonkeyPatch, where: str, plain_bytes: int
) -> None:
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BYTES", plain_bytes)
    rows: Rows[tuple[str, int]] = Rows()
    values = [(f"x{number}" * (number % 7), number) for number in range(3000)]
    for value in values:
        rows.append(value)
        assert rows[len(rows) // 2] == values[len(rows) // 2]
    assert list(rows) == values
    assert [rows[number * 1709 % 3000] for number in range(3000)] == [values[n * 1709 % 3000] for n in range(3000)]


def test_a_temporary_file_that_is_another_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes to the background may have closed it, and opened another under its number."""
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BYTES", 0)
    rows: Rows[int] = Rows()
    for number in range(100):
        rows.append(number)
    assert rows[0] == 0
    monkeypatch.setattr(Scratch, "read", lambda *_: b"something else")
    with pytest.raises(OSError, match="does not hold any more"):
        rows[50]


@pytest.mark.parametrize("where", ["on a disk", "compressed"], indirect=True)
def test_long_rows(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A block ends with the first that makes it long."""
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BYTES", 100)
    monkeypatch.setattr("dsmem.arrays.rows._TOGETHER_BYTES", 50)
    blobs, expected = Blobs(), [b"%d" % number * (number * 31 % 23) for number in range(500)]
    for blob in expected:
        blobs.append(blob)
        assert blobs[len(blobs) - 1] == blob
    assert [blobs[number] for number in range(500)] == expected
    assert [blobs[number * 211 % 500] for number in range(500)] == [expected[n * 211 % 500] for n in range(500)]


def test_a_value_that_is_refused_leaves_the_rows_as_they_were() -> None:
    rows: Rows[Any] = Rows()
    rows.append(1)
    with pytest.raises(ValueError, match="unmarshallable"):
        rows.append(object())
    rows.append(2)
    assert list(rows) == [1, 2]


@given(st.lists(st.tuples(TEXTS, VALUES), max_size=8))
def test_a_table(entries: list[tuple[str, Any]]) -> None:
    table: Table[Any] = Table()
    for name, value in entries:
        table.add(name, value)
    assert len(table) == len(entries)
    assert list(table.items()) == entries
    kept = table.kept(lambda name, _: len(name) % 2 == 0)
    assert list(kept.items()) == [entry for entry in entries if len(entry[0]) % 2 == 0]
    assert list(table.items()) == entries


@given(
    st.lists(TEXTS.map(lambda text: text.replace("\0", "")).filter(lambda text: _is_of_a_file(text)), max_size=8),
    st.sampled_from([1, 10, 10_000]),
)
def test_names(texts: list[str], together_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsmem.arrays.rows._NAMES_BYTES", together_bytes)
        look_at_names(texts)


def look_at_names(texts: list[str]) -> None:
    names = Names()
    for number, text in enumerate(texts):
        names.append(text if number % 2 else text.encode("utf-8", "surrogateescape"))
    assert len(names) == len(texts)
    assert list(names) == texts
    again = Names(names.joined())
    assert (len(again), list(again)) == (len(texts), texts)
    again.are_stored()
    assert (len(again), list(again)) == (len(texts), texts)
    scratch = Scratch()
    beside, last = Names(scratch=scratch), Names(scratch=scratch)
    for text in texts:
        beside.append(text)
        last.append(text)
    assert list(beside) == list(last) == texts


def _is_of_a_file(text: str) -> bool:
    """Whether bytes can be its name: surrogates that are no escapes, or are UTF-8 together, never come of any."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text
    except UnicodeEncodeError:
        return False


@given(st.lists(st.binary(max_size=5), max_size=3), st.integers(0, 2100))
def test_blobs(some: list[bytes], count: int) -> None:
    blobs, expected = Blobs(), [*some, *(b"%d" % number for number in range(count)), *some]
    for blob in expected:
        blobs.append(blob)
    assert len(blobs) == len(expected)
    assert [blobs[number] for number in range(len(blobs))] == expected
    for outside in (-1, len(expected), len(expected) + 5000):
        with pytest.raises(IndexError):
            blobs[outside]


@pytest.mark.parametrize(
    ("where", "plain_bytes", "most_bytes"),
    [("compressed", 0, 32), ("on a disk", 0, 4), ("on a disk", 10**9, 80)],
    indirect=["where"],
)
def test_little_is_taken(monkeypatch: pytest.MonkeyPatch, where: str, plain_bytes: int, most_bytes: int) -> None:
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BYTES", plain_bytes)
    rows: Rows[Any] = Rows()
    tracemalloc.start()
    try:
        for number in range(20_000):
            rows.append((f"sample_{number:07}", 3, (16,), None, None, 10**6 + number, 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rows) == 20_000
    assert peak < most_bytes * len(rows)  # of what is compressed most is zlib's own


def test_names_take_little() -> None:
    names = Names()
    tracemalloc.start()
    try:
        for number in range(200_000):
            names.append(b"sample_%07d" % number)
        assert sum(map(len, names)) == 200_000 * 14
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(names)
