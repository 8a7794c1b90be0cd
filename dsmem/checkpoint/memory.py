"""New memory for tensors, in huge pages where the system gives them to who asks (`madvise`).

Filling fresh memory is bound by page faults: with pages of 2 MiB there are 512 times fewer of them.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from functools import cache

import torch

_WORTH_BYTES = 4 << 20
log = logging.getLogger(__name__)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is still to be filled."""
    tensor = torch.empty(shape, dtype=dtype)
    _advise(tensor.data_ptr(), tensor.nbytes)
    return tensor


def storage(size_bytes: int) -> torch.UntypedStorage:
    """A storage that is still to be filled."""
    made: torch.UntypedStorage = torch.UntypedStorage(size_bytes)  # type: ignore[no-untyped-call]  # torch's own
    _advise(made.data_ptr(), size_bytes)
    return made


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def advise(address: int, size_bytes: int, advice: int) -> None:
    """madvise(2), of whole pages, so that memory of others is left as it is; Python's own would hold its lock."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= begin:
        return
    if _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice):
        log.debug("madvise %d: %s", advice, os.strerror(ctypes.get_errno()))  # a kernel without huge pages


def _advise(address: int, size_bytes: int) -> None:
    if size_bytes >= _WORTH_BYTES:
        advise(address, size_bytes, mmap.MADV_HUGEPAGE)
