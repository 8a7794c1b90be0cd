"""JSON read an entry at a time is what Python's json makes of it, wherever the text is cut."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsmem.arrays.jsontext import Text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("\\" * 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CUTS = st.integers(1, 40)


def cut(text: str, characters: int) -> Text:
    return Text(text[at : at + characters] for at in range(0, len(text), characters))


@given(st.dictionaries(st.text(), VALUES, max_size=6), CUTS, st.sampled_from([None, 1]))
@example({"a": 1.5, "b": -1e-9, "c": 1e300}, 1, None)
def test_a_table(table: dict[str, Any], characters: int, indent: int | None) -> None:
    dumped = json.dumps(table, indent=indent)
    text = cut(dumped, characters)
    assert [(key, text.value()) for key in text.keys()] == list(table.items())  # noqa: SIM118
    text.end()
    assert text.position == len(dumped)


@given(st.dictionaries(st.text(), VALUES | st.lists(st.text(max_size=3)), max_size=6), CUTS, st.integers(1, 60))
@example({"a": ["b"] * 60, "c": [["d", "e"], "f\\", '","', "g"] * 9, "h": []}, 40, 20)
def test_a_table_without_lists(table: dict[str, Any], characters: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsmem.arrays.jsontext.PIECE_BYTES", piece)
        dumped = json.dumps(table, separators=(",", ":"))
        text = cut(dumped, characters)
        found = dict(text.entries("]", without_lists=True))
        text.end()
        assert list(found) == list(table)
        assert all(one == table[key] or (one is None and isinstance(table[key], list)) for key, one in found.items())
        if dumped.endswith("]}"):
            for wrong in ("]]}", ",]}", "}", '"]}', "]"):
                with pytest.raises(ValueError):
                    list(cut(dumped[:-2] + wrong, characters).entries("]", without_lists=True))


def test_a_long_list_takes_little() -> None:
    dumped = json.dumps({"": [f"sample_{number:06}" for number in range(100_000)], "x": []}, separators=(",", ":"))
    pieces = (dumped[at : at + 1000] for at in range(0, len(dumped), 1000))
    tracemalloc.start()
    try:
        assert [key for key, _ in Text(pieces).entries("]", without_lists=True)] == ["", "x"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@given(VALUES, CUTS)
def test_a_value(value: Any, characters: int) -> None:
    text = cut(json.dumps(value), characters)
    assert text.value() == value
    text.end()


@given(st.text(), CUTS)
@example("\\" * 50, 7)
@example('\\"\n\x7fé' * 9, 5)
def test_a_string_in_parts(value: str, characters: int) -> None:
    text = cut(json.dumps({"a": value, "b": 1}), characters)
    keys = text.keys()
    assert next(keys) == "a"
    begin = text.position
    found = "".join(text.string())
    assert found.encode("utf-16-le", "surrogatepass") == value.encode("utf-16-le")
    assert text.position - begin == len(json.dumps(value))
    assert next(keys) == "b" and text.value() == 1
    assert next(keys, None) is None


@given(VALUES, CUTS)
def test_json_in_a_string(value: Any, characters: int) -> None:
    outer = cut(json.dumps(json.dumps(value)), characters)
    inner = Text(outer.string())
    assert inner.value() == value
    inner.end()
    outer.end()


@given(st.text(alphabet='{}[]",:\\u01e-. atrue', max_size=12), CUTS)
def test_what_is_no_json_is_refused(text: str, characters: int) -> None:
    def read() -> Any:
        one = cut(text, characters)
        value = one.value()
        one.end()
        return value

    def read_table() -> Any:
        one = cut(text, characters)
        found = {key: one.value() for key in one.keys()}  # noqa: SIM118
        one.end()
        return found

    def read_entries() -> Any:
        one = cut(text, characters)
        found = dict(one.entries("}"))
        one.end()
        return found

    def read_string() -> Any:
        one = cut(text, characters)
        found = "".join(one.string())
        one.end()
        return found

    try:
        expected = json.loads(text)
    except ValueError:
        for way in (read, read_table, read_entries, read_string):
            with pytest.raises(ValueError):
                way()
    else:
        assert read() == expected
        if isinstance(expected, dict | str):
            assert (read_table if isinstance(expected, dict) else read_string)() == expected
        if isinstance(expected, dict):
            assert read_entries() == expected


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "tables"])
def test_what_is_too_deep_is_refused(text: str) -> None:
    with pytest.raises((RecursionError, ValueError)):
        cut(text, 1000).value()


def test_of_a_long_text_little_is_held() -> None:
    count = 100_000
    text = Text("{" * (at == 0) + f'"{at:09}":[{at}]' + ("}" if at == count - 1 else ",") for at in range(count))
    tracemalloc.start()
    found = sum(text.value()[0] for _ in text.keys())  # noqa: SIM118
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == count * (count - 1) // 2
    assert peak < 100_000


@given(st.dictionaries(st.text(), VALUES, max_size=9), CUTS | st.just(10_000), st.sampled_from('}]"1'))
@example({"a},": {"b": {"c": {}}, "d": {}}, "e": {}, "},": {}, '","': ",", "f": {}}, 10_000, "}")
def test_entries(table: dict[str, Any], characters: int, close: str) -> None:
    dumped = json.dumps({"a": table, "b": 1}, separators=(",", ":"))
    text = cut(dumped, characters)
    keys = text.keys()
    assert next(keys) == "a" and list(text.entries(close)) == list(table.items())
    assert next(keys) == "b" and text.value() == 1 and next(keys, None) is None
    text.end()
    rest = cut(json.dumps({"": 0, **table}, separators=(",", ":")), characters)
    first = next(rest.keys())
    found = {first: rest.value(), **dict(rest.entries(close, inside=True))}
    rest.end()
    assert found == {"": 0, **table}
