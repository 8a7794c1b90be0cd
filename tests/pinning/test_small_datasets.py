"""Datasets of few chunks are decoded several at a time: equal to h5py, and each named where it can't be read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from samples import assert_reads_as_h5py, settle

import dsmem
from dsmem.hdf5 import fewchunks
from dsmem.hdf5.chunkindex import read_table
from dsmem.pinning import decoding, small
from dsmem.pinning.copying import Decoding

KINDS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip"},
    "shuffle gzip": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"fletcher32": True},
    "no filter": {},
    "fill": {"compression": "gzip", "fillvalue": -7},
}


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Decoding]:
    """The tasks that decode small datasets."""
    found: list[Decoding] = []
    original = small.SmallDatasets.decodings

    def decodings(self: small.SmallDatasets, items: Any) -> Any:
        for one in original(self, items):
            found.append(one)
            yield one

    monkeypatch.setattr(small.SmallDatasets, "decodings", decodings)
    return found


def write(path: Path, kind: dict[str, Any], count: int) -> None:
    """Datasets of one chunk and of several, clipped, never written in part or at all, sizes in turns."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(count):
            data = rng.integers(0, 50, (4 + i % 5, 6), "<i4")
            file.create_dataset(f"one/{i}", data=data, chunks=data.shape, **kind)
            file.create_dataset(f"clipped/{i}", data=data, chunks=(4, 4), **kind)
            file.create_dataset(f"rows/{i}", data=data, chunks=(3, 6), **kind)
            file.create_dataset(f"wide/{i}", data=data, chunks=(32, 32), maxshape=(None, None), **kind)
            file.create_dataset(f"nothing/{i}", data.shape, "<i4", chunks=(2, 6), **kind)
            file.create_dataset(f"part/{i}", data.shape, "<i4", chunks=(2, 6), **kind)[2:3] = data[2]
            file.create_dataset(f"odd/{i}", data=data.astype("u1")[:, :3], chunks=(2, 2), **kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_they_read_as_h5py(tmp_path: Path, kind: dict[str, Any], tasks: list[Decoding]) -> None:
    path = tmp_path / "x.h5"
    write(path, kind, 60)
    settle(path)
    dsmem.pin(path, verify=True)
    assert 1 <= len(tasks) <= 3
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_large_and_small_ones_together(tmp_path: Path, tasks: list[Decoding]) -> None:
    path = tmp_path / "x.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(40):
            file.create_dataset(
                f"{i}/small", data=rng.integers(0, 9, 50_000, "u1"), chunks=(9_000,), compression="gzip"
            )
            file.create_dataset(f"{i}/page", data=rng.integers(0, 9, 4096, "u1"), chunks=(4096,), compression="gzip")
        file.create_dataset("large", data=rng.integers(0, 9, 3 << 20, "u1"), chunks=(1 << 20,), compression="gzip")
        file.create_dataset(
            "in large chunks", data=np.arange(10), chunks=(1 << 20,), maxshape=(None,), compression="lzf"
        )
        file.create_dataset("many chunks", data=np.arange(200), chunks=(2,), compression="lzf")
        file["plain"] = np.arange(1000)
    settle(path)
    dsmem.pin(path, verify=True)
    assert len(tasks) == 3  # of a MiB each
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


def test_filters_that_were_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(3):
            dataset = file.create_dataset(f"{i}", (8,), "<i4", chunks=(8,), compression="gzip", shuffle=True)
            dataset.id.write_direct_chunk((0,), np.arange(i, i + 8, dtype="<i4").tobytes(), filter_mask=0b11)
    settle(path)
    dsmem.pin(path)
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize("chunks", [(8,), (3,)])
def test_the_damaged_one_is_named(tmp_path: Path, chunks: tuple[int, ...], untrusted: bool) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(20):
            file.create_dataset(f"{i}", data=np.arange(8), chunks=chunks, compression="gzip")
        info = file["13"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(info.byte_offset)
        raw.write(b"\xff" * info.size)
    with pytest.raises(dsmem.BadSource, match=r"x\.h5: /13: the chunk at \(0,\) can't be decoded"):
        dsmem.pin(path, untrusted=untrusted)


@pytest.mark.parametrize(("items", "chunks"), [(4, 50), (300_000, 64)])
def test_a_chunk_that_is_listed_and_not_found_is_an_error(tmp_path: Path, items: int, chunks: int) -> None:
    """The corner of the key within the item, always 0: HDF5 reads zeros. Few chunks are looked up, and large ones."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.ones(chunks * items, "u1"), chunks=(items,))
    content = bytearray(path.read_bytes())
    corner = 17 * items
    key = content.index(struct.pack("<IIQQ", items, 0, corner, 0))
    struct.pack_into("<Q", content, key + 16, 1 << 20)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert not file["x"][corner : corner + items].any()
    with pytest.raises(dsmem.BadSource, match=r"/x .* HDF5 does not find the chunk"):
        dsmem.pin(path)


def test_many_chunks_and_odd_ones_are_left_to_the_table(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(200, dtype="<i4"), chunks=(2,))
        file.create_dataset("y", data=np.arange(9, dtype="<i4").reshape(3, 3), chunks=(2, 2))
    size_bytes = path.stat().st_size
    with h5py.File(path) as file:
        assert fewchunks.read(file["x"].id, (200,), (2,), size_bytes) == b""
        found = fewchunks.read(file["y"].id, (3, 3), (2, 2), size_bytes)
        table, same = fewchunks.table(found, (3, 3), (2, 2)), read_table(file["y"].id, (3, 3), (2, 2), size_bytes)
        for column in ("offsets", "sizes", "masks"):
            np.testing.assert_array_equal(getattr(table, column), getattr(same, column))
        assert table.grid == same.grid
        assert fewchunks.source_end(found) == max(table.offsets + table.sizes)
        assert fewchunks.read(file["y"].id, (3, 3), (2, 2), fewchunks.source_end(found) - 1) == b""
        assert decoding.LEAST_CHUNKS > fewchunks.MOST_CHUNKS


def test_those_far_apart_are_not_decoded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[Decoding]
) -> None:
    """What a task reads was read for the digest shortly before, and is in memory still."""
    monkeypatch.setattr(small, "SLICE_BYTES", 100_000)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(8):
            data = np.random.default_rng(i).integers(0, 256, 4000, "u1")  # HDF5 puts less than 2 KiB elsewhere
            file.create_dataset(f"{i}/small", data=data, chunks=data.shape, compression="gzip")
            file[f"{i}/large"] = np.zeros(40_000, "u1")
    settle(path)
    dsmem.pin(path)
    assert len(tasks) >= 3
    with dsmem.attach(path) as file:
        assert_reads_as_h5py(file, path)
