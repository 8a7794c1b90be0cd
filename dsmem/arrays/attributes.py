"""Attribute values, exactly as h5py returns them, as JSON and back: numbers, arrays, strings, empties."""

from __future__ import annotations

import base64
from typing import Any, cast

import numpy as np

from dsmem.arrays import dtypes
from dsmem.arrays.dtypes import UnsupportedType

_LEAST_OBJECT = len('{"str":""},')
_X87_MANTISSA_BITS, _X87_BYTES = 63, 10


def empty(dtype: np.dtype[Any]) -> Any:
    """`h5py.Empty` of that dtype: what h5py returns for a null dataspace. The one value that needs h5py."""
    import h5py

    return h5py.Empty(dtype)


def check(dtype: np.dtype[Any]) -> None:
    """Raise UnsupportedType, with the reason, for what `to_json` takes no value of."""
    dtypes.to_json(dtype)
    if dtype.hasobject and (dtype.subdtype or (dtype,))[0].kind != "O":
        raise UnsupportedType("variable-length data or references inside a compound type")


def text_length(value: object) -> int:
    """About how long the JSON of a value is, its texts and numbers alone."""
    if not isinstance(value, dict):
        return 0
    if "objects" in value:
        return sum(_LEAST_OBJECT + text_length(one) for one in value["objects"])
    return max(len(value.get(kind, "")) for kind in ("str", "bytes", "data"))


def to_json(value: object) -> object:
    """A JSON value for whatever `h5py` returns for an attribute; raises UnsupportedType with the reason."""
    if isinstance(value, str):
        return {"str": value}
    if isinstance(value, bytes | np.bytes_) and not isinstance(value, np.void):
        tagged = {"numpy": True} if isinstance(value, np.bytes_) else {}
        return {"bytes": base64.b64encode(value).decode("ascii"), **tagged}
    if isinstance(value, np.ndarray | np.generic):
        return _array_to_json(np.asarray(value), scalar=isinstance(value, np.generic))
    if getattr(value, "shape", ()) is None and hasattr(value, "dtype"):
        return {"empty": dtypes.to_json(value.dtype)}
    if type(value).__name__ in ("Reference", "RegionReference"):
        raise UnsupportedType("object or region references")
    raise UnsupportedType(f"a value of type {type(value).__name__}")


def from_json(value: object) -> Any:
    """The inverse of `to_json`; raises ValueError for anything else."""
    try:
        return _from_json(cast("dict[str, Any]", value))
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as exc:
        raise ValueError(f"not an attribute: {value!r:.200}") from exc


def _array_to_json(array: np.ndarray[Any, Any], *, scalar: bool) -> object:
    recipe = dtypes.to_json(array.dtype) if array.dtype.kind != "O" or array.dtype.metadata else {"vlen": "str"}
    if array.dtype.kind != "O":
        check(array.dtype)
        data = base64.b64encode(_bytes(array, scalar=scalar)).decode("ascii")
        return {"dtype": recipe, "shape": None if scalar else list(array.shape), "data": data}
    return {"objects": [to_json(item) for item in array.ravel()], "dtype": recipe, "shape": list(array.shape)}


def _bytes(array: np.ndarray[Any, Any], *, scalar: bool) -> bytes:
    """In C order. What a scalar of numpy's has beyond the 10 bytes of an x87 long double was in memory before: zeros.

    Arrays, and scalars of compounds, have there what HDF5 read.
    """
    raw = np.frombuffer(array.tobytes(), np.uint8)
    if scalar and array.dtype.char in "gG" and np.finfo(np.longdouble).nmant == _X87_MANTISSA_BITS:
        parts = raw.reshape(-1, np.dtype(np.longdouble).itemsize).copy()
        parts[:, _X87_BYTES:] = 0
        return parts.tobytes()
    return raw.tobytes()


def _from_json(value: dict[str, Any]) -> Any:
    if "str" in value:
        return str(value["str"])
    if "bytes" in value:
        raw = base64.b64decode(value["bytes"])
        return np.bytes_(raw) if value.get("numpy") else raw
    if "empty" in value:
        return empty(dtypes.from_json(value["empty"]))
    dtype = dtypes.from_json(value["dtype"])
    shape = value["shape"]
    if "objects" in value:
        items = np.empty(len(value["objects"]), dtype)
        for i, item in enumerate(value["objects"]):
            items[i] = from_json(item)
        return items.reshape(shape)
    array = np.frombuffer(base64.b64decode(value["data"]), np.uint8).copy()
    if shape is None:
        return array.view(dtype)[0]
    return np.empty(shape, dtype) if 0 in shape else array.view(dtype).reshape(shape)
