"""A batch whose frames are copied once: each to its row of the batch, which a worker has in memory it shares.

The tensors of the samples are those rows. `collate` hands the whole out, where torch's own would copy the rows again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from dsmem.training.lending import Batch, Lender, shared_bytes
from dsmem.training.pool import Pool

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Block:
    """The frames of one camera: [batch, height, width, channels], and the same memory as numpy sees it."""

    tensor: torch.Tensor
    array: Array
    lent: int | None = None
    """The lender's block that it lies in."""


class Samples(list[Any]):
    """The samples of a batch; `blocks` has the frames of all, by camera, in memory of the lender or the pool."""

    def __init__(self, samples: list[Any], lender: Lender | None = None, pool: Pool | None = None) -> None:
        super().__init__(samples)
        self.blocks: dict[str, Block] = {}
        self.lender = lender
        self.pool = pool

    def row(self, number: int) -> Row:
        """Where the frames of a sample go."""
        return Row(self.blocks, number, len(self), self.lender, self.pool)


@dataclass(frozen=True, slots=True)
class Row:
    """Where the frames of one sample go."""

    blocks: dict[str, Block]
    number: int
    count: int
    """Of samples in the batch."""
    lender: Lender | None = None
    pool: Pool | None = None

    def filled(self, camera: str, frame: Array) -> torch.Tensor:
        """A copy of a frame, in its row; a frame unlike the first one of its camera is copied apart."""
        block = self.blocks.get(camera)
        if block is None:
            block = self.blocks[camera] = _block((self.count, *frame.shape), frame.dtype, self.lender, self.pool)
        if block.array.shape[1:] != frame.shape or block.array.dtype != frame.dtype:
            return torch.from_numpy(np.array(frame))
        block.array[self.number] = frame
        return block.tensor[self.number]


def _block(shape: tuple[int, ...], dtype: np.dtype[Any], lender: Lender | None, pool: Pool | None) -> Block:
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    number: int | None = None
    flat: torch.Tensor | None = None
    if get_worker_info() is None:
        flat = pool.take(size_bytes) if pool is not None else None
        if flat is None:
            array = np.empty(shape, dtype)
            return Block(torch.from_numpy(array), array)
    else:
        taken = lender.take(size_bytes) if lender is not None else None
        # Shared, as torch's default_collate does it: else sending the batch to the main process copies it once more.
        number, flat = taken or (None, shared_bytes(size_bytes))
    tensor = flat[:size_bytes].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)
    return Block(tensor, tensor.numpy(), number)


def collate(samples: list[Any]) -> Any:
    """A batch of samples as torch's default_collate makes it, without copying frames that are in their rows already."""
    if not isinstance(samples, Samples) or not all(_is_in_place(samples, *one) for one in enumerate(samples)):
        return default_collate(samples)
    rest = [{name: value for name, value in one.items() if name != "images"} for one in samples]
    blocks = samples.blocks
    batch = Batch({"images": {camera: block.tensor for camera, block in blocks.items()}, **default_collate(rest)})
    if samples.lender is not None:
        lend = samples.lender.lend
        batch.loans = tuple(None if block.lent is None else lend(block.lent) for block in blocks.values())
    return batch


def _is_in_place(samples: Samples, number: int, sample: Any) -> bool:
    """Whether the frames of a sample are its rows: a hook may have made others, or cropped these."""
    images = sample.get("images") if isinstance(sample, dict) else None
    if not isinstance(images, dict) or not images or list(images) != list(samples.blocks):
        return False
    rows = ((image, samples.blocks[camera].tensor[number]) for camera, image in images.items())
    return all(
        isinstance(image, torch.Tensor) and image.is_set_to(row)  # the same memory, shape and strides
        for image, row in rows
    )
