"""Chunked datasets decoded without HDF5: every filter, shape and edge equal to what h5py reads; lies are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmem
from dsmem.hdf5 import chunks as chunking
from dsmem.hdf5.chunkindex import read_table
from dsmem.hdf5.chunks import ChunkedDataset
from dsmem.hdf5.codecs import Filter, NotKnown, Pipeline, Undecodable
from dsmem.hdf5.datasets import inspect
from dsmem.hdf5.stored import StoredChunks

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
    "shuffle+gzip+fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "shuffle+lzf": {"compression": "lzf", "shuffle": True},
    "szip": {"compression": "szip"},
    "lz4": dict(hdf5plugin.LZ4()),
    "zstd": dict(hdf5plugin.Zstd()),
    "blosc lz4": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "blosc zstd bitshuffle": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "bitshuffle lz4, blocks of 128": dict(hdf5plugin.Bitshuffle(nelems=128, cname="lz4")),
}


def decoded(path: Path, name: str) -> np.ndarray[Any, Any]:
    """All of a dataset, through the bands, each in memory of its own."""
    with h5py.File(path) as file:
        dataset = file[name]
        item = inspect(dataset.id, name, path.stat().st_size)
        assert item.tier == "chunked" or "may be unfiltered" in item.why, item.why
        table = read_table(dataset.id, dataset.shape, dataset.chunks, path.stat().st_size)
        fd = os.open(path, os.O_RDONLY)
        try:
            work = ChunkedDataset(
                StoredChunks(fd, name),
                table,
                shape=dataset.shape,
                chunks=dataset.chunks,
                item_bytes=dataset.dtype.itemsize,
                pipeline=Pipeline(item.filters, int(np.prod(dataset.chunks)) * dataset.dtype.itemsize),
                fill=np.asarray(dataset.fillvalue, dataset.dtype).tobytes(),
                label=name,
            )
            whole = np.full(dataset.nbytes, 0xA5, np.uint8)
            for band in work.bands():
                work.decode(band, whole[band.start : band.start + band.size_bytes])
        finally:
            os.close(fd)
        result: np.ndarray[Any, Any] = whole.view(dataset.dtype).reshape(dataset.shape)
        return result


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<f4", "<f8", "<c16", "S3"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_every_filter_equals_h5py(tmp_path: Path, filters: dict[str, Any], dtype: str) -> None:
    values = np.cumsum(np.random.default_rng(1).integers(0, 4, (13, 11, 21)), axis=2)
    data = values.astype(dtype) if dtype[0] != "S" else values.astype("S3")
    noise = np.frombuffer(os.urandom(data.nbytes), np.uint8).view(data.dtype).reshape(data.shape)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        try:
            file.create_dataset("smooth", data=data, chunks=(4, 5, 21), **filters)
            file.create_dataset("noise", data=noise, chunks=(3, 11, 8), **filters)
        except (ValueError, OSError, TypeError) as exc:
            pytest.skip(f"h5py writes no such dataset: {exc}")
    with h5py.File(path) as file:
        for name in ("smooth", "noise"):
            assert decoded(path, name).tobytes() == file[name][()].tobytes()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_shape_equals_h5py(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Edges, chunks larger than the dataset, missing chunks, fill values, chunks whose filters were left out."""
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=9))
    chunks = tuple(data.draw(st.integers(1, extent + 2)) for extent in shape)
    options: list[dict[str, Any]] = [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}]
    path = tmp_path_factory.mktemp("shapes") / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "x",
            shape,
            "<i4",
            chunks=chunks,
            maxshape=(None,) * len(shape),
            fillvalue=data.draw(st.sampled_from([None, 0, 7])),
            **data.draw(st.sampled_from(options)),
        )
        for _ in range(data.draw(st.integers(0, 4))):
            start = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
            part = tuple(
                slice(i, data.draw(st.integers(i + 1, extent))) for i, extent in zip(start, shape, strict=True)
            )
            dataset[part] = data.draw(st.integers(-100, 100))
        corner = tuple(0 for _ in shape)
        if data.draw(st.booleans()):
            raw = np.arange(int(np.prod(chunks)), dtype="<i4").tobytes()
            dataset.id.write_direct_chunk(corner, raw, filter_mask=0xFFFFFFFF)
    with h5py.File(path) as file:
        expected = file["x"][()]
    np.testing.assert_array_equal(decoded(path, "x"), expected)


@pytest.mark.parametrize("userblock", [0, 512, 4096])
def test_chunks_are_found_behind_a_user_block(tmp_path: Path, userblock: int) -> None:
    path = tmp_path / "x.h5"
    data = np.arange(1000, dtype="<i8").reshape(10, 100)
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.create_dataset("x", data=data, chunks=(3, 40), compression="gzip")
    np.testing.assert_array_equal(decoded(path, "x"), data)


def test_long_bands_are_shared_by_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A band longer than a buffer may be is decoded into the object itself, a few chunks a task."""
    monkeypatch.setattr(chunking, "LARGEST_BAND_BYTES", 4096)
    monkeypatch.setattr(chunking, "BAND_BYTES", 512)
    monkeypatch.setattr("dsmem.pinning.decoding.LARGEST_BAND_BYTES", 4096)
    path = tmp_path / "x.h5"
    data = np.arange(64 * 300, dtype="<i4").reshape(64, 300)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=data, chunks=(10, 7), compression="gzip")
    np.testing.assert_array_equal(decoded(path, "x"), data)
    dsmem.pin(path, verify=True)
    np.testing.assert_array_equal(dsmem.attach(path)["x"], data)


def corrupted(tmp_path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """A file whose second chunk was changed by `change(bytes of the file, its offset, its size)`."""
    path = tmp_path / "x.h5"
    data = np.arange(4096, dtype="<i4").reshape(64, 64)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=data, chunks=(16, 64), compression="gzip", fletcher32=True)
        file.flush()
        info = dataset.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    change(content, info.byte_offset, info.size)
    path.write_bytes(content)
    return path


def test_a_flipped_bit_is_an_error_that_names_the_chunk(tmp_path: Path) -> None:
    def flip(content: bytearray, offset: int, size: int) -> None:
        content[offset + size // 2] ^= 4

    with pytest.raises(dsmem.BadSource, match=r"/x: the chunk at \(16, 0\) can't be decoded: checksum"):
        dsmem.pin(corrupted(tmp_path, flip))


def test_a_lying_checksum_is_an_error(tmp_path: Path) -> None:
    def lie(content: bytearray, offset: int, size: int) -> None:
        content[offset + size - 1] ^= 1

    with pytest.raises(dsmem.BadSource, match="checksum"):
        dsmem.pin(corrupted(tmp_path, lie))


def test_a_chunk_that_decodes_to_too_little_or_too_much_is_an_error() -> None:
    import zlib

    pipeline = Pipeline([Filter(1, (4,))], 100)
    out = np.zeros(100, np.uint8)
    pipeline.decode(memoryview(zlib.compress(b"x" * 100)), out, 0)
    assert out.tobytes() == b"x" * 100
    for size in (0, 99, 101):
        with pytest.raises(Undecodable):
            pipeline.decode(memoryview(zlib.compress(b"x" * size)), out, 0)
    with pytest.raises(Undecodable):
        pipeline.decode(memoryview(b""), out, 0)


def test_pipelines_that_only_hdf5_knows() -> None:
    for filters in ([Filter(5, ())], [Filter(1, ()), Filter(2, (4,))], [Filter(32026, ())]):
        with pytest.raises(NotKnown):
            Pipeline(filters, 64)
