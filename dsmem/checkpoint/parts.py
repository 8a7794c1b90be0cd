"""Where the tensors of a checkpoint lie: records that every format is told in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file that hold a box of a tensor: of DCP the whole item, of other formats the bare bytes."""

    file: str
    offset: int
    size_bytes: int
    starts: tuple[int, ...]
    """Where in the tensor the box begins."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor by name; `shape` in elements."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def size_bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that the checkpoint names; `size_bytes` is None where it is missing."""

    name: str
    size_bytes: int | None
