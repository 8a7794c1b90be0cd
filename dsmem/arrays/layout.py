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
    known: dict[tuple[bool, int], list[Planned]] = {}
    unknown: list[Planned] = []
    for tensor in planned:
        (unknown if tensor.shape is None else known.setdefault(_order(tensor), [])).append(tensor)
    unknown.sort(key=lambda tensor: -tensor.align)
    tensors: dict[str, Tensor] = {}
    offset = 0
    for order in sorted(known):
        alike = known[order]
        alike.reverse()
        while alike:  # there may be many: each makes room for what it becomes
            tensor = alike.pop()
            end = offset + _size_bytes(tensor)
            tensors[tensor.name] = Tensor(tensor.dtype, tensor.shape or (), offset, end)
            offset = end
    return tensors, unknown


def _order(tensor: Planned) -> tuple[bool, int]:
    size_bytes = _size_bytes(tensor)
    return not size_bytes or size_bytes % PAGE_BYTES > 0, -tensor.align


def _size_bytes(tensor: Planned) -> int:
    return shape_bytes(tensor.dtype, tensor.shape or ())
