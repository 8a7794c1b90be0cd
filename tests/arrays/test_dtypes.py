"""Recipes of dtypes: exact both ways, metadata included; whatever else is in a header is a ValueError."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
import pytest
from compare import assert_same_dtype
from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays import dtypes
from dsmem.arrays.dtypes import UnsupportedType

NUMBERS = [
    np.dtype(order + code) for order in "<>" for code in ("i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16", "M8[s]")
]
COLOUR = h5py.enum_dtype({"red": 0, "ü": 7}, basetype=">i2")
OTHERS: list[np.dtype[Any]] = [
    np.dtype("?"),
    np.dtype("u1"),
    np.dtype("i1"),
    np.dtype("S1"),
    np.dtype("S9"),
    np.dtype("V3"),
    np.dtype(np.longdouble),
    np.dtype(np.clongdouble),
    COLOUR,
    h5py.string_dtype("utf-8", 5),
    h5py.string_dtype("ascii", 5),
    h5py.opaque_dtype("<M8[25us]"),
    h5py.opaque_dtype(">m8[D]"),
    np.dtype(("<f4", (2, 3))),
    np.dtype((np.dtype(("<f4", (2, 3))), (4,))),
]
VARIABLE = [
    h5py.string_dtype(),
    h5py.string_dtype("ascii"),
    h5py.vlen_dtype(np.dtype("<i4")),
    h5py.vlen_dtype(np.dtype([("a", ">f8")])),
    h5py.vlen_dtype(h5py.enum_dtype({"a": 1})),
]


def compound(parts: list[tuple[np.dtype[Any], int]]) -> np.dtype[Any]:
    offset, offsets = 0, []
    for dtype, pad in parts:
        offsets.append(offset + pad)
        offset += pad + dtype.itemsize
    names = [f"f ü{i}" for i in range(len(parts))]
    return np.dtype({"names": names, "formats": [d for d, _ in parts], "offsets": offsets, "itemsize": offset + 3})


FIXED = st.recursive(
    st.sampled_from([*NUMBERS, *OTHERS]),
    lambda inner: st.lists(st.tuples(inner, st.integers(0, 7)), min_size=1, max_size=4).map(compound),
    max_leaves=8,
)


@given(FIXED)
def test_round_trip(dtype: np.dtype[Any]) -> None:
    recipe = json.loads(json.dumps(dtypes.to_json(dtype)))
    assert_same_dtype(dtypes.from_json(recipe), dtype, "again")


@pytest.mark.parametrize("dtype", VARIABLE, ids=str)
def test_variable_length_round_trip(dtype: np.dtype[Any]) -> None:
    recipe = json.loads(json.dumps(dtypes.to_json(dtype)))
    assert_same_dtype(dtypes.from_json(recipe), dtype, "again")


@given(FIXED)
def test_a_carrier_has_the_same_bytes(dtype: np.dtype[Any]) -> None:
    carrier = dtypes.carrier(dtype)
    base = dtypes.of_carrier(carrier.code)
    assert base is not None
    assert base.itemsize * int(np.prod(carrier.item_shape, dtype=int)) == dtype.itemsize
    assert carrier.align in (1, 2, 4, 8, 16)
    assert dtype.itemsize % carrier.align == 0


@pytest.mark.parametrize(
    ("code", "native"),
    [("?", "BOOL"), ("u1", "U8"), ("<u2", "U16"), ("<f2", "F16"), ("<f8", "F64"), ("<i8", "I64"), ("<c8", "C64")],
)
def test_what_safetensors_has_is_carried_as_itself(code: str, native: str) -> None:
    dtype = np.dtype(code)
    assert dtypes.carrier(dtype) == dtypes.Carrier(native, (), dtype.itemsize)
    assert dtypes.is_plain(dtype)
    assert dtypes.of_carrier(native) == dtype


@pytest.mark.parametrize("dtype", [*OTHERS[3:], np.dtype(">f4"), np.dtype("<c16"), np.dtype([("a", "<f4")])], ids=str)
def test_what_it_lacks_is_not_plain(dtype: np.dtype[Any]) -> None:
    assert not dtypes.is_plain(dtype)


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (h5py.ref_dtype, "reference"),
        (h5py.regionref_dtype, "reference"),
        (np.dtype([("r", h5py.ref_dtype)]), "reference"),
        (h5py.vlen_dtype(h5py.ref_dtype), "reference"),
        (np.dtype(object), "Python objects"),
        (h5py.vlen_dtype(">f8"), "big-endian"),
        (np.dtype("<f4", metadata={"unknown": 1}), "unknown"),
    ],
    ids=str,
)
def test_unsupported(dtype: np.dtype[Any], reason: str) -> None:
    with pytest.raises(UnsupportedType, match=reason):
        dtypes.to_json(dtype)


@pytest.mark.parametrize(
    "dtype", [np.dtype([("t", h5py.string_dtype())]), np.dtype((h5py.string_dtype(), (2,)))], ids=str
)
def test_variable_length_inside_has_no_carrier(dtype: np.dtype[Any]) -> None:
    with pytest.raises(UnsupportedType, match="variable-length"):
        dtypes.carrier(dtype)


@pytest.mark.parametrize("inner", [h5py.string_dtype(), h5py.vlen_dtype(np.dtype("<i4"))], ids=str)
def test_variable_length_inside_variable_length(inner: np.dtype[Any]) -> None:
    with pytest.raises(UnsupportedType, match="inside variable-length"):
        dtypes.variable_base(h5py.vlen_dtype(inner))


WORDS = st.sampled_from(
    [
        "<f4",
        "O",
        "|O",
        "f4,O",
        "object",
        "fields",
        "itemsize",
        "enum",
        "base",
        "string",
        "encoding",
        "opaque",
        "array",
        "shape",
        "vlen",
        "of",
        "str",
        "(2,2)f4",
        "S",
        "U5",
        "M8[",
        "a5",
        "V-1",
        "99999999999f4",
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS, st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


@given(JSON)
def test_anything_else_is_a_value_error(value: object) -> None:
    try:
        found = dtypes.from_json(value)
    except ValueError:
        return
    metadata: dict[str, Any] = dict(found.metadata or {})
    assert found.kind != "O" or metadata.get("vlen") is not None
    assert found.subdtype is not None or found.names is not None or found.kind == "O" or not found.hasobject


@pytest.mark.parametrize("text", ["O", "|O", "O8", "object", "f4,O", "i4,(2,)O"])
def test_a_recipe_never_makes_python_objects(text: str) -> None:
    with pytest.raises(ValueError):
        dtypes.from_json(text)


def test_depth_is_bounded() -> None:
    recipe: object = "<f4"
    for _ in range(100):
        recipe = {"array": recipe, "shape": [1]}
    with pytest.raises(ValueError, match="deep"):
        dtypes.from_json(recipe)


def test_a_type_too_deep_to_be_read_again_is_not_written() -> None:
    dtype: np.dtype[Any] = np.dtype("<i4")
    for _ in range(32):
        dtype = np.dtype([("a", dtype)])
    assert dtypes.from_json(dtypes.to_json(dtype)) == dtype
    for deeper in (np.dtype([("a", dtype)]), np.dtype((dtype, (2,))), h5py.vlen_dtype(dtype)):
        with pytest.raises(UnsupportedType, match="a type nested more than 32 deep"):
            dtypes.to_json(deeper)


def test_elements_of_arrays_of_arrays() -> None:
    assert dtypes.elements(np.dtype((np.dtype((">i2", (2,))), (3,)))) == (np.dtype(">i2"), (3, 2))
    assert dtypes.elements(np.dtype("S5")) == (np.dtype("S5"), ())
