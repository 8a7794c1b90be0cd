"""Attribute values as JSON: exact both ways; whatever else is in a header is a ValueError."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
import pytest
from compare import assert_same_value
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmem.arrays import attributes
from dsmem.arrays.dtypes import UnsupportedType

COLOUR = h5py.enum_dtype({"red": 0, "blue": 2}, basetype="u1")
TEXT = h5py.string_dtype()
LISTS = np.empty(2, h5py.vlen_dtype(np.dtype("<i4")))
LISTS[0], LISTS[1] = np.arange(3, dtype="<i4"), np.arange(0, dtype="<i4")
VALUES: dict[str, Any] = {
    "text": "é",
    "empty text": "",
    "text that is not UTF-8": "a\udcff",
    "texts": np.array(["a", "", "é\udc80"], TEXT),
    "no texts": np.array([], TEXT),
    "grid of texts": np.array([["a"], ["b"]], TEXT),
    "bytes": b"a\0b",
    "numpy bytes": np.bytes_(b"abc"),
    "fixed": np.array([b"ab", b""], "S5"),
    "fixed utf8": np.array([b"ab"], h5py.string_dtype("utf-8", 5)),
    "one": np.int64(5),
    "big": np.array(5, ">i2")[()],
    "nan": np.array([0x7FF8_0000_0000_BEEF], "u8").view("<f8")[0],
    "bool": np.bool_(True),
    "grid": np.arange(6, dtype=">f4").reshape(2, 3),
    "none": np.zeros((0, 3), "<f4"),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "0-d": np.array(3.5),
    "compound": np.array([(1, 2.0)], [("a", "<i4"), ("b", ">f8")]),
    "one compound": np.array([(1, 2.0)], [("a", "<i4"), ("b", ">f8")])[0],
    "enum": np.array([0, 2], COLOUR),
    "opaque": np.void(b"ab\0"),
    "date": np.array([1], h5py.opaque_dtype("<M8[s]")),
    "empty": h5py.Empty("<f4"),
    "empty text type": h5py.Empty(TEXT),
    "lists": LISTS,
}


def again(value: Any) -> Any:
    return attributes.from_json(json.loads(json.dumps(attributes.to_json(value))))


def from_apart(value: Any) -> Any:
    """The same with what is long of the value behind some other bytes."""
    encoded = attributes.encode(value)
    raw = bytes(encoded.raw())
    placed = attributes.Apart(encoded.rest, encoded.key, len(raw)).placed(3)
    together = b"abc" + raw
    return attributes.from_json(json.loads(json.dumps(placed)), lambda begin, end: memoryview(together)[begin:end])


@pytest.mark.parametrize("what", [what for what in VALUES if what != "0-d"])
def test_round_trip(what: str) -> None:
    assert_same_value(again(VALUES[what]), VALUES[what], what)


@given(
    hnp.arrays(hnp.scalar_dtypes().filter(lambda dtype: dtype.kind != "U"), hnp.array_shapes(min_dims=1, max_dims=3))
)
def test_any_array(array: np.ndarray[Any, Any]) -> None:
    assert_same_value(again(array), array, "array")
    assert_same_value(again(array.reshape(-1)[0]), array.reshape(-1)[0], "scalar")


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        [1],
        object(),
        h5py.Reference(),
        np.array([None]),
        np.zeros(1, [("t", TEXT)]),
        np.zeros(1, h5py.ref_dtype),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_unsupported(value: object) -> None:
    with pytest.raises(UnsupportedType):
        attributes.to_json(value)


@pytest.mark.parametrize("what", [what for what in VALUES if what != "0-d" and not what.startswith("empty ")])
def test_round_trip_apart(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_value(from_apart(VALUES[what]), VALUES[what], what)
    monkeypatch.setattr(attributes, "_SMALL_BYTES", 0)
    monkeypatch.setattr(attributes, "_ITEMS", 2)
    assert_same_value(from_apart(VALUES[what]), VALUES[what], what)


@pytest.mark.parametrize("at", [None, [], [0], [0, 1, 2], ["0", 1], [0, None], 5, "ab", [0.0, 1]], ids=repr)
def test_a_damaged_place(at: object) -> None:
    for key in ("str", "bytes", "data", "objects"):
        value = {"dtype": "<i4", "shape": [1], key: {"at": at}}
        with pytest.raises(ValueError, match=r"not an attribute|values to unpack"):
            attributes.from_json(value, lambda begin, end: memoryview(b"abcd")[begin:end])
    with pytest.raises(ValueError, match="not an attribute"):
        attributes.from_json({"str": {"at": [0, 1]}})


def test_what_comes_back_belongs_to_the_caller() -> None:
    value = again(np.arange(3))
    value[0] = 7


WORDS = st.sampled_from(
    ["str", "bytes", "numpy", "empty", "dtype", "shape", "objects", "data", "<f4", "AAAA", "S", "!", "<c16"]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), WORDS, st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)
RECORD = st.fixed_dictionaries({"dtype": JSON, "shape": JSON}, optional={"data": JSON, "objects": st.lists(JSON)})


@given(st.one_of(JSON, RECORD))
def test_anything_else_is_a_value_error(value: object) -> None:
    try:
        attributes.from_json(value)
    except ValueError:
        return


@pytest.mark.parametrize(
    "value",
    [
        {"dtype": "<f4", "shape": [2], "data": "AAAAAA=="},
        {"dtype": "<f4", "shape": [2**40, 0, 2**40], "data": "AAAA"},
        {"dtype": "<f4", "shape": [-1], "data": "AAAAAAAA"},
        {"dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="},
        {"dtype": "<f4", "shape": None, "data": ""},
        {"dtype": "<f4", "shape": "ab", "data": "AAAAAA=="},
        {"bytes": "not base64!"},
        {"dtype": "<f4", "shape": [2**62], "data": ""},
        {"dtype": "<f4", "shape": [2**36], "data": ""},
        {"objects": "abc", "dtype": {"vlen": "str"}, "shape": [3]},
        {"objects": [{"str": "a"}], "dtype": {"vlen": "str"}, "shape": [3]},
    ],
    ids=repr,
)
def test_damaged(value: object) -> None:
    with pytest.raises(ValueError):
        attributes.from_json(value)
