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
from dsmem.pinning.pagecache import PageCache

_LIBC = ctypes.CDLL(None, use_errno=True)
SLICES = 5
LITTLE = 256
"""Pages."""


def cached(path: Path) -> list[bool]:
    """Of each slice, whether more than a little is in the page cache, without reading any (which reads ahead)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        view = np.frombuffer(whole, np.uint8)
        resident = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
        done = _LIBC.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view)), ctypes.c_void_p(resident.ctypes.data)
        )
        del view
    assert done == 0, os.strerror(ctypes.get_errno())
    pages = digest.SLICE_BYTES // mmap.PAGESIZE
    return [int((resident[index * pages : (index + 1) * pages] & 1).sum()) > LITTLE for index in range(SLICES)]


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture(scope="module", params=[None, "lzf"], ids=["contiguous", "lzf"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five slices of rows that do not compress, sixteen of them again and again; nobody writes to it."""
    path = tmp_path_factory.mktemp("cached") / "x.h5"
    rows = np.random.default_rng(0).integers(0, 256, (16, 1 << 16), np.uint8)
    count = SLICES * digest.SLICE_BYTES // rows[0].nbytes
    with h5py.File(path, "w") as file:
        if request.param is None:
            file["x"] = np.resize(rows, (count, rows.shape[1]))
        else:
            dataset = file.create_dataset(
                "x", (count, rows.shape[1]), "u1", chunks=(1, rows.shape[1]), compression=request.param
            )
            dataset[: len(rows)] = rows
            stored = [dataset.id.read_direct_chunk((row, 0)) for row in range(len(rows))]
            for row in range(len(rows), count):
                mask, data = stored[row % len(rows)]
                dataset.id.write_direct_chunk((row, 0), data, mask)
    return path


@pytest.mark.parametrize("algo", ["xxh3-tree", "sha256"])
def test_what_was_cold_is_dropped_and_what_was_warm_stays(path: Path, algo: str) -> None:
    drop(path)
    if any(cached(path)):
        pytest.skip("this file system keeps what it is told to drop")
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(digest.SLICE_BYTES)
        file.read(digest.SLICE_BYTES)
    assert cached(path) == [False, True, False, False, False]
    dsmem.pin(path, algo=algo, hash_cache=False)
    assert cached(path) == [False, True, False, False, False]
    with h5py.File(path) as plain, dsmem.attach(path) as file:
        assert np.array_equal(file["x"], plain["x"])


def test_what_the_kernel_reads_ahead_of_a_slice_is_not_taken_for_somebody_elses(path: Path) -> None:
    """A thread that is held up begins a slice when reading the one before it has brought most of it."""
    drop(path)
    if any(cached(path)):
        pytest.skip("this file system keeps what it is told to drop")
    with path.open("rb", buffering=0) as file:
        with PageCache(file.fileno(), path.stat().st_size) as cache:
            for index in range(SLICES):
                cache.expect(index)
                file.seek(index * digest.SLICE_BYTES)
                file.read(2 * digest.SLICE_BYTES)
                cache.passed(index)
        assert not any(cached(path))
