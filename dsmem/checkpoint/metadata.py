"""The records of a `.metadata`, looked at before torch's planners meet them: each field is of the kind that it is for.

What a planner meets else it tells as an AttributeError in the midst of its own code. What the records say may still be
wrong: boxes that are not in the tensor, places that are not in the files are told when they are read.
"""

from __future__ import annotations

import torch
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OlderTensorProperties
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dsmem.errors import BadSource

_MOST_SHOWN = 60
_MAX_INT64 = (1 << 63) - 1


def check(found: object, *, where: str) -> Metadata:
    """The object that was in the file, which is metadata. Raises BadSource, with the first field that can't be."""
    try:
        if not isinstance(found, Metadata):
            raise _Fault("it is something else")
        _check_items(found.state_dict_metadata)
        _check_places(found.storage_data)
        if not isinstance(getattr(found, "storage_meta", None), StorageMeta | None):
            raise _Fault("its storage_meta is something else")
    except (_Fault, AttributeError) as exc:  # a record without one of its fields
        raise BadSource(f"{where} holds no metadata of a checkpoint: {exc}") from exc
    return found


def check_dimensions(metadata: Metadata, *, where: str) -> None:
    """Raises BadSource for a part with another number of dimensions than its tensor."""
    for name, one in metadata.state_dict_metadata.items():
        if isinstance(one, TensorStorageMetadata):
            for chunk in one.chunks:
                if not len(chunk.offsets) == len(chunk.sizes) == len(one.size):
                    raise BadSource(f"{where} is damaged: a part of {name} has another number of dimensions")


class _Fault(Exception):
    """What is wrong with a record."""


def _check_items(items: object) -> None:
    if not isinstance(items, dict):
        raise _Fault("it has no table of what was saved")
    for name, one in items.items():
        if type(name) is not str:
            raise _Fault(f"{_shown(name)} is no name")
        if type(one) is TensorStorageMetadata:
            _check_tensor(name, one)
        elif type(one) is not BytesStorageMetadata:
            raise _Fault(f"{_shown(name)} is neither a tensor nor bytes")


def _check_tensor(name: str, one: TensorStorageMetadata) -> None:
    known = type(one.properties) in (TensorProperties, OlderTensorProperties)
    if not known or type(one.properties.dtype) is not torch.dtype:
        raise _Fault(f"{_shown(name)} has no dtype")
    if not _are_sizes(one.size):
        raise _Fault(f"{_shown(name)} has a shape that is none")
    if type(one.chunks) is not list:
        raise _Fault(f"{_shown(name)} has no parts")
    for chunk in one.chunks:
        if type(chunk) is not ChunkStorageMetadata or not (_are_sizes(chunk.offsets) and _are_sizes(chunk.sizes)):
            raise _Fault(f"{_shown(name)} has a part that is none")


def _check_places(places: object) -> None:
    if not isinstance(places, dict):
        raise _Fault("it has no table of places in files")
    for index, info in places.items():
        if type(index) is not MetadataIndex or type(index.fqn) is not str:
            raise _Fault(f"{_shown(index)} is no place of a tensor")
        if index.offset is not None and not _are_sizes(index.offset):
            raise _Fault(f"{_shown(index.fqn)} has an offset that is none")
        if (
            type(info) is not _StorageInfo
            or type(info.relative_path) is not str
            or type(info.offset) is not int
            or type(info.length) is not int
            or max(abs(info.offset), abs(info.length)) > _MAX_INT64
            or not _are_names(info.transform_descriptors)
        ):
            raise _Fault(f"{_shown(index.fqn)} has a place in a file that is none")


def _are_sizes(found: object) -> bool:
    """Whole numbers from 0 on, as few as a shape has."""
    if type(found) is torch.Size:  # which holds whole numbers only
        return not found or min(found) >= 0
    return isinstance(found, tuple | list) and all(type(one) is int and 0 <= one <= _MAX_INT64 for one in found)


def _are_names(found: object) -> bool:
    return found is None or (isinstance(found, tuple | list) and all(type(one) is str for one in found))


def _shown(found: object) -> str:
    """A name in one short line; of what is none its kind: what damage makes may have no repr."""
    if type(found) is not str:
        return f"a {type(found).__name__}"
    return repr(found if len(found) <= _MOST_SHOWN else f"{found[:_MOST_SHOWN]}…")
