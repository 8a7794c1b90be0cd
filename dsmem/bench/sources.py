"""HDF5 files to measure with: made fast, contiguous, every sample different from the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

IMAGE = (256, 192, 3)
"""uint8, as people who train pose estimators crop them."""
HEATMAP = (17, 64, 48)
"""float32, one a joint."""
_SAMPLE_BYTES = math.prod(IMAGE) + 4 * math.prod(HEATMAP) + 8
_BLOCK = 32
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """An HDF5 file and the datasets in it that are compared: those whose items have a fixed size."""

    path: str
    names: tuple[str, ...]
    data_bytes: int
    """Of those datasets together."""


def make_training_file(path: Path, size_bytes: int) -> Source:
    """`images` (n, 256, 192, 3) uint8, `heatmaps` (n, 17, 64, 48) float32, `labels` (n,) int64; about that size."""
    count = max(1, size_bytes // _SAMPLE_BYTES)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_BLOCK, *IMAGE), np.uint8)
    heatmaps = random.random((_BLOCK, *HEATMAP), np.float32)
    with h5py.File(path, "w") as file:
        file.attrs["joints"] = HEATMAP[0]
        file.attrs["description"] = "made by dsmem to measure with"
        to = file.create_dataset("images", (count, *IMAGE), np.uint8)
        to.attrs["order"] = "RGB"
        targets = file.create_dataset("heatmaps", (count, *HEATMAP), np.float32)
        targets.attrs["sigma"] = 2.0
        file.create_dataset("labels", data=np.arange(count, dtype=np.int64))
        for first in range(0, count, _BLOCK):
            numbers = np.arange(first, min(first + _BLOCK, count), dtype=np.int64)
            here = len(numbers)
            images.reshape(_BLOCK, -1)[:here, :8] = numbers.view(np.uint8).reshape(here, 8)
            heatmaps[:here, 0, 0, 0] = numbers
            to[first : first + here] = images[:here]
            targets[first : first + here] = heatmaps[:here]
    return look_at(str(path))


def make_many_arrays(path: Path, size_bytes: int, *, arrays: int) -> Source:
    """`episode_<n>/action`, float32, as many as asked for, of about that size together."""
    values = np.random.default_rng(0).random(max(1, size_bytes // arrays // 4), np.float32)
    with h5py.File(path, "w") as file:
        for number in range(arrays):
            values[0] = number
            file[f"episode_{number:04}/action"] = values
    return look_at(str(path))


def look_at(path: str) -> Source:
    """The datasets of any HDF5 file; those of variable length and null ones are left out."""
    sizes: dict[str, int] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None and not node.dtype.hasobject:
            sizes[name] = node.nbytes

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return Source(path, tuple(sizes), sum(sizes.values()))


def content_digest(arrays: dict[str, Array]) -> str:
    """What arrays hold, in hex: names, types, shapes and every byte; reads all of it."""
    hasher = xxhash.xxh3_128()
    for name, array in sorted(arrays.items()):
        hasher.update(repr((name, array.dtype.str, array.shape)).encode())
        if array.size:
            hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
