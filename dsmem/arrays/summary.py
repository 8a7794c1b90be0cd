"""What an object holds, a line a dataset: for lists and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmem.arrays import dtypes, tree
from dsmem.arrays.header import Header, Tensor
from dsmem.arrays.views import TreeContents


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """One dataset; `shape` None = a null dataspace; `size_bytes` counts offsets of variable-length items too."""

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    size_bytes: int


def summarize(header: Header, name: str) -> tuple[DatasetSummary, ...]:
    """Every dataset of an object, in the order of its tree; raises DamagedObject."""
    contents = TreeContents(header, np.empty(0, np.uint8), "pinned", "", label=name)
    return tuple(summary_of(header.tensor, path, record) for path, record in contents.tree.datasets.items())


def summarize_tensors(header: Header) -> tuple[DatasetSummary, ...]:
    """Every tensor of an object without a tree, in its order, with the dtypes of safetensors; raises DamagedObject."""
    tensors = ((name, header.tensor(name)) for name in header.names())
    return tuple(DatasetSummary(name, one.shape, one.dtype, one.end - one.begin) for name, one in tensors)


def summary_of(tensor_of: Callable[[str], Tensor], path: str, record: dict[str, Any]) -> DatasetSummary:
    """One dataset, of its record in the tree and its tensors; raises what they raise, or ValueError."""
    dtype = dtypes.from_json(record["dtype"]) if "dtype" in record else None
    if record.get("null"):
        return DatasetSummary(path, None, label(dtype), 0)
    tensor = tensor_of(tree.tensor_name(path))
    size_bytes = tensor.end - tensor.begin
    if "shape" in record:
        offsets = tensor_of(tree.offsets_name(path))
        return DatasetSummary(path, tuple(record["shape"]), label(dtype), size_bytes + offsets.end - offsets.begin)
    if dtype is None:
        return DatasetSummary(path, tensor.shape, label(dtypes.of_carrier(tensor.dtype)), size_bytes)
    carried = dtypes.carrier(dtype).item_shape
    return DatasetSummary(path, tensor.shape[: len(tensor.shape) - len(carried)], label(dtype), size_bytes)


def label(dtype: np.dtype[Any] | None) -> str:
    """A dtype in a word or two: 'uint8', 'float32 big-endian', 'string', 'compound (3 fields)', 'enum (int8)'."""
    if dtype is None:
        return "?"
    metadata: Mapping[str, Any] = dtype.metadata or {}
    if dtype.kind == "O":
        base = metadata.get("vlen")
        return "string" if base in (str, bytes) else f"variable {np.dtype(base).name}" if base else "object"
    if dtype.subdtype is not None:
        return f"{label(dtype.subdtype[0])}[{math.prod(dtype.subdtype[1])}]"
    if dtype.names is not None:
        return f"compound ({len(dtype.names)} fields)"
    if "enum" in metadata:
        return f"enum ({dtype.name})"
    if dtype.kind in "SV":
        return f"{'string' if dtype.kind == 'S' else 'opaque'}[{dtype.itemsize}]"
    return f"{dtype.name} big-endian" if dtype.byteorder == ">" else dtype.name
