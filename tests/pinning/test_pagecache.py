"""Pinning a cold file leaves the page cache as it was; what others had cached stays."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import dsmem
from dsmem import digest

_LIBC = ctypes.CDLL(None, use_errno=True)


def cached(path: Path, offset: int) -> bool:
    """Whether a byte of a file is in the page cache, without reading it (a read that may not wait reads ahead)."""
    page = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        view = np.frombuffer(whole, np.uint8)
        resident = (ctypes.c_ubyte * 1)()
        done = _LIBC.mincore(ctypes.c_void_p(view.ctypes.data + page), ctypes.c_size_t(mmap.PAGESIZE), resident)
        del view
    assert done == 0, os.strerror(ctypes.get_errno())
    return bool(resident[0] & 1)


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("algo", ["xxh3-tree", "sha256"])
@pytest.mark.parametrize("compression", [None, "lzf"])
def test_what_was_cold_is_dropped_and_what_was_warm_stays(tmp_path: Path, algo: str, compression: str | None) -> None:
    path = tmp_path / "x.h5"
    slices = 5
    data = np.frombuffer(os.urandom(slices * digest.SLICE_BYTES), np.uint8).reshape(-1, 1 << 16)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 1 << 16) if compression else None, compression=compression)
    middles = [index * digest.SLICE_BYTES + digest.SLICE_BYTES // 2 for index in range(slices)]
    drop(path)
    if any(cached(path, middle) for middle in middles):
        pytest.skip("this file system keeps what it is told to drop")
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(digest.SLICE_BYTES)
        file.read(digest.SLICE_BYTES)
    assert [cached(path, middle) for middle in middles[:3]] == [False, True, False]
    dsmem.pin(path, algo=algo, hash_cache=False)
    assert [cached(path, middle) for middle in middles] == [False, True, False, False, False]
    np.testing.assert_array_equal(dsmem.attach(path)["x"], data)
