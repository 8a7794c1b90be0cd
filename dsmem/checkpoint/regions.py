"""Which bytes of a stored tensor a request is about, and whether they can go straight to their place. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dsmem.checkpoint.unpickling import Stored

Shape = tuple[int, ...]
COPY_ELEMENTS = 32767
"""torch.Tensor.copy_ of more elements than this starts OpenMP threads: 10 times slower when each worker does it."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a stored, contiguous tensor; `begin` and `end` are bytes of its record."""

    how: Literal["straight", "bounced"]
    """Straight: the bytes in the file are those of the destination."""
    begin: int
    end: int
    lengths: Shape
    stride: Shape
    """Of the stored tensor, in elements."""


@dataclass(frozen=True, slots=True)
class NotDirect:
    """Why only the stock code is sure to do the same."""

    reason: str


def is_straight(target: torch.Tensor) -> bool:
    """Whether a destination is ordinary, contiguous memory of the CPU: the quick look before `refusal`."""
    return (
        type(target) is torch.Tensor
        and target.is_cpu
        and target.layout is torch.strided
        and target.is_contiguous()
        and not (target.is_quantized or target.is_conj() or target.is_neg())
    )


def refusal(target: torch.Tensor) -> str | None:
    """Why a destination is left to the stock code; None for ordinary memory of the CPU."""
    if type(target) is not torch.Tensor or target.layout is not torch.strided:
        return "a destination of another kind"
    if target.device.type != "cpu":
        return f"a destination on {target.device.type}"
    if target.is_quantized:
        return "a quantised destination"
    if target.is_conj() or target.is_neg():
        return "a conjugate or negative destination"
    if not target.is_contiguous() and any(
        size > 1 and stride == 0 for size, stride in zip(target.shape, target.stride(), strict=True)
    ):
        return "a destination that overlaps itself"
    return None


def region(stored: Stored, offsets: Sequence[int], lengths: Sequence[int], target: torch.Tensor) -> Region | NotDirect:
    """The box that `narrow_tensor_by_index` of torch would take, if it fits the destination."""
    if not stored.contiguous:
        return NotDirect("the stored tensor is not contiguous")
    shape = list(stored.shape)
    starts = [0] * len(shape)
    for axis, (offset, length) in enumerate(zip(offsets, lengths, strict=False)):
        if axis >= len(shape):
            return NotDirect("the request has more dimensions than the stored tensor")
        if length < shape[axis]:
            if not 0 <= offset <= shape[axis] - length or length < 0:
                return NotDirect("the request is outside of the stored tensor")
            starts[axis], shape[axis] = offset, length
    if tuple(shape) != tuple(target.shape):
        return NotDirect("sizes differ")
    itemsize = stored.dtype.itemsize
    stride = _contiguous(stored.shape)
    first = stored.offset + sum(start * step for start, step in zip(starts, stride, strict=True))
    reach = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    same = stored.dtype == target.dtype and target.is_contiguous() and reach == math.prod(shape)
    return Region(
        "straight" if same else "bounced",
        first * itemsize,
        (first + reach) * itemsize,
        tuple(shape),
        stride,
    )


def boxes(lengths: Shape, fits: Shape, reach: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut a box into boxes (starts, lengths), in order, that reach over no more than `reach` elements.

    `fits` is the stride by which elements are counted.
    """
    if 0 in lengths:
        return
    starts = [0] * len(lengths)

    def cut(axis: int, inside: list[int]) -> Iterator[tuple[Shape, Shape]]:
        span = 1 + sum((size - 1) * step for size, step in zip(inside, fits, strict=True))
        if span <= reach or axis == len(lengths):
            yield tuple(starts), tuple(inside)
            return
        below = 1 + sum((size - 1) * step for size, step in zip(inside[axis + 1 :], fits[axis + 1 :], strict=True))
        at_once = max(1, (reach - below) // max(fits[axis], 1) + 1) if below <= reach else 1
        for start in range(0, lengths[axis], at_once):
            starts[axis] = start
            inside[axis] = min(at_once, lengths[axis] - start)
            yield from cut(axis + 1, inside)
        starts[axis], inside[axis] = 0, lengths[axis]

    yield from cut(0, list(lengths))


def narrowed(tensor: torch.Tensor, starts: Shape, lengths: Shape) -> torch.Tensor:
    """That box of a tensor, as a view."""
    for axis, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if length != tensor.size(axis):
            tensor = tensor.narrow(axis, start, length)
    return tensor


def copy_in_pieces(target: torch.Tensor, source: torch.Tensor) -> None:
    """`target.copy_(source)` without OpenMP."""
    if target.numel() <= COPY_ELEMENTS:
        target.copy_(source)
        return
    shape = tuple(target.shape)
    for starts, lengths in boxes(shape, _contiguous(shape), COPY_ELEMENTS):
        narrowed(target, starts, lengths).copy_(narrowed(source, starts, lengths))


def _contiguous(shape: Shape) -> Shape:
    steps = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(reversed(steps))
