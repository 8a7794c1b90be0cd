"""Files damaged in one known way each: what the fuzzing found once, kept as small tests."""

from __future__ import annotations

import struct
from pathlib import Path

import fuzzing
import h5py
import numpy as np
import pytest

import dsmem
from dsmem.arrays import dtypes

CHUNK_BYTES = 16


def chunked(path: Path) -> tuple[bytearray, int]:
    """A file with chunks of 4 items at 0, 4 and 8, and where the B-tree's key of the second lies."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(12, dtype="<i4"), chunks=(4,))
    content = bytearray(path.read_bytes())
    return content, content.index(struct.pack("<IIQQ", CHUNK_BYTES, 0, 4, 0))


def test_two_chunks_of_one_place_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 8, 0)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="/x: its chunk index is damaged"):
        dsmem.pin(path)


def test_a_chunk_between_others_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 8, 5)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)


@pytest.mark.parametrize("address", [2**63 - 1, 2**63 - 20, 1 << 40])
def test_a_chunk_beyond_the_file_is_an_error(tmp_path: Path, address: int) -> None:
    path = tmp_path / "x.h5"
    content, key = chunked(path)
    struct.pack_into("<Q", content, key + 24, address)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)


def test_a_file_whose_root_is_a_dataset_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["x"] = np.arange(4)
        address = h5py.h5o.get_info(file["x"].id).addr
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 64, address)  # of the root's symbol table entry, in a version 0 superblock
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource, match="its root is not a group"):
        dsmem.pin(path)


def test_a_damaged_chunk_index_does_not_crash_hdf5(tmp_path: Path) -> None:
    """HDF5 2.0.0 crashes where it is asked for all about such an object (h5o.get_info), not where it reads it."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", data=np.zeros((4, 4)), chunks=(2, 2), maxshape=(None, None))
    content = bytearray(path.read_bytes())
    index = content.index(b"BTHD")
    struct.pack_into("<Q", content, content.index(struct.pack("<Q", index)), 0)
    fuzzing.mend_checksums(content)
    path.write_bytes(content)
    with pytest.raises(dsmem.BadSource):
        dsmem.pin(path)
    with dsmem.File(path) as file:
        assert file.source == "h5py"
        with pytest.raises(OSError, match="read data"):
            file["x"][()]


def test_an_enum_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    metadata = {"enum": {b"\x80red": 0, "blü": 1}}
    found = dtypes.from_json(dtypes.to_json(np.dtype("u1", metadata=metadata)))
    assert dict(found.metadata or {}) == metadata


def test_a_virtual_dataset_that_may_grow_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["a"] = np.arange(4, dtype="<i4")
        layout = h5py.VirtualLayout(shape=(4,), dtype="<i4", maxshape=(None,))
        layout[:] = h5py.VirtualSource(".", "a", shape=(4,))
        file.create_virtual_dataset("v", layout)
    dsmem.pin(path)
    with dsmem.attach(path) as ours, h5py.File(path, "r") as theirs:
        assert ours["v"].maxshape == theirs["v"].maxshape == (None,)
