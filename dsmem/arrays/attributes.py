"""Attribute values, exactly as h5py returns them, as JSON and back: numbers, arrays, strings, empties.

What is long of a value may lie apart from its JSON, which then says where: `{"str": {"at": [begin, end]}}`. There are
bytes: of a text UTF-8, of numbers what numpy has in C order, of many texts a JSON list.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dsmem.arrays import dtypes
from dsmem.arrays.dtypes import UnsupportedType

_SMALL_BYTES = 1 << 20
_ITEMS = 4096
"""Values that are made JSON together."""
_LEAST_OBJECT = len('{"str":""},')
_X87_MANTISSA_BITS, _X87_BYTES = 63, 10
Array = np.ndarray[Any, np.dtype[Any]]
ReadApart = Callable[[int, int], memoryview]
"""Gives what lies apart of some values, from one byte to another; raises IndexError for what is not there."""


def empty(dtype: np.dtype[Any]) -> Any:
    """`h5py.Empty` of that dtype: what h5py returns for a null dataspace. The one value that needs h5py."""
    import h5py

    return h5py.Empty(dtype)


def check(dtype: np.dtype[Any]) -> None:
    """Raise UnsupportedType, with the reason, for what `to_json` takes no value of."""
    dtypes.to_json(dtype)
    if dtype.hasobject and dtypes.elements(dtype)[0].kind != "O":
        raise UnsupportedType("variable-length data or references inside a compound type")


@dataclass(frozen=True, slots=True)
class Apart:
    """A value of which what is long lies apart, `size_bytes` of it under `key`; `rest` is its other JSON.

    `held`: these bytes, where they are at hand; else they have to be read again.
    """

    rest: dict[str, Any]
    key: str
    size_bytes: int
    held: memoryview | None = None

    def placed(self, begin: int) -> object:
        """The JSON of the value, once it is known where the bytes lie."""
        return {**self.rest, self.key: {"at": [begin, begin + self.size_bytes]}}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value on its way into JSON: what is long of it (a text, bytes, an array of values), its key, and the rest.

    What an array holds is looked at when it is asked for: UnsupportedType may come then.
    """

    rest: dict[str, Any]
    key: str
    long: str | memoryview | Array

    @property
    def length(self) -> int:
        """About how long its JSON is: what is long of it alone."""
        if isinstance(self.long, np.ndarray):
            texts = (len(one) if type(one) is str else encode(one).length for one in self.long.flat)
            return sum(texts) + _LEAST_OBJECT * self.long.size
        return len(self.long) if isinstance(self.long, str) else -(-len(self.long) // 3) * 4

    def json(self) -> dict[str, Any]:
        """All of it."""
        if isinstance(self.long, np.ndarray):
            return {**self.rest, self.key: [_item(one) for one in self.long.flat]}
        text = self.long if isinstance(self.long, str) else base64.b64encode(self.long).decode("ascii")
        return {**self.rest, self.key: text} if self.key else self.rest

    def raw(self) -> memoryview:
        """What is long of it, as it lies apart."""
        if isinstance(self.long, np.ndarray):
            items = self.long.reshape(-1)
            pieces = (items[start : start + _ITEMS] for start in range(0, len(items), _ITEMS))
            texts = (json.dumps([_item(one) for one in piece])[1:-1].encode("ascii") for piece in pieces)
            return memoryview(b"[" + b",".join(texts) + b"]")
        return memoryview(self.long.encode("utf-8", "surrogatepass")) if isinstance(self.long, str) else self.long


def _item(value: object) -> dict[str, Any]:
    """A value of an array of values: texts, of which there are many, without further questions."""
    return {"str": value} if type(value) is str else encode(value).json()


def encode(value: object) -> Encoded:
    """Whatever `h5py` returns for an attribute; raises UnsupportedType with the reason."""
    if isinstance(value, str):
        return Encoded({}, "str", value)
    if isinstance(value, bytes | np.bytes_) and not isinstance(value, np.void):
        return Encoded({"numpy": True} if isinstance(value, np.bytes_) else {}, "bytes", memoryview(bytes(value)))
    if isinstance(value, np.ndarray | np.generic):
        return _encoded_array(np.asarray(value), scalar=isinstance(value, np.generic))
    if getattr(value, "shape", ()) is None and hasattr(value, "dtype"):
        return Encoded({"empty": dtypes.to_json(value.dtype)}, "", "")
    if type(value).__name__ in ("Reference", "RegionReference"):
        raise UnsupportedType("object or region references")
    raise UnsupportedType(f"a value of type {type(value).__name__}")


def to_json(value: object) -> dict[str, Any]:
    """A JSON value for whatever `h5py` returns for an attribute, in one piece; raises UnsupportedType."""
    return encode(value).json()


def from_json(value: object, read: ReadApart | None = None) -> Any:
    """The inverse of `to_json`, and of `Apart.placed` where `read` is given; raises ValueError for anything else."""
    try:
        return _from_json(cast("dict[str, Any]", value), read)
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as exc:
        raise ValueError(f"not an attribute: {value!r:.200}") from exc


def _encoded_array(array: Array, *, scalar: bool) -> Encoded:
    recipe = dtypes.to_json(array.dtype) if array.dtype.kind != "O" or array.dtype.metadata else {"vlen": "str"}
    if array.dtype.kind == "O":
        return Encoded({"dtype": recipe, "shape": list(array.shape)}, "objects", array)
    check(array.dtype)
    return Encoded({"dtype": recipe, "shape": None if scalar else list(array.shape)}, "data", _bytes(array, scalar))


def _bytes(array: Array, scalar: bool) -> memoryview:
    """In C order. What a scalar of numpy's has beyond the 10 bytes of an x87 long double was in memory before: zeros.

    Arrays, and scalars of compounds, have there what HDF5 read.
    """
    if scalar and array.dtype.char in "gG" and np.finfo(np.longdouble).nmant == _X87_MANTISSA_BITS:
        parts = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, np.dtype(np.longdouble).itemsize).copy()
        parts[:, _X87_BYTES:] = 0
        return memoryview(parts.tobytes())
    if array.nbytes < _SMALL_BYTES:
        return memoryview(array.tobytes())
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _from_json(value: dict[str, Any], read: ReadApart | None) -> Any:
    def apart(key: str) -> memoryview | None:
        """What is long of the value where it lies apart; None where it does not."""
        if not isinstance(value[key], dict):
            return None
        begin, end = value[key]["at"]
        if read is None or type(begin) is not int or type(end) is not int:
            raise ValueError(f"not an attribute: {value!r:.200}")
        return read(begin, end)

    if "str" in value:
        text = apart("str")
        return str(value["str"]) if text is None else str(text, "utf-8", "surrogatepass")
    if "bytes" in value:
        held = apart("bytes")
        raw = base64.b64decode(value["bytes"]) if held is None else bytes(held)
        return np.bytes_(raw) if value.get("numpy") else raw
    if "empty" in value:
        return empty(dtypes.from_json(value["empty"]))
    dtype = dtypes.from_json(value["dtype"])
    shape = value["shape"]
    if "objects" in value:
        listed = apart("objects")
        inside = value["objects"] if listed is None else json.loads(bytes(listed))
        items = np.empty(len(inside), dtype)
        for i, item in enumerate(inside):
            items[i] = from_json(item)
        return items.reshape(shape)
    data = apart("data")
    array = np.frombuffer(base64.b64decode(value["data"]) if data is None else data, np.uint8).copy()
    if shape is None:
        return array.view(dtype)[0]
    return np.empty(shape, dtype) if 0 in shape else array.view(dtype).reshape(shape)
