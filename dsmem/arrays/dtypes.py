"""numpy dtypes as JSON and back, and which safetensors dtype carries the bytes of each.

What safetensors lacks is carried as U8 (or its parts, for complex128) with the item as trailing axes; the JSON here
is the recipe that turns the bytes into the dtype again, h5py's metadata (enum, string encoding, vlen) included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

_NATIVE = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<u4": "U32", "<i4": "I32", "<u8": "U64",
    "<i8": "I64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64",
}  # fmt: skip
_FROM_NATIVE = {code: np.dtype(text) for text, code in _NATIVE.items()}
_MAX_DEPTH = 32
_CODE = re.compile(r"[<>|][A-Za-z][0-9]{0,10}(\[[A-Za-z0-9]{1,20}\])?")
"""What dtype.str gives: anything else numpy would parse as a language of its own."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """How items of a dtype lie in a tensor: its safetensors dtype and the axes that one item takes."""

    code: str
    item_shape: tuple[int, ...]
    align: int
    """The largest power of two (≤ 16) that divides the item: where a tensor of them may start."""


class UnsupportedType(TypeError):
    """A dtype that can't be stored exactly; the message is the reason."""


def carrier(dtype: np.dtype[Any]) -> Carrier:
    """The carrier of a fixed-size dtype; raises UnsupportedType for objects (see `variable_base` for those)."""
    if dtype.hasobject:
        raise UnsupportedType("variable-length data or references inside a compound type")
    if dtype.subdtype is not None:
        base, shape = elements(dtype)
        inner = carrier(base)
        return Carrier(inner.code, (*shape, *inner.item_shape), inner.align)
    align = dtype.itemsize & -dtype.itemsize
    code = _NATIVE.get(dtype.str) if dtype.names is None else None
    if code is not None:
        return Carrier(code, (), align)
    if dtype.str == "<c16":
        return Carrier("F64", (2,), 8)
    return Carrier("U8", (dtype.itemsize,), min(max(align, 1), 16))


def elements(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """What an item of an array type is to numpy, which has arrays of arrays as more axes: the type of one, the axes."""
    axes: tuple[int, ...] = ()
    while dtype.subdtype is not None:
        dtype, shape = dtype.subdtype
        axes += shape
    return dtype, axes


def of_carrier(code: str) -> np.dtype[Any] | None:
    """The dtype that a safetensors dtype means by itself; None for those numpy lacks (BF16, F8)."""
    return _FROM_NATIVE.get(code)


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the safetensors dtype alone says everything: no recipe needed."""
    return dtype.names is None and dtype.subdtype is None and not dtype.metadata and dtype.str in _NATIVE


def shared(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """An equal dtype, one for all that are plain: h5py makes one of 100 bytes for each dataset."""
    return np.dtype(dtype.str) if is_plain(dtype) else dtype


def to_json(dtype: np.dtype[Any], depth: int = 0) -> object:
    """A JSON value from which `from_json` rebuilds the dtype, metadata included; raises UnsupportedType."""
    if depth > _MAX_DEPTH:
        raise UnsupportedType(f"a type nested more than {_MAX_DEPTH} deep")
    metadata: dict[str, Any] = dict(dtype.metadata or {})
    metadata.pop("h5py_opaque", None)
    metadata.pop("vlen", None)
    if "ref" in metadata:
        raise UnsupportedType("object or region references")
    if dtype.kind == "O":
        return {"vlen": _vlen_to_json(dtype, depth)}
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"array": to_json(base, depth + 1), "shape": list(shape)}
    if dtype.names is not None:
        table: Mapping[str, Any] = dtype.fields or {}
        fields = [(name, *table[name][:2]) for name in dtype.names]
        return {
            "fields": [[name, to_json(field, depth + 1), offset] for name, field, offset in fields],
            "itemsize": dtype.itemsize,
        }
    text = dtype.str
    if "enum" in metadata:
        return {"enum": {_enum_text(k): int(v) for k, v in metadata.pop("enum").items()}, "base": text}
    if dtype.kind == "S" and "h5py_encoding" in metadata:
        return {"string": text, "encoding": str(metadata.pop("h5py_encoding"))}
    if dtype.metadata and dtype.metadata.get("h5py_opaque"):
        return {"opaque": text}
    if metadata:
        raise UnsupportedType(f"a type with unknown properties {sorted(metadata)}")
    return text


def from_json(value: object, depth: int = 0) -> np.dtype[Any]:
    """The dtype of a recipe; raises ValueError for anything that `to_json` can't have written."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"a type nested more than {_MAX_DEPTH} deep")
    try:
        return _from_json(value, depth)
    except (TypeError, KeyError, AttributeError, OverflowError) as exc:
        raise ValueError(f"not a dtype recipe: {value!r:.200}") from exc


def _from_json(value: object, depth: int) -> np.dtype[Any]:
    if isinstance(value, str):
        return _checked(value)
    recipe = cast("dict[str, Any]", value)
    if "enum" in recipe:
        names = {_enum_name(k): int(v) for k, v in recipe["enum"].items()}
        return np.dtype(_checked(recipe["base"]), metadata={"enum": names})
    if "string" in recipe:
        return np.dtype(_checked(recipe["string"]), metadata={"h5py_encoding": str(recipe["encoding"])})
    if "opaque" in recipe:
        return np.dtype(_checked(recipe["opaque"]), metadata={"h5py_opaque": True})
    if "array" in recipe:
        return np.dtype((from_json(recipe["array"], depth + 1), tuple(int(n) for n in recipe["shape"])))
    if "vlen" in recipe:
        inner = recipe["vlen"]
        base = {"str": str, "bytes": bytes}.get(inner) if isinstance(inner, str) else None
        return np.dtype("O", metadata={"vlen": base or from_json(inner["of"], depth + 1)})
    fields = recipe["fields"]
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [from_json(field, depth + 1) for _, field, _ in fields],
            "offsets": [offset for _, _, offset in fields],
            "itemsize": recipe["itemsize"],
        }
    )


def _enum_text(name: str | bytes) -> str:
    """A member's name, which h5py gives as bytes where it is not UTF-8: those as surrogates."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def _enum_name(text: str) -> str | bytes:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")
    return text


def _checked(text: str) -> np.dtype[Any]:
    if not _CODE.fullmatch(text):
        raise ValueError(f"not a dtype recipe: {text!r:.200}")
    dtype = np.dtype(text)
    if dtype.hasobject:
        raise ValueError("a recipe never names Python objects")
    return dtype


def _vlen_to_json(dtype: np.dtype[Any], depth: int) -> object:
    metadata: Mapping[str, Any] = dtype.metadata or {}
    base = metadata.get("vlen")
    if base is str or base is bytes:
        return "str" if base is str else "bytes"
    if base is None:
        raise UnsupportedType("Python objects")
    inner: np.dtype[Any] = np.dtype(base)
    if inner.names is None and not inner.isnative:
        raise UnsupportedType("variable-length data of a big-endian type: h5py reads its bytes in the wrong order")
    return {"of": to_json(inner, depth + 1)}


def variable_base(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """The dtype of the elements of a variable-length type (uint8 for strings); None when the size is fixed.

    Raises UnsupportedType for references and for variable length inside variable length.
    """
    if dtype.kind != "O":
        return None
    metadata: Mapping[str, Any] = dtype.metadata or {}
    if "ref" in metadata:
        raise UnsupportedType("object or region references")
    base = metadata.get("vlen")
    if base is str or base is bytes:
        return np.dtype(np.uint8)
    if base is None:
        raise UnsupportedType("Python objects")
    inner: np.dtype[Any] = np.dtype(base)
    if inner.hasobject:
        raise UnsupportedType("variable-length data inside variable-length data")
    return inner
