"""Tables kept as bytes give back what was put in, in order, and take little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays.rows import Blobs, Names, Rows, Table

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


@pytest.mark.parametrize("plain", [0, 10, 1000])
def test_many_rows_are_read_in_any_order_and_while_more_are_added(monkeypatch: pytest.MonkeyPatch, plain: int) -> None:
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BLOCKS", plain)
    rows: Rows[tuple[str, int]] = Rows()
    values = [(f"x{number}" * (number % 7), number) for number in range(3000)]
    for value in values:
        rows.append(value)
        assert rows[len(rows) // 2] == values[len(rows) // 2]
    assert list(rows) == values
    assert [rows[number * 1709 % 3000] for number in range(3000)] == [values[n * 1709 % 3000] for n in range(3000)]


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


@given(st.lists(TEXTS.map(lambda text: text.replace("\0", "")).filter(lambda text: _is_of_a_file(text)), max_size=8))
def test_names(texts: list[str]) -> None:
    names = Names()
    for number, text in enumerate(texts):
        names.append(text if number % 2 else text.encode("utf-8", "surrogateescape"))
    assert len(names) == len(texts)
    assert list(names) == texts
    again = Names(names.joined())
    assert (len(again), list(again)) == (len(texts), texts)
    assert again.without(()) is again
    left = again.without(set(texts[:2]))
    assert list(left) == [text for text in texts if text not in texts[:2]]
    assert list(again) == texts


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


@pytest.mark.parametrize(("plain", "most_bytes"), [(0, 32), (1000, 80)])
def test_little_is_taken(monkeypatch: pytest.MonkeyPatch, plain: int, most_bytes: int) -> None:
    monkeypatch.setattr("dsmem.arrays.rows._PLAIN_BLOCKS", plain)
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
