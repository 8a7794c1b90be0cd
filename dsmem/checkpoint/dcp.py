"""Tensors of a DCP directory read whole to memory that waits for them, and the byte items beside them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from dsmem.checkpoint.parts import TensorEntry
from dsmem.checkpoint.reader import ParallelFileSystemReader
from dsmem.checkpoint.reading import FilesProgress

Commit = Callable[[int], None]


def _ignore(size_bytes: int) -> None:
    return


class _Planner:
    """The planner of a read whose destinations are known by name; `commit` gets the bytes of each box that is read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], commit: Commit = _ignore) -> None:
        self._tensors = tensors
        self._commit = commit
        self.values: dict[str, Any] = {}

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        tensor = self._tensors[read_item.dest_index.fqn]
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            if length != tensor.size(axis):
                tensor = tensor.narrow(axis, start, length)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self._commit(tensor.nbytes)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # The reader has looked at the pickle before, unless it trusts the checkpoint.
        self.values[read_item.dest_index.fqn] = torch.load(value, weights_only=False)


def read(
    reader: ParallelFileSystemReader,
    metadata: Any,
    entries: Sequence[TensorEntry],
    tensors: Mapping[str, torch.Tensor],
    *,
    files_progress: FilesProgress | None = None,
    commit: Commit = _ignore,
) -> None:
    """Read each entry, whose parts cover it, to the tensor of its name, of the same dtype and shape.

    Raises CheckpointReadError, BadSource.
    """
    items = []
    for entry in entries:
        for number, part in enumerate(entry.parts):
            index = MetadataIndex(entry.name, part.starts, number)
            if index not in metadata.storage_data:
                index = MetadataIndex(entry.name)
            at = torch.Size(part.starts)
            items.append(
                ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=index,
                    dest_offsets=at,
                    storage_index=index,
                    storage_offsets=torch.Size([0] * len(part.shape)),
                    lengths=torch.Size(part.shape),
                )
            )
    reader.set_up_storage_reader(metadata, True)
    planner: Any = _Planner(tensors, commit)
    reader.read_data_with_progress(LoadPlan(items), planner, files_progress)


def read_values(reader: ParallelFileSystemReader, metadata: Any, names: Sequence[str]) -> dict[str, Any]:
    """What is no tensor, by name. Raises CheckpointReadError, also for pickles of more than data."""
    nothing = torch.Size([0])
    items = [
        ReadItem(
            type=LoadItemType.BYTE_IO,
            dest_index=MetadataIndex(name),
            dest_offsets=nothing,
            storage_index=MetadataIndex(name),
            storage_offsets=nothing,
            lengths=nothing,
        )
        for name in names
    ]
    reader.set_up_storage_reader(metadata, True)
    planner: Any = _Planner({})
    reader.read_data(LoadPlan(items), planner)
    return dict(planner.values)
