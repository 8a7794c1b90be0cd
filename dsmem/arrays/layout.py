"""Where each tensor lies in a file: no gaps and no pads (safetensors refuses both), every one aligned all the same.

Whole pages first, then by the falling power of two that divides the item; what varies in length last, its size unknown
until it has been read. As each size is a multiple of its own alignment, the next tensor starts aligned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsmem.arrays.header import PAGE_BYTES, Tensor, shape_bytes


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to lay out; `shape` None = one axis whose length is known only after reading."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    align: int


def place(planned: Iterable[Planned]) -> tuple[dict[str, Tensor], list[Planned]]:
    """Tensors of known size with their offsets, in file order; those of unknown size in the order to append them."""
    known: list[tuple[tuple[int, int], Planned, tuple[int, ...]]] = []
    unknown: list[Planned] = []
    for tensor in planned:
        if tensor.shape is None:
            unknown.append(tensor)
            continue
        size = shape_bytes(tensor.dtype, tensor.shape)
        known.append(((0 if size % PAGE_BYTES == 0 and size else 1, -tensor.align), tensor, tensor.shape))
    known.sort(key=lambda item: item[0])
    unknown.sort(key=lambda tensor: -tensor.align)
    tensors: dict[str, Tensor] = {}
    offset = 0
    for _, tensor, shape in known:
        end = offset + shape_bytes(tensor.dtype, shape)
        tensors[tensor.name] = Tensor(tensor.dtype, shape, offset, end)
        offset = end
    return tensors, unknown
