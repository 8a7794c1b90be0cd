"""Tensors of safetensors files as places in a file. Format: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dsmem.arrays import header
from dsmem.checkpoint.parts import Part, TensorEntry
from dsmem.errors import BadSource, DamagedObject, SourceMissing

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def entries(directory: str, name: str) -> list[TensorEntry]:
    """Every tensor of one file, checked against its size. Raises SourceMissing, BadSource."""
    parsed, _ = header_of(directory, name)
    try:
        found = [entry(name, tensor, parsed.raw[tensor], parsed) for tensor in parsed.names()]
        # As safetensors demands: bytes that no tensor owns were put in between, and what follows is not what was saved.
        if sum(one.size_bytes for one in found) != parsed.data_bytes:
            raise DamagedObject("its tensors do not cover its data")
        return found
    except DamagedObject as exc:
        raise BadSource(f"{Path(directory, name)} is damaged: {exc}") from exc


def header_of(directory: str, name: str) -> tuple[header.Header, bytes]:
    """The header of one file, and its JSON. Raises SourceMissing, BadSource."""
    path = Path(directory, name)
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
            data = begin + file.read(min(length, header.MAX_HEADER_BYTES))
        return header.parse(memoryview(data), file_bytes), data[8:]
    except FileNotFoundError as exc:
        raise SourceMissing(f"{path}: no such file") from exc
    except DamagedObject as exc:
        raise BadSource(f"{path} is damaged: {exc}") from exc


def entry(file: str, name: str, raw: object, parsed: header.Header) -> TensorEntry:
    """One tensor as its header describes it; raises DamagedObject."""
    try:
        assert isinstance(raw, dict)
        dtype = _dtypes()[raw["dtype"]]
        shape = tuple(raw["shape"])
        begin, end = raw["data_offsets"]
        assert all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (AssertionError, KeyError, TypeError, ValueError) as exc:
        kind: Any = raw.get("dtype") if isinstance(raw, Mapping) else None
        told = f"of a dtype that torch lacks ({kind})" if isinstance(kind, str) and kind not in _dtypes() else "damaged"
        raise DamagedObject(f"tensor {name!r} is {told}") from exc
    found = TensorEntry(
        name, dtype, shape, (Part(file, parsed.data_start + begin, end - begin, (0,) * len(shape), shape),)
    )
    if found.size_bytes != end - begin or end > parsed.data_bytes:
        raise DamagedObject(f"tensor {name!r} does not fit the file")
    return found


@cache
def _dtypes() -> dict[str, torch.dtype]:
    return {code: getattr(torch, name) for code, name in _DTYPES.items() if hasattr(torch, name)}


def code_of(dtype: torch.dtype) -> str | None:
    """The dtype as safetensors writes it; None for one that it lacks."""
    return next((code for code, known in _dtypes().items() if known == dtype), None)


def dtype_of(code: str) -> torch.dtype:
    """The inverse; raises KeyError."""
    return _dtypes()[code]
