"""What torch's own reader does to one item, for whatever the direct path leaves to it; in a thread or another process.

Source: FileSystemReader.read_data in torch/distributed/checkpoint/filesystem.py of 2.13.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageReaderTransforms
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.utils import _create_file_view

from dsmem import helpers
from dsmem.checkpoint.opened import memory_at
from dsmem.errors import BadSource, UsageError

Executor = Literal["thread", "process"]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The replaceable steps; `replaced` names those that are not the stock ones."""

    slice_file: Callable[[Any, Any], Any]
    narrow_tensor: Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]
    transform: Callable[[Any, Sequence[str], Any], Any]
    fs: Any
    replaced: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether paths are those of this machine's file systems."""
        return type(self.fs) is FileSystem


def slice_file(stream: Any, item_metadata: Any) -> Any:
    """The bytes of one item as a stream of their own."""
    return _create_file_view(stream, item_metadata.offset, item_metadata.length)


def narrow_tensor(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The part of a stored tensor that a request asks for, as a view."""
    return narrow_tensor_by_index(tensor, offsets, lengths)


class Transform:
    """Undo what extensions did to an item when it was saved."""

    def __init__(self, transforms: Any) -> None:
        self._transforms = transforms

    def __call__(self, read_item: Any, descriptors: Sequence[str], stream: Any) -> Any:
        return self._transforms.transform_load_stream(read_item, descriptors, stream)


def stock_transforms(transforms: object) -> bool:
    """Whether items without descriptors pass through untouched."""
    return type(transforms) is _StorageReaderTransforms


def load_item(hooks: Hooks, stream: Any, request: Any, info: Any, verify: bool) -> torch.Tensor | io.BytesIO:
    """A tensor, narrowed to the request, or the bytes of a byte item. Raises what torch.load and the hooks raise."""
    sliced = hooks.slice_file(stream, info)
    transformed = hooks.transform(request, info.transform_descriptors or (), sliced)
    if request.type == LoadItemType.BYTE_IO:
        data = io.BytesIO(transformed.read(-1))
        if verify:
            check_zip(data)
        return data
    seekable = transformed
    if verify or not transformed.seekable():
        seekable = io.BytesIO(transformed.read(-1))
    if verify:
        check_zip(seekable)
    tensor = torch.load(seekable, map_location="cpu", weights_only=True)
    return hooks.narrow_tensor(tensor, request.storage_offsets, request.lengths)


def check_zip(data: io.BytesIO) -> None:
    """Raises BadSource when a record of a zip has another checksum than was saved; what is no zip has none."""
    if bytes(data.getbuffer()[:4]) == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(data) as archive:
                for entry in archive.infolist():
                    # A checksum of zero was not computed: set_crc32_options(False).
                    if entry.CRC:
                        archive.read(entry)
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as exc:
            raise BadSource(f"the saved bytes changed: {exc}") from exc
    data.seek(0)


# other processes ----------------------------------------------------------------------------------------------------

_Sent = tuple[torch.dtype, tuple[int, ...], bytes]


def check_picklable(parts: Sequence[tuple[str, object]]) -> None:
    """Raises UsageError with the name of the first part that another process could not be given."""
    for name, part in parts:
        try:
            pickle.dumps(part)
        except Exception as exc:
            raise UsageError(
                f"{name} can't be sent to another process ({type(exc).__name__}: {exc}); "
                'use executor="thread", or make it a function of a module'
            ) from exc


def processes(workers: int) -> ProcessPoolExecutor:
    """Fresh interpreters, so that no lock of this one's threads is inherited; they end with this process."""
    import multiprocessing

    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, mp_context=spawned, initializer=helpers.end_with_parent, initargs=(os.getpid(),)
    )


def load_elsewhere(hooks: Hooks, path: Any, request: Any, info: Any, verify: bool) -> _Sent | bytes:
    """`load_item` for a process pool: what it returns is plain bytes."""
    torch.set_num_threads(1)
    with hooks.fs.create_stream(path, "rb") as stream:
        loaded = load_item(hooks, stream, request, info, verify)
    if isinstance(loaded, io.BytesIO):
        return loaded.getvalue()
    tensor = loaded.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.dtype, tuple(tensor.shape), memory_at(tensor.data_ptr(), tensor.nbytes).tobytes()


def received(sent: _Sent | bytes) -> torch.Tensor | io.BytesIO:
    """What `load_item` would have returned here."""
    if isinstance(sent, bytes):
        return io.BytesIO(sent)
    dtype, shape, data = sent
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
