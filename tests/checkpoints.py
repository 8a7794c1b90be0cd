"""Checkpoints made for tests, and both readers over the same destinations."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

Tensors = dict[str, torch.Tensor]

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.complex32, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no process group; complex parts dropped; older formats
        yield


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, seed: int = 0) -> torch.Tensor:
    """A tensor of random bytes."""
    count = torch.empty(shape, dtype=dtype).nbytes
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bytes, NaN and signs of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (x.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(one, other)


def save(state: dict[str, Any], path: Path, *, files: int = 1, **options: Any) -> Path:
    """A checkpoint in so many files."""
    with _quiet():
        state_dict_saver.save(
            state, storage_writer=FileSystemWriter(path, thread_count=files, sync_files=False, **options)
        )
    return path


def load(state: dict[str, Any], reader: Any, **options: Any) -> dict[str, Any]:
    """Load into `state` in place."""
    with _quiet():
        state_dict_loader.load(state, storage_reader=reader, no_dist=True, **options)
    return state


def stock(state: dict[str, Any], path: Path, **options: Any) -> dict[str, Any]:
    """What torch's own reader makes of it."""
    return load(state, FileSystemReader(path, **options))


def flip(path: Path, at: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)
