"""HDF5 files as people have them, and the comparison with what h5py reads from them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from compare import assert_same_file

from dsmem import files

MIB = 1 << 20


def write_sample(path: Path, size_bytes: int = 256 << 10, *, seed: int = 0) -> Path:
    """A file with contiguous images, compressed floats and texts; `size_bytes` are the images'."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["images"] = random.integers(0, 255, (max(size_bytes // 4096, 1), 4096), np.uint8)
        floats = random.standard_normal((64, 100)).astype(np.float32)
        file.create_dataset("group/heatmaps", data=floats, chunks=(8, 100), compression="gzip")
        file["texts"] = np.array([f"line {i} of {seed}" for i in range(50)], object)
        file["images"].attrs["unit"] = "counts"
        file.attrs["seed"] = seed
    return path


def settle(path: Path) -> Path:
    """Wait until the file's timestamps are old, so that pinning it does not."""
    fd = os.open(path, os.O_RDONLY)
    try:
        files.settled_identity(fd)
    finally:
        os.close(fd)
    time.sleep(0.01)
    return path


def assert_reads_as_h5py(file: Any, path: Path) -> None:
    """Everything in an open dsmem file is what h5py reads from the path."""
    with h5py.File(path, "r") as plain:
        assert_same_file(file, plain)
