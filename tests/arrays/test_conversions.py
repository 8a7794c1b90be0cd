"""`astype` and `fields` read what h5py's do: clipped numbers, both byte orders, scalars."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dsmem

INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
FLOATS = ["f2", "f4", "f8"]
NUMBERS = [
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, -0.5, -0.99, 1.5, -1.5, 127.5, 128.0, -128.5, -129.0, 255.5, 256.0),
    *(32767.5, 32768.0, 65504.0, -65504.0, 65535.9, 2.0**31 - 128, 2.0**31 - 1, 2.0**31, -(2.0**31), -(2.0**31) - 1),
    *(2.0**32 - 1, 2.0**32, 2.0**53 - 1, 2.0**63 - 1024, 2.0**63, -(2.0**63), -(2.0**63) - 2049, 2.0**64, 9.3e18),
    *(1e19, 1e20, 1e30, -1e30),
]


def numbers(dtype: str) -> np.ndarray[Any, Any]:
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return np.array(NUMBERS).astype(dtype)
    bounds = np.iinfo(dtype)
    return np.array([0, 1, 100, 127, bounds.min, bounds.min // 2, bounds.max // 2, bounds.max - 1, bounds.max], dtype)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [*INTEGERS, *FLOATS])
def test_numbers_equal_h5py(tmp_path: Path, kind: str, order: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = numbers(order + kind)
        file["one"] = numbers(order + kind)[2]
        file["no number"] = numbers(order + kind)[0]
    with h5py.File(path) as theirs, dsmem.File(path) as ours, warnings.catch_warnings():
        warnings.simplefilter("error")
        for to in (to_order + to_kind for to_order in "<>" for to_kind in INTEGERS):
            for name in ("x", "one", "no number"):
                for key in ((), ...):
                    expected, found = theirs[name].astype(to)[key], ours[name].astype(to)[key]
                    assert type(found) is type(expected)
                    assert found.dtype == expected.dtype
                    np.testing.assert_array_equal(found, expected, f"{order}{kind} to {to}")


def test_a_field_of_a_scalar(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.array((1, 2.5, 3), [("a", "<i4"), ("b", "<f4"), ("c", "u1")])
    with h5py.File(path) as theirs, dsmem.File(path) as ours:
        names: Any
        for names in ("b", ["a", "c"]):
            for key in ((), ...):
                expected, found = theirs["x"].fields(names)[key], ours["x"].fields(names)[key]
                assert type(found) is type(expected)
                assert found.dtype == expected.dtype
                assert found == expected


@pytest.mark.parametrize("order", "<>")
def test_as_an_array(tmp_path: Path, order: str) -> None:
    """The order of a scalar's bytes is kept, and a dtype that is asked for is HDF5's to convert to."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = numbers(order + "f4")
        file["one"] = np.array(3, order + "f4")
        file["choice"] = np.array(1, h5py.enum_dtype({"a": 1}, order + "i2"))
        file["text"] = "abc"
        file["bytes"] = np.array(b"abc", "S3")
        file["fields"] = np.array((1, 2.5), [("a", order + "i4"), ("b", order + "f4")])
    with h5py.File(path) as theirs, dsmem.File(path) as ours:
        for name in theirs:
            expected, found = np.asarray(theirs[name]), np.asarray(ours[name])
            if name != "text":  # texts that vary in length have no objects in dsmem
                assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, name)
        for to in ("i4", ">i4", "u8", "f8", ">f2"):
            for name in ("x", "one"):
                expected, found = np.asarray(theirs[name], to), np.asarray(ours[name], to)
                assert found.dtype == expected.dtype
                if to != ">f2":
                    np.testing.assert_array_equal(found, expected, f"{name} to {to}")


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "S3"])
def test_null_dataspaces(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.Empty(dtype)
        file["fields"] = h5py.Empty(np.dtype([("a", "<i4"), ("b", dtype)]))
    with h5py.File(path) as theirs, dsmem.File(path) as ours:
        for key in ((), ...):
            assert ours["x"].astype("u1")[key] == theirs["x"].astype("u1")[key]
            assert ours["fields"].fields(["a"])[key].dtype == ours["fields"].dtype
        for one in (theirs["x"], ours["x"]):
            for make in (np.asarray, np.array):
                with pytest.raises(TypeError):
                    make(one)
            with pytest.raises(TypeError):
                np.asarray(one.astype("u1"))
